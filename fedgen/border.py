"""The server's border: nothing that a node sends is believed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord

from fedgen.audit.gate import FAILED, PASSED, UNKNOWN
from fedgen.audit.result import Report
from fedgen.errors import DataError, PayloadError
from fedgen.evaluation.zero_shot import Scores, scores_of
from fedgen.exchange.payload import read_array
from fedgen.training.losses import History

LONGEST = 4_000_000  # characters of JSON that a node may send
TARGET_ROUNDING = 1e-3  # by which the same targets may differ on two machines


@dataclass(frozen=True)
class Member:
    """What the server knows of a node.

    Attributes
    ----------
    number : int
        The node's place in the partition.
    counts : dict[int, int]
        Its clips of each global class id.
    granularity : str
        How its classes share generators.
    slots : dict[str, list[str]]
        Which of its classes each of its generators serves, if it trains any.
    held_out : dict[int, int]
        Its clips of each global class id that it does not train on, and can test on.
    """

    number: int
    counts: dict[int, int]
    granularity: str = "unified"
    slots: dict[str, list[str]] = field(default_factory=dict)
    held_out: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Agreement:
    """What every node of a run must have as the server has it.

    Attributes
    ----------
    classes : list[str]
        Class names by global id.
    shape : tuple[int, int]
        ``(S, D)`` of a clip's tokens.
    encoder : dict
        Identity of the encoder that made them.
    targets : list[list[float]]
        `Targets.fingerprint` of the classes' targets.
    """

    classes: list[str]
    shape: tuple[int, int]
    encoder: dict[str, Any]
    targets: list[list[float]]

    def differences(self, said: Mapping[str, Any]) -> list[str]:
        """Return in which ways a node's own words differ, in words."""
        pairs = {
            "classes": (list(said["classes"]), self.classes),
            "shape of tokens": (tuple(said["shape"]), self.shape),
            "encoder": (said["encoder"], self.encoder),
        }
        found = [f"{name} {theirs}, the server has {ours}" for name, (theirs, ours) in pairs.items() if theirs != ours]
        theirs, ours = np.array(said["targets"], float), np.array(self.targets, float)
        if theirs.shape != ours.shape or not np.allclose(theirs, ours, atol=TARGET_ROUNDING):
            found.append("other targets than the server: another version of fedgen, or of the text encoders")
        return found


def read_member(reply: Message, agreement: Agreement) -> Member:
    """Return what a node says of itself.

    Raises
    ------
    DataError
        It cannot be read, or the node disagrees with the server about classes, tokens, encoder or targets.
    """
    try:
        said = _facts(reply)
        ids = range(len(agreement.classes))
        counts, held_out = _class_counts(said["counts"], ids), _class_counts(said["held_out"], ids)
        slots = {str(key): [str(name) for name in names] for key, names in said["slots"].items()}
        member = Member(int(said["number"]), counts, str(said["granularity"]), slots, held_out)
        differences = agreement.differences(said)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        node_id = reply.metadata.src_node_id
        raise DataError(f"Flower node {node_id} describes itself in a way that cannot be read: {error!r}") from error
    if differences:
        raise DataError(f"node {member.number} has {'; '.join(differences)}")
    return member


def read_classes(reply: Message) -> list[str]:
    """Return the names of the classes that a node has.

    Raises
    ------
    DataError
        The node cannot say, or it cannot be read.
    """
    try:
        return [str(name) for name in _facts(reply)["classes"]]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        node_id = reply.metadata.src_node_id
        raise DataError(f"Flower node {node_id} names its classes in a way that cannot be read: {error!r}") from error


def _facts(reply: Message) -> Any:
    """Return what a node says of itself; `DataError` with its own words if it cannot."""
    if reply.has_error():
        raise DataError(str(reply.error.reason))
    text = str(reply.content.config_records["facts"]["json"])
    if len(text) > LONGEST:
        raise ValueError(f"{len(text)} characters, expected at most {LONGEST}")
    return json.loads(text)


def _class_counts(pairs: Any, ids: range) -> dict[int, int]:
    """Return clips by class id; `ValueError` for an id that there is not, or a number that is none of clips."""
    counts = {int(label): int(count) for label, count in pairs}
    if any(label not in ids or count < 1 for label, count in counts.items()):
        raise ValueError(f"clips by class id {counts}, ids are 0 to {len(ids) - 1}")
    return counts


def read_scores(member: Member, reply: Message, classes: list[str], heads: Sequence[str]) -> Scores:
    """Return what a node's held-out clips say about adapters.

    Raises
    ------
    PayloadError
        It cannot be read, is not finite, or is about clips that the node has not told of.
    """
    said = _json(reply, "scores", "scores")
    try:
        confusion = [[int(count) for count in row] for row in said["confusion"]]
        values = {head: {name: float(said["heads"][head][name]) for name in ("cosine", "mse")} for head in heads}
    except (KeyError, TypeError, ValueError) as error:
        raise PayloadError(f"scores cannot be read: {error!r}") from error
    clips = [member.held_out.get(label, 0) for label in range(len(classes))]
    square = all(len(row) == len(classes) and min(row) >= 0 for row in confusion)
    if not square or [sum(row) for row in confusion] != clips:
        raise PayloadError(f"scores of other clips than the node's held-out ones, which are {clips} by class id")
    if not all(math.isfinite(value) for head in values.values() for value in head.values()):
        raise PayloadError(f"scores are not finite: {values}")
    return scores_of(confusion, values, classes)


def check_training(member: Member, reply: Message, wanted: ArrayRecord) -> None:
    """Refuse adapters of other names, shapes or types than ``wanted``, values that are not finite, odd metrics.

    Raises
    ------
    PayloadError
    """
    records, metrics = list(reply.content.array_records.values()), list(reply.content.metric_records.values())
    if len(records) != 1 or len(metrics) != 1:
        raise PayloadError("a training reply needs one ArrayRecord and one MetricRecord")
    if set(records[0]) != set(wanted):
        raise PayloadError(f"adapters have other arrays than were sent: {sorted(set(records[0]) ^ set(wanted))}")
    for name, array in records[0].items():
        read_array(array, name, np.dtype(wanted[name].dtype), tuple(wanted[name].shape))
    _check_metrics(member, metrics[0])
    read_losses(reply)
    read_spent(reply)


def _check_metrics(member: Member, metrics: MetricRecord) -> None:
    """Refuse a weight in the average that the node's clips do not justify, and metrics that are not numbers."""
    clips, most = metrics.get("num-examples"), sum(member.counts.values())
    if not isinstance(clips, int) or not 1 <= clips <= most:
        raise PayloadError(f"num-examples is {clips}, expected a whole number from 1 to the node's {most} clips")
    for name, value in metrics.items():
        if not isinstance(value, int | float):
            raise PayloadError(f"metric {name} is {value}, expected a number")


def read_verdict(member: Member, reply: Message) -> dict[str, Any]:
    """Return a node's audit of itself, and its verdict: ``audit``, ``verdict``, ``reasons``, ``summary``.

    Raises
    ------
    PayloadError
        It cannot be read.
    """
    said = _json(reply, "audit", "the audit of a node")
    good = isinstance(said, dict) and said.get("verdict") in (PASSED, FAILED, UNKNOWN)
    if not good or not isinstance(said.get("reasons"), list) or not isinstance(said.get("summary"), str):
        raise PayloadError(f"node {member.number} tells no verdict on what it sent: {str(said)[:100]}")
    try:
        audit = None if said.get("audit") is None else Report.from_dict(said["audit"]).to_dict()
    except (DataError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise PayloadError(f"node {member.number} sends an audit that cannot be read: {error!r}") from error
    reasons = [str(text) for text in said["reasons"]]
    return {"audit": audit, "verdict": said["verdict"], "reasons": reasons, "summary": said["summary"]}


def read_losses(reply: Message) -> History:
    """Return the losses of the node's generators.

    Raises
    ------
    PayloadError
        They are not a JSON list of mappings.
    """
    history = _json(reply, "generators", "the losses of generators") or []
    if not isinstance(history, list) or not all(isinstance(epoch, dict) for epoch in history):
        raise PayloadError(f"the losses of generators are not a list of mappings: {str(history)[:100]}")
    return history


def read_spent(reply: Message) -> dict[str, Any]:
    """Return what a node says that it has spent of its privacy budget; empty without one.

    Raises
    ------
    PayloadError
        It is no mapping.
    """
    spent = _json(reply, "privacy", "what was spent of privacy") or {}
    if not isinstance(spent, dict):
        raise PayloadError(f"what was spent of privacy is no mapping: {str(spent)[:100]}")
    return spent


def _json(reply: Message, key: str, what: str) -> Any:
    texts = [str(record[key]) for record in reply.content.config_records.values() if key in record]
    if sum(map(len, texts)) > LONGEST:
        raise PayloadError(f"{what} are {sum(map(len, texts))} characters long, expected at most {LONGEST}")
    try:
        return json.loads(texts[0]) if texts else None
    except (ValueError, RecursionError) as error:
        raise PayloadError(f"{what} are no JSON: {error}") from error


def keep_shared_metrics(replies: Iterable[Message]) -> None:
    """Drop metrics that not every reply has: Flower's strategies end the run over them."""
    records = [next(iter(reply.content.metric_records.values())) for reply in replies]
    shared = set.intersection(*(set(record) for record in records))
    for record in records:
        for name in set(record) - shared:
            del record[name]


def message_bytes(message: Message) -> int:
    """Return the bytes of a message's records."""
    records = message.content
    arrays = sum(record.count_bytes() for record in records.array_records.values())
    metrics = sum(record.count_bytes() for record in records.metric_records.values())
    words = [part for record in records.config_records.values() for item in record.items() for part in item]
    return arrays + metrics + sum(len(str(word)) for word in words)

"""Limits on what one node may send: bytes, records, and how far it moves the adapters."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord

from fedgen.data.plain import LONGEST, bounded, check_names, read_json
from fedgen.errors import ConfigError, DataError, PayloadError, said
from fedgen.evaluation.zero_shot import Scores, scores_of
from fedgen.messages.samples import read_array
from fedgen.models.generators.bank import History
from fedgen.models.settings import GRANULARITIES
from fedgen.privacy.gate import FAILED, PASSED, UNKNOWN
from fedgen.privacy.result import Report

UNREADABLE = (AttributeError, KeyError, TypeError, ValueError, OverflowError)  # what ill-formed facts raise
MOST_CLASSES, MOST_REASONS = 10_000, 20  # that a node may name
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

    def differences(self, facts: Mapping[str, Any]) -> list[str]:
        """Return in which ways a node's own words differ, in words."""
        pairs = {
            "classes": (list(facts["classes"]), self.classes),
            "shape of tokens": (tuple(facts["shape"]), self.shape),
            "encoder": (facts["encoder"], self.encoder),
        }
        found = [f"{name} {theirs}, the server has {ours}" for name, (theirs, ours) in pairs.items() if theirs != ours]
        theirs, ours = np.array(facts["targets"], float), np.array(self.targets, float)
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
    node = f"Flower node {reply.metadata.src_node_id}"
    try:
        facts = _facts(reply)
        ids = range(len(agreement.classes))
        counts, held_out = _class_counts(facts["counts"], ids), _class_counts(facts["held_out"], ids)
        slots = _slots(facts["slots"], agreement.classes)
        member = Member(int(facts["number"]), counts, _granularity(facts["granularity"]), slots, held_out)
        differences = agreement.differences(facts)
    except (*UNREADABLE, ConfigError) as error:
        raise DataError(f"{node} describes itself in a way that cannot be read: {said(repr(error))}") from error
    if differences:
        raise DataError(f"node {member.number} has {said('; '.join(differences))}")
    return member


def _granularity(name: str) -> str:
    if name not in GRANULARITIES:
        raise ValueError(f"granularity {name!r}")
    return name


def _slots(slots: Mapping[str, list[str]], classes: list[str]) -> dict[str, list[str]]:
    """Return which classes each generator serves; `ConfigError` or `ValueError` for names that there are not."""
    check_names(slots, "generators")
    if not all(name in classes for names in slots.values() for name in names):
        raise ValueError("generators of classes that the run does not have")
    return {key: list(names) for key, names in slots.items()}


def read_classes(reply: Message) -> list[str]:
    """Return the names of the classes that a node has.

    Raises
    ------
    DataError
        The node cannot say, it cannot be read, or a name is none.
    """
    node = f"Flower node {reply.metadata.src_node_id}"
    try:
        names = list(_facts(reply)["classes"])[: MOST_CLASSES + 1]
        if len(names) > MOST_CLASSES:
            raise ValueError(f"more than {MOST_CLASSES} classes")
        check_names(names, f"classes of {node}")
        return names
    except ConfigError as error:
        raise DataError(str(error)) from error
    except UNREADABLE as error:
        raise DataError(f"{node} names its classes in a way that cannot be read: {said(repr(error))}") from error


def _facts(reply: Message) -> Any:
    """Return what a node says of itself; `DataError` with its own words if it cannot."""
    if reply.has_error():
        raise DataError(str(reply.error.reason))
    return read_json(str(reply.content.config_records["facts"]["json"]))


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
    found = _json(reply, "scores", "scores")
    try:
        confusion = [[int(count) for count in row] for row in found["confusion"]]
        values = {head: {name: float(found["heads"][head][name]) for name in ("cosine", "mse")} for head in heads}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise PayloadError(f"scores cannot be read: {said(repr(error))}") from error
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
        if said(name, 100) != name:
            raise PayloadError(f"metric {said(repr(name), 100)} is no name")


def read_verdict(member: Member, reply: Message) -> dict[str, Any]:
    """Return a node's audit of itself, and its verdict: ``audit``, ``verdict``, ``reasons``, ``summary``, ``auc``.

    Raises
    ------
    PayloadError
        It cannot be read.
    """
    found = _json(reply, "audit", "the audit of a node")
    good = isinstance(found, dict) and found.get("verdict") in (PASSED, FAILED, UNKNOWN)
    if not good or not isinstance(found.get("reasons"), list) or not isinstance(found.get("summary"), str):
        raise PayloadError(f"node {member.number} tells no verdict on what it sent: {said(found, 100)}")
    try:
        audit = None if found.get("audit") is None else Report.from_dict(found["audit"]).to_dict()
    except (DataError, *UNREADABLE) as error:
        raise PayloadError(f"node {member.number} sends an audit that cannot be read: {said(error)}") from error
    reasons = [said(reason) for reason in found["reasons"][:MOST_REASONS]]
    auc = found.get("auc")
    if auc is not None and not (isinstance(auc, float) and 0 <= auc <= 1):
        raise PayloadError(f"node {member.number} sends {said(auc, 100)} as the AUC of an attack")
    told = {"verdict": found["verdict"], "reasons": reasons, "summary": said(found["summary"]), "auc": auc}
    return {"audit": audit, **told}


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
        return bounded(read_json(texts[0])) if texts else None
    except ValueError as error:
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


MAJORITY = 3  # replies of which one cannot move the median


def check_size(reply: Message, most: float) -> None:
    """Refuse a reply of more than ``most`` megabytes (of 10^6 bytes).

    Flower has read it by then: the limit bounds what the server keeps and works on, not what it downloads.

    Raises
    ------
    PayloadError
    """
    size = message_bytes(reply) / 1e6
    if size > most:
        raise PayloadError(f"a payload of {size:.1f} MB, expected at most strategy.max_payload_mb={most:g}")


def check_records(reply: Message, arrays: int, metrics: int) -> None:
    """Refuse a reply that has not just so many records of arrays and of metrics, and at most one of other facts.

    Raises
    ------
    PayloadError
    """
    content = reply.content
    found = len(content.array_records), len(content.metric_records), len(content.config_records)
    if found[:2] != (arrays, metrics) or found[2] > 1:
        raise PayloadError(
            f"{found[0]} ArrayRecords, {found[1]} MetricRecords and {found[2]} ConfigRecords, "
            f"expected {arrays}, {metrics} and at most 1"
        )


def change(reply: Message, sent: ArrayRecord) -> float:
    """Return how far the adapters of a checked training reply are from those that were sent: the Euclidean norm."""
    (record,) = reply.content.array_records.values()
    return norm({name: array.numpy() - sent[name].numpy().astype(float) for name, array in record.items()})


def norm(values: Mapping[str, np.ndarray]) -> float:
    """Return the Euclidean norm of all values together."""
    return float(np.sqrt(sum(np.square(value, dtype=float).sum() for value in values.values())))


def excessive(changes: Mapping[int, float], sent: ArrayRecord, factor: float) -> dict[int, str]:
    """Return which nodes have moved the adapters too far, and why.

    With three replies or more, the bound is ``factor`` times the median change, which a minority of nodes cannot move;
    but a change that is shorter than the adapters themselves passes: a node with far more clips than most takes far
    more steps. Two replies have no majority to tell which is the odd one; there, and with one, the bound is ``factor``
    times the norm of the adapters, which stops those that are blown up, and little else. Neither depends on the scale
    of the weights.

    Parameters
    ----------
    changes : Mapping[int, float]
        Norm of each node's change by its number.
    sent : ArrayRecord
        What they started from.
    factor : float
        ``strategy.max_change``.

    References
    ----------
    Bounding the norm of updates: Sun et al., "Can you really backdoor federated learning?", 2019, arXiv:1911.07963.
    """
    size = norm({name: array.numpy() for name, array in sent.items()})
    median = statistics.median(changes.values()) if changes else 0.0
    few = len(changes) < MAJORITY
    bound = factor * size if few else max(factor * median, size)
    than = f"the adapters' own norm is {size:.4g}" if few else f"the median of the round is {median:.4g}"
    return {
        number: f"a change of the adapters by {moved:.4g} is too long: {than}, strategy.max_change={factor:g}"
        for number, moved in changes.items()
        if moved > bound > 0
    }

"""Checks of the nodes' replies: the server uses nothing in a reply before it is validated."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from pydantic import Field, PositiveInt, TypeAdapter, ValidationError

from fedgen.data.plain import bounded, check_names, read_json
from fedgen.errors import ConfigError, DataError, PayloadError, require, said
from fedgen.evaluation.zero_shot import Scores, scores_of
from fedgen.messages.samples import read_array
from fedgen.models.generators.bank import History
from fedgen.models.settings import GRANULARITIES
from fedgen.privacy.result import Report
from fedgen.task import Task

MAX_CLASSES, MAX_REASONS = 10_000, 20  # that a node may name
TARGET_ROUNDING = 1e-3  # the same targets may differ by so much on two machines
MAJORITY = 3  # replies of which one cannot move the median


@dataclass(frozen=True)
class NodeInfo:
    """What the server knows of a node."""

    partition_id: int  # the node's place in the partition
    counts: dict[int, PositiveInt]  # training clips of each global class id
    granularity: str = "unified"  # how its classes share generators
    slots: dict[str, list[str]] = field(default_factory=dict)  # its classes by their generator's key, if it trains any
    held_out: dict[int, PositiveInt] = field(default_factory=dict)  # clips of each class id that it can test on

    @property
    def clips(self) -> int:
        """Training clips of all classes."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class TaskSpec:
    """What every node of a run must have as the server has it."""

    classes: list[str]  # names by global id
    shape: tuple[int, int]  # (S, D) of a clip's tokens
    encoder: dict[str, Any]  # identity of the encoder that made them
    targets: list[list[float]]  # `Targets.fingerprint` of the classes' targets

    @classmethod
    def of(cls, task: Task) -> TaskSpec:
        """Return the specification of a task."""
        return cls(task.classes, task.store.shape, task.store.identity["encoder"], task.targets.fingerprint())

    def mismatches(self, node: TaskSpec) -> list[str]:
        """Return how a node's specification differs, in words."""
        names = {"classes": "classes", "shape": "shape of tokens", "encoder": "encoder"}
        pairs = {words: (getattr(node, name), getattr(self, name)) for name, words in names.items()}
        found = [f"{name} {theirs}, the server has {ours}" for name, (theirs, ours) in pairs.items() if theirs != ours]
        theirs, ours = np.array(node.targets), np.array(self.targets)
        if theirs.shape != ours.shape or not np.allclose(theirs, ours, atol=TARGET_ROUNDING):
            found.append("other targets than the server: another version of fedgen, or of the text encoders")
        return found


@dataclass(frozen=True)
class NodeAudit:
    """A node's own audit of what it sent: figures of attacks by class, and what the gate makes of them."""

    verdict: Literal["passed", "failed", "not judged"]
    reasons: list[Any]
    summary: str
    auc: Annotated[float, Field(ge=0, le=1)] | None = None
    audit: dict[str, Any] | None = None


@dataclass(frozen=True)
class TrainingReply:
    """A validated reply to ``train``."""

    message: Message
    metrics: dict[str, float]
    losses: History  # of the node's generators, by generator and epoch
    spent: dict[str, Any]  # the part of its privacy budget that the node has spent; empty without one
    norm: float  # Euclidean norm of the change of the adapters


def _validated(kind: Any, value: Any, what: str) -> Any:
    """Return ``value`` as a ``kind``; `PayloadError` names the first entry that is not valid."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        words = [said(".".join(map(str, first["loc"])), 100), said(first["msg"], 200)]
        raise PayloadError(f"{what} cannot be read: {': '.join(filter(None, words))}") from error


def _json(reply: Message, record: str, key: str) -> Any:
    """Return the JSON value of an entry of a reply; None if there is none."""
    text = reply.content.config_records.get(record, ConfigRecord()).get(key)
    try:
        return None if text is None else read_json(str(text))
    except ValueError as error:
        raise PayloadError(f"{record}/{key} is no JSON: {said(error)}") from error


def read_node(reply: Message, spec: TaskSpec) -> NodeInfo:
    """Return a node's description of itself.

    Raises
    ------
    PayloadError
        It cannot be read, or the node disagrees with the server about classes, tokens, encoder or targets.
    """
    what = f"the description of Flower node {reply.metadata.src_node_id}"
    facts = _json(reply, "facts", "json")
    info: NodeInfo = _validated(NodeInfo, facts, what)
    theirs: TaskSpec = _validated(TaskSpec, facts, what)
    ids, served = range(len(spec.classes)), [name for names in info.slots.values() for name in names]
    try:
        check_names(info.slots, "generators")
        require(info.granularity in GRANULARITIES, f"granularity {info.granularity!r}")
        require(set(served) <= set(spec.classes), "generators of classes that the run does not have")
        good = all(label in ids for label in [*info.counts, *info.held_out])
        require(good, f"class ids {[*info.counts]}, expected 0 to {len(ids) - 1}")
    except ConfigError as error:
        raise PayloadError(f"{what} cannot be read: {error}") from error
    if mismatches := spec.mismatches(theirs):
        raise PayloadError(f"node {info.partition_id} has {said('; '.join(mismatches))}")
    return info


def read_classes(reply: Message) -> list[str]:
    """Return the names of the classes that a node has; `PayloadError` if they are no list of names."""
    what = f"classes of Flower node {reply.metadata.src_node_id}"
    names: list[str] = _validated(list[str], _json(reply, "facts", "classes"), what)
    try:
        require(len(names) <= MAX_CLASSES, f"{what}: more than {MAX_CLASSES}")
        check_names(names, what)
    except ConfigError as error:
        raise PayloadError(str(error)) from error
    return names


def read_scores(node: NodeInfo, reply: Message, classes: list[str], heads: Sequence[str]) -> Scores:
    """Return the scores of adapters on a node's held-out clips.

    Raises
    ------
    PayloadError
        They cannot be read, are not finite, or are of other clips than the node's held-out ones.
    """
    found: Scores = _validated(Scores, _json(reply, "report", "scores"), "scores")
    clips = [node.held_out.get(label, 0) for label in range(len(classes))]
    square = all(len(row) == len(classes) and min(row) >= 0 for row in found.confusion)
    if not square or [sum(row) for row in found.confusion] != clips:
        raise PayloadError(f"scores of other clips than the node's held-out ones, which are {clips} by class id")
    if {name: set(values) for name, values in found.heads.items()} != {head: {"cosine", "mse"} for head in heads}:
        raise PayloadError(f"scores of heads {said(found.heads, 100)}, expected {', '.join(heads)}")
    if not all(math.isfinite(value) for head in found.heads.values() for value in head.values()):
        raise PayloadError(f"scores are not finite: {found.heads}")
    return scores_of(found.confusion, {head: found.heads[head] for head in heads}, classes)


def read_audit(node: NodeInfo, reply: Message) -> NodeAudit:
    """Return a node's audit of itself; `PayloadError` if it cannot be read."""
    what = f"the audit of node {node.partition_id}"
    found: NodeAudit = _validated(NodeAudit, _json(reply, "report", "audit"), what)
    try:
        report = None if found.audit is None else Report.from_dict(found.audit).to_dict()
    except (DataError, AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise PayloadError(f"{what} cannot be read: {said(error)}") from error
    reasons = [said(reason) for reason in found.reasons[:MAX_REASONS]]
    return NodeAudit(found.verdict, reasons, said(found.summary), found.auc, report)


def read_training(node: NodeInfo, reply: Message, sent: ArrayRecord) -> TrainingReply:
    """Return a reply to ``train``.

    Raises
    ------
    PayloadError
        Adapters of other names, shapes or types than those that were ``sent``, or values that are not finite; a
        weight in the average that the node's clips do not justify; metrics that are no numbers; unreadable facts.
    """
    check_records(reply, arrays=ArrayRecord, metrics=MetricRecord)
    adapters, metrics = reply.content.array_records["arrays"], reply.content.metric_records["metrics"]
    if set(adapters) != set(sent):
        raise PayloadError(f"adapters have other arrays than were sent: {sorted(set(adapters) ^ set(sent))}")
    change = {
        name: read_array(array, name, np.dtype(sent[name].dtype), tuple(sent[name].shape))
        - sent[name].numpy().astype(float)
        for name, array in adapters.items()
    }
    check_clips(node.clips, metrics)
    for name, value in metrics.items():
        if not isinstance(value, int | float):
            raise PayloadError(f"metric {name} is {value}, expected a number")
        if said(name, 100) != name:
            raise PayloadError(f"metric {said(repr(name), 100)} is no name")
    values = {name: float(value) for name, value in metrics.items()}  # type: ignore[arg-type]
    spent = _validated(dict[str, Any], _json(reply, "report", "privacy") or {}, "what was spent of a privacy budget")
    return TrainingReply(reply, values, read_losses(reply), bounded(spent), norm(change))


def check_clips(most: int, metrics: MetricRecord) -> None:
    """Reject a weight in the average, ``num-examples``, of more clips than the node has."""
    clips = metrics.get("num-examples")
    if not isinstance(clips, int) or not 1 <= clips <= most:
        raise PayloadError(f"num-examples is {clips}, expected a whole number from 1 to the node's {most} clips")


def read_losses(reply: Message) -> History:
    """Return the losses of the node's generators; `PayloadError` if they are no JSON list of mappings."""
    found = _json(reply, "report", "generators") or []
    history: History = bounded(_validated(list[dict[str, Any]], found, "the losses of generators"))
    return history


def keep_shared_metrics(replies: Iterable[Message]) -> None:
    """Drop metrics that not every reply has: Flower's strategies end the run over them."""
    records = [reply.content.metric_records["metrics"] for reply in replies]
    shared = set.intersection(*(set(record) for record in records))
    for record in records:
        for name in set(record) - shared:
            del record[name]


def message_bytes(message: Message) -> int:
    """Return the bytes of a message's records; Flower counts no empty list or text."""
    records = message.content
    arrays = sum(record.count_bytes() for record in records.array_records.values())
    metrics = [item for record in records.metric_records.values() for item in record.items()]
    numbers = sum(len(name) + 8 * (len(value) if isinstance(value, list) else 1) for name, value in metrics)
    words = [part for record in records.config_records.values() for item in record.items() for part in item]
    return arrays + numbers + sum(len(str(word)) for word in words)


def check_size(reply: Message, most: float) -> None:
    """Reject a reply of more than ``most`` megabytes (of 10^6 bytes).

    Flower has read it by then: the limit bounds what the server keeps and works on, not what it downloads.
    """
    size = message_bytes(reply) / 1e6
    if size > most:
        raise PayloadError(f"a payload of {size:.1f} MB, expected at most strategy.max_payload_mb={most:g}")


def check_records(reply: Message, **expected: type) -> None:
    """Reject a reply without exactly the records of these names and types; a ``report`` may be beside them."""
    found = {name: type(record) for name, record in reply.content.items()}
    if not expected.items() <= found.items() <= {**expected, "report": ConfigRecord}.items():
        records = ", ".join(f"{said(name, 30)}: {kind.__name__}" for name, kind in found.items())
        wanted = ", ".join(f"{name}: {kind.__name__}" for name, kind in expected.items())
        raise PayloadError(f"records {records or 'none'}; expected {wanted}")


def norm(values: Mapping[str, np.ndarray]) -> float:
    """Return the Euclidean norm of all values together."""
    return float(np.sqrt(sum(np.square(value, dtype=float).sum() for value in values.values())))


def norm_outliers(norms: Mapping[int, float], sent: ArrayRecord, factor: float) -> dict[int, str]:
    """Return which nodes have moved the adapters too far, and why.

    With three replies or more, the bound is ``factor`` times the median norm, which a minority of nodes cannot move;
    but a change that is shorter than the adapters themselves passes: a node with far more clips than most takes far
    more steps. With fewer, no majority tells which reply is the odd one, and the bound is ``factor`` times the norm of
    the adapters. Neither bound depends on the scale of the weights.

    Parameters
    ----------
    norms : Mapping[int, float]
        Norm of each node's change by partition id.
    sent : ArrayRecord
        The adapters that they started from.
    factor : float
        ``strategy.max_change``.

    References
    ----------
    Bounding the norm of updates: Sun et al., "Can you really backdoor federated learning?", 2019, arXiv:1911.07963.
    """
    size = norm({name: array.numpy() for name, array in sent.items()})
    median = statistics.median(norms.values()) if norms else 0.0
    few = len(norms) < MAJORITY
    bound = factor * size if few else max(factor * median, size)
    than = f"the adapters' own norm is {size:.4g}" if few else f"the median of the round is {median:.4g}"
    return {
        partition_id: f"a change of the adapters by {own:.4g} is too long: {than}, strategy.max_change={factor:g}"
        for partition_id, own in norms.items()
        if own > bound > 0
    }

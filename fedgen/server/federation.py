"""The nodes of a run: who takes part, one way to ask them, and why a node's reply is missing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedgen.config.compose import to_yaml
from fedgen.config.phases import Phase, uses_samples
from fedgen.config.settings import Config
from fedgen.errors import AggregationError, DataError, PayloadError, said
from fedgen.evaluation.assessment import Assessment
from fedgen.evaluation.zero_shot import Scores, pooled_scores
from fedgen.messages.checks import (
    NodeInfo,
    TaskSpec,
    check_size,
    message_bytes,
    read_audit,
    read_classes,
    read_node,
    read_scores,
)
from fedgen.messages.instruction import Instruction
from fedgen.privacy.gate import FAILED, PASSED, UNKNOWN
from fedgen.report.rounds import RoundReport
from fedgen.server.grid import LATE, REFUSED, RoundGrid, sample_nodes
from fedgen.task import Task

logger = logging.getLogger(__name__)

PRIVATE = "privacy=dp: what is sent follows from the private release alone, and is held against no clip"

Value = TypeVar("Value")


@dataclass(frozen=True)
class Failure:
    """Why a node's reply is not used; the kind is ``refused`` (a reply was rejected), ``late`` or ``error``."""

    kind: str
    reason: str

    def __str__(self) -> str:
        return f"refused: {self.reason}" if self.kind == "refused" else self.reason

    @classmethod
    def of(cls, error: Error) -> Failure:
        """Return the failure that an error reply reports."""
        kind = {REFUSED: "refused", ErrorCode.REPLY_MESSAGE_UNAVAILABLE: "late"}.get(error.code, "error")
        return cls(kind, said(error.reason or f"error {error.code}"))


class Federation:
    """The nodes of a run over a Flower grid.

    ``on_nodes`` is called with the number of a round before it, when nodes may have joined or been rejected.
    """

    def __init__(self, grid: Grid, config: Config, on_nodes: Callable[[int], None] = lambda round_number: None) -> None:
        self.grid, self.config, self.on_nodes = RoundGrid(grid), config, on_nodes
        self.nodes: dict[int, NodeInfo] = {}  # those that take part, by Flower's node id
        self.report = RoundReport(0)  # statistics of the current round
        self.instruction = Instruction(to_yaml(config))  # the header of its messages
        self.failures: dict[int, Failure] = {}  # nodes that have missed one of its exchanges, by partition id
        self.rejected: dict[str, str] = {}  # why nodes were not let in, by name; `on_nodes` may empty it
        self._task: Task | None = None
        self._asked: set[int] = set()  # Flower's ids of all nodes that were asked to describe themselves

    # Who takes part

    def wait(self) -> list[int]:
        """Return Flower's ids of the nodes, once all are connected, or after ``strategy.wait`` seconds.

        Raises
        ------
        AggregationError
            Fewer than ``strategy.min_nodes`` are connected then.
        """
        wait, least, needed = self.config.strategy.wait, self.config.min_nodes, self.config.partition.nodes
        ids = self.grid.connected(None, needed, wait)
        found = f"{len(ids)} nodes are there after strategy.wait={wait:g} s"
        if len(ids) < least:
            wanted = f"partition.nodes={needed}" if least == needed else f"strategy.min_nodes={least}"
            raise AggregationError(f"{found}, {wanted} are needed")
        if len(ids) < needed:
            logger.warning("%s, of partition.nodes=%d: going on without the rest", found, needed)
        return ids

    def class_names(self) -> list[str]:
        """Return the names of all classes that nodes have, sorted: their places are their ids.

        A node without a readable reply is left out here; `join` rejects it with its reason.

        Raises
        ------
        DataError
            No node has replied with its classes.
        """
        replies = self._apart(self.instruction)._replies("query.introduce", dict.fromkeys(self.wait(), RecordDict()))
        found = list(_values(replies, read_classes))
        names = {name for _, names in found if isinstance(names, list) for name in names}
        if not names:
            reasons = {failure.reason for _, failure in found if isinstance(failure, Failure)}
            raise DataError(f"nodes cannot start: {'; '.join(sorted(reasons)) or 'none has answered'}")
        return sorted(names)

    def join(self, task: Task, finished: int) -> None:
        """Wait for the nodes, and let those in that agree with ``task``; ``finished`` rounds were run before.

        Raises
        ------
        AggregationError
            Too few nodes are connected after ``strategy.wait`` seconds.
        DataError
            Too few can take part, or two have the same partition id.
        """
        self._task, self.instruction = task, replace(self.instruction, finished=finished)
        described = self._described(self.wait())
        ids = sorted(info.partition_id for _, info in described)
        if len(set(ids)) != len(ids):
            raise DataError(f"two nodes have the same partition-id: {ids}")
        if len(ids) < self.config.min_nodes:
            raise DataError(f"nodes cannot start: {'; '.join(sorted(set(self.rejected.values())))}")
        self.nodes = dict(described)
        self.on_nodes(finished)

    def _join_late(self) -> None:
        """Let nodes in that have connected since; a rejected node is not asked again.

        A node that took part under another Flower id goes on from what it remembers.
        """
        connected = set(self.grid.grid.get_node_ids())
        for node_id, info in self._described(sorted(connected - set(self.nodes) - self._asked)):
            earlier = [known for known, other in self.nodes.items() if other.partition_id == info.partition_id]
            if connected & set(earlier):
                words = "Flower node %d does not take part: node %d is there already"
                logger.warning(words, node_id, info.partition_id)
                continue
            for known in earlier:
                del self.nodes[known]
            self.nodes[node_id] = info
            logger.info("node %d is %s", info.partition_id, "back" if earlier else "there now")

    def _described(self, node_ids: list[int]) -> list[tuple[int, NodeInfo]]:
        """Return the nodes among ``node_ids`` that can take part; note why the others cannot."""
        if not node_ids:
            return []
        assert self._task is not None
        self._asked |= set(node_ids)
        codec = self._task.space.sketch() if uses_samples(self.config.phase_list) else []
        rejoined = [info.partition_id for info in self.nodes.values()]
        header = Instruction(self.instruction.yaml, self.instruction.finished, rejoined=rejoined, codec=codec)
        replies = self._apart(header)._replies("query.describe", dict.fromkeys(node_ids, RecordDict()))
        found, spec = [], TaskSpec.of(self._task)
        for node_id, info in _values(replies, lambda reply: read_node(reply, spec)):
            if isinstance(info, NodeInfo):
                found.append((node_id, info))
                if info.granularity != self.config.granularity.name:
                    logger.info("node %d has granularity=%s of its own", info.partition_id, info.granularity)
                continue
            limit = f" (strategy.timeout={self.config.strategy.timeout:g} s)" if info.kind == "late" else ""
            name, reason = f"Flower node {node_id}", info.reason + limit
            self.rejected[name] = reason
            logger.warning("%s does not take part: %s", name, reason)
        return found

    # A round

    def begin_round(self, phase: Phase) -> None:
        """Begin the next round, and choose its nodes: all that are connected, or random ones.

        Raises
        ------
        AggregationError
            Fewer than ``strategy.min_nodes`` are connected after ``strategy.wait`` seconds.
        """
        rules = self.config.strategy
        self.report, self.failures = RoundReport(self.report.round + 1), {}
        self.instruction = replace(
            self.instruction,
            mode=phase.mode.name,
            rounds=phase.rounds,
            offset=phase.offset,
            round=self.report.round,
        )
        self._join_late()
        self.on_nodes(self.report.round)
        connected = self.grid.connected(self.nodes, self.config.min_nodes, rules.wait)
        ids = {self.nodes[node_id].partition_id: node_id for node_id in connected}
        if rules.nodes_per_round is None or len(connected) < self.config.min_nodes:
            for missing in sorted({info.partition_id for info in self.nodes.values()} - set(ids)):
                self.fail(missing, Failure("error", "it is not connected"))
        self.require(len(connected))
        chosen = sample_nodes(ids, rules.nodes_per_round, self.config.seed, self.report.round)
        self.grid.chosen = [ids[partition_id] for partition_id in chosen]

    @property
    def active(self) -> dict[int, NodeInfo]:
        """The round's nodes that have missed no exchange of it, by Flower's id: the state of others is stale."""
        chosen = {node_id: self.nodes[node_id] for node_id in self.grid.chosen}
        return {node_id: info for node_id, info in chosen.items() if info.partition_id not in self.failures}

    def ask(
        self,
        kind: str,
        contents: Mapping[int, RecordDict],
        read: Callable[[NodeInfo, Message], Value],
        needed: int | None = None,
    ) -> dict[int, Value]:
        """Send each node its content and the round's header, and return what ``read`` makes of the good replies.

        Parameters
        ----------
        kind : str
            Flower's message type.
        contents : Mapping[int, RecordDict]
            By Flower's node id.
        read : Callable
            Validates a reply, or raises `PayloadError`. It may empty the reply, to free memory before the next.
        needed : int, optional
            Good replies that are needed; ``strategy.min_nodes`` by default.

        Returns
        -------
        dict
            By partition id, in order.

        Raises
        ------
        AggregationError
            There are fewer good replies.
        """
        found = self.collect(self._replies(kind, contents), contents, read)
        self.require(len(found), needed)
        return found

    def collect(
        self, replies: Iterable[Message], asked: Iterable[int], read: Callable[[NodeInfo, Message], Value]
    ) -> dict[int, Value]:
        """Return what ``read`` makes of the good replies, as `ask` does; note why others of ``asked`` fail."""
        good: dict[int, Value] = {}
        failed: dict[int, Failure] = {}

        def checked(reply: Message) -> Value:
            self.report.bytes_received += message_bytes(reply)
            check_size(reply, self.config.strategy.max_payload_mb)
            return read(self.nodes[reply.metadata.src_node_id], reply)

        for node_id, value in _values(replies, checked):
            partition_id = self.nodes[node_id].partition_id
            if isinstance(value, Failure):
                failed[partition_id] = value
            else:
                good[partition_id] = value
        for partition_id in sorted({self.nodes[node_id].partition_id for node_id in asked} - set(good)):
            self.fail(partition_id, failed.get(partition_id, Failure("late", LATE)))
        return dict(sorted(good.items()))

    def fail(self, partition_id: int, failure: Failure) -> None:
        """Note that a node is missing in the round."""
        self.failures[partition_id] = failure
        self.report.lost[partition_id] = str(failure)
        if failure.kind == "refused":
            self.report.refused[partition_id] = str(failure)
        logger.warning("round %d: node %d is missing: %s", self.report.round, partition_id, failure)

    def require(self, good: int, needed: int | None = None) -> None:
        """Raise `AggregationError` with all failures for fewer than ``needed`` good replies."""
        if good < (self.config.min_nodes if needed is None else needed):
            missing = "; ".join(f"node {number}: {failure}" for number, failure in sorted(self.failures.items()))
            raise AggregationError(
                f"round {self.report.round}: {good} good replies, strategy.min_nodes={self.config.min_nodes} are "
                f"needed. Missing: {missing or 'nodes that were not asked'}"
            )

    def _replies(self, kind: str, contents: Mapping[int, RecordDict]) -> Iterator[Message]:
        """Send each node its content and the header, and yield the replies."""
        header = self.instruction.to_record()

        def messages() -> Iterator[Message]:
            for node_id, content in contents.items():
                message = Message(RecordDict({**content, "config": header}), node_id, kind)
                self.report.bytes_sent += message_bytes(message)
                yield message

        return self.grid.send_and_receive(messages(), timeout=self.config.strategy.timeout)

    # What nodes measure on their own clips

    def scores(self, arrays: ArrayRecord, task: Task) -> Scores:
        """Return the scores of adapters on the held-out clips of all nodes that have missed nothing in the round.

        Raises
        ------
        AggregationError
            No node has answered.
        """
        heads, content = list(task.targets.heads), RecordDict({"arrays": arrays})
        asked = {n: content for n, i in self.nodes.items() if i.held_out and i.partition_id not in self.failures}
        read = partial(read_scores, classes=task.classes, heads=heads)
        found = self._apart(self.instruction).ask("evaluate", asked, read, needed=0)
        if not found:
            raise AggregationError(
                f"round {self.report.round}: no node has tested the adapters; give the server a data.store"
            )
        return pooled_scores(list(found.values()), task.classes)

    def assessment(self, counts: Mapping[int, int], classes: list[str], round_number: int) -> Assessment | None:
        """Return every node's audit of what it sent; None if there is nothing to judge.

        ``counts`` are the nodes' samples of a round, by partition id.
        """
        owners = {node_id: info for node_id, info in self.nodes.items() if counts.get(info.partition_id)}
        if self.config.gate == "off" or not owners:
            return None
        private = self.config.privacy.used
        apart = self._apart(replace(self.instruction, round=round_number))
        asked = {} if private else dict.fromkeys(owners, RecordDict())
        found = apart.ask("query.assess", asked, read_audit, needed=0)
        reasons = {info.partition_id: ["has not audited what it sent"] for info in owners.values()}
        reasons |= {number: audit.reasons for number, audit in found.items()}
        verdicts = {audit.verdict for audit in found.values()}
        complete = len(found) == len(owners) and verdicts == {PASSED}
        verdict = FAILED if FAILED in verdicts else PASSED if complete else UNKNOWN
        worst = [f"node {number}: {audit.summary}" for number, audit in found.items() if audit.verdict == verdict]
        told = [f"node {number}: {text}" for number, texts in sorted(reasons.items()) for text in texts]
        gate = {
            "setting": self.config.gate,
            "verdict": verdict,
            "reasons": [PRIVATE] if private else told,
            "summary": (worst or [verdict])[0],
            "auc": max((audit.auc for audit in found.values() if audit.auc is not None), default=None),
        }
        audits = {str(number): audit.audit for number, audit in found.items()}
        return Assessment({"samples": sum(counts.values()), "gate": gate}, None, classes, by_node=audits)

    def _apart(self, instruction: Instruction) -> Federation:
        """Return the federation with another header, and a report and failures that are not the round's."""
        apart = copy(self)
        apart.instruction, apart.report, apart.failures = instruction, RoundReport(self.report.round), {}
        return apart


def _values(replies: Iterable[Message], read: Callable[[Message], Value]) -> Iterator[tuple[int, Value | Failure]]:
    """Yield what ``read`` makes of each reply, or why it is not used, and Flower's id of its node."""
    for reply in replies:
        node_id = reply.metadata.src_node_id
        value: Value | Failure
        try:
            value = Failure.of(reply.error) if reply.has_error() else read(reply)
        except PayloadError as error:
            value = Failure("refused", said(error))
        del reply
        yield node_id, value


def agreed(grid: Grid, config: Config) -> Config:
    """Return ``config`` with the classes that there are, where only the nodes know them."""
    if not config.data.on_nodes or config.data.classes:
        return config
    classes = Federation(grid, config).class_names()
    logger.info("%d classes: %s", len(classes), ", ".join(classes))
    return replace(config, data=replace(config.data, classes=classes))

"""What a server without clips asks its nodes to measure: scores of adapters, and what samples give away."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedgen.config.compose import to_yaml
from fedgen.config.phases import uses_samples
from fedgen.config.settings import Config
from fedgen.config.strategy import StrategyConfig
from fedgen.errors import AggregationError, DataError, PayloadError, said
from fedgen.evaluation.assessment import Assessment
from fedgen.evaluation.zero_shot import Scores, pooled_scores
from fedgen.messages.checks import (
    Agreement,
    Member,
    check_size,
    message_bytes,
    read_classes,
    read_member,
    read_scores,
    read_verdict,
)
from fedgen.privacy.gate import FAILED, PASSED, UNKNOWN
from fedgen.report.recorder import REFUSED, RoundReport
from fedgen.server.grid import LATE, RoundGrid, drawn
from fedgen.task import Task

logger = logging.getLogger(__name__)

POLL = 0.5  # seconds between two looks at who is there


class Meeting:
    """The nodes of a run, and what they say of themselves.

    Parameters
    ----------
    grid : Grid
    config : Config

    Attributes
    ----------
    refused : dict[str, str]
        Why a node does not take part, by what it is called.
    """

    def __init__(self, grid: Grid, config: Config) -> None:
        self.grid, self.config = grid, config
        self.refused: dict[str, str] = {}
        self._known: set[int] = set()  # Flower's ids of all that were asked to describe themselves

    def wait(self) -> list[int]:
        """Return Flower's ids of the nodes, once all are there; after ``strategy.wait`` seconds, of those that are.

        Raises
        ------
        AggregationError
            Fewer than ``strategy.min_nodes`` are there then.
        """
        chosen = self.config.strategy
        needed, least, deadline = self.config.partition.nodes, self.config.min_nodes, time.monotonic() + chosen.wait
        while len(ids := list(self.grid.get_node_ids())) < needed:
            if time.monotonic() > deadline:
                found = f"{len(ids)} nodes are there after strategy.wait={chosen.wait:g} s"
                if len(ids) < least:
                    wanted = f"partition.nodes={needed}" if least == needed else f"strategy.min_nodes={least}"
                    raise AggregationError(f"{found}, {wanted} are needed")
                logger.warning("%s, of partition.nodes=%d: going on without the rest", found, needed)
                break
            time.sleep(min(POLL, chosen.wait))
        return sorted(ids)

    def classes(self, ids: Sequence[int]) -> list[str]:
        """Return the names of all classes that nodes have, in the order of the alphabet: their places are their ids.

        A node that cannot say is left out here; `members` refuses it with its reason.

        Raises
        ------
        DataError
            No node can say.
        """
        found, reasons = set(), []
        for reply in self._ask(ids, "query.introduce", 0):
            try:
                found |= set(read_classes(reply))
            except DataError as error:
                reasons.append(said(error))
        if not found:
            raise DataError(f"nodes cannot start: {'; '.join(sorted(set(reasons))) or 'none has answered'}")
        return sorted(found)

    def members(self, ids: Sequence[int], task: Task, finished: int, back: Sequence[int] = ()) -> dict[int, Member]:
        """Return the nodes that can take part, by Flower's id; `refused` says why others cannot.

        Parameters
        ----------
        ids : Sequence[int]
        task : Task
            What they must agree with.
        finished : int
            Rounds that are finished before this run's first.
        back : Sequence[int]
            Numbers of nodes that have been in this run before, and remember it.
        """
        agreement = Agreement(
            task.classes, task.store.shape, task.store.identity["encoder"], task.targets.fingerprint()
        )
        codec = task.space.sketch() if uses_samples(self.config.phase_list) else []
        members: dict[int, Member] = {}
        self.refused = {}
        for reply in self._ask(ids, "query.describe", finished, back, codec):
            node_id = reply.metadata.src_node_id
            try:
                members[node_id] = read_member(reply, agreement)
            except DataError as error:
                self.refused[f"Flower node {node_id}"] = said(error)
        self._say(members)
        return members

    def admit(self, members: dict[int, Member], task: Task, finished: int) -> None:
        """Add to ``members`` the nodes that have come meanwhile; one that was there before under another id is back.

        Who was refused once is not asked again.
        """
        there = set(self.grid.get_node_ids())
        new = sorted(there - set(members) - self._known)
        if not new:
            return
        came = self.members(new, task, finished, [member.number for member in members.values()])
        for node_id, member in came.items():
            earlier = [known for known, other in members.items() if other.number == member.number]
            if there & set(earlier):
                logger.warning("Flower node %d does not take part: node %d is there already", node_id, member.number)
                continue
            for known in earlier:
                del members[known]
            members[node_id] = member
            logger.info("node %d is %s", member.number, "back" if earlier else "there now")

    def demand(self, members: dict[int, Member]) -> None:
        """Refuse to begin with too few nodes, or with two of the same number.

        Raises
        ------
        DataError
        """
        numbers = sorted(member.number for member in members.values())
        if len(set(numbers)) != len(numbers):
            raise DataError(f"two nodes have the same partition-id: {numbers}")
        if len(members) < self.config.min_nodes:
            limit = f"strategy.timeout={self.config.strategy.timeout:g} s"
            reasons = {f"{why} ({limit})" if why.startswith(LATE) else why for why in self.refused.values()}
            raise DataError(f"nodes cannot start: {'; '.join(sorted(reasons))}")

    def _say(self, members: dict[int, Member]) -> None:
        for member in members.values():
            if member.granularity != self.config.granularity.name:
                logger.info("node %d has granularity=%s of its own", member.number, member.granularity)
        for name, reason in self.refused.items():
            logger.warning("%s does not take part: %s", name, reason)

    def _ask(
        self,
        ids: Sequence[int],
        message_type: str,
        finished: int,
        back: Sequence[int] = (),
        codec: Sequence[float] = (),
    ) -> Iterator[Message]:
        if message_type == "query.describe":
            self._known |= set(ids)
        words = ConfigRecord({"yaml": to_yaml(self.config), "finished": finished, "back": " ".join(map(str, back))})
        words["codec"] = list(codec)
        messages = [Message(RecordDict({"config": words}), node_id, message_type) for node_id in ids]
        return RoundGrid(self.grid).send_and_receive(messages, timeout=self.config.strategy.timeout)


def agreed(grid: Grid, config: Config) -> Config:
    """Return ``config`` with the classes that there are, where only the nodes know."""
    if not config.data.on_nodes or config.data.classes:
        return config
    meeting = Meeting(grid, config)
    classes = meeting.classes(meeting.wait())
    logger.info("%d classes: %s", len(classes), ", ".join(classes))
    return replace(config, data=replace(config.data, classes=classes))


Ask = Callable[..., dict[int, Message]]
"""`ExchangeRound.ask`: sends nodes their contents, checks the replies, and returns the good ones by node number."""


class ExchangeRound:
    """The exchanges of one round.

    Who has missed one is not asked again in the round: its state is not what the rest of the round needs.

    Parameters
    ----------
    grid : RoundGrid
    members : Mapping[int, Member]
        The federation by Flower's node id.
    report : RoundReport
        What is noted of the round.
    rules : StrategyConfig
        How many nodes are asked, and what is refused.
    min_nodes : int
        Good replies that the round needs.
    timeout : float
        Seconds that each exchange waits.
    """

    def __init__(
        self,
        grid: RoundGrid,
        members: Mapping[int, Member],
        report: RoundReport,
        rules: StrategyConfig,
        min_nodes: int,
        timeout: float,
    ) -> None:
        self.grid, self.members, self.report, self.rules = grid, members, report, rules
        self.min_nodes, self.timeout = min_nodes, timeout
        self.config = ConfigRecord()  # of every message

    def choose(self, seed: int) -> None:
        """Choose the nodes that the round asks: all that are connected, or random ones of them.

        Raises
        ------
        AggregationError
            Fewer than ``min_nodes`` are connected after ``strategy.wait`` seconds.
        """
        connected = self.grid.connected(self.members, self.min_nodes, self.rules.wait)
        numbers = {self.members[node_id].number: node_id for node_id in connected}
        if self.rules.nodes_per_round is None or len(connected) < self.min_nodes:
            for number in sorted({member.number for member in self.members.values()} - set(numbers)):
                self.lose(number, "it is not connected")
        self.demand(len(connected))
        chosen = drawn(list(numbers), self.rules.nodes_per_round, seed, self.report.round)
        self.grid.chosen = [numbers[number] for number in chosen]

    def left(self) -> dict[int, Member]:
        """Return the nodes that the round asks and that have missed nothing so far, by Flower's node id."""
        asked = {node_id: self.members[node_id] for node_id in self.grid.chosen}
        return {node_id: member for node_id, member in asked.items() if member.number not in self.report.lost}

    def ask(
        self,
        contents: Mapping[int, RecordDict],
        message_type: str,
        check: Callable[[Member, Message], None],
        needed: int,
        before: int = 0,
    ) -> dict[int, Message]:
        """Send each node its content with the round's settings, and return the good replies by node number.

        Raises
        ------
        AggregationError
            With those of ``before``, there are fewer than ``needed``.
        """

        def messages() -> Iterator[Message]:
            for node_id, content in contents.items():
                own = content.config_records.get("config", ConfigRecord())
                record = RecordDict({**content, "config": ConfigRecord({**self.config, **own})})
                message = Message(record, node_id, message_type)
                self.report.bytes_sent += message_bytes(message)
                yield message

        replies = self.grid.send_and_receive(messages(), timeout=self.timeout)
        good = self.collect(replies, contents, check)
        self.demand(before + len(good), needed)
        return good

    def collect(
        self, replies: Iterable[Message], asked: Iterable[int], check: Callable[[Member, Message], None]
    ) -> dict[int, Message]:
        """Return the good replies by node number, in order; note why others are lost.

        ``check`` raises `PayloadError` for a reply that is not good. It may empty one that is, whose content is freed
        before the next reply is read then.
        """
        good: dict[int, Message] = {}
        lost: dict[int, str] = {}
        for reply in replies:
            member = self.members[reply.metadata.src_node_id]
            if reply.has_error():
                lost[member.number] = reply.error.reason or f"error {reply.error.code}"
            else:
                self.report.bytes_received += message_bytes(reply)
                try:
                    check_size(reply, self.rules.max_payload_mb)
                    check(member, reply)
                    good[member.number] = reply
                except PayloadError as error:
                    lost[member.number] = f"{REFUSED}{error}"
            del reply
        for number in sorted({self.members[node_id].number for node_id in asked} - set(good)):
            self.lose(number, lost.get(number, "no reply in time"))
        return dict(sorted(good.items()))

    def lose(self, number: int, reason: str) -> None:
        """Note that a node is missing, and why."""
        self.report.lost[number] = said(reason)
        logger.warning("round %d: node %d is missing: %s", self.report.round, number, self.report.lost[number])

    def demand(self, good: int, needed: int | None = None) -> None:
        """Raise `AggregationError` for fewer than ``needed`` good replies, and say who is missing."""
        if good < (self.min_nodes if needed is None else needed):
            missing = "; ".join(f"node {number}: {reason}" for number, reason in sorted(self.report.lost.items()))
            raise AggregationError(
                f"round {self.report.round}: {good} good replies, strategy.min_nodes={self.min_nodes} are needed. "
                f"Missing: {missing or 'nodes that were not asked'}"
            )


Found = TypeVar("Found")


class RemoteMeasures:
    """Asks nodes for figures of their own clips.

    Parameters
    ----------
    grid : Grid
    members : Mapping[int, Member]
        The federation by Flower's node id.
    config : Config
    settings : dict
        What every message carries, such as the configuration.
    """

    def __init__(self, grid: Grid, members: Mapping[int, Member], config: Config, settings: dict[str, Any]) -> None:
        self.grid, self.members, self.config, self.settings = grid, members, config, settings

    def scores(
        self, arrays: ArrayRecord, classes: list[str], heads: list[str], round_number: int, missing: Container[int] = ()
    ) -> Scores:
        """Return the scores of adapters on the held-out clips of all nodes that answer; ``missing`` are not asked.

        Raises
        ------
        AggregationError
            None does.
        """
        testers = {
            node_id: member
            for node_id, member in self.members.items()
            if member.held_out and member.number not in missing
        }
        content = {"arrays": arrays, "config": self._words(round_number)}
        found = self._ask(testers, content, "evaluate", lambda m, reply: read_scores(m, reply, classes, heads))
        if not found:
            raise AggregationError(
                f"round {round_number}: no node has tested the adapters; give the server a data.store"
            )
        return pooled_scores([found[number] for number in sorted(found)], classes)

    def assessment(self, counts: Mapping[int, int], classes: list[str], round_number: int) -> Assessment | None:
        """Return every node's audit of what it sent; None if nothing is to be judged.

        Parameters
        ----------
        counts : Mapping[int, int]
            Samples by node number.
        classes : list[str]
        round_number : int
            The round whose samples these are.
        """
        setting = self.config.gate
        owners = {node_id: member for node_id, member in self.members.items() if counts.get(member.number)}
        if setting == "off" or not owners:
            return None
        found: dict[int, dict[str, Any]] = {}
        reasons = ["privacy=dp: what is sent follows from the private release alone, and is held against no clip"]
        if not self.config.privacy.used:
            found = self._ask(owners, {"config": self._words(round_number)}, "query.assess", read_verdict)
            verdicts = {number: (told["verdict"], told["reasons"]) for number, told in found.items()}
            silent = {member.number for member in owners.values()} - set(found)
            verdicts |= {number: (UNKNOWN, ["has not audited what it sent"]) for number in silent}
            reasons = [f"node {number}: {text}" for number, (_, told) in sorted(verdicts.items()) for text in told]
        told = [values["verdict"] for values in found.values()]
        complete = len(found) == len(owners) and set(told) == {PASSED}
        verdict = FAILED if FAILED in told else PASSED if complete else UNKNOWN
        worst = [
            f"node {n}: {values['summary']}" for n, values in sorted(found.items()) if values["verdict"] == verdict
        ]
        gate: dict[str, Any] = {
            "setting": setting,
            "verdict": verdict,
            "reasons": reasons,
            "summary": (worst or [verdict])[0],
        }
        aucs = [values["auc"] for values in found.values() if values["auc"] is not None]
        gate["auc"] = max(aucs) if aucs else None
        audits = {str(number): found[number]["audit"] for number in sorted(found)}
        return Assessment({"samples": sum(counts.values()), "gate": gate}, None, classes, by_node=audits)

    def _words(self, round_number: int) -> ConfigRecord:
        return ConfigRecord({**self.settings, "round": round_number})

    def _ask(
        self,
        members: Mapping[int, Member],
        content: Mapping[str, Any],
        message_type: str,
        read: Callable[[Member, Message], Found],
    ) -> dict[int, Found]:
        """Return what nodes reply, by number; a node that does not is named in the log."""
        messages = [Message(RecordDict(dict(content)), node_id, message_type) for node_id in members]
        found = {}
        for reply in RoundGrid(self.grid).send_and_receive(messages, timeout=self.config.strategy.timeout):
            member = members[reply.metadata.src_node_id]
            try:
                if reply.has_error():
                    raise PayloadError(str(reply.error.reason))
                found[member.number] = read(member, reply)
            except PayloadError as error:
                logger.warning("%s: node %d is missing: %s", message_type, member.number, said(error))
        return found

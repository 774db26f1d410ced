"""One round as the server talks with its nodes: who is asked, whose replies are good, who is missing and why."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping

from flwr.app import ConfigRecord, Message, RecordDict

from fedgen.border import Member, message_bytes
from fedgen.errors import AggregationError, PayloadError, said
from fedgen.limits import check_size
from fedgen.recorder import REFUSED, RoundReport
from fedgen.round_grid import RoundGrid, drawn
from fedgen.strategy_settings import StrategyConfig

logger = logging.getLogger(__name__)

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

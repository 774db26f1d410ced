"""How a run meets its nodes: who is there, which classes there are, and who cannot take part."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedgen.border import Agreement, Member, read_classes, read_member
from fedgen.config import to_yaml
from fedgen.errors import AggregationError, DataError, said
from fedgen.phases import uses_samples
from fedgen.round_grid import LATE, RoundGrid
from fedgen.settings import Config
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

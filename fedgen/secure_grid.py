"""A round's grid over which training replies come with the average of all nodes' adapters, and not with their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from flwr.app import Message
from flwr.serverapp import Grid

from fedgen.border import Member
from fedgen.round_grid import RoundGrid
from fedgen.secure_aggregation.round import Round
from fedgen.secure_aggregation.settings import SecureSettings


class SecureGrid(RoundGrid):
    """A `RoundGrid` that asks for adapters by secure aggregation, and for all else as ever.

    A strategy that averages makes of equal adapters what it would have made of the nodes' own.

    Parameters
    ----------
    grid : Grid
    settings : SecureSettings
    members : Mapping[int, Member]
        The federation by Flower's node id: a node weighs as much as its clips.
    equal : bool
        Whether all nodes weigh the same.
    """

    def __init__(self, grid: Grid, settings: SecureSettings, members: Mapping[int, Member], equal: bool) -> None:
        super().__init__(grid)
        self.settings, self.members, self.equal = settings, members, equal

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """As `RoundGrid`; training takes four exchanges, of ``timeout`` seconds each.

        Raises
        ------
        AggregationError
            Too few nodes are left to take the masks off.
        """
        rest = iter(messages)
        for first in rest:
            every = chain([first], rest)
            if first.metadata.message_type == "train":
                yield from self._averaged(list(every), timeout)
            else:
                yield from super().send_and_receive(every, timeout=timeout)

    def _averaged(self, messages: list[Message], timeout: float | None) -> list[Message]:
        def send(parts: list[Message]) -> Iterator[Message]:
            return RoundGrid.send_and_receive(self, parts, timeout=timeout)

        clips = {node_id: sum(member.counts.values()) for node_id, member in self.members.items()}
        return Round(send, messages, self.settings, clips, self.equal).run()

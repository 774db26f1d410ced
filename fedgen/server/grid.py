"""Flower's grid as a round sees it: the nodes that are asked, and their replies one by one."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from copy import copy

import httpx
import torch
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedgen.data.progress import show_step
from fedgen.data.seeds import seeded
from fedgen.errors import said

MIN_POLL, MAX_POLL, POLL_SHARE = 0.02, 3.0, 0.05  # seconds between two looks for replies; the share of the waiting
LATE = "no reply in time"
REFUSED = 1000  # beside Flower's error codes: a reply came, and was rejected
STEPS = {  # what nodes do, as the terminal has it
    "train": "training",
    "evaluate": "testing",
    "query.fill": "taking others' samples",
    "query.fit": "training generators",
    "query.adopt": "taking generators",
    "query.synthesize": "making samples",
    "query.assess": "judging samples",
}
TIMES_TIMEOUT = 2  # how long a message lives: a node that comes back later does not work on it


class RoundGrid(Grid):
    """A grid that hands over one reply at a time, so that no two large ones are in memory together.

    Every message has exactly one reply, from the node that it was sent to. Where Flower gives none, one of another
    node, or one that cannot be unpacked, it is an error reply with the reason: errors of lost nodes come from node 1,
    and an ill-formed reply raises when it is pulled.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.chosen: list[int] = []  # the nodes that strategies see, which ask all that they see

    @property
    def run(self) -> Run:
        """The run of the grid."""
        return self.grid.run

    def set_run(self, run: Run) -> None:
        """Set the run of the grid."""
        self.grid.set_run(run)

    def get_node_ids(self) -> list[int]:
        """Return the chosen nodes."""
        return list(self.chosen)

    def connected(self, nodes: Collection[int] | None, needed: int, wait: float) -> list[int]:
        """Return those of ``nodes`` (None: all) that are connected; wait so many seconds until there are ``needed``."""
        deadline = time.monotonic() + wait
        while True:
            found = [node_id for node_id in self.grid.get_node_ids() if nodes is None or node_id in nodes]
            if len(found) >= needed or time.monotonic() > deadline:
                return sorted(found)
            time.sleep(min(0.5, wait))

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a new message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages to the grid."""
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull replies from the grid."""
        return self.grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Push messages one by one, keep nothing of their content, and yield their replies as they come.

        Nothing is sent before the first reply is asked for.

        Parameters
        ----------
        messages : iterable of Message
        timeout : float, optional
            Seconds that the server waits for replies; the clock stands still while it works on one. None: as long as
            it takes.
        """
        pending: dict[str, Message] = {}
        for message in messages:
            if timeout is not None:
                message.metadata.ttl = TIMES_TIMEOUT * timeout
            sent = [name for name in self.grid.push_messages([message]) if name]
            if sent:
                pending[sent[0]] = copy(message)  # Flower's simulation keeps the message itself
                pending[sent[0]].content = RecordDict()
            else:
                yield _error(message, ErrorCode.MESSAGE_UNAVAILABLE, "Flower did not take the message to it")
        waited, nodes = 0.0, len(pending)
        while pending:
            before = len(pending)
            for name, message in list(pending.items()):
                kind = message.metadata.message_type
                show_step(STEPS.get(kind, kind), f"{nodes - len(pending)}/{nodes} nodes")
                started = time.monotonic()
                reply = self._pull(name, message)
                seconds = time.monotonic() - started
                if reply is None:
                    waited += seconds
                    continue
                del pending[name]
                if timeout is not None and waited + seconds > timeout:
                    late = f"{LATE}: it came after {waited + seconds:.1f} s"
                    reply = _error(message, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, late)
                yield reply
                del reply
            if timeout is not None and waited >= timeout:
                break
            if len(pending) == before:
                pause = min(MAX_POLL, max(MIN_POLL, POLL_SHARE * waited))
                time.sleep(pause)
                waited += pause
        for message in pending.values():
            yield _error(message, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, LATE)

    def _pull(self, name: str, message: Message) -> Message | None:
        """Return the reply to ``message``, which was pushed as ``name``; None if it is not there yet."""
        try:
            replies = [r for r in self.grid.pull_messages([name]) if r.metadata.reply_to_message_id == name]
        except httpx.HTTPError:
            raise  # the SuperLink cannot be reached: that is no fault of a node
        except Exception as error:  # Flower unpacks what the node has packed, and raises as it comes
            return _error(message, REFUSED, f"its reply cannot be read: {type(error).__name__}: {error}")
        if not replies:
            return None
        (reply,) = replies[:1]
        if reply.has_error():
            return _error(message, reply.error.code, reply.error.reason or f"error {reply.error.code}")
        asked, answers = message.metadata.dst_node_id, reply.metadata.src_node_id
        if asked != answers:
            return _error(message, REFUSED, f"node {answers} replied for node {asked}")
        return reply


def _error(message: Message, code: int, reason: str) -> Message:
    """Return an error reply from the node that ``message`` was sent to; its reason on one line, escaped."""
    return Message(Error(code, said(reason)), reply_to=message)


def sample_nodes(partition_ids: Collection[int], count: int | None, seed: int, round_number: int) -> list[int]:
    """Return ``count`` random ones of ``partition_ids``, or all of them, in order; the same for a seed and a round.

    Each id has a random number of its own, so that a node that is missing is replaced, and the rest stays.
    """
    if count is None or count >= len(partition_ids):
        return sorted(partition_ids)
    places = {n: float(torch.rand((), generator=seeded(seed, "nodes", round_number, n))) for n in partition_ids}
    return sorted(sorted(partition_ids, key=lambda n: (places[n], n))[:count])

"""Replies one by one: from a grid that behaves as Flower's does over the network, and from the one in this process."""

import gc
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedgen.runtimes.local import LocalGrid
from fedgen.server.grid import REFUSED, RoundGrid, sample_nodes

NODES = [1001, 1002, 1003]


def echo(message: Message, context: Context) -> Message:
    return Message(message.content, reply_to=message)


def local(handler: Callable[[Message, Context], Message] = echo, nodes: int = 3) -> LocalGrid:
    app = ClientApp()
    app.train()(handler)
    return LocalGrid(app, nodes, {})


class Network(LocalGrid):
    """As Flower's grid over the network: replies are there after some looks, in an order of their own.

    ``looks`` says how often the reply of each node is looked for in vain; ``errors`` what is pulled in its place.
    """

    def __init__(self, looks: dict[int, int] | None = None, errors: dict[int, Any] | None = None) -> None:
        app = ClientApp()
        app.train()(echo)
        super().__init__(app, 3, {})
        self.looks, self.errors = dict(looks or {}), dict(errors or {})
        self.nodes: dict[str, int] = {}
        self.pushed: list[Message] = []
        self.asked: list[list[str]] = []

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        found = list(messages)
        self.pushed += found
        if any(isinstance(self.errors.get(message.metadata.dst_node_id), str) for message in found):
            return []  # as for a message that is too large
        names = super().push_messages(found)
        self.nodes |= {name: m.metadata.dst_node_id for name, m in zip(names, found, strict=True)}
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        names = list(message_ids)
        self.asked.append(names)
        (node,) = (self.nodes[name] for name in names)
        self.looks[node] = self.looks.get(node, 0) - 1
        if self.looks[node] >= 0:
            return []
        wrong = self.errors.get(node)
        if isinstance(wrong, Exception):
            raise wrong
        replies = super().pull_messages(names)
        if wrong is not None:
            replies = [Message(wrong, reply_to=reply) for reply in replies]
            for reply, name in zip(replies, names, strict=True):
                reply.metadata.__dict__.update(_src_node_id=1, _reply_to_message_id=name)
        return replies


def send(grid: LocalGrid, timeout: float | None = 5.0) -> list[Message]:
    messages = [Message(RecordDict({"arrays": arrays()}), node, "train") for node in NODES]
    return list(RoundGrid(grid).send_and_receive(messages, timeout=timeout))


def arrays(size: int = 4) -> ArrayRecord:
    return ArrayRecord({"w": Array(np.ones(size, np.float32))})


def senders(replies: list[Message]) -> list[int]:
    return [reply.metadata.src_node_id for reply in replies]


def test_replies_come_in_the_order_in_which_they_are_there() -> None:
    grid = Network({1001: 3, 1002: 0, 1003: 1})
    assert senders(send(grid)) == [1002, 1003, 1001]
    assert all(len(names) == 1 for names in grid.asked)  # never two replies in one answer


def test_errors_belong_to_the_node_that_was_asked() -> None:
    reason = "Node Unavailable: no heartbeat"
    replies = send(Network(errors={1002: Error(ErrorCode.NODE_UNAVAILABLE, reason)}))
    assert senders(replies) == NODES
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert (replies[1].error.code, replies[1].error.reason) == (ErrorCode.NODE_UNAVAILABLE, reason)


def test_an_error_without_a_reason_has_its_number() -> None:
    replies = send(Network(errors={1002: Error(ErrorCode.NODE_UNAVAILABLE)}))
    assert replies[1].error.reason == f"error {ErrorCode.NODE_UNAVAILABLE}"


@pytest.mark.parametrize("error", [ValueError("Unexpected format for object head."), KeyError("0a1b"), TypeError("x")])
def test_a_reply_that_cannot_be_unpacked_is_that_nodes_error(error: Exception) -> None:
    replies = send(Network(errors={1003: error}))
    assert [reply.has_error() for reply in replies] == [False, False, True]
    reason = str(replies[2].error.reason)
    assert replies[2].error.code == REFUSED
    assert reason.startswith(f"its reply cannot be read: {type(error).__name__}: ")


def test_a_lost_superlink_is_nobodys_error() -> None:
    with pytest.raises(httpx.ConnectError):
        send(Network(errors={1001: httpx.ConnectError("refused")}))


def test_a_message_that_flower_does_not_take_is_an_error() -> None:
    replies = send(Network(errors={1001: "full"}))
    assert {r.metadata.src_node_id: r.has_error() for r in replies} == {1001: True, 1002: False, 1003: False}
    assert "did not take the message" in str(replies[0].error.reason)


def test_a_reply_in_the_name_of_another_node_is_refused() -> None:
    class Impostor(Network):
        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            replies = super().pull_messages(message_ids)
            for reply in replies:
                reply.metadata.__dict__["_src_node_id"] = 1001
            return replies

    replies = send(Impostor())
    assert senders(replies) == NODES
    assert [reply.has_error() for reply in replies] == [False, True, True]
    assert replies[1].error.reason == "node 1001 replied for node 1002"


def test_a_node_that_hangs_is_waited_for_no_longer_than_the_timeout() -> None:
    started = time.monotonic()
    replies = send(Network({1002: 10**9}), timeout=0.3)
    assert 0.3 <= time.monotonic() - started < 2
    assert senders(replies) == [1001, 1003, 1002]
    assert replies[2].error.reason == "no reply in time"


def test_a_late_reply_is_never_that_of_a_later_message() -> None:
    grid = Network({1002: 10**9})
    assert send(grid, timeout=0.1)[-1].error.reason == "no reply in time"
    grid.looks = {}  # from now on everything is there, the reply to the first message too
    replies = send(grid)
    assert [reply.has_error() for reply in replies] == [False] * 3
    asked = [message.metadata.message_id for message in grid.pushed[3:]]
    assert [reply.metadata.reply_to_message_id for reply in replies] == asked


def test_the_clock_stands_still_while_a_reply_is_worked_on() -> None:
    replies = []
    messages = [Message(RecordDict(), node, "train") for node in NODES]
    for reply in RoundGrid(Network()).send_and_receive(messages, timeout=0.2):
        replies.append(reply)
        time.sleep(0.15)
    assert not any(reply.has_error() for reply in replies)


def test_nodes_of_one_process_have_the_whole_timeout_each_and_one_that_takes_longer_is_late() -> None:
    def handler(message: Message, context: Context) -> Message:
        time.sleep([0.15, 0.4, 0.15][int(context.node_config["partition-id"])])
        return echo(message, context)

    replies = send(local(handler), timeout=0.3)
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert "no reply in time: it came after 0." in str(replies[1].error.reason)


def test_messages_do_not_outlive_the_round_by_much() -> None:
    grid = Network()
    send(grid, timeout=7)
    assert [message.metadata.ttl for message in grid.pushed] == [14] * 3


def test_no_two_payloads_are_in_memory_together() -> None:
    alive: list[weakref.ref[ArrayRecord]] = []
    sent: list[weakref.ref[ArrayRecord]] = []

    def large(message: Message, context: Context) -> Message:
        gc.collect()
        assert sum(reference() is not None for reference in alive) == 0
        record = arrays(1000)
        reply = Message(RecordDict({"arrays": record}), reply_to=message)
        return reply

    def messages() -> Iterator[Message]:
        for node in NODES:
            record = arrays()
            sent.append(weakref.ref(record))
            message = Message(RecordDict({"arrays": record}), node, "train")
            del record
            yield message
            del message

    for reply in RoundGrid(local(large)).send_and_receive(messages(), timeout=5):
        assert not reply.has_error(), reply.error.reason
        assert not any(reference() for reference in sent)
        alive.append(weakref.ref(reply.content.array_records["arrays"]))
        del reply
    assert len(alive) == 3


def test_which_nodes_are_sample_nodes() -> None:
    numbers = list(range(40))
    rounds = [sample_nodes(numbers, 10, 0, number) for number in range(1, 31)]
    assert all(len(set(chosen)) == 10 and chosen == sorted(chosen) for chosen in rounds)
    assert set().union(*rounds) == set(numbers)
    assert rounds[0] == sample_nodes(numbers[::-1], 10, 0, 1)
    assert rounds[0] != sample_nodes(numbers, 10, 1, 1)
    absent = rounds[0][3]  # is replaced by one node; the others stay
    others = sample_nodes([number for number in numbers if number != absent], 10, 0, 1)
    assert set(rounds[0]) - {absent} < set(others)
    assert sample_nodes([3, 1, 2], None, 0, 1) == sample_nodes([3, 1, 2], 5, 0, 1) == [1, 2, 3]


def test_connected_nodes_are_waited_for() -> None:
    class Growing(LocalGrid):
        def get_node_ids(self) -> list[int]:
            self.calls = getattr(self, "calls", 0) + 1
            return [*NODES[: self.calls], 7]

    app = ClientApp()
    app.train()(echo)
    grid = RoundGrid(Growing(app, 3, {}))
    assert grid.connected(NODES, 2, 5) == NODES[:2]
    assert RoundGrid(local()).connected([1001, 1003, 9], 3, 0) == [1001, 1003]


def test_a_message_stays_as_it_was_pushed() -> None:
    """Flower's simulation hands nodes the very message that was pushed."""
    grid = Network()
    send(grid)
    assert [set(message.content) for message in grid.pushed] == [{"arrays"}] * 3

"""Flower's grid in one process, with Flower's own strategies on top."""

import inspect
import logging
import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.server.utils.validator import validate_message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, FedProx, Krum
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedgen.errors import ConfigError
from fedgen.runtimes.local import LocalGrid, run_server

Handler = Callable[[Message, Context], Message]


def client_app(handler: Handler) -> ClientApp:
    app = ClientApp()
    app.train()(handler)
    app.query("synthesize")(handler)
    return app


def make_grid(handler: Handler, num_nodes: int = 3) -> LocalGrid:
    return LocalGrid(client_app(handler), num_nodes, run_config={})


def arrays(value: float) -> ArrayRecord:
    return ArrayRecord({"w": Array(np.full((4,), value, np.float32))})


def weights(record: ArrayRecord) -> np.ndarray:
    return record["w"].numpy()


def question(node_id: int, record: RecordDict | None = None, ttl: float | None = None) -> Message:
    return Message(record or RecordDict({"arrays": arrays(0)}), node_id, "train", ttl=ttl)


def echo(message: Message, context: Context) -> Message:
    return Message(message.content, reply_to=message)


def climb(message: Message, context: Context) -> Message:
    """Add 1, 2 or 3 (by partition) to the weights, and count the calls of this node in its state."""
    calls = int(context.state["calls"]["n"]) + 1 if "calls" in context.state else 1
    context.state["calls"] = MetricRecord({"n": calls})
    partition = context.node_config["partition-id"]
    value = weights(message.content["arrays"]) + 1 + partition
    metrics = MetricRecord({"num-examples": 10, "calls": calls})
    return Message(RecordDict({"arrays": ArrayRecord({"w": Array(value)}), "metrics": metrics}), reply_to=message)


def test_fedavg_runs_three_rounds_and_every_node_keeps_its_state():
    seen = []
    result = FedAvg(fraction_evaluate=0, min_train_nodes=3, min_available_nodes=3).start(
        make_grid(climb), arrays(0), num_rounds=3, evaluate_fn=lambda r, a: seen.append((r, weights(a)[0]))
    )
    np.testing.assert_allclose(weights(result.arrays), 3 * 2.0)  # each round adds the mean of 1, 2 and 3
    assert [(r, float(w)) for r, w in seen] == [(0, 0), (1, 2), (2, 4), (3, 6)]
    assert [m["calls"] for m in result.train_metrics_clientapp.values()] == [1, 2, 3]


@pytest.mark.parametrize("strategy", [FedProx, FedAdam, FedMedian, Krum])
def test_other_strategies_run(strategy: type[FedAvg]):
    wrapped = strategy(fraction_evaluate=0, min_train_nodes=3, min_available_nodes=3)
    result = wrapped.start(make_grid(climb), arrays(0), num_rounds=1)
    assert weights(result.arrays).mean() > 0


def test_a_node_that_raises_gives_an_error_reply_and_the_round_goes_on(caplog: pytest.LogCaptureFixture):
    def handler(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 1:
            raise RuntimeError("disk full")
        return climb(message, context)

    grid = make_grid(handler)
    with caplog.at_level(logging.ERROR, logger="fedgen.runtimes.local"):
        replies = grid.send_and_receive([question(n) for n in grid.get_node_ids()])
    assert [r.has_error() for r in replies] == [False, True, False]
    assert replies[1].error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert replies[1].error.reason == "RuntimeError: disk full"
    assert replies[1].metadata.src_node_id == grid.get_node_ids()[1]
    assert 'raise RuntimeError("disk full")' in caplog.text  # the traceback

    result = FedAvg(fraction_evaluate=0, min_train_nodes=3).start(grid, arrays(0), num_rounds=2)
    np.testing.assert_allclose(weights(result.arrays), 2 * 2.0)  # the mean of 1 and 3, twice


def test_changes_of_the_context_before_an_exception_are_dropped():
    def handler(message: Message, context: Context) -> Message:
        first = "tries" not in context.state
        context.state["tries"] = MetricRecord({"n": 1})
        if message.metadata.group_id == "fail":
            raise ValueError("after the change")
        return Message(RecordDict({"m": MetricRecord({"first": int(first)})}), reply_to=message)

    grid = make_grid(handler, num_nodes=1)
    (node,) = grid.get_node_ids()

    def ask(group: str) -> Message:
        return next(iter(grid.send_and_receive([Message(RecordDict(), node, "train", group_id=group)])))

    assert ask("fail").has_error()
    assert ask("good").content["m"]["first"] == 1
    assert ask("good").content["m"]["first"] == 0


def test_nodes_have_contexts_of_their_own():
    contexts: list[Context] = []
    grid = LocalGrid(
        client_app(lambda message, context: contexts.append(context) or echo(message, context)),
        2,
        {"overrides": "seed=1"},
        [{"store": "/data/site 0"}, {"partition-id": 7}],
    )
    list(grid.send_and_receive([question(n) for n in grid.get_node_ids()]))
    assert contexts[0].node_config == {"partition-id": 0, "num-partitions": 2, "store": "/data/site 0"}
    assert contexts[1].node_config == {"partition-id": 7, "num-partitions": 2}
    assert [c.run_config for c in contexts] == [{"overrides": "seed=1"}] * 2
    assert [c.node_id for c in contexts] == grid.get_node_ids()
    assert {c.run_id for c in contexts} == {grid.run.run_id}
    assert contexts[0].state is not contexts[1].state
    assert contexts[0].run_config is not contexts[1].run_config


def test_neither_side_sees_the_changes_of_the_other():
    kept: list[Message] = []

    def handler(message: Message, context: Context) -> Message:
        message.content["config"]["name"] = "changed by the node"
        reply = Message(RecordDict({"config": ConfigRecord({"name": "reply"})}), reply_to=message)
        kept.append(reply)
        return reply

    grid = make_grid(handler, num_nodes=2)
    shared = RecordDict({"config": ConfigRecord({"name": "asked"})})  # strategies send one record to all
    ids = grid.push_messages([question(n, shared) for n in grid.get_node_ids()])
    shared["config"]["name"] = "changed by the server after sending"
    (first,) = grid.pull_messages(ids)
    kept[0].content["config"]["name"] = "changed by the node after replying"
    assert first.content["config"]["name"] == "reply"
    assert shared["config"]["name"] == "changed by the server after sending"

    seen = []
    grid = make_grid(lambda m, c: seen.append(m.content["config"]["name"]) or echo(m, c), num_nodes=2)
    ids = grid.push_messages([question(n, shared) for n in grid.get_node_ids()])
    shared["config"]["name"] = "too late"
    while grid.pull_messages(ids):
        pass
    assert seen == ["changed by the server after sending"] * 2


def test_replies_come_one_by_one_and_only_once():
    handled = []
    grid = make_grid(lambda m, c: handled.append(c.node_config["partition-id"]) or echo(m, c))
    ids = grid.push_messages([question(n) for n in grid.get_node_ids()])
    assert handled == []
    pulled = grid.pull_messages([ids[2]])
    assert handled == [2]
    assert [r.metadata.reply_to_message_id for r in pulled] == [ids[2]]
    while replies := grid.pull_messages(ids):
        pulled += replies
    assert handled == [2, 0, 1]
    assert grid.pull_messages(ids) == []
    assert grid.pull_messages(["unknown"]) == []


def test_messages_and_replies_pass_flowers_own_validation():
    grid = make_grid(echo)
    messages = [question(n) for n in grid.get_node_ids()]
    replies = grid.send_and_receive(messages)
    assert [validate_message(m, is_reply_message=False) for m in messages] == [[]] * 3
    assert [validate_message(r, is_reply_message=True) for r in replies] == [[]] * 3
    assert [r.metadata.reply_to_message_id for r in replies] == [m.metadata.message_id for m in messages]
    assert len({m.metadata.message_id for m in [*messages, *replies]}) == 6


def test_two_grids_keep_their_runs_apart():
    first, second = make_grid(echo), make_grid(echo)
    assert first.run.run_id != second.run.run_id
    for grid in (first, second):
        (reply,) = grid.send_and_receive([question(grid.get_node_ids()[0])])
        assert reply.metadata.run_id == grid.run.run_id


def test_actions_reach_their_handler_and_unknown_ones_are_errors():
    grid = make_grid(echo, num_nodes=1)
    (node,) = grid.get_node_ids()
    messages = [Message(RecordDict(), node, kind) for kind in ("query.synthesize", "query.unknown")]
    replies = grid.send_and_receive(messages)
    assert [r.has_error() for r in replies] == [False, True]
    assert "No query function registered with name 'unknown'" in str(replies[1].error.reason)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda message: None, "TypeError: the ClientApp returned NoneType, not a Message"),
        (lambda message: Message(RecordDict(), message.metadata.dst_node_id, "train"), "ValueError: Flower refuses"),
    ],
)
def test_an_answer_that_is_no_reply_is_an_error(answer: Callable[[Message], Message], reason: str):
    grid = make_grid(lambda message, context: answer(message), num_nodes=1)
    (reply,) = grid.send_and_receive([question(grid.get_node_ids()[0])])
    assert str(reply.error.reason).startswith(reason)


def test_a_reply_after_the_end_of_its_message_is_an_error():
    grid = make_grid(lambda m, c: time.sleep(0.1) or echo(m, c), num_nodes=1)
    (reply,) = grid.send_and_receive([question(grid.get_node_ids()[0], ttl=0.05)])
    assert "TTL has expired" in str(reply.error.reason)


def test_the_life_of_a_message_begins_when_it_is_pushed():
    grid = make_grid(echo, num_nodes=1)
    message = question(grid.get_node_ids()[0], ttl=0.2)
    time.sleep(0.3)
    (reply,) = grid.send_and_receive([message])
    assert not reply.has_error()


def test_a_message_to_an_unknown_node_is_refused():
    with pytest.raises(ValueError, match="no node 5; the nodes are"):
        make_grid(echo).push_messages([question(5)])


@pytest.mark.parametrize(
    ("nodes", "run_config", "node_configs", "words"),
    [
        (0, {}, None, "num_nodes=0"),
        (2, {}, [{}], "1 node_configs for num_nodes=2"),
    ],
)
def test_wrong_settings_are_refused(nodes: int, run_config: dict, node_configs: list | None, words: str):
    with pytest.raises(ConfigError, match=words):
        LocalGrid(client_app(echo), nodes, run_config, node_configs)


def test_run_server_runs_the_server_app_and_its_errors_pass_through():
    app = ServerApp()
    grid = make_grid(climb)

    @app.main()
    def main(given: Grid, context: Context) -> None:
        if context.run_config["overrides"] == "fail":
            raise RuntimeError("no good replies")
        assert given is grid
        result = FedAvg(fraction_evaluate=0).start(given, arrays(0), num_rounds=1)
        context.state["result"] = result.arrays

    context = run_server(app, grid, {"overrides": ""})
    assert context.run_id == grid.run.run_id
    np.testing.assert_allclose(weights(context.state["result"]), 2.0)
    with pytest.raises(RuntimeError, match="no good replies"):
        run_server(app, grid, {"overrides": "fail"})


def test_the_flower_internals_behind_the_grid_are_as_they_were(monkeypatch: pytest.MonkeyPatch):
    hint = "fedgen/runtimes/local.py was written for flwr 1.41: read the changes of Grid, Message and TaskIdentity"
    assert version("flwr").split(".")[:2] == ["1", "41"], hint
    expected = {
        "set_run": "(self, run: flwr.supercore.run.Run) -> None",
        "get_node_ids": "(self) -> collections.abc.Iterable[int]",
        "push_messages": "(self, messages: collections.abc.Iterable[flwr.app.message.message.Message]) "
        "-> collections.abc.Iterable[str]",
        "pull_messages": "(self, message_ids: collections.abc.Iterable[str]) "
        "-> collections.abc.Iterable[flwr.app.message.message.Message]",
        "send_and_receive": "(self, messages: collections.abc.Iterable[flwr.app.message.message.Message], *, "
        "timeout: float | None = None) -> collections.abc.Iterable[flwr.app.message.message.Message]",
        "create_message": "(self, content: flwr.app.message.recorddict.RecordDict, message_type: str, "
        "dst_node_id: int, group_id: str, ttl: float | None = None) -> flwr.app.message.message.Message",
    }
    assert Grid.__abstractmethods__ == {*expected, "run"}, hint
    assert {name: str(inspect.signature(getattr(Grid, name))) for name in expected} == expected, hint
    assert list(inspect.signature(validate_message).parameters) == ["message", "is_reply_message"], hint
    assert Run.create_empty(run_id=5).run_id == 5, hint

    grid = make_grid(echo)
    message = question(1001)
    read = message.metadata
    assert (TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id) == (grid.run.run_id, 1, 1), hint
    assert (read.run_id, read.src_node_id, read.message_id) == (TaskIdentity.run_id, 1, ""), hint
    read.__dict__.update(_message_id="m", _run_id=5)
    reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "why"), reply_to=message)
    assert (read.message_id, reply.metadata.reply_to_message_id, reply.metadata.run_id) == ("m", "m", 5), hint
    assert (reply.metadata.src_node_id, reply.metadata.dst_node_id) == (1001, 1), hint
    monkeypatch.setattr(TaskIdentity, "_run_id", None)
    with pytest.raises(RuntimeError, match="run_id is not set"):
        question(1001)

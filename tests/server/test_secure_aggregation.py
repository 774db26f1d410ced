"""Secure aggregation: the average is that of the nodes' adapters, and the server gets nothing else of them."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federations import Federate, Nodes
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, RECORD_KEY_STATE, Key, Stage
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.serverapp.strategy import FedAdam, FedAvg

from fedgen.config.compose import load_config
from fedgen.config.settings import Config
from fedgen.config.strategy import MODULUS, SecureSettings
from fedgen.data.tensors import load_tensors
from fedgen.errors import AggregationError, ConfigError, DataError, PayloadError
from fedgen.messages.masks import decode, encode, mask
from fedgen.node.secure import MASKED, OWN_KEY, check_asked, check_node, masked
from fedgen.runtimes.local import FIRST_NODE_ID, LocalGrid
from fedgen.server.secure import Round, neighbourhoods

SECRET = SecureSettings("secagg")
START = {"w": np.zeros((40, 50), np.float32), "b": np.zeros(30, np.float32), "scale": np.zeros((), np.float32)}
STAGES = [Stage.SETUP, Stage.SHARE_KEYS, Stage.COLLECT_MASKED_VECTORS, Stage.UNMASK]
Change = Callable[[Message, Message, int, str], Message | None]


def weights(number: int) -> dict[str, np.ndarray]:
    """What node ``number`` has learnt."""
    generator = np.random.default_rng(number)
    return {n: np.asarray(generator.normal(0, 0.3, value.shape), np.float32) for n, value in START.items()}


def stage_of(message: Message) -> str:
    return str(message.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE])


def as_sent(content: RecordDict) -> RecordDict:
    return recorddict_from_proto(recorddict_to_proto(content))


def nodes(change: Change = lambda message, reply, number, stage: None, scale: float = 1.0) -> ClientApp:
    """Nodes of 10, 20, 30 ... clips; ``change`` may replace the reply of a node at a stage, or raise.

    What they keep and send passes through Flower's serialisation, as between the processes of a deployment.
    """
    app = ClientApp()

    def on_the_way(message: Message, context: Context, answer: Any) -> Message:
        stage, number = stage_of(message), int(context.node_config["partition-id"])
        context.state = as_sent(context.state)
        message.content = as_sent(message.content)
        reply = answer(message, context)
        reply.content = as_sent(reply.content)
        return change(message, reply, number, stage) or reply

    @app.train(mods=[on_the_way, masked])
    def train(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        arrays = ArrayRecord(
            {name: Array(np.asarray(value * scale, np.float32)) for name, value in weights(number).items()}
        )
        metrics = MetricRecord({"num-examples": 10 * (number + 1), "loss": 0.5})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return app


def sent(
    app: ClientApp, count: int = 3, settings: SecureSettings = SECRET, **options: Any
) -> tuple[list[Message], list[RecordDict]]:
    """Return the replies that a strategy gets of one round, and all that the server got."""
    grid = LocalGrid(app, count, {}, options.pop("node_configs", None))
    seen: list[RecordDict] = []

    def send(messages: list[Message]) -> Iterable[Message]:
        replies = grid.send_and_receive(messages)
        seen.extend(as_sent(reply.content) for reply in replies if not reply.has_error())
        return replies

    clips = {FIRST_NODE_ID + number: 10 * (number + 1) for number in range(count)}
    arrays = ArrayRecord({name: Array(value) for name, value in START.items()})
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"round": 1})})
    asked = [Message(content, node_id, "train", group_id="1") for node_id in clips]
    return Round(send, asked, settings, clips, **options).run(), seen


def mean(replies: list[Message], strategy: FedAvg | None = None) -> dict[str, np.ndarray]:
    arrays, _ = (strategy or FedAvg()).aggregate_train(1, [reply for reply in replies if not reply.has_error()])
    assert arrays is not None
    return {name: array.numpy() for name, array in arrays.items()}


def wanted(numbers: Iterable[int], equal: bool = False) -> dict[str, np.ndarray]:
    share = {number: 1 if equal else number + 1 for number in numbers}
    total = sum(share.values())
    return {name: sum(weights(n)[name] * share[n] for n in share) / total for name in START}  # type: ignore[misc]


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], error: float = 1e-5) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape
        np.testing.assert_allclose(found[name], value, rtol=0, atol=error)


def reasons(replies: list[Message]) -> dict[int, str]:
    return {r.metadata.src_node_id - FIRST_NODE_ID: str(r.error.reason) for r in replies if r.has_error()}


def gone(where: str, *numbers: int) -> Change:
    def change(message: Message, reply: Message, number: int, stage: str) -> None:
        if number in numbers and stage == where:
            raise RuntimeError("gone")

    return change


@pytest.mark.parametrize(
    ("count", "settings"),
    [(3, SECRET), (4, SECRET), (8, SecureSettings("secagg", shares=5)), (5, SecureSettings("secagg", threshold=5))],
)
def test_the_average_is_that_of_the_nodes(count: int, settings: SecureSettings) -> None:
    replies, _ = sent(nodes(), count, settings)
    assert len(replies) == count
    assert_same(mean(replies), wanted(range(count)))
    assert all(reply.content["arrays"]["w"].dtype == "float32" for reply in replies)
    assert {reply.content["metrics"]["num-examples"] for reply in replies} == {10 * (n + 1) for n in range(count)}


def test_nodes_may_weigh_the_same() -> None:
    replies, _ = sent(nodes(), equal=True)
    assert_same({n: a.numpy() for n, a in replies[0].content["arrays"].items()}, wanted(range(3), equal=True))


def test_a_round_comes_out_the_same_each_time() -> None:
    """Masks are random, and leave nothing behind; so a run with them can be repeated."""
    first, second = (mean(sent(nodes())[0]) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_optimisers_on_the_server_see_the_same_average() -> None:
    strategies = [FedAdam(eta=0.1), FedAdam(eta=0.1)]
    for strategy in strategies:
        strategy.current_arrays = START
    plain = wanted(range(3))
    one = Message(
        RecordDict({"arrays": ArrayRecord({n: Array(np.asarray(v, np.float32)) for n, v in plain.items()})}), 1, "train"
    )
    one.content["metrics"] = MetricRecord({"num-examples": 1})
    assert_same(mean(sent(nodes())[0], strategies[0]), mean([one], strategies[1]), 1e-3)


def test_the_error_is_that_of_rounding() -> None:
    coarse = SecureSettings("secagg", quantization=2**10, clipping_range=2.0)
    found, exact = mean(sent(nodes(), 3, coarse)[0]), wanted(range(3))
    step, share = 2 * 2.0 / 2**10, (10 + 20 + 30) / 30
    error = max(np.abs(found[name] - exact[name]).max() for name in exact)
    assert step / 100 < error <= 3 * step / 2 / share + 1e-6


def masked_vectors(seen: list[RecordDict]) -> list[np.ndarray]:
    arrays = [array for content in seen for record in content.array_records.values() for array in record.items()]
    assert {name for name, _ in arrays} == {MASKED}, "nothing but masked adapters reaches the server"
    return [array.numpy() for _, array in arrays]


def test_what_the_server_gets_of_a_node_is_noise() -> None:
    _, seen = sent(nodes())
    for vector, number in zip(masked_vectors(seen), range(3), strict=True):
        own = np.concatenate([weights(number)[name].ravel() for name in sorted(START)])
        assert vector.dtype == np.uint32
        assert len(vector) == len(own) + 1
        # uniform: of 16 equal parts of the range each has its share (chi-squared, 15 degrees: 1 in 10^6 is above 56)
        counts = np.bincount(vector >> 28, minlength=16)
        assert ((counts - len(vector) / 16) ** 2 / (len(vector) / 16)).sum() < 56
        # and like nothing of the node's: 5 deviations of the correlation between independent numbers
        assert abs(np.corrcoef(vector[:-1].astype(float), own)[0, 1]) < 5 / len(own) ** 0.5
    plain = encode(ArrayRecord({n: Array(v) for n, v in weights(0).items()}), 1.0, 8.0, 2**22)
    assert (plain < 2**22 + 1).all(), "what the first of these checks would find without masks"


def test_two_rounds_have_other_masks() -> None:
    app = nodes()
    vectors = [masked_vectors(sent(app)[1])[0] for _ in range(2)]
    assert (vectors[0] == vectors[1]).mean() < 0.01


@pytest.mark.parametrize("stage", STAGES[:3])
@pytest.mark.parametrize("count", [3, 7])
def test_a_node_that_drops_out_is_left_out(stage: str, count: int) -> None:
    settings = SecureSettings("secagg", shares=3 if count == 3 else 5)
    replies, _ = sent(nodes(gone(stage, 1)), count, settings)
    assert_same(mean(replies), wanted(set(range(count)) - {1}))
    assert reasons(replies) == {1: "RuntimeError: gone"}


def test_a_node_that_drops_out_after_its_adapters_came_counts() -> None:
    replies, _ = sent(nodes(gone(Stage.UNMASK, 1)))
    assert_same(mean(replies), wanted(range(3)))
    assert reasons(replies) == {}


def test_nodes_drop_out_one_after_the_other() -> None:
    def change(message: Message, reply: Message, number: int, stage: str) -> None:
        if number < 3 and stage == STAGES[number]:
            raise RuntimeError("gone")

    replies, _ = sent(nodes(change), 7)
    assert set(reasons(replies)) == {0, 1, 2}
    assert_same(mean(replies), wanted(range(3, 7)))


@pytest.mark.parametrize("stage", STAGES)
def test_too_few_nodes_end_the_round(stage: str) -> None:
    with pytest.raises(AggregationError, match=r"secure aggregation: 1 (of 3 nodes sent .* gone|shares came, 2)"):
        sent(nodes(gone(stage, 0, 2)))


def test_two_nodes_are_too_few_to_begin_with() -> None:
    with pytest.raises(AggregationError, match="at least 3 nodes, 2 are asked"):
        sent(nodes(), 2)


def test_a_node_outside_the_federation_is_not_asked() -> None:
    grid, asked_of = LocalGrid(nodes(), 4, {}), set()

    def send(messages: list[Message]) -> Iterable[Message]:
        asked_of.update(message.metadata.dst_node_id for message in messages)
        return grid.send_and_receive(messages)

    content = RecordDict({"arrays": ArrayRecord({name: Array(value) for name, value in START.items()})})
    asked = [Message(content, node_id, "train") for node_id in grid.get_node_ids()]
    clips = {FIRST_NODE_ID + number: 40 for number in range(3)}
    assert len(Round(send, asked, SECRET, clips).run()) == 3
    assert asked_of == set(clips)


def lie(where: str, change: Callable[[Message], None]) -> Change:
    """Node 1 changes what it replies at a stage."""

    def changed(message: Message, reply: Message, number: int, stage: str) -> None:
        if number == 1 and stage == where:
            change(reply)

    return changed


def said(reply: Message) -> Any:
    return reply.content.config_records[RECORD_KEY_CONFIGS]


def set_vector(reply: Message, value: np.ndarray) -> None:
    reply.content["arrays"] = ArrayRecord({MASKED: Array(value)})


SIZE = sum(value.size for value in START.values()) + 1


@pytest.mark.parametrize(
    ("stage", "change", "words"),
    [
        (STAGES[0], lambda r: said(r).pop(Key.PUBLIC_KEY_1), "keys: "),
        (STAGES[0], lambda r: said(r).update({Key.PUBLIC_KEY_1: b"no key"}), "keys: "),
        (STAGES[0], lambda r: said(r).update({Key.PUBLIC_KEY_1: b"x" * 20_000}), "at most 10000 bytes"),
        (STAGES[1], lambda r: said(r).update({Key.DESTINATION_LIST: [5]}), r"shares for nodes \[5\], expected"),
        (STAGES[1], lambda r: said(r).update({Key.CIPHERTEXT_LIST: ["a", "b"]}), "shares: "),
        (STAGES[2], lambda r: set_vector(r, np.zeros(SIZE + 1, np.uint32)), "masked is uint32 of shape"),
        (STAGES[2], lambda r: set_vector(r, np.zeros(SIZE, np.int64)), "masked is int64"),
        (
            STAGES[2],
            lambda r: r.content.__setitem__("arrays", ArrayRecord({"w": Array(START["w"])})),
            "expected masked",
        ),
        (STAGES[2], lambda r: r.content["metrics"].update({"num-examples": 21}), "from 1 to the node's 20 clips"),
    ],
)
def test_what_a_node_makes_up_is_refused_and_the_rest_goes_on(
    stage: str, change: Callable[[Message], None], words: str
) -> None:
    replies, _ = sent(nodes(lie(stage, change)))
    assert set(reasons(replies)) == {1}
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(reasons(replies)[1])
    assert_same(mean(replies), wanted([0, 2]))


@pytest.mark.parametrize(
    ("stage", "change", "words"),
    [
        (STAGES[2], lambda r: set_vector(r, np.full(SIZE, 77, np.uint32)), "masks are left in the sum"),
        (STAGES[3], lambda r: said(r).update({Key.SHARE_LIST: [b"\1\0\0\0" + b"x" * 48] * 3}), "secure aggregation"),
    ],
)
def test_a_node_that_breaks_the_masks_ends_the_round(stage: str, change: Callable[[Message], None], words: str) -> None:
    """It spoils the sum without a trace of who it was; the global adapters stay what they were."""
    with pytest.raises(AggregationError, match=words):
        sent(nodes(lie(stage, change)), 3)


def test_adapters_out_of_range_are_not_clipped_in_silence() -> None:
    with pytest.raises(AggregationError, match=r"have a weight of .*, above strategy.secure.clipping_range=8"):
        sent(nodes(scale=100.0))
    with pytest.raises(DataError, match="a weight of nan"):
        encode(ArrayRecord({"w": Array(np.array([np.nan]))}), 1.0, 8.0, 2**22)


def test_a_node_forgets_the_keys_of_a_round() -> None:
    kept = []

    def keep(message: Message, context: Context, answer: Any) -> Message:
        reply = masked(message, context, answer)
        kept.append(context.state.config_records[RECORD_KEY_STATE])
        return reply

    app = ClientApp()

    @app.train(mods=[keep])
    def train(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 10})
        arrays = ArrayRecord({name: Array(value) for name, value in START.items()})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    sent(app)
    assert "sk1" in kept[0]
    assert all(len(str(record)) < 20_000 for record in kept), "context.state holds a few MB at most"
    assert [dict(record) for record in kept[-3:]] == [{"current_stage": Stage.UNMASK}] * 3


def ask(stage: str, facts: dict[str, Any] | None = None, **said: Any) -> None:
    """Let a node handle one message of its server."""
    setup = {Key.SHARE_NUMBER: 3, Key.THRESHOLD: 2, Key.MOD_RANGE: MODULUS, Key.SAMPLE_NUMBER: 3}
    setup |= {Key.CLIPPING_RANGE: 8.0, Key.TARGET_RANGE: 2**22, Key.MAX_WEIGHT: 10.0}
    values = {**(setup if stage == Stage.SETUP else {}), **said, Key.STAGE: stage}
    message = Message(RecordDict({RECORD_KEY_CONFIGS: ConfigRecord(values)}), 5, "train")
    masked(message, Context(1, 5, facts or {}, RecordDict(), {}), lambda m, c: m)


@pytest.mark.parametrize(
    ("stage", "values", "facts", "words"),
    [
        (Stage.SETUP, {Key.THRESHOLD: 1}, {}, "1 of 3 shares give a secret back"),
        (Stage.SETUP, {Key.SHARE_NUMBER: 2, Key.THRESHOLD: 2}, {}, "2 of 2 shares"),
        (Stage.SETUP, {Key.MOD_RANGE: 2**31}, {}, "a modulus"),
        (Stage.SETUP, {Key.TARGET_RANGE: 2**33}, {}, "steps from"),
        (Stage.SETUP, {}, {OWN_KEY: 5}, "3 shares, secure-aggregation=5"),
        (Stage.COLLECT_MASKED_VECTORS, {Key.SOURCE_LIST: [6], Key.CIPHERTEXT_LIST: [b""]}, {OWN_KEY: 3}, "2 nodes"),
        (Stage.COLLECT_MASKED_VECTORS, {Key.SOURCE_LIST: [6, 6], Key.CIPHERTEXT_LIST: [b""] * 2}, {}, "all different"),
        (Stage.UNMASK, {Key.ACTIVE_NODE_ID_LIST: [5, 6, 7], Key.DEAD_NODE_ID_LIST: [6]}, {}, "both secrets of nodes"),
        (Stage.UNMASK, {Key.ACTIVE_NODE_ID_LIST: [5, 5, 5], Key.DEAD_NODE_ID_LIST: [6]}, {}, "all different"),
        (Stage.UNMASK, {Key.ACTIVE_NODE_ID_LIST: [5, 6], Key.DEAD_NODE_ID_LIST: [7]}, {OWN_KEY: 3}, "the sum of 2"),
    ],
)
def test_a_node_refuses_what_would_uncover_it(
    stage: str, values: dict[str, Any], facts: dict[str, Any], words: str
) -> None:
    with pytest.raises(PayloadError, match=words):
        ask(stage, facts, **values)
    ask(Stage.SETUP)  # as it should be


def test_a_node_does_not_unmask_twice() -> None:
    app = nodes()
    grid = LocalGrid(app, 3, {})
    asked: list[Message] = []

    def send(messages: list[Message]) -> Iterable[Message]:
        asked[:] = messages
        return grid.send_and_receive(messages)

    clips = {FIRST_NODE_ID + number: 10 * (number + 1) for number in range(3)}
    content = RecordDict({"arrays": ArrayRecord({name: Array(value) for name, value in START.items()})})
    Round(send, [Message(content, node_id, "train") for node_id in clips], SECRET, clips).run()
    again = [Message(message.content, message.metadata.dst_node_id, "train") for message in asked]
    assert all(reply.has_error() for reply in grid.send_and_receive(again))


def test_a_node_may_demand_secure_aggregation() -> None:
    plain = Message(RecordDict({"config": ConfigRecord()}), 5, "train")
    check_asked(SecureSettings(), plain)
    check_node(SecureSettings(), None)
    check_node(SECRET, 3)
    with pytest.raises(ConfigError, match=r"asks for adapters in the clear"):
        check_asked(SECRET, plain)
    with pytest.raises(ConfigError, match=r"secure-aggregation=3 refuses strategy.secure.name=none"):
        check_node(SecureSettings(), 3)
    with pytest.raises(ConfigError, match=r"secure-aggregation=2 must be a whole number of at least 3"):
        check_node(SECRET, 2)


FIVE = ["strategy.secure.name=secagg", "partition.nodes=5", "mode=combined"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["partition.nodes=2"], "needs at least 3 nodes"),
        (["strategy.nodes_per_round=2"], "needs at least 3 nodes"),
        (["strategy=krum"], "strategy=krum looks at single nodes' adapters"),
        (
            ["strategy.dp=server", "strategy.clipping_norm=1", "strategy.noise_multiplier=1", "strategy.delta=0.1"],
            "strategy.dp=server would have to clip",
        ),
        (["global_training=distil"], "global_training=distil has no teachers"),
        (["mode=generators_only"], "no adapters leave a node"),
        (["strategy.min_nodes=2"], "min_nodes=2 is below strategy.secure.threshold=3"),
        (["strategy.secure.shares=4"], "shares=4 must be odd"),
        (["strategy.secure.shares=7"], "shares=7 must be odd and below"),
        (["strategy.secure.threshold=2"], "threshold=2 must be above half of 5"),
        (["strategy.secure.threshold=6"], "threshold=6 must be above half of 5"),
        (["strategy.secure.shares=3", "strategy.secure.threshold=4"], "threshold=4 must be above half of 3"),
        ([f"strategy.secure.quantization={2**30}"], "quantization=1073741824 times partition.nodes=5"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_runs_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config([*FIVE, *overrides])


CLIENT = ["strategy.dp=client", "strategy.clipping_norm=1", "strategy.noise_multiplier=1", "strategy.delta=0.1"]


@pytest.mark.parametrize("overrides", [[], ["strategy=fedprox"], ["strategy=fedadam"], CLIENT], ids=str)
def test_runs_are_allowed(overrides: list[str]) -> None:
    assert load_config([*FIVE, *overrides]).strategy.secure.used


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "secag"}, "Did you mean 'secagg'"),
        ({"shares": 2}, "shares=2 must be at least 3"),
        ({"threshold": 1}, "threshold=1 must be at least 2"),
        ({"clipping_range": 0.0}, "clipping_range=0.0"),
        ({"quantization": 1}, "quantization=1"),
    ],
)
def test_settings_are_checked(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SecureSettings(**{"name": "secagg", **values})


def test_neighbours_are_mutual() -> None:
    found = neighbourhoods(list(range(10)), 5)
    assert all(len(near) == 5 and node in near for node, near in found.items())
    assert all(node in found[other] for node, near in found.items() for other in near)


def test_numbers_come_back() -> None:
    record = ArrayRecord({"w": Array(np.array([[-8.0, 0.5], [8.0, 0.0]]))})
    vectors = [encode(record, share, 8.0, 2**22) for share in (1.0, 0.25)]
    total = vectors[0] + vectors[1]
    assert decode(total, 1.25, 8.0, 2**22) == pytest.approx([-8.0, 0.5, 8.0, 0.0], abs=1e-5)


def test_masks_depend_on_the_whole_seed() -> None:
    """Flower's own do not: they know no more than 2^32 seeds, and this is why masks here are others."""
    one = bytes(range(32))
    two = one[4:8] + one[:4] + one[8:]
    assert np.array_equal(pseudo_rand_gen(one, 2**32, [(9,)])[0], pseudo_rand_gen(two, 2**32, [(9,)])[0])
    assert not np.array_equal(mask(one, 9), mask(two, 9))


def test_flowers_workflow_is_for_the_legacy_api() -> None:
    """What docs/security.md says of it: it does not take the context of a ServerApp of today."""
    grid = LocalGrid(nodes(), 3, {})
    with pytest.raises(TypeError, match="Expect a LegacyContext, but get Context"):
        SecAggPlusWorkflow(3, 2)(grid, Context(1, 1, {}, RecordDict(), {}))


# Whole runs

Tiny = Callable[..., Config]
ON = ["strategy.secure.name=secagg", "mode=federate", "rounds=2"]


def adapters(folder: Path) -> dict[str, np.ndarray]:
    return {n: value.numpy() for n, value in load_tensors(folder / "checkpoints" / "adapters.safetensors")[0].items()}


@pytest.mark.parametrize(("strategy", "rounds"), [("fedavg", 2), ("fedprox", 1), ("fedavgm", 1)])
def test_a_run_learns_what_it_learns_without(
    strategy: str, rounds: int, tiny: Tiny, federate: Federate, tmp_path: Path
) -> None:
    """Up to the rounding; nodes' optimisers make more of it in the second round."""
    chosen = [f"strategy={strategy}", *ON[1:], f"rounds={rounds}"]
    federate(tiny(*chosen, ON[0]), tmp_path / "secure")
    federate(tiny(*chosen), tmp_path / "plain")
    assert_same(adapters(tmp_path / "secure"), adapters(tmp_path / "plain"), 1e-5 if rounds == 1 else 1e-3)


def test_samples_are_exchanged_as_ever(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    found = federate(tiny(ON[0], "mode=combined", "rounds=2"), tmp_path)
    assert sum(found["samples"].values()) > 0


def test_only_sums_reach_the_server(tiny: Tiny, federate: Federate, nodes_that: type[Nodes], tmp_path: Path) -> None:
    seen: list[set[str]] = []

    def change(request: Message, reply: Message, number: int) -> None:
        if request.metadata.message_type == "train" and not reply.has_error():
            seen.extend(set(record) for record in reply.content.array_records.values())

    federate(tiny(*ON), tmp_path, nodes_that(change))
    assert seen == [{MASKED}] * 6


def test_a_run_goes_on_without_a_node(tiny: Tiny, federate: Federate, nodes_that: type[Nodes], tmp_path: Path) -> None:
    def change(request: Message, reply: Message, number: int) -> None:
        if number == 2 and reply.content.array_records:
            raise RuntimeError("gone")

    federate(tiny(*ON, "strategy.min_nodes=2"), tmp_path, nodes_that(change))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert any("gone" in json.dumps(line) for line in lines)


def test_clipping_by_nodes_goes_with_it(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    noise = ["strategy.dp=client", "strategy.clipping_norm=0.5", "strategy.noise_multiplier=1e-6", "strategy.delta=0.1"]
    noise += ["rounds=1"]  # a second round would train on what rounding and noise have made of the first
    federate(tiny(*ON, *noise), tmp_path / "secure")
    federate(tiny(*ON[1:], *noise), tmp_path / "plain")
    assert_same(adapters(tmp_path / "secure"), adapters(tmp_path / "plain"), 1e-4)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["strategy=krum"], "strategy=krum looks at single nodes' adapters"),
        (["partition.nodes=2"], "at least 3 nodes"),
        (["mode=generators_only"], "no adapters leave a node"),
        (["mode=combined", "global_training=distil"], "global_training=distil has no teachers"),
    ],
)
def test_a_configuration_is_refused(overrides: list[str], words: str, tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny(*ON, *overrides)

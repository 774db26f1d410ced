"""The wrapper around Flower's strategies, on toy nodes: who counts, who is refused, and what is made of the replies."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower
from spaces import toy_space

from fedgen.config.compose import load_config
from fedgen.config.phases import plan
from fedgen.config.settings import Config, SynthesisConfig
from fedgen.config.strategy import StrategyConfig
from fedgen.data.partition import PartitionSettings
from fedgen.errors import AggregationError, ConfigError
from fedgen.messages.checks import NodeInfo
from fedgen.messages.samples import samples_from_record, samples_to_record
from fedgen.models.codec import Codec
from fedgen.models.samples import PooledSummaries, SyntheticTokens
from fedgen.models.settings import CodecSettings
from fedgen.runtimes.local import LocalGrid
from fedgen.server.aggregation import STRATEGY_CLASSES, open_strategy
from fedgen.server.federation import Federation
from fedgen.server.grid import sample_nodes
from fedgen.server.pool import SamplePool
from fedgen.strategy import SyntheticPooling

SHAPE = (9, 8)
START = {"w": np.linspace(0, 1, 4, dtype=np.float32), "b": np.zeros((2, 3), np.float32)}
NODES = {1001 + i: NodeInfo(i, {2 * i: 5, 2 * i + 1: 5}) for i in range(3)}
RUN = Config(partition=PartitionSettings(nodes=3))

Change = Callable[[RecordDict, int], RecordDict | None]


@cache
def codec() -> Codec:
    return toy_space(SHAPE, CodecSettings(4, 5, 6)).codec


def samples(node: int, count: int = 3) -> SyntheticTokens:
    generator = torch.Generator().manual_seed(node)
    labels = torch.tensor([2 * node, 2 * node + 1]).repeat_interleave(count)
    return SyntheticTokens(codec(), torch.randn(2 * count, 6, generator=generator), labels)


def trained(message: Message, node: int) -> RecordDict:
    """Add the node's number and one to every weight."""
    received = next(iter(message.content.array_records.values()))
    arrays = ArrayRecord({name: Array(value.numpy() + np.float32(1 + node)) for name, value in received.items()})
    metrics = MetricRecord({"num-examples": 10, "loss": float(node)})
    return RecordDict({"arrays": arrays, "metrics": metrics, "report": ConfigRecord({"generators": "[]"})})


def toy_nodes(
    train: Change | None = None, synthesize: Change | None = None, asked: list[Any] | None = None
) -> ClientApp:
    """Nodes whose replies ``train`` and ``synthesize`` may change or replace."""
    app = ClientApp()

    def answer(message: Message, context: Context, content: RecordDict, change: Change | None) -> Message:
        node = int(context.node_config["partition-id"])
        if asked is not None:
            asked.append((message.metadata.message_type, node, dict(message.content["config"])))
        changed = change(content, node) if change else None
        return Message(content if changed is None else changed, reply_to=message)

    @app.train()
    def on_train(message: Message, context: Context) -> Message:
        return answer(message, context, trained(message, int(context.node_config["partition-id"])), train)

    @app.query("synthesize")
    def on_synthesize(message: Message, context: Context) -> Message:
        content = RecordDict({"samples": samples_to_record(samples(int(context.node_config["partition-id"])))})
        return answer(message, context, content, synthesize)

    return app


def run(
    app: ClientApp,
    strategy: StrategyConfig | None = None,
    mode: str = "federate",
    rounds: int = 1,
    min_nodes: int = 3,
    train_on_pool: Callable[..., Any] | None = None,
    limit: int = 100,
    grid: type[LocalGrid] = LocalGrid,
) -> tuple[ArrayRecord, SyntheticPooling]:
    rules = replace(strategy or StrategyConfig(), min_nodes=min_nodes)
    config = replace(
        RUN, mode=mode, rounds=rounds, strategy=rules, synthesis=SynthesisConfig(fill=0, max_samples=limit)
    )
    federation = Federation(grid(app, 3, {}), config)
    federation.nodes = dict(NODES)
    (phase,) = plan(config.phase_list)
    pool = SamplePool(codec(), config, learn=train_on_pool) if phase.mode.synthesizes else None
    pooling = SyntheticPooling(open_strategy(rules, min_nodes), phase, federation, pool)
    start = ArrayRecord({name: Array(value) for name, value in START.items()})
    result = pooling.start(federation.grid, start, num_rounds=rounds)
    return result.arrays, pooling


@pytest.mark.parametrize("name", STRATEGY_CLASSES)
def test_every_strategy_aggregates_all_nodes_in_round_1(name: str) -> None:
    settings = load_config([f"strategy={name}"]).strategy
    asked: list[Any] = []
    arrays, pooling = run(toy_nodes(asked=asked), settings)
    assert isinstance(pooling.inner, STRATEGY_CLASSES[name])
    assert sorted(node for kind, node, _ in asked if kind == "train") == [0, 1, 2]
    assert pooling.federation.report.answered == [0, 1, 2]
    assert set(arrays) == set(START)
    for key, array in arrays.items():
        assert array.numpy().dtype == np.float32
        assert array.numpy().shape == START[key].shape
        assert np.isfinite(array.numpy()).all()
        assert not np.array_equal(array.numpy(), START[key])


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedadam", "fedmedian"])
def test_the_wrapped_strategy_decides_what_is_aggregated(name: str) -> None:
    """Two rounds through the wrapper are two rounds of Flower's strategy alone."""
    settings = load_config([f"strategy={name}"]).strategy
    wrapped, _ = run(toy_nodes(), settings, rounds=2)
    start = ArrayRecord({key: Array(value) for key, value in START.items()})
    alone = open_strategy(settings, 3).start(LocalGrid(toy_nodes(), 3, {}), start, num_rounds=2).arrays
    for key, array in wrapped.items():
        np.testing.assert_allclose(array.numpy(), alone[key].numpy(), rtol=1e-6)


def test_krum_takes_one_node_as_it_is() -> None:
    arrays, _ = run(toy_nodes(), load_config(["strategy=krum"]).strategy)
    assert any(np.array_equal(arrays["w"].numpy(), START["w"] + np.float32(1 + node)) for node in range(3))


@pytest.mark.parametrize("name", ["fedtrimmedavg", "fedmedian", "krum", "multikrum"])
def test_robust_strategies_stay_nearer_to_the_honest_average_than_fedavg(name: str) -> None:
    """One node of three sends poison that no bound on the change tells from an honest one."""

    def poison(content: RecordDict, node: int) -> None:
        if node == 1:
            for key, array in list(content["arrays"].items()):
                content["arrays"][key] = Array(array.numpy() - np.float32(10))

    honest, errors = START["w"] + np.float32(2), {}  # the mean of the other two
    for chosen in ("fedavg", name):
        arrays, pooling = run(toy_nodes(poison), load_config([f"strategy={chosen}"]).strategy)
        assert pooling.federation.report.lost == {}
        errors[chosen] = float(np.abs(arrays["w"].numpy() - honest).max())
    assert errors[name] < 0.5 * errors["fedavg"]


@pytest.mark.parametrize("name", ["fedavg", "fedtrimmedavg", "fedmedian", "krum"])
def test_the_nodes_adapters_can_teach_after_they_were_aggregated(name: str) -> None:
    def learn(
        number: int, arrays: ArrayRecord, pool: PooledSummaries, teachers: dict[int, ArrayRecord]
    ) -> tuple[ArrayRecord, dict[str, float]]:
        for node, record in teachers.items():
            np.testing.assert_allclose(record["b"].numpy(), 1 + node)
        assert sorted(teachers) == [0, 1, 2]
        return arrays, {"loss": 1.0}

    _, pooling = run(toy_nodes(), load_config([f"strategy={name}"]).strategy, mode="combined", train_on_pool=learn)
    assert pooling.federation.report.global_losses == {"loss": 1.0}


def test_the_average_is_weighted_by_clips() -> None:
    def fewer(content: RecordDict, node: int) -> None:
        content["metrics"]["num-examples"] = [1, 1, 8][node]

    arrays, _ = run(toy_nodes(fewer))
    np.testing.assert_allclose(arrays["b"].numpy(), 0.1 * 1 + 0.1 * 2 + 0.8 * 3, rtol=1e-6)


def test_fedprox_tells_the_nodes_its_weight() -> None:
    asked: list[Any] = []
    run(toy_nodes(asked=asked), StrategyConfig("fedprox", options={"proximal_mu": 0.25}))
    assert [config["proximal-mu"] for _, _, config in asked] == [0.25] * 3
    run(toy_nodes(asked=asked))
    assert "proximal-mu" not in asked[-1][2]


def test_every_message_carries_the_round_and_the_settings() -> None:
    asked: list[Any] = []
    run(
        toy_nodes(asked=asked),
        mode="combined",
        rounds=2,
        train_on_pool=lambda number, arrays, pool, teachers: (arrays, {}),
    )
    kinds = ["train"] * 3 + ["query.synthesize"] * 3
    assert [kind for kind, _, _ in asked] == kinds * 2
    assert [config["round"] for _, _, config in asked] == [1] * 6 + [2] * 6
    assert len({config["yaml"] for _, _, config in asked}) == 1


def test_samples_are_pooled_over_nodes_and_learned_from() -> None:
    pools: list[PooledSummaries] = []

    def learn(
        number: int, arrays: ArrayRecord, pool: PooledSummaries, teachers: dict[int, ArrayRecord]
    ) -> tuple[ArrayRecord, dict[str, float]]:
        pools.append(pool)
        assert sorted(teachers) == [0, 1, 2]
        np.testing.assert_allclose(arrays["b"].numpy(), 2.0)  # what was aggregated
        return ArrayRecord({n: Array(a.numpy() + np.float32(5)) for n, a in arrays.items()}), {"loss": 0.5}

    arrays, pooling = run(toy_nodes(), mode="combined", train_on_pool=learn)
    assert pools[0].counts() == pooling.federation.report.samples == dict.fromkeys(range(6), 3)
    assert [part.batch(torch.arange(2)).shape for part in pools[0].parts] == [(2, *SHAPE)] * 3
    np.testing.assert_allclose(arrays["b"].numpy(), 7.0)
    assert pooling.federation.report.global_losses == {"loss": 0.5}


@pytest.mark.parametrize("mode", ["federate", "train_generators"])
def test_modes_without_samples_do_not_ask_for_them(mode: str) -> None:
    asked: list[Any] = []
    run(toy_nodes(asked=asked), mode=mode)
    assert {kind for kind, _, _ in asked} == {"train"}


def test_without_global_training_the_samples_are_pooled_only() -> None:
    arrays, pooling = run(toy_nodes(), mode="combined")
    np.testing.assert_allclose(arrays["b"].numpy(), 2.0)
    assert sum(pooling.federation.report.samples.values()) == 18


def test_frozen_adapters_stay_as_they_are() -> None:
    def none(content: RecordDict, node: int) -> None:
        content["arrays"] = ArrayRecord()

    arrays, pooling = run(toy_nodes(none), mode="generators_only")
    assert {name: array.numpy().tolist() for name, array in arrays.items()} == {k: v.tolist() for k, v in START.items()}
    assert pooling.federation.report.answered == [0, 1, 2]


def test_bytes_are_those_of_the_records() -> None:
    seen: list[int] = []

    def size(content: RecordDict, node: int) -> None:
        seen.append(sum(record.count_bytes() for record in content.values()))

    _, pooling = run(toy_nodes(size, size), mode="combined")
    assert pooling.federation.report.bytes_received == sum(seen)
    weights = sum(value.nbytes for value in START.values())
    header = len(pooling.federation.instruction.yaml)
    assert 0 < pooling.federation.report.bytes_sent - 3 * weights - 6 * header < 6 * 500
    assert pooling.federation.report.seconds > 0


# What a node may send in place of its reply. Each must be refused by name, and the round must go on without it.


def put(record: str, name: str, value: Any) -> Change:
    def change(content: RecordDict, node: int) -> None:
        content[record][name] = value

    return change


def drop(record: str, name: str) -> Change:
    def change(content: RecordDict, node: int) -> None:
        del content[record][name]

    return change


def add_record(name: str, record: Any) -> Change:
    def change(content: RecordDict, node: int) -> None:
        content[name] = record

    return change


def raw(data: bytes, shape: tuple[int, ...] = (4,), stype: str = "numpy.ndarray") -> Array:
    return Array("float32", shape, stype, data)


def header(shape: str, dtype: str = "<f4") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


NAN = np.array([0, np.nan, np.inf, 0], np.float32)

BAD_TRAINING = {
    "shape": (
        put("arrays", "w", Array(np.zeros(5, np.float32))),
        r"w is float32 of shape \(5,\), expected float32 of shape \(4\)",
    ),
    "more dimensions": (put("arrays", "w", Array(np.zeros((4, 1), np.float32))), r"w is float32 of shape \(4, 1\)"),
    "dtype": (put("arrays", "w", Array(np.zeros(4))), r"w is float64 of shape \(4,\), expected float32"),
    "integers": (put("arrays", "w", Array(np.zeros(4, np.int32))), r"w is int32"),
    "not finite": (put("arrays", "w", Array(NAN)), r"w has 2 values that are NaN or infinite"),
    "unknown array": (put("arrays", "extra", Array(np.zeros(1, np.float32))), r"other arrays.*'extra'"),
    "missing array": (drop("arrays", "b"), r"other arrays.*'b'"),
    "two records": (add_record("more", ArrayRecord()), r"records .*more: ArrayRecord"),
    "no clips": (drop("metrics", "num-examples"), r"num-examples"),
    "negative weight": (put("metrics", "num-examples", -5), r"num-examples.*-5"),
    "weight that is no number": (put("metrics", "num-examples", float("nan")), r"num-examples.*nan"),
    "zero weight": (put("metrics", "num-examples", 0), r"num-examples.*0"),
    "more clips than it has": (put("metrics", "num-examples", 10**9), r"num-examples.*1000000000"),
    "list of metrics": (put("metrics", "loss", [1.0, 2.0]), r"loss"),
    "no numpy array": (put("arrays", "w", raw(b"")), r"w is not a NumPy array"),
    "a zip file": (put("arrays", "w", raw(b"PK\x03\x04 and more")), r"w is not a NumPy array"),
    "pickle": (put("arrays", "w", raw(header("(4,)", "|O") + b"x" * 64)), r"w "),
    "other serialisation": (put("arrays", "w", raw(b"", stype="torch.tensor")), r"w is .*torch\.tensor"),
    "header of a giant": (put("arrays", "w", raw(header("(100000000000000,)"))), r"w .*100000000000000"),
    "report that is no JSON": (put("report", "generators", "[{"), r"generators"),
    "report without end": (put("report", "generators", "[" * 100_000), r"generators"),
    "report of another kind": (put("report", "generators", '{"a": 1}'), r"generators"),
}


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_bad_training_replies_are_refused_and_the_round_goes_on(case: str) -> None:
    change, words = BAD_TRAINING[case]
    liar = toy_nodes(lambda content, node: change(content, node) if node == 1 else None)
    arrays, pooling = run(liar, min_nodes=2)
    assert list(pooling.federation.report.lost) == [1]
    with pytest.raises(AggregationError, match=rf"round 1: 2 good replies.*min_nodes=3.*node 1: refused: .*{words}"):
        run(liar)
    assert pooling.federation.report.answered == [0, 2]
    np.testing.assert_allclose(arrays["b"].numpy(), 2.0)  # the mean of 1 and 3
    assert arrays["b"].numpy().dtype == np.float32


def test_metrics_that_others_do_not_have_do_not_stop_the_round() -> None:
    def extra(content: RecordDict, node: int) -> None:
        if node == 1:
            content["metrics"]["surprise"] = 1.0

    _, pooling = run(toy_nodes(extra), min_nodes=2)
    assert set(pooling.federation.report.answered) >= {0, 2}


def latents(change: Callable[[np.ndarray], np.ndarray], name: str = "latents") -> Change:
    def apply(content: RecordDict, node: int) -> None:
        content["samples"][name] = Array(change(content["samples"][name].numpy().copy()))

    return apply


def set_first(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[(0,) * array.ndim] = value
        return array

    return change


BAD_SAMPLES = {
    "dtype": (latents(lambda a: a.astype(np.float32)), r"latents is float32.*expected int8"),
    "shape": (latents(lambda a: a[:-1]), r"latents is int8 of shape"),
    "another node's class": (latents(set_first(0), "classes"), r"class id 0 is not allowed here; allowed: \[2, 3\]"),
    "class that does not exist": (latents(set_first(99), "classes"), r"class id 99"),
    "not finite": (latents(set_first(np.nan), "latent-scale"), r"latent-scale has 1 values that are NaN"),
    "another codec's size": (latents(lambda a: a[:, :-1].copy()), r"latents is int8 of shape \(6, 5\), expected .*6x6"),
    "a codec": (put("samples", "codec.mean", Array(np.zeros(20, np.float32))), r"unexpected arrays \['codec\.mean'\]"),
    "unknown array": (put("samples", "extra", Array(np.zeros(1))), r"unexpected arrays \['extra'\]"),
    "missing array": (drop("samples", "counts"), r"missing arrays \['counts'\]"),
    "two records": (add_record("more", ArrayRecord()), r"records .*more: ArrayRecord"),
    "garbage": (put("samples", "latents", raw(b"PK\x03\x04")), r"latents is not a NumPy array"),
    "header of a giant": (
        put("samples", "latents", raw(header("(99999999, 6)", "|i1"))),
        r"latents has 0 bytes of values",
    ),
}


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_bad_samples_are_refused_and_the_round_goes_on(case: str) -> None:
    change, words = BAD_SAMPLES[case]
    liar = toy_nodes(synthesize=lambda content, node: change(content, node) if node == 1 else None)
    _, pooling = run(liar, mode="combined", min_nodes=2)
    assert list(pooling.federation.report.lost) == [1]
    assert set(pooling.federation.report.samples) == {0, 1, 4, 5}
    with pytest.raises(AggregationError, match=rf"round 1: 2 good replies.*node 1: refused: .*{words}"):
        run(liar, mode="combined")


def test_too_many_samples_are_refused() -> None:
    """The limit is on all samples of a node together."""

    def flood(content: RecordDict, node: int) -> RecordDict | None:
        return RecordDict({"samples": samples_to_record(samples(node, 8))}) if node == 1 else None

    _, pooling = run(toy_nodes(synthesize=flood), mode="combined", min_nodes=2, limit=15)
    assert set(pooling.federation.report.samples) == {0, 1, 4, 5}
    assert "16 samples" in pooling.federation.report.lost[1]
    _, pooling = run(toy_nodes(synthesize=flood), mode="combined", min_nodes=2, limit=16)
    assert sum(pooling.federation.report.samples.values()) == 6 + 16 + 6


def test_no_samples_at_all_are_refused() -> None:
    def nothing(content: RecordDict, node: int) -> RecordDict | None:
        return RecordDict({"samples": samples_to_record(samples(node, 0))}) if node == 1 else None

    _, pooling = run(toy_nodes(synthesize=nothing), mode="combined", min_nodes=2)
    assert "0 samples" in pooling.federation.report.lost[1]


def crash(content: RecordDict, node: int) -> None:
    if node == 1:
        raise RuntimeError("disk full")


def crash_all(content: RecordDict, node: int) -> None:
    raise RuntimeError("disk full")


def test_a_node_that_fails_is_missing_and_named() -> None:
    arrays, pooling = run(toy_nodes(crash), min_nodes=2)
    assert pooling.federation.report.lost == {1: "RuntimeError: disk full"}
    np.testing.assert_allclose(arrays["b"].numpy(), 2.0)
    with pytest.raises(
        AggregationError, match=r"round 1: 2 good replies.*min_nodes=3.*node 1: RuntimeError: disk full"
    ):
        run(toy_nodes(crash))


def test_a_node_that_fails_in_the_exchange_of_samples() -> None:
    _, pooling = run(toy_nodes(synthesize=crash), mode="combined", min_nodes=2)
    assert pooling.federation.report.lost == {1: "RuntimeError: disk full"}
    with pytest.raises(AggregationError, match="node 1: RuntimeError: disk full"):
        run(toy_nodes(synthesize=crash), mode="combined")


def test_all_nodes_failing_is_an_error_whatever_the_minimum() -> None:
    with pytest.raises(AggregationError, match=r"0 good replies.*node 0: .*node 1: .*node 2: RuntimeError: disk full"):
        run(toy_nodes(crash_all), min_nodes=1)


def test_a_node_that_comes_back_counts_again() -> None:
    calls: list[int] = []

    def once(content: RecordDict, node: int) -> None:
        calls.append(node)
        if node == 1 and len(calls) <= 3:
            raise RuntimeError("not yet")

    _, pooling = run(toy_nodes(once), rounds=2, min_nodes=2)
    assert (pooling.federation.report.round, pooling.federation.report.answered, pooling.federation.report.lost) == (
        2,
        [0, 1, 2],
        {},
    )


def scaled(times: float, bad: int = 1) -> Change:
    """Return what multiplies the change of a node's adapters."""

    def change(content: RecordDict, node: int) -> None:
        if node == bad:
            for key, array in list(content["arrays"].items()):
                content["arrays"][key] = Array(START[key] + (array.numpy() - START[key]) * np.float32(times))

    return change


@pytest.mark.parametrize(("times", "refused"), [(1.0, False), (9.0, False), (31.0, True), (1e6, True)])
def test_a_change_is_held_against_the_median_of_the_round(times: float, refused: bool) -> None:
    """Nodes change every weight by 1, 2 and 3: with the second one out of line, the median is 3."""
    _, pooling = run(toy_nodes(scaled(times)), min_nodes=2)
    assert list(pooling.federation.report.refused) == ([1] if refused else [])
    _, pooling = run(toy_nodes(scaled(times)), StrategyConfig(max_change=None), min_nodes=2)
    assert pooling.federation.report.lost == {}


def test_a_short_change_is_no_threat_however_short_the_others_are() -> None:
    def still(content: RecordDict, node: int) -> None:
        for key in content["arrays"]:
            content["arrays"][key] = Array(START[key] + np.float32(0.3 if node == 1 else 1e-6))

    _, pooling = run(toy_nodes(still))
    assert pooling.federation.report.lost == {}


def test_two_replies_have_no_majority_but_what_is_blown_up_is_refused() -> None:
    def one_fails(times: float) -> Change:
        def change(content: RecordDict, node: int) -> None:
            if node == 2:
                raise RuntimeError("away")
            scaled(times)(content, node)

        return change

    _, pooling = run(toy_nodes(one_fails(1.5)), min_nodes=1)
    assert list(pooling.federation.report.lost) == [2]
    _, pooling = run(toy_nodes(one_fails(1000.0)), min_nodes=1)
    assert list(pooling.federation.report.refused) == [1]
    assert "the adapters' own norm is" in pooling.federation.report.lost[1]


def test_samples_of_one_node_are_freed_before_those_of_the_next_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[ArrayRecord]] = []
    read = samples_from_record

    def watched(record: ArrayRecord, *rest: Any) -> SyntheticTokens:
        gc.collect()
        assert [reference() for reference in alive] == [None] * len(alive)
        alive.append(weakref.ref(record))
        return read(record, *rest)

    monkeypatch.setattr("fedgen.server.pool.samples_from_record", watched)
    _, pooling = run(toy_nodes(), mode="combined")
    assert (len(alive), pooling.federation.report.lost) == (3, {})


def test_what_nodes_say_of_their_failure_is_cut() -> None:
    def chatty(content: RecordDict, node: int) -> None:
        if node == 1:
            raise RuntimeError("line\n" * 10_000)

    _, pooling = run(toy_nodes(chatty), min_nodes=2)
    assert len(pooling.federation.report.lost[1]) < 600
    assert "\n" not in pooling.federation.report.lost[1]


def test_a_node_that_missed_the_training_is_not_asked_for_samples() -> None:
    asked: list[Any] = []
    _, pooling = run(toy_nodes(crash, asked=asked), mode="combined", min_nodes=2)
    assert sorted(node for kind, node, _ in asked if kind == "query.synthesize") == [0, 2]
    assert set(pooling.federation.report.samples) == {0, 1, 4, 5}


def test_the_pool_keeps_the_latest_samples_of_so_many_nodes() -> None:
    """With one node a round: it never holds more than two, the oldest go first, and no node is in it twice."""
    rules = StrategyConfig(nodes_per_round=1, pool_nodes=2)
    _, pooling = run(toy_nodes(), rules, mode="combined", rounds=8, min_nodes=1)
    chosen = [sample_nodes(range(3), 1, 0, number)[0] for number in range(1, 9)]
    latest = list(dict.fromkeys(reversed(chosen)))[:2][::-1]
    assert list(pooling.pool.samples) == latest
    assert sum(pooling.federation.report.samples.values()) == 12


def test_nodes_that_are_not_connected_are_named_and_too_few_end_the_run() -> None:
    class Absent(LocalGrid):
        def get_node_ids(self) -> list[int]:
            return super().get_node_ids()[:2]

    _, pooling = run(toy_nodes(), min_nodes=2, grid=Absent)
    assert pooling.federation.report.lost == {2: "it is not connected"}
    assert pooling.federation.report.answered == [0, 1]
    with pytest.raises(AggregationError, match=r"round 1: 2 good replies.*Missing: node 2: it is not connected"):
        run(toy_nodes(), StrategyConfig(wait=0.1), grid=Absent)


def test_rules() -> None:
    for options, words in {
        ("strategy.nodes_per_round=4",): r"nodes_per_round=4 is more than partition\.nodes=3",
        ("strategy.nodes_per_round=1", "strategy.min_nodes=2"): r"min_nodes=2 is more than 1 a round",
        ("strategy.pool_nodes=0",): r"pool_nodes=0 must be at least 1",
        ("strategy.max_payload_mb=0",): r"max_payload_mb=0\.0 must be above 0",
        ("strategy.max_change=1",): r"max_change=1\.0 must be above 1",
        (
            "phases=[{mode: train_generators, rounds: 1}, {mode: generate, rounds: 1}]",
            "strategy.nodes_per_round=2",
        ): "train them in a run of its own",
    }.items():
        with pytest.raises(ConfigError, match=words):
            load_config(list(options))
    assert load_config(["strategy.nodes_per_round=2"]).min_nodes == 2


def test_options() -> None:
    strategy = open_strategy(StrategyConfig("fedadam", options={"eta": 0.5}), 3)
    assert isinstance(strategy, flower.FedAdam)
    assert strategy.eta == 0.5
    assert (strategy.min_train_nodes, strategy.min_available_nodes) == (3, 3)
    with pytest.raises(ConfigError, match=r"strategy\.options\.etta is no option of strategy=fedadam.*mean 'eta'"):
        open_strategy(StrategyConfig("fedadam", options={"etta": 0.5}), 3)
    with pytest.raises(ConfigError, match=r"strategy\.options\.eta is no option of strategy=fedavg: it takes none"):
        open_strategy(StrategyConfig("fedavg", options={"eta": 0.5}), 3)

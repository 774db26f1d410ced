"""strategy.dp: what a node can change of the averaged adapters, the noise on it, what that spends, what is refused."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federations import Federate, Nodes
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedProx

from fedgen.aggregation import ServerClipping, clipped, open_strategy
from fedgen.config import load_config
from fedgen.errors import AggregationError, CheckpointError, ConfigError
from fedgen.local_grid import LocalGrid
from fedgen.models.privacy.accountant import epsilon
from fedgen.run_folder import RunFolder
from fedgen.settings import Config
from fedgen.strategy_settings import StrategyConfig

pytest.importorskip("dp_accounting")

Tiny = Callable[..., Config]
NORM, NODES = 2.0, 3
START = {"w": np.linspace(0, 1, 300, dtype=np.float32), "b": np.zeros((20, 30), np.float32)}
DP = ["strategy.dp=server", "strategy.clipping_norm=0.5", "strategy.noise_multiplier=2", "strategy.delta=0.1"]


def settings(where: str, noise: float = 1e-9) -> StrategyConfig:
    if where == "none":
        return StrategyConfig()
    return StrategyConfig(dp=where, clipping_norm=NORM, noise_multiplier=noise, delta=0.1)


def nodes(steps: list[float], order: Callable[[Any], Any] = list, mods: Any = (clipped,)) -> ClientApp:
    """Nodes of 10, 20 and 30 clips, each of which adds its step to every weight."""
    app = ClientApp()

    @app.train(mods=list(mods))
    def train(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        received = next(iter(message.content.array_records.values()))
        names = order(list(received)) if number == 1 else list(received)
        arrays = ArrayRecord({n: Array(received[n].numpy() + np.float32(steps[number])) for n in names})
        metrics = MetricRecord({"num-examples": 10 * (number + 1)})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return app


def average(where: str, app: ClientApp, noise: float = 1e-9, replies: int = NODES) -> dict[str, np.ndarray]:
    """Return the change that one round makes of the adapters."""
    strategy, grid = open_strategy(settings(where, noise), NODES), LocalGrid(app, NODES, {})
    start = ArrayRecord({name: Array(value) for name, value in START.items()})
    messages = list(strategy.configure_train(1, start, ConfigRecord(), grid))
    good = list(grid.send_and_receive(messages))[:replies]
    assert not any(reply.has_error() for reply in good), [reply.error.reason for reply in good if reply.has_error()]
    arrays, _ = strategy.aggregate_train(1, good)
    assert arrays is not None
    return {name: arrays[name].numpy() - START[name] for name in START}


SIZE = sum(value.size for value in START.values())  # 900 weights: a step of s has norm 30 s


@pytest.mark.parametrize("where", ["server", "client"])
def test_each_node_adds_its_clipped_change_and_weighs_the_same(where: str) -> None:
    moved = average(where, nodes([0.01, 5.0, -70.0]))
    share = NORM / math.sqrt(SIZE)
    for change in moved.values():
        assert change == pytest.approx((0.01 + share - share) / 3, abs=1e-6)


@pytest.mark.parametrize("where", ["server", "client"])
def test_the_noise_is_that_of_a_sum_to_which_a_node_adds_the_norm(where: str) -> None:
    moved = average(where, nodes([0.0, 0.0, 0.0]), noise=1.5)
    values = np.concatenate([change.ravel() for change in moved.values()])
    assert values.std() == pytest.approx(1.5 * NORM / NODES, rel=0.1)


@pytest.mark.parametrize("where", ["server", "client"])
def test_adapters_that_did_not_change_are_no_error(where: str) -> None:
    moved = average(where, nodes([0.0, 0.02, 0.01]))
    assert moved["b"] == pytest.approx(0.01, abs=1e-6)


def test_arrays_in_another_order_are_paired_by_name() -> None:
    moved = average("server", nodes([0.0, 0.03, 0.0], order=reversed))
    assert moved["w"] == pytest.approx(0.01, abs=1e-6)


def test_nodes_that_do_not_clip_are_found() -> None:
    average("client", nodes([0.0, 0.01, 0.0], mods=()))  # short anyway
    with pytest.raises(AggregationError, match=r"changed its adapters by 150, and has not clipped"):
        average("client", nodes([0.0, 5.0, 0.0], mods=()))


@pytest.mark.parametrize("where", ["server", "client"])
def test_a_missing_node_ends_the_round(where: str) -> None:
    with pytest.raises(AggregationError, match=r"2 good replies: strategy\.dp needs those of all 3"):
        average(where, nodes([0.1, 0.1, 0.1]), replies=2)


def test_nobody_clips_unasked() -> None:
    assert average("none", nodes([5.0, 5.0, 5.0]))["b"] == pytest.approx(5.0)


@pytest.mark.parametrize("where", ["server", "client"])
@pytest.mark.parametrize("mode", ["federate", "one_shot"])
def test_a_run_tells_what_its_adapters_have_spent(
    where: str, mode: str, tiny: Tiny, federate: Federate, tmp_path: Path
) -> None:
    config = tiny(*DP, f"strategy.dp={where}", f"mode={mode}", "rounds=2")
    found = federate(config, tmp_path)["privacy"]["adapters"]
    assert (found["unit"], found["rounds"], found["delta"], found["clipped_by"]) == ("node", 2, 0.1, where)
    assert (found["noise_multiplier"], found["clipping_norm"], found["earlier"]) == (2, 0.5, [])
    assert found["epsilon"] == pytest.approx(epsilon(2 / 2**0.5, 0.1))
    assert found["epsilon_replaced"] == pytest.approx(epsilon(1 / 2**0.5, 0.1))


def test_both_kinds_of_privacy_are_told_apart(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    clips = ["privacy.name=dp", "privacy.epsilon=8", "privacy.delta=0.01", "privacy.components=8", "privacy.seed=1"]
    found = federate(tiny(*DP, *clips, "mode=one_shot", "rounds=1"), tmp_path)["privacy"]
    assert found["epsilon"] == 8
    assert sorted(found["nodes"]) == ["0", "1", "2"]
    assert found["adapters"]["rounds"] == 1


def test_phases_without_adapters_spend_nothing(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    phases = "phases=[{mode: generators_only, rounds: 1}, {mode: generate, rounds: 1}, {mode: federate, rounds: 2}]"
    found = federate(tiny(*DP, "strategy.dp=client", phases), tmp_path)
    assert found["privacy"]["adapters"]["rounds"] == 3


def test_a_later_run_adds_what_the_first_has_spent(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    federate(tiny(*DP, "mode=train_generators", "rounds=2"), tmp_path / "a")
    later = tiny(*DP, "mode=generate", "strategy.noise_multiplier=1", f"checkpoint.load={tmp_path / 'a'}")
    found = federate(later, tmp_path / "b")["privacy"]["adapters"]
    assert found["earlier"] == [{"noise_multiplier": 2, "clipping_norm": 0.5, "rounds": 2}]
    assert found["epsilon"] == pytest.approx(epsilon((1 + 2 / 4) ** -0.5, 0.1))
    third = tiny(*DP, "mode=federate", f"checkpoint.load={tmp_path / 'b'}")
    found = federate(third, tmp_path / "c")["privacy"]["adapters"]
    assert [part["rounds"] for part in found["earlier"]] == [2, 1]


def test_adapters_that_learnt_without_it_are_no_start(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    federate(tiny("mode=federate"), tmp_path / "open")
    federate(tiny("mode=generators_only", f"checkpoint.load={tmp_path / 'open'}"), tmp_path / "passed_on")
    federate(tiny("mode=generators_only"), tmp_path / "untrained")
    for name in ("open", "passed_on"):
        with pytest.raises(CheckpointError, match=r"its adapters learnt without strategy\.dp"):
            federate(tiny(*DP, "mode=federate", f"checkpoint.load={tmp_path / name}"), tmp_path / "next")
    federate(tiny(*DP, "mode=generate", f"checkpoint.load={tmp_path / 'untrained'}"), tmp_path / "next")


def test_a_resumed_run_counts_every_round(
    tiny: Tiny, federate: Federate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(request: Message, reply: Message, node: int) -> Message | None:
        if request.metadata.message_type == "train" and str(request.content["config"]["round"]) == "2":
            del reply.content["metrics"]
        return None

    config = tiny(*DP, "mode=federate", "rounds=3")
    with pytest.raises(AggregationError):
        federate(config, tmp_path, Nodes(fail))
    resumed = RunFolder(tmp_path).config()
    monkeypatch.setattr("fedgen.recorder.draw_run", lambda results, folder: [])
    found = federate(Config(**{**vars(resumed), "resume": str(tmp_path)}), tmp_path)
    assert found["privacy"]["adapters"]["rounds"] == 3
    assert found["history"][-1]["round"] == 3


def test_a_node_that_does_not_clip_ends_the_run(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    def unclip(request: Message, reply: Message, node: int) -> Message | None:
        if request.metadata.message_type == "train" and node == 2:
            record = next(iter(reply.content.array_records.values()))
            reply.content["arrays"] = ArrayRecord({n: Array(value.numpy() + 1) for n, value in record.items()})
        return None

    with pytest.raises(AggregationError, match="has not clipped"):
        federate(tiny(*DP, "strategy.dp=client", "mode=federate"), tmp_path, Nodes(unclip))


REFUSED = {
    "strategy.dp=clients": r"strategy\.dp='clients' is not one of none, server, client",
    "strategy.clipping_norm=null": r"strategy\.dp=server needs strategy\.clipping_norm",
    "strategy.noise_multiplier=null": r"strategy\.dp=server needs strategy\.noise_multiplier",
    "strategy.delta=null": r"strategy\.dp=server needs strategy\.delta",
    "strategy.noise_multiplier=0": r"strategy\.noise_multiplier=0\.0 must be a finite number above 0",
    "strategy.clipping_norm=-1": r"strategy\.clipping_norm=-1\.0 must be",
    "strategy.clipping_norm=nan": r"strategy\.clipping_norm=nan must be",
    "strategy.delta=0.4": r"strategy\.delta=0\.4 must be below one over partition\.nodes=3",
    "strategy.min_nodes=2": r"needs every node: strategy\.min_nodes=2",
    "mode=centralised": r"strategy\.dp=server means nothing with mode=centralised",
    "mode=generators_only": r"strategy\.dp=server means nothing with mode=generators_only",
    "global_training=distil": r"does not hold with global_training=distil",
    **{
        f"strategy={name}": f"needs strategy=fedavg or fedprox: one node can change what strategy={name}"
        for name in ("fedadam", "fedavgm", "fedmedian", "krum", "bulyan", "fedtrimmedavg")
    },
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_cannot_hold_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED[override]):
        load_config([*DP, override])


def test_settings_without_dp_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"strategy\.clipping_norm=1\.0 means nothing with strategy\.dp=none"):
        load_config(["strategy.clipping_norm=1"])


def test_fedprox_averages_too() -> None:
    strategy = open_strategy(load_config([*DP, "strategy=fedprox"]).strategy, NODES)
    assert isinstance(strategy, ServerClipping)
    assert isinstance(strategy.strategy, FedProx)

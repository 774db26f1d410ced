"""strategy.dp: what a node can change of the averaged adapters, the noise on it, what that spends, what is refused."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from federations import Federate, Nodes
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedProx
from safetensors.numpy import load_file

from fedgen.config.compose import load_config
from fedgen.config.settings import Config
from fedgen.config.strategy import StrategyConfig
from fedgen.errors import AggregationError, CheckpointError, ConfigError
from fedgen.privacy.accountant import epsilon
from fedgen.runs.folder import RunFolder
from fedgen.runtimes.local import LocalGrid
from fedgen.server.aggregation import clipped, open_strategy

pytest.importorskip("dp_accounting")

Tiny = Callable[..., Config]
NORM, NODES = 2.0, 3
START = {"w": np.linspace(0, 1, 300, dtype=np.float32), "b": np.zeros((20, 30), np.float32)}
DP = ["strategy.dp=server", "strategy.clipping_norm=0.5", "strategy.noise_multiplier=2", "strategy.delta=0.1"]


def settings(where: str, noise: float = 1e-9) -> StrategyConfig:
    if where == "none":
        return StrategyConfig()
    return StrategyConfig(dp=where, clipping_norm=NORM, noise_multiplier=noise, delta=0.1)


def nodes(steps: list[float]) -> ClientApp:
    """Nodes, each of which adds its step to every weight."""
    app = ClientApp()

    @app.train(mods=[clipped])
    def train(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        received = next(iter(message.content.array_records.values()))
        arrays = ArrayRecord({n: Array(value.numpy() + np.float32(steps[number])) for n, value in received.items()})
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return app


def average(where: str, app: ClientApp, noise: float = 1e-9) -> dict[str, np.ndarray]:
    """Return the change that one round makes of the adapters."""
    strategy, grid = open_strategy(settings(where, noise), NODES), LocalGrid(app, NODES, {})
    start = ArrayRecord({name: Array(value) for name, value in START.items()})
    messages = list(strategy.configure_train(1, start, ConfigRecord(), grid))
    good = list(grid.send_and_receive(messages))
    assert not any(reply.has_error() for reply in good), [reply.error.reason for reply in good if reply.has_error()]
    arrays, _ = strategy.aggregate_train(1, good)
    assert arrays is not None
    return {name: arrays[name].numpy() - START[name] for name in START}


SIZE = sum(value.size for value in START.values())  # 900 weights: a step of s has norm 30 s


@pytest.mark.parametrize("where", ["server", "client"])
def test_each_node_adds_its_clipped_change(where: str) -> None:
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


def test_nobody_clips_unasked() -> None:
    assert average("none", nodes([5.0, 5.0, 5.0]))["b"] == pytest.approx(5.0)


@pytest.mark.parametrize("where", ["server", "client"])
@pytest.mark.parametrize("mode", ["federate", "combined"])
def test_a_run_tells_what_its_adapters_have_spent(
    where: str, mode: str, tiny: Tiny, federate: Federate, tmp_path: Path
) -> None:
    config = tiny(*DP, f"strategy.dp={where}", f"mode={mode}", "rounds=2")
    found = federate(config, tmp_path)["privacy"]["adapters"]
    assert found == {"unit": "node", "rounds": 2, "delta": 0.1, "epsilon": pytest.approx(epsilon(2 / 2**0.5, 0.1))}


def test_both_kinds_of_privacy_are_told_apart(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    clips = ["privacy.name=dp", "privacy.epsilon=8", "privacy.delta=0.01", "privacy.components=8", "privacy.seed=1"]
    found = federate(tiny(*DP, *clips, "mode=combined", "rounds=1"), tmp_path)["privacy"]
    assert found["epsilon"] == 8
    assert sorted(found["nodes"]) == ["0", "1", "2"]
    assert found["adapters"]["rounds"] == 1


def test_phases_without_adapters_spend_nothing(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    phases = "phases=[{mode: generators_only, rounds: 1}, {mode: generate, rounds: 1}, {mode: federate, rounds: 2}]"
    found = federate(tiny(*DP, "strategy.dp=client", phases), tmp_path)
    assert found["privacy"]["adapters"]["rounds"] == 3


def test_a_run_goes_on_from_private_adapters_alone(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    federate(tiny(*DP, "mode=train_generators", "rounds=2"), tmp_path / "private")
    later = tiny(*DP, "mode=generate", f"checkpoint.load={tmp_path / 'private'}")
    assert federate(later, tmp_path / "later")["privacy"]["adapters"]["rounds"] == 1
    federate(tiny("mode=federate"), tmp_path / "open")
    with pytest.raises(CheckpointError, match=r"that run was without strategy\.dp"):
        federate(tiny(*DP, "mode=federate", f"checkpoint.load={tmp_path / 'open'}"), tmp_path / "next")


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
    monkeypatch.setattr("fedgen.report.recorder.draw_run", lambda results, folder: [])
    found = federate(Config(**{**vars(resumed), "resume": str(tmp_path)}), tmp_path)
    assert found["privacy"]["adapters"]["rounds"] == 3
    assert found["history"][-1]["round"] == 3


def test_nodes_weigh_the_same(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    start: dict[str, np.ndarray] = {}

    def move(request: Message, reply: Message, node: int) -> Message | None:
        if request.metadata.message_type == "train":
            start.update({name: array.numpy() for name, array in request.content["arrays"].items()})
            moved = {name: Array(value + np.float32(0.03 * (node == 0))) for name, value in start.items()}
            reply.content["arrays"] = ArrayRecord(moved)
            reply.content["metrics"]["num-examples"] = 1 if node == 0 else 5
        return None

    plain = ["strategy.clipping_norm=1e6", "strategy.noise_multiplier=1e-12"]
    federate(tiny(*DP, *plain, "mode=federate", "rounds=1"), tmp_path, Nodes(move))
    found = load_file(next(tmp_path.rglob("adapters.safetensors")))
    for name, value in start.items():
        assert found[name] == pytest.approx(value + 0.01, abs=1e-5)


REFUSED = {
    "strategy.dp=clients": r"strategy\.dp='clients' is not one of none, server, client",
    "strategy.clipping_norm=null": r"strategy\.clipping_norm=None: strategy\.dp=server needs a finite number above 0",
    "strategy.noise_multiplier=null": r"strategy\.noise_multiplier=None: strategy\.dp=server needs",
    "strategy.delta=null": r"strategy\.delta=None: strategy\.dp=server needs",
    "strategy.noise_multiplier=0": r"strategy\.noise_multiplier=0\.0: strategy\.dp=server needs",
    "strategy.clipping_norm=-1": r"strategy\.clipping_norm=-1\.0: strategy\.dp=server needs",
    "strategy.clipping_norm=nan": r"strategy\.clipping_norm=nan: strategy\.dp=server needs",
    "strategy.delta=0.4": r"strategy\.delta=0\.4 must be below one over partition\.nodes=3",
    "strategy.min_nodes=2": r"strategy\.dp=server needs every node",
    "strategy.nodes_per_round=2": r"strategy\.dp=server needs every node",
    "mode=centralised": r"strategy\.dp=server means nothing here: no adapters leave a node",
    "mode=generators_only": r"strategy\.dp=server means nothing here",
    "global_training=distil": r"with global_training=distil nodes' adapters teach without noise",
    **{
        f"strategy={name}": rf"needs strategy=fedavg\|fedprox, got strategy={name}"
        for name in ("fedadam", "fedavgm", "fedmedian", "krum", "bulyan", "fedtrimmedavg")
    },
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_cannot_hold_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED[override]):
        load_config([*DP, override])


def test_settings_without_dp_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"clipping_norm=1\.0: strategy\.dp=none needs no such number"):
        load_config(["strategy.clipping_norm=1"])


def test_fedprox_averages_too() -> None:
    strategy = open_strategy(load_config([*DP, "strategy=fedprox"]).strategy, NODES)
    assert isinstance(strategy, DifferentialPrivacyServerSideFixedClipping)
    assert isinstance(strategy.strategy, FedProx)

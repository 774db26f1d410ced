"""Every benchmark runs, at sizes that take a moment, and leaves its figures behind; times are nobody's promise here."""

import json
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from fedgen.cli import main
from fedgen.data.audio import Encoder
from fedgen.data.public import open_public
from fedgen.data.tokens import TensorTokens

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


pytestmark = pytest.mark.usefixtures("logging_as_before", "usual_codec")


@pytest.fixture
def benchmark_file(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports ``benchmarks/{name}.py``, which may import its neighbours."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        spec = spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def in_process(
    benchmark_file: Callable[[str], ModuleType], no_plots: None, monkeypatch: pytest.MonkeyPatch
) -> list[list[str]]:
    """The runs that a benchmark starts as processes of their own are calls instead; their overrides."""
    started = []

    def run(command: list[str], **options: Any) -> CompletedProcess[str]:
        assert command[1:4] == ["-m", "fedgen.cli", "run"]
        started.append(command[4:])
        return CompletedProcess(command, main(command[3:]), "", "")

    monkeypatch.delitem(sys.modules, "figures", raising=False)
    monkeypatch.setitem(sys.modules, "figures", benchmark_file("figures"))
    monkeypatch.setattr(sys.modules["figures"], "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(sys, "argv", ["fedgen"])
    return started


def test_bank(benchmark_file: Callable[[str], ModuleType], tmp_path: Path) -> None:
    sizes = ["--classes", "3", "--clips", "9", "--components", "5", "--width", "8", "--epochs", "1", "--repeats", "2"]
    benchmark_file("bank").main([*sizes, "--kinds", "gaussian", "vae", "--out", str(tmp_path / "bank.json")])
    results = json.loads((tmp_path / "bank.json").read_text())
    assert [row["kind"] for row in results["rows"]] == ["gaussian", "vae"]
    for row in results["rows"]:
        assert all(row["seconds"][way] > 0 for way in ("unified", "per class"))
        assert row["ratio"] == row["seconds"]["per class"] / row["seconds"]["unified"]
        assert row["met"] == (row["ratio"] <= 1.1)


SMALL = ["data.clips_per_class=6", "data.folds=3", "data.test_fold=3", "encoder.stride=16"]


def test_lengths(benchmark_file: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def held(encoder: Encoder, folder: str | None) -> TensorTokens:
        public = open_public(encoder, folder)
        chosen = torch.arange(0, len(public), 2)
        return TensorTokens(public.batch(chosen), public.labels[chosen])  # encoded once for all fits

    benchmark = benchmark_file("lengths")
    assert benchmark.LENGTHS == (4, 16, 64)
    monkeypatch.setattr(benchmark, "LENGTHS", (4,))
    monkeypatch.setattr(benchmark, "open_public", held)
    few = "data.classes=[dog, cow, rain, siren]"
    benchmark.main(["--repeats", "1", "--out", str(tmp_path / "lengths.json"), *SMALL, few])
    native, *rows = json.loads((tmp_path / "lengths.json").read_text())["rows"]
    assert native["training_length"] is None
    assert [row["upsampling"] for row in rows] == ["linear", "nearest", "cubic", "learned"]
    assert all(row["training_length"] == 4 for row in rows)
    assert 0 < native["lost"] < min(row["lost"] for row in rows)


def test_memory(benchmark_file: Callable[[str], ModuleType], tmp_path: Path) -> None:
    words = ["--kinds", "gaussian", "--clips", "6", "--repeats", "1", "--out", str(tmp_path / "memory.json")]
    small = ["adapter.width=8", "adapter.hidden=16", "adapter.dropout=0", "target=small"]  # dropout draws by part
    benchmark_file("memory").main([*words, *SMALL[1:], *small])
    results = json.loads((tmp_path / "memory.json").read_text())
    high, low = results["rows"]
    assert (high["memory"], low["memory"]) == ("high", "low")
    assert 0 < high["idle_mib"] < high["peak_mib"]
    assert low["adapter_loss"] == pytest.approx(high["adapter_loss"], rel=1e-3)
    assert results["ratios"]["gaussian"]["cpu_seconds"] == low["cpu_seconds"] / high["cpu_seconds"]


LEFT_OUT = [
    *SMALL,
    "rounds=1",
    "adapter.width=8",
    "adapter.hidden=16",
    "adapter.training.epochs=1",
    "data.leave_out=[3]",
    "data.classes=[dog, cow, rain, crickets, siren, engine]",
    "generator.training.epochs=1",
    "global_training.epochs=1",
    "synthesis.samples_per_class=6",
]


def test_a_run_is_a_process_of_its_own_once(
    benchmark_file: Callable[[str], ModuleType], tiny_overrides: list[str], tmp_path: Path
) -> None:
    finished = benchmark_file("figures").finished
    found = finished(tmp_path / "run", [*tiny_overrides, "mode=federate"])
    assert found["history"][-1]["round"] == 1
    assert finished(tmp_path / "run", ["mode=no_such_mode"]) == found
    with pytest.raises(RuntimeError, match=r"(?s)fedgen\.cli run mode=no_such_mode.* failed:\n.*no_such_mode"):
        finished(tmp_path / "other", ["mode=no_such_mode"])


def test_accuracy(benchmark_file: Callable[[str], ModuleType], in_process: list[list[str]], tmp_path: Path) -> None:
    ways = ["--ways", "combined", "centralised", "--folds", "1", "--seeds", "0", "1"]
    benchmark = benchmark_file("accuracy").main
    benchmark(["sounds", *LEFT_OUT, *ways, "--jobs", "1", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "accuracy.json").read_text())
    assert len(found["runs"]) == len(in_process) == 4
    combined, centralised = found["ways"]
    assert centralised["share"] == [1.0, 0.0]
    by_seed = {(row["way"], row["seed"]): row["accuracy"] for row in found["runs"]}
    shares = [by_seed["combined", seed] / by_seed["centralised", seed] for seed in (0, 1)]
    assert combined["share"][0] == pytest.approx(sum(shares) / 2)
    assert sum(combined["per_class"].values()) / len(combined["per_class"]) == pytest.approx(combined["accuracy"][0])
    assert combined["by_fold"] == {"1": pytest.approx(combined["accuracy"][0])}
    benchmark(["sounds", *LEFT_OUT, *ways, "--jobs", "2", "--out", str(tmp_path)])
    assert len(in_process) == 4  # all of them are there


def test_privacy(benchmark_file: Callable[[str], ModuleType], in_process: list[list[str]], tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    cells = ["--ways", "default", "epsilon 8", "--delta", "0.01", "--folds", "1", "--seeds", "0", "1"]
    clips = ["data.clips_per_class=12"]  # some members and controls of each class
    benchmark_file("privacy").main(["sounds", *LEFT_OUT, *clips, *cells, "--out", str(tmp_path)])
    found = json.loads((tmp_path / "privacy.json").read_text())
    assert [row["way"] for row in found["table"]] == ["default", "epsilon 8"]
    for row in found["table"]:
        own = [run for run in found["runs"] if run["way"] == row["way"]]
        assert row["accuracy"][0] == pytest.approx(sum(run["accuracy"] for run in own) / 2)
        assert row["auc"][0] == pytest.approx(sum(max(run["attacks"].values()) for run in own) / 2)
    spent = json.loads((tmp_path / "fold1_seed1" / "epsilon_8" / "all" / "results.json").read_text())["privacy"]
    assert (spent["epsilon"], spent["delta"]) == (8, 0.01)
    assert (tmp_path / "privacy.png").stat().st_size > 0


FEW = ["data.clips_per_class=10", "data.classes=[dog, cow, rain]", "encoder.stride=16"]
SMALL_ADAPTERS = ["adapter.width=8", "adapter.hidden=16", "adapter.training.epochs=1", "target=small"]


def test_predecessor_has_the_sizes_on_record_and_learns(benchmark_file: Callable[[str], ModuleType]) -> None:
    module = benchmark_file("predecessor")
    millions = [module.parameters(tokens) / 1e6 for tokens in (4, 16, 64, 1214)]
    assert millions == pytest.approx([9.2, 28, 104, 1910], rel=0.01)
    recipe = module.Recipe(tokens=2, epochs=30, width=16, latents=4)
    clips = torch.linspace(-0.9, 0.9, 6).expand(8, 10, 6)
    training = module.Training(clips, recipe, seed=0)
    losses = [training.epoch(number) for number in range(recipe.epochs)]
    assert losses[-1] < 0.1 * losses[0]
    drawn = module.sample(module.fit(clips, recipe, seed=0), count=3, length=10, seed=1)
    assert drawn.shape == (3, 10, 6)
    assert (drawn - clips[:3]).abs().mean() < 0.3
    assert drawn.abs().max() <= 1  # Tanh


def test_throughput(benchmark_file: Callable[[str], ModuleType], tmp_path: Path) -> None:
    words = ["--kinds", "vae", "--epochs", "1", "--repeats", "1", "--out", str(tmp_path / "throughput.json")]
    benchmark_file("throughput").main([*words, *FEW])
    old, new = json.loads((tmp_path / "throughput.json").read_text())["rows"]
    assert (old["generator"], new["generator"]) == ("predecessor", "vae")
    assert old["times"] == 1
    assert new["times"] == pytest.approx(new["clips/s"] / old["clips/s"])
    assert new["target"] == (new["times"] >= 100)


def test_native(benchmark_file: Callable[[str], ModuleType], tmp_path: Path) -> None:
    words = ["--kinds", "vae", "--out", str(tmp_path / "native.json"), "generator.training.epochs=1"]
    benchmark_file("native").main([*words, *FEW, *SMALL_ADAPTERS])
    old, vae, adapters = json.loads((tmp_path / "native.json").read_text())["rows"]
    assert old["parameters"] > 100 * vae["parameters"] > 0
    for row in (vae, adapters):
        assert 0 < row["data_mib"] < row["peak_mib"]
        assert row["over_mib"] == row["peak_mib"] - row["data_mib"]
        assert row["met"]


def test_wire(benchmark_file: Callable[[str], ModuleType], tmp_path: Path) -> None:
    sizes = ["--samples", "8", "--epochs", "1", "--seeds", "2", "--out", str(tmp_path / "wire.json")]
    benchmark_file("wire").main(["sounds", *sizes, *FEW, "codec.components=6"])
    results = json.loads((tmp_path / "wire.json").read_text())
    found = {row["what"]: row["measured"] for row in results["rows"]}
    assert found["bytes a sample"] == pytest.approx(6, abs=0.5)
    assert found["bytes a sample, raw half precision"] == 2 * results["shape"][0] * results["shape"][1]
    assert 0 < found["squared error of arrived tokens, share"] < 1e-3
    pairs = results["accuracies"]
    assert found["accuracy lost"] == pytest.approx(sum(before - after for before, after in pairs) / len(pairs))


def test_federation(benchmark_file: Callable[[str], ModuleType], tmp_path: Path) -> None:
    words = ["--ways", "plain", "grid", "--rounds", "2", "--repeats", "1", "--out", str(tmp_path / "federation.json")]
    benchmark_file("federation").main([*words, *FEW, *SMALL_ADAPTERS, "synthesis.samples_per_class=4"])
    results = json.loads((tmp_path / "federation.json").read_text())
    plain, grid = results["rows"]
    assert plain["times the loop"] is None
    assert grid["times the loop"] == pytest.approx(grid["rounds"] / plain["rounds"])
    assert all(len(seconds) == 2 and min(seconds) > 0 for way in results["rounds"].values() for seconds in way)


def test_adapter(benchmark_file: Callable[[str], ModuleType], tmp_path: Path) -> None:
    sizes = ["--tokens", "30", "--token-width", "16", "--hidden", "8", "--batch-size", "2"]
    benchmark_file("adapter").main([*sizes, "--repeats", "1", "--out", str(tmp_path / "adapter.json")])
    own, on_tokens, baseline = json.loads((tmp_path / "adapter.json").read_text())["rows"]
    assert own["parameters"] == on_tokens["parameters"]
    assert own["smaller than 8"] == baseline["parameters"] / own["parameters"]
    assert own["faster than 8"] == pytest.approx(baseline["ms a step"] / own["ms a step"])
    assert baseline["faster than 8"] is None

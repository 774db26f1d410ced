"""Every benchmark runs, at sizes that take a moment, and leaves its figures behind; times are nobody's promise here."""

import json
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


pytestmark = pytest.mark.usefixtures("logging_as_before")


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


def test_lengths(benchmark_file: Callable[[str], ModuleType], tmp_path: Path) -> None:
    few = "data.classes=[dog, cow, rain, siren]"
    benchmark_file("lengths").main(["--repeats", "1", "--out", str(tmp_path / "lengths.json"), *SMALL, few])
    rows = json.loads((tmp_path / "lengths.json").read_text())["rows"]
    native = rows[0]
    assert native["training_length"] is None
    assert all(row["lost"] > 0 for row in rows)
    short = [row["lost"] for row in rows if row["training_length"] == 4]
    assert native["lost"] < min(short)


def test_memory(benchmark_file: Callable[[str], ModuleType], tmp_path: Path) -> None:
    words = ["--kinds", "gaussian", "--clips", "6", "--repeats", "1", "--out", str(tmp_path / "memory.json")]
    benchmark_file("memory").main([*words, *SMALL[1:], "adapter.width=8", "adapter.hidden=16", "target=small"])
    results = json.loads((tmp_path / "memory.json").read_text())
    high, low = results["rows"]
    assert (high["memory"], low["memory"]) == ("high", "low")
    assert 0 < high["idle_mib"] < high["peak_mib"]
    assert low["adapter_loss"] == pytest.approx(high["adapter_loss"], rel=0.1)  # dropout draws by part
    assert results["ratios"]["gaussian"]["cpu_seconds"] == low["cpu_seconds"] / high["cpu_seconds"]


LEFT_OUT = [
    *SMALL,
    "rounds=1",
    "adapter.width=8",
    "adapter.hidden=16",
    "adapter.training.epochs=1",
    "data.leave_out=[3]",
]


def test_accuracy(benchmark_file: Callable[[str], ModuleType], tmp_path: Path) -> None:
    ways = ["--ways", "combined", "centralised", "--folds", "1", "--seeds", "0", "1"]
    benchmark = benchmark_file("accuracy").main
    benchmark(["sounds", *LEFT_OUT, *ways, "--out", str(tmp_path)])
    found = json.loads((tmp_path / "accuracy.json").read_text())
    assert len(found["runs"]) == 4
    combined, centralised = found["ways"]
    assert centralised["share"] == [1.0, 0.0]
    by_seed = {(row["way"], row["seed"]): row["accuracy"] for row in found["runs"]}
    shares = [by_seed["combined", seed] / by_seed["centralised", seed] for seed in (0, 1)]
    assert combined["share"][0] == pytest.approx(sum(shares) / 2)
    assert sum(combined["per_class"].values()) / len(combined["per_class"]) == pytest.approx(combined["accuracy"][0])
    assert combined["by_fold"] == {"1": pytest.approx(combined["accuracy"][0])}
    before = (tmp_path / "fold1_seed0" / "centralised" / "results.json").stat().st_mtime
    benchmark(["sounds", *LEFT_OUT, *ways, "--out", str(tmp_path)])
    assert (tmp_path / "fold1_seed0" / "centralised" / "results.json").stat().st_mtime == before


def test_privacy(benchmark_file: Callable[[str], ModuleType], tmp_path: Path) -> None:
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
    sizes = ["--tokens", "30", "--token-width", "16", "--rank", "5", "4", "--hidden", "8", "--batch-size", "2"]
    benchmark_file("adapter").main([*sizes, "--repeats", "1", "--out", str(tmp_path / "adapter.json")])
    dense, factored, baseline = json.loads((tmp_path / "adapter.json").read_text())["rows"]
    assert dense["parameters"] == factored["parameters"]
    assert dense["smaller than 8"] == baseline["parameters"] / dense["parameters"]
    assert dense["faster than 8"] == pytest.approx(baseline["ms a step"] / dense["ms a step"])
    assert baseline["faster than 8"] is None

"""Every benchmark runs, at sizes that take a moment, and leaves its figures behind; times are nobody's promise here."""

import json
import logging
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A benchmark is a process of its own and sets up logging as it likes."""
    root, own = logging.getLogger(), logging.getLogger("fedgen")
    levels, handlers = (root.level, own.level), list(root.handlers)
    yield
    root.setLevel(levels[0])
    own.setLevel(levels[1])
    root.handlers[:] = handlers


@pytest.fixture
def benchmark_file() -> Callable[[str], ModuleType]:
    """Imports ``benchmarks/{name}.py``."""

    def load(name: str) -> ModuleType:
        spec = spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.skipif(torch.cuda.is_available(), reason="expects the ways that are measured without CUDA")
@pytest.mark.parametrize("words", [[], ["--stacked"]], ids=["in turn", "stacked"])
def test_bank(benchmark_file: Callable[[str], ModuleType], tmp_path: Path, words: list[str]) -> None:
    sizes = ["--classes", "3", "--clips", "9", "--components", "5", "--width", "8", "--epochs", "1", "--repeats", "2"]
    benchmark_file("bank").main([*sizes, *words, "--kinds", "gaussian", "vae", "--out", str(tmp_path / "bank.json")])
    results = json.loads((tmp_path / "bank.json").read_text())
    assert [row["kind"] for row in results["rows"]] == ["gaussian", "vae"]
    for row in results["rows"]:
        assert set(row["seconds"]) == {"unified", "in turn", *(["stacked"] if words else [])}
        assert all(seconds > 0 for seconds in row["seconds"].values())
        assert row["ratios"]["in turn"] == row["seconds"]["in turn"] / row["seconds"]["unified"]
        assert row["met"] == (row["ratios"]["in turn"] <= 1.1)


SMALL = ["data.clips_per_class=6", "data.folds=3", "data.test_fold=3", "encoder.stride=16"]


def test_lengths(benchmark_file: Callable[[str], ModuleType], tmp_path: Path) -> None:
    benchmark_file("lengths").main(["--repeats", "1", "--out", str(tmp_path / "lengths.json"), *SMALL])
    rows = json.loads((tmp_path / "lengths.json").read_text())["rows"]
    native = rows[0]
    assert native["training_length"] is None
    assert all(row["lost"] > 0 for row in rows)
    few = [row["lost"] for row in rows if row["training_length"] == 4 and row["codec"] == "tucker"]
    assert native["lost"] < min(few)


def test_memory(benchmark_file: Callable[[str], ModuleType], tmp_path: Path) -> None:
    words = ["--kinds", "gaussian", "--clips", "6", "--repeats", "1", "--out", str(tmp_path / "memory.json")]
    benchmark_file("memory").main([*words, *SMALL[1:], "adapter.width=8", "adapter.hidden=16", "target=small"])
    results = json.loads((tmp_path / "memory.json").read_text())
    high, low = results["rows"]
    assert (high["memory"], low["memory"]) == ("high", "low")
    assert 0 < high["idle_mib"] < high["peak_mib"]
    assert low["adapter_loss"] == pytest.approx(high["adapter_loss"], rel=0.1)  # dropout draws by part
    assert results["ratios"]["gaussian"]["cpu_seconds"] == low["cpu_seconds"] / high["cpu_seconds"]


def test_accuracy(benchmark_file: Callable[[str], ModuleType], tmp_path: Path) -> None:
    ways = ["--ways", "one_shot gaussian", "centralised", "--folds", "3", "--seeds", "0", "1"]
    sizes = [*SMALL, "rounds=1", "adapter.width=8", "adapter.hidden=16", "adapter.training.epochs=1"]
    benchmark = benchmark_file("accuracy").main
    benchmark(["sounds", *sizes, *ways, "--out", str(tmp_path)])
    found = json.loads((tmp_path / "accuracy.json").read_text())
    assert len(found["runs"]) == 4
    one_shot, centralised = found["ways"]
    assert centralised["share"] == [1.0, 0.0]
    by_seed = {(row["way"], row["seed"]): row["accuracy"] for row in found["runs"]}
    shares = [by_seed["one_shot gaussian", seed] / by_seed["centralised", seed] for seed in (0, 1)]
    assert one_shot["share"][0] == pytest.approx(sum(shares) / 2)
    before = (tmp_path / "fold3_seed0" / "centralised" / "results.json").stat().st_mtime
    benchmark(["sounds", *sizes, *ways, "--out", str(tmp_path)])
    assert (tmp_path / "fold3_seed0" / "centralised" / "results.json").stat().st_mtime == before

"""Every benchmark runs, at sizes that take a moment, and leaves its figures behind; times are nobody's promise here."""

import json
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


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

"""The benchmark of many nodes runs, asks as many as it should, and says whether it is flat."""

import json
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.usefixtures("logging_as_before")


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = spec_from_file_location("benchmark_scale", BENCHMARKS / "scale.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_scale(scale: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scale.main(["--nodes", "2", "4", "--asked", "2", "--out", str(tmp_path / "scale.json")])
    rows = json.loads((tmp_path / "scale.json").read_text())["rows"]
    assert [(row["nodes"], row["asked"]) for row in rows] == [(2, 2), (4, 2)]
    assert all(row["peak_mib"] > row["idle_mib"] > 0 for row in rows)
    assert all(row["node"] == pytest.approx(1000 * row["first"] / 2) for row in rows)
    assert "peak MiB" in capsys.readouterr().out


def test_flat_is_against_the_fewest_nodes_that_ask_as_many(scale: ModuleType) -> None:
    def row(nodes: int, asked: int, peak: float, seconds: float) -> dict[str, float]:
        return {"nodes": nodes, "asked": asked, "peak_mib": peak, "first": seconds}

    rows = [row(10, 5, 100, 1), row(20, 5, 109, 1.2), row(40, 5, 111, 1), row(80, 5, 100, 1.3), row(80, 9, 900, 9)]
    found: Callable[..., bool | None] = scale.flat
    assert [found(one, rows) for one in rows] == [None, True, False, False, None]

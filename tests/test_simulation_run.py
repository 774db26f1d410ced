"""The project's own apps in Flower's simulation: what `fedgen run` gives, and the truth about a run that fails."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from federations import Federate

from fedgen.run_folder import RunFolder
from fedgen.settings import Config
from fedgen.simulate import simulate

pytestmark = pytest.mark.slow


def test_a_simulation_gives_what_a_run_in_process_gives(
    tiny_overrides: list[str], tiny: Callable[..., Config], federate: Federate, tmp_path: Path
) -> None:
    """Three nodes of disjoint classes, two phases: generators are trained, then used by other processes."""
    phases = "phases=[{mode: train_generators, rounds: 1}, {mode: generate, rounds: 1}]"
    overrides = [phases, "generator.kind=vae", "strategy.wait=120"]
    simulated, local = tmp_path / "simulated", tmp_path / "local"
    log = tmp_path / "log"
    code = simulate([*tiny_overrides, *overrides, f"run_dir={simulated}"], nodes=3, log=log)
    assert code == 0, log.read_text()[-3000:]
    assert "round 1/1 train_generators | nodes 3/3" in log.read_text()
    expected, found = federate(tiny(*overrides), local), RunFolder(simulated).results()
    assert figures(found) == figures(expected)
    assert {node: sorted(counts) for node, counts in found["nodes"].items()} == {
        "0": ["cow", "dog"],
        "1": ["crickets", "rain"],
        "2": ["engine", "siren"],
    }
    lines = [json.loads(line) for line in (simulated / "metrics.jsonl").read_text().splitlines()]
    assert [line["node"] for line in lines if line["round"] == 1 and "node" in line] == [0, 1, 2]
    assert (simulated / "accuracy.png").is_file()


def test_a_failing_run_exits_with_its_reason(
    tiny_overrides: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = ["mode=federate", "partition.nodes=99", "strategy.wait=1", f"run_dir={tmp_path / 'run'}"]
    assert simulate([*tiny_overrides, *overrides], nodes=3, log=tmp_path / "log") != 0
    reason = caplog.records[-1].getMessage()
    assert "AggregationError: 3 nodes are there after strategy.wait=1 s, partition.nodes=99 are needed" in reason
    assert not (tmp_path / "run" / "results.json").exists()


def figures(results: dict[str, Any]) -> dict[str, Any]:
    """All but what a clock and the length of folder names decide."""
    return {key: value for key, value in results.items() if key not in ("seconds", "bytes")}

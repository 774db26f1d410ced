"""The project's own apps in Flower's simulation: what `fedgen run` gives."""

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


def figures(results: dict[str, Any]) -> dict[str, Any]:
    """All but what a clock and the length of folder names decide."""
    return {key: value for key, value in results.items() if key not in ("seconds", "bytes")}

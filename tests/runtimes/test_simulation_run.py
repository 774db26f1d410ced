"""The project's own apps in Flower's simulation: what `fedgen run` gives."""

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import superlinks
from federations import Federate

from fedgen.config.settings import Config
from fedgen.errors import ConfigError
from fedgen.runs.folder import RunFolder
from fedgen.runtimes.simulation import run_config_toml, simulate

pytestmark = pytest.mark.slow

# A background job of a shell inherits that Ctrl-C is ignored.
WITH_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


def test_a_simulation_gives_what_a_run_in_process_gives(
    tiny: Callable[..., Config], federate: Federate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Three nodes of disjoint classes, two phases: generators are trained, then used by other processes."""
    phases = "phases=[{mode: train_generators, rounds: 1}, {mode: generate, rounds: 1}]"
    overrides = [phases, "generator.kind=vae"]
    simulated, local = tmp_path / "simulated", tmp_path / "local"
    caplog.set_level(logging.INFO, "fedgen")
    simulate(tiny(*overrides, f"run_dir={simulated}"))
    assert "round 1/1 train_generators | nodes 3/3" in (simulated / "fedgen.log").read_text()
    expected, found = federate(tiny(*overrides), local), RunFolder(simulated).results()
    assert figures(found) == figures(expected)
    assert {node: sorted(counts) for node, counts in found["nodes"].items()} == {
        "0": ["cow", "dog"],
        "1": ["crickets", "rain"],
        "2": ["engine", "siren"],
    }
    lines = [json.loads(line) for line in (simulated / "metrics.jsonl").read_text().splitlines()]
    assert [line["node"] for line in lines if line["round"] == 1 and "node" in line] == [0, 1, 2]


def figures(results: dict[str, Any]) -> dict[str, Any]:
    """All but what a clock and the length of folder names decide."""
    return {key: value for key, value in results.items() if key not in ("seconds", "bytes")}


def test_a_run_that_fails_raises_and_one_that_is_interrupted_ends(
    tiny_overrides: list[str], tiny: Callable[..., Config], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="gpus=64"):
        simulate(tiny(f"run_dir={tmp_path / 'gpus'}"), gpus=64.0)
    with pytest.raises(ConfigError, match="mode=standalone is a reference"):
        simulate(tiny("mode=standalone", f"run_dir={tmp_path / 'reference'}"))
    code = f"{WITH_CTRL_C}import sys; from fedgen.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["simulate", *tiny_overrides, "mode=federate", "rounds=1000", f"run_dir={tmp_path / 'run'}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([sys.executable, "-c", code, *words], cwd=tmp_path, **pipes)
    assert process.stdout is not None
    assert any("round 1/1000" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    assert "error: interrupted" in process.stdout.read()
    assert process.wait(timeout=60) == 1


def test_flowers_own_command(tiny_overrides: list[str], tmp_path: Path) -> None:
    settings, run = tmp_path / "run.toml", tmp_path / "run"
    settings.write_text(run_config_toml([*tiny_overrides, "mode=federate", f"run_dir={run}"]), encoding="utf-8")
    nodes = "num-supernodes=3 client-resources-num-cpus=1"
    with superlinks.running_superlink(tmp_path):
        options = {"cwd": superlinks.work_folder(tmp_path), "env": superlinks.environment(tmp_path), "timeout": 500}
        command = ["flwr", "run", str(Path(__file__).parents[2]), superlinks.CONNECTION, "--stream"]
        command += ["--run-config", str(settings), "--federation-config", nodes]
        subprocess.run(command, check=True, **options)  # type: ignore[call-overload]
    assert RunFolder(run).results()["history"][-1]["round"] == 1

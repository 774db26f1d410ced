"""fedgen from Python: a run by a function, the example, and what a comparison makes of several seeds."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from federations import Federate

import fedgen
from fedgen.cli import main
from fedgen.config.settings import Config
from fedgen.errors import ConfigError
from fedgen.report.comparison import compared
from fedgen.runs.folder import RunFolder

CHECKOUT = Path(__file__).parents[2]


def test_a_run_returns_its_results(tiny_overrides: list[str], no_plots: None, tmp_path: Path) -> None:
    results = fedgen.run(*tiny_overrides, "mode=federate", run_dir=tmp_path / "run")
    assert results == json.loads((tmp_path / "run" / "results.json").read_text())
    assert fedgen.run(f"resume={tmp_path / 'run'}")["accuracy"] == results["accuracy"]


def test_a_run_has_a_folder_of_its_own(
    tiny_overrides: list[str], no_plots: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fedgen.run(*tiny_overrides, "mode=federate")
    assert len(list(tmp_path.glob("runs/*/*/results.json"))) == 1


def test_errors_pass_through() -> None:
    with pytest.raises(ConfigError, match="mode='one_shoot' is not one of"):
        fedgen.run("phases=[{mode: one_shoot, rounds: 1}]")
    with pytest.raises(AttributeError, match="no attribute 'walk'"):
        fedgen.walk  # noqa: B018


def test_importing_fedgen_is_light() -> None:
    code = (
        "import sys, fedgen; assert 'torch' not in sys.modules; from fedgen import run; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_example(tiny_overrides: list[str], home: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(CHECKOUT / "examples" / "first_run.py"), *tiny_overrides]
    environment = {**os.environ, "FEDGEN_HOME": str(home)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    told = [line.split()[0] for line in done.stdout.splitlines() if "hardest class" in line]
    assert told == ["standalone", "federate", "combined", "centralised"]


@pytest.fixture
def seeds(tiny: Callable[..., Config], federate: Federate, tmp_path: Path) -> list[Path]:
    """Three runs of one setting, and one of another."""
    for seed in range(3):
        federate(replace(tiny("mode=federate"), seed=seed), tmp_path / "sweep" / str(seed))
    federate(tiny("mode=federate", "rounds=2"), tmp_path / "sweep" / "other")
    return sorted((tmp_path / "sweep").iterdir())


def test_runs_that_differ_in_the_seed_are_one(seeds: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    runs = compared([RunFolder(path) for path in seeds])
    name = f"{seeds[0].parent}/* (seeds 0, 1, 2)"
    assert set(runs) == {name, str(seeds[-1])}
    single: list[dict[str, Any]] = [RunFolder(path).results() for path in seeds[:3]]
    accuracies = [results["accuracy"] for results in single]
    assert runs[name]["accuracy"] == pytest.approx(statistics.mean(accuracies))
    assert runs[name]["deviation"] == pytest.approx(statistics.stdev(accuracies))
    assert runs[name]["bytes"]["sent"] == [statistics.mean(sum(results["bytes"]["sent"]) for results in single)]
    best = [results["accuracy"] for results in runs.values()]
    assert best == sorted(best, reverse=True)
    assert main(["compare", *map(str, seeds)]) == 0
    assert f"{statistics.mean(accuracies):.3f} ± {statistics.stdev(accuracies):.3f}" in capsys.readouterr().out


def test_runs_are_one_over_other_settings_too(seeds: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    folders = [RunFolder(path) for path in seeds]
    assert set(compared(folders, ["seed", "rounds"])) == {f"{seeds[0].parent}/* (seeds 0, 1, 2; rounds 1, 2)"}
    assert (
        set(compared(folders, ["rounds"]))
        == {  # seed 0 has run for both; the others have nothing to be one with
            *map(str, seeds[1:3]),
            f"{seeds[0].parent}/* (rounds 1, 2)",
        }
    )
    capsys.readouterr()
    assert main(["compare", *map(str, seeds[2:]), "--over", "seed,rounds"]) == 0
    assert "±" in capsys.readouterr().out
    assert main(["compare", *map(str, seeds), "--over", "data.fold"]) == 1
    assert "--over data.fold: unknown configuration key. Did you mean 'data." in capsys.readouterr().err


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert fedgen.__version__ in shown
    assert "gaussian*" in shown
    assert "by_class*, dirichlet" in shown
    rows = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in shown.splitlines() if "│" in line}
    assert rows["encoder=patches"] == "ready"
    assert rows["encoder=sfx"] == "fetch it with: fedgen get sfx"
    for group, choice, package in (
        ("hydra/launcher", "joblib", "hydra_plugins.hydra_joblib_launcher"),
        ("hydra/sweeper", "optuna", "hydra_plugins.hydra_optuna_sweeper"),
    ):
        assert rows[group] == (f"basic*, {choice}" if find_spec("hydra_plugins") and find_spec(package) else "basic*")

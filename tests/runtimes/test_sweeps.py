"""Sweeps: with the basic sweeper, several jobs at once, and a search."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hydra.types import RunMode
from omegaconf import OmegaConf

from fedgen.cli import main
from fedgen.config.settings import Config
from fedgen.errors import ConfigError
from fedgen.runs.folder import RunFolder
from fedgen.runtimes.references import run_reference
from fedgen.runtimes.sweeps import cores_of_a_job, objective
from fedgen.task import available_cores

Sweep = Callable[..., int]


@pytest.fixture
def sweep(tiny_overrides: list[str], no_plots: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Runs a sweep of the small configuration in an empty folder, into ``sweep/``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fedgen"])
    own = [text for text in tiny_overrides if not text.startswith("threads=")]
    return lambda *words: main(["run", *own, "-m", "hydra.sweep.dir=sweep", *words])


def test_jobs_at_once_share_the_store_and_the_cores(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    assert sweep(*parallel, "mode=federate", "partition.nodes=2,99,3") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "1 job of the sweep failed" in error
    assert "sweep/1" in error
    assert "partition.nodes=99 is more than the 6 classes" in error
    for number, nodes in ((0, 2), (2, 3)):
        folder = RunFolder(tmp_path / "sweep" / str(number))
        assert len(folder.results()["nodes"]) == nodes
        assert folder.config().threads == max(1, available_cores() // 2)
    stores = {RunFolder(tmp_path / "sweep" / name).config().data.store for name in ("0", "2")}
    assert len(stores) == 1


def test_a_search_maximises_accuracy(sweep: Sweep, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    small = ["mode=combined", "rounds=1", "data.leave_out=[1]"]
    assert sweep("experiment=search", *small, "hydra.sweeper.n_trials=3") == 0
    best = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    runs = [RunFolder(tmp_path / "sweep" / str(number)) for number in range(3)]
    winner = max(runs, key=lambda run: run.results()["accuracy"])
    assert best["best_value"] == pytest.approx(winner.results()["accuracy"])
    tried = {(run.config().adapter.training.lr, run.config().synthesis.fill) for run in runs}
    assert len(tried) == 3
    assert (best["best_params"]["adapter.training.lr"], best["best_params"]["synthesis.fill"]) in tried


def test_a_sweep_names_the_runs_that_fail_and_goes_on(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def reference(config: Config) -> dict[str, Any]:
        if config.partition.nodes == 2:
            raise RuntimeError("no memory\nto be had")
        return run_reference(config)

    monkeypatch.setattr("fedgen.runtimes.local.run_reference", reference)
    assert sweep("mode=standalone", "rounds=1", "partition.nodes=99,2,3") == 1
    assert "2 jobs of the sweep failed" in (line := capsys.readouterr().err.strip().splitlines()[-1])
    assert "sweep/0: partition.nodes=99 is more than the 6 classes" in line
    assert "sweep/1: RuntimeError: no memory to be had" in line
    log = (tmp_path / "sweep" / "1" / "fedgen.log").read_text()
    assert "sweep/1 failed: RuntimeError: no memory\nto be had\nTraceback" in log
    assert "Traceback" not in (tmp_path / "sweep" / "0" / "fedgen.log").read_text()
    assert RunFolder(tmp_path / "sweep" / "2").results()["mode"] == "standalone"
    assert RunFolder(tmp_path / "sweep" / "1").failure() == "RuntimeError: no memory to be had"


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ConfigError("mode=x is none"), "mode=x is none"), (RuntimeError("no memory"), "RuntimeError: no memory")],
)
def test_the_folder_of_a_run_that_failed_tells_why(
    error: Exception,
    reason: str,
    tiny_overrides: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def fails(config: Config) -> dict[str, Any]:
        raise error

    monkeypatch.setattr("fedgen.runtimes.local.run_reference", fails)
    monkeypatch.setattr(sys, "argv", ["fedgen"])
    folder = tmp_path / "run"
    command = ["run", *tiny_overrides, "mode=standalone", f"hydra.run.dir={folder}"]
    if isinstance(error, ConfigError):
        assert main(command) == 1
    else:
        with pytest.raises(RuntimeError, match="no memory"):
            main(command)
    told = capsys.readouterr()
    assert told.err.count(str(error)) <= 1
    assert str(error) not in told.out
    assert RunFolder(folder).failure() == reason
    assert ("Traceback" in (folder / "fedgen.log").read_text()) == isinstance(error, RuntimeError)


def test_ctrl_c_ends_a_sweep_and_what_failed_before_is_told(
    sweep: Sweep, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []

    def reference(config: Config) -> dict[str, Any]:
        started.append(config.partition.nodes)
        raise RuntimeError("no memory") if config.partition.nodes == 1 else KeyboardInterrupt

    monkeypatch.setattr("fedgen.runtimes.local.run_reference", reference)
    assert sweep("mode=standalone", "partition.nodes=1,2,3") == 1
    assert started == [1, 2]
    told = capsys.readouterr()
    assert told.err.strip().splitlines()[-1] == "error: interrupted"
    assert "1 job of the sweep failed" in told.out
    assert told.out.count("sweep/0: RuntimeError: no memory") == 1


def test_a_failed_job_is_the_worst_to_a_search_and_nothing_to_a_sweep(tmp_path: Path) -> None:
    failed = tmp_path / "failed"
    values = OmegaConf.create({"rounds": "many"})
    hydra: Any = SimpleNamespace(
        mode=RunMode.MULTIRUN,
        runtime=SimpleNamespace(output_dir=str(tmp_path / "3")),
        sweeper=SimpleNamespace(_target_="hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"),
    )
    assert objective(values, hydra, failed) == 0.0
    hydra.sweeper._target_ = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
    assert math.isnan(objective(values, hydra, failed))
    assert [line.partition(": ")[0] for line in failed.read_text().splitlines()] == [str(tmp_path / "3")] * 2
    hydra.mode = RunMode.RUN
    with pytest.raises(ConfigError, match="rounds"):
        objective(values, hydra, failed)


@pytest.mark.parametrize(("jobs", "share"), [(1, 8), (2, 4), (3, 2), (16, 1), (-1, 1), (-2, 1), (-8, 8), (None, None)])
def test_cores_of_a_job(jobs: int | None, share: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedgen.task.available_cores", lambda: 8)
    launcher = SimpleNamespace(n_jobs=jobs) if jobs is not None else SimpleNamespace()
    hydra: Any = SimpleNamespace(launcher=launcher, mode=RunMode.MULTIRUN)
    assert cores_of_a_job(hydra) == share
    hydra.mode = RunMode.RUN
    assert cores_of_a_job(hydra) is None

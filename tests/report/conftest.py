"""Runs that pages are about."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fedgen.config.settings import Config
from fedgen.runtimes.local import run_config as run


@pytest.fixture(scope="session")
def runs(tiny: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that made samples, one that did not, and one that has not finished."""
    folder = tmp_path_factory.mktemp("runs")
    for mode in ("combined", "federate"):
        config = tiny(f"mode={mode}", "rounds=2", "generator=vae", "evaluation.gate=warn", f"run_dir={folder / mode}")
        run(config)
    shutil.copytree(folder / "combined", folder / "unfinished")
    (folder / "unfinished" / "results.json").unlink()
    return folder

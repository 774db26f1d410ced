"""fedgen from Python: run a configuration, and open what a run has left."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedgen.config import load_config
from fedgen.local_run import run as run_config
from fedgen.saved_run import load_run

__all__ = ["load_run", "run"]


def run(*overrides: str, run_dir: str | Path | None = None) -> dict[str, Any]:
    """Run a configuration in this process and return its results.

    Parameters
    ----------
    *overrides : str
        As after ``fedgen run``, such as ``"mode=one_shot"`` and ``"rounds=5"``; no sweeps.
    run_dir : str or Path, optional
        The run folder; by default one below ``runs/`` that is named after the time.

    Returns
    -------
    dict
        The content of ``results.json``: ``accuracy``, ``per_class``, ``confusion``, ``history`` and the rest.

    Raises
    ------
    FedgenError
        What is wrong, in words that name the value, the choices and the configuration key.

    Examples
    --------
    >>> from fedgen import run
    >>> run("mode=one_shot", "rounds=2")["accuracy"]  # doctest: +SKIP
    0.65
    """
    config = load_config(list(overrides))
    folder = run_dir or config.run_dir or Path("runs") / time.strftime("%Y-%m-%d") / time.strftime("%H-%M-%S")
    return run_config(config if config.resume else replace(config, run_dir=str(folder)))

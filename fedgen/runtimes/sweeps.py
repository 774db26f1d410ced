"""Jobs of a sweep: their failures, and how many cores each may take when several run at once."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hydra import initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig

from fedgen.config.compose import config_dir, from_dictconfig
from fedgen.errors import FedgenError, said

logger = logging.getLogger(__name__)

MAX_REASON = 1000  # characters


@contextmanager
def failures() -> Iterator[Path]:
    """Give a file to which jobs, also in other processes, append a line each when they fail.

    Raises
    ------
    FedgenError
        At the end, with the folder and the reason of every job that failed. Another exception, such as Ctrl-C, passes;
        the failed jobs are logged before it.
    """
    with tempfile.TemporaryDirectory(prefix="fedgen-") as folder:
        file = Path(folder) / "failed"
        file.touch()
        try:
            yield file
        except BaseException:
            if summary := _summary(file):
                logger.error("%s", summary)
            raise
        if summary := _summary(file):
            raise FedgenError(summary)


def _summary(file: Path) -> str:
    """Return the failed jobs in one line; empty if there are none."""
    lines = sorted(file.read_text(encoding="utf-8").splitlines())
    return f"{len(lines)} job{'s' * (len(lines) > 1)} of the sweep failed: {'; '.join(lines)}" if lines else ""


def objective(values: DictConfig, hydra: HydraConf, failed: Path) -> float:
    """Run one composed configuration and return its accuracy, which a sweeper may maximise.

    Every error is logged to the run folder. A job of a sweep that fails is noted in the file ``failed``, and the sweep
    goes on: the objective is NaN, or 0, the least accuracy, for a sweeper that searches and would stop at NaN.

    Raises
    ------
    Exception
        The run fails, and is no job of a sweep.
    """
    folder = str(hydra.runtime.output_dir)
    try:
        config = from_dictconfig(values)
        threads = config.threads or cores_of_a_job(hydra)
        from fedgen.runtimes.local import run_config  # torch: not before the configuration is known to be right

        return float(run_config(replace(config, run_dir=config.run_dir or folder, threads=threads))["accuracy"])
    except Exception as error:
        unknown = None if isinstance(error, FedgenError) else error
        reason = f"{type(error).__name__}: {error}" if unknown else str(error)
        line = f"{folder} failed: {reason}"
        from fedgen.runs.folder import RunFolder  # torch: only a run that fails needs it here

        RunFolder(Path(folder)).fail(reason)
        if hydra.mode is not RunMode.MULTIRUN:
            _log_to_files(line, unknown)
            raise
        logger.error("%s", line, exc_info=unknown)
        with failed.open("a", encoding="utf-8") as file:  # a line this short is appended whole
            file.write(f"{said(folder)}: {said(reason, MAX_REASON)}\n")
        return 0.0 if "optuna" in str(getattr(hydra.sweeper, "_target_", "")) else math.nan


def _log_to_files(line: str, error: Exception | None) -> None:
    """Log an error to files alone: whoever catches it prints it."""
    trace = (type(error), error, error.__traceback__) if error else None
    record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, "%s", (line,), trace)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def launching() -> dict[str, list[str]]:
    """Return the installed sweepers and launchers, by the group that chooses one."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        files = GlobalHydra.instance().config_loader()
        return {group: sorted(files.get_group_options(group)) for group in ("hydra/launcher", "hydra/sweeper")}


def cores_of_a_job(hydra: HydraConf) -> int | None:
    """Return how many cores a job may take so that simultaneous jobs share them; None: all."""
    at_once = getattr(hydra.launcher, "n_jobs", None) if hydra.mode is RunMode.MULTIRUN else None
    if at_once is None:
        return None
    from fedgen.task import available_cores

    cores = available_cores()
    return max(1, cores // (at_once if at_once > 0 else max(1, cores + 1 + at_once)))  # joblib: -1 is every core

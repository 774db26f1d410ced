"""Jobs of a sweep: which failed, and how many cores each may take when several run at once."""

from __future__ import annotations

import json
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
from fedgen.runs.folder import FAILED
from fedgen.task import available_cores

logger = logging.getLogger(__name__)

LONGEST = 1000  # characters that are kept of a reason


class Failures:
    """What failed in a sweep, in a file: jobs may be processes of their own, on this machine.

    Parameters
    ----------
    path : Path
        A line of JSON a job; lines this short are appended whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, folder: str, reason: str) -> None:
        """Note a job by its folder."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([folder, said(reason, LONGEST)]) + "\n")

    def all(self) -> list[str]:
        """Return a line for each job that failed."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return [": ".join(json.loads(line)) for line in sorted(lines)]

    def summary(self) -> str:
        """Return which jobs failed, and why, in one line; nothing if none did."""
        told = self.all()
        return f"{len(told)} job{'s' * (len(told) > 1)} of the sweep failed: {'; '.join(told)}" if told else ""


@contextmanager
def failures() -> Iterator[Failures]:
    """Collect what fails, and raise it together at the end; what else ends the block passes, with it in the log.

    Raises
    ------
    FedgenError
        Names every job that failed, and why.
    """
    with tempfile.TemporaryDirectory(prefix="fedgen-") as folder:
        found = Failures(Path(folder) / "failed")
        found.path.touch()
        try:
            yield found
        except BaseException:  # what ends a sweep, such as Ctrl-C, hides no job that failed before
            if told := found.summary():
                logger.error("%s", told)
            raise
        if told := found.summary():
            raise FedgenError(told)


def objective(values: DictConfig, hydra: HydraConf, failed: Failures) -> float:
    """Run one composed configuration and return its accuracy, which a sweeper may maximise.

    Whatever it fails with is in the log of its folder. A job of a sweep that fails is noted, and the rest go on: its
    objective is NaN, or, for a sweeper that searches and would stop at that, 0, the least accuracy there is.

    Raises
    ------
    Exception
        It fails, and is no job of a sweep.
    """
    from fedgen.runtimes.local import run_config as run

    folder = str(hydra.runtime.output_dir)
    try:
        config = from_dictconfig(values)
        threads = config.threads or cores_of_a_job(hydra)
        return float(run(replace(config, run_dir=config.run_dir or folder, threads=threads))["accuracy"])
    except Exception as error:
        known = isinstance(error, FedgenError)
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        told, unknown = f"{folder}{FAILED}{reason}", None if known else error
        if hydra.mode is not RunMode.MULTIRUN:
            _log_to_files(told, unknown)
            raise
        logger.error("%s", told, exc_info=unknown)
        failed.add(folder, reason)
        return 0.0 if searches(hydra) else math.nan


def _log_to_files(told: str, error: Exception | None) -> None:
    """Log an error where it stays; the terminal gets it from whoever catches it."""
    trace = (type(error), error, error.__traceback__) if error else None
    record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, "%s", (told,), trace)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def launching() -> dict[str, list[str]]:
    """Return the sweepers and launchers that are installed, by the group that chooses one."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        files = GlobalHydra.instance().config_loader()
        return {group: sorted(files.get_group_options(group)) for group in ("hydra/launcher", "hydra/sweeper")}


def cores_of_a_job(hydra: HydraConf) -> int | None:
    """Return how many cores a job may take so that jobs that run at once do not fight over them; None: all."""
    at_once = getattr(hydra.launcher, "n_jobs", None) if hydra.mode is RunMode.MULTIRUN else None
    if at_once is None:
        return None
    cores = available_cores()
    return max(1, cores // (at_once if at_once > 0 else max(1, cores + 1 + at_once)))  # joblib: -1 is every core


def searches(hydra: HydraConf) -> bool:
    """Say whether the sweeper chooses what comes next by what came out."""
    return "optuna" in str(getattr(hydra.sweeper, "_target_", ""))

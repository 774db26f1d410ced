"""Progress of a run: one bar on a terminal, log lines above it, and a log file in the run's folder."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

QUIET = "FEDGEN_QUIET"  # in the environment, so that processes that a run starts know it too
LOG = "fedgen.log"
own = logging.getLogger("fedgen")


def quiet() -> bool:
    """Return whether only warnings and errors are shown."""
    return os.environ.get(QUIET, "") not in ("", "0")


@contextmanager
def made_quiet(wanted: bool) -> Iterator[None]:
    """Be quiet within the block, if ``wanted``."""
    before = os.environ.get(QUIET, "")
    os.environ[QUIET] = "1" if wanted else before
    try:
        yield
    finally:
        os.environ[QUIET] = before


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """Writes to the current standard output: while a bar is shown, to rich's, which puts lines above the bar."""

    stream = property(lambda self: sys.stdout)

    def __init__(self, stream: Any = None) -> None:
        logging.Handler.__init__(self, logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; when quiet, only warnings and errors."""
        if record.levelno >= logging.WARNING or not quiet():
            super().emit(record)


def show_lines() -> None:
    """Print fedgen's log lines if logging is not set up, as in Flower's server process and in a notebook."""
    if not logging.getLogger().handlers and not any(isinstance(handler, ConsoleHandler) for handler in own.handlers):
        handler = ConsoleHandler()
        handler.setFormatter(logging.Formatter("[%(asctime)s] %(levelname)s %(message)s", "%H:%M:%S"))
        own.addHandler(handler)
        own.setLevel(logging.INFO)


class RoundsBar:
    """Bar of ``total`` rounds, clips or prompts, named by ``noun``; a terminal shows one bar, the latest.

    As a context manager, it is shown within the block.
    """

    shown: ClassVar[RoundsBar | None] = None

    def __init__(self, total: int, noun: str = "rounds") -> None:
        columns = TextColumn(noun), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
        where = TextColumn("{task.fields[step]} {task.fields[nodes]}")
        self.bar = Progress(*columns, where, console=Console(), transient=True, refresh_per_second=2)
        self.task = self.bar.add_task(noun, start=False, total=total, step="", nodes="")

    def __enter__(self) -> RoundsBar:
        self.start(0)
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self, done: int) -> None:
        """Show the bar if standard output and error are a terminal, this is no worker process, and it is not quiet."""
        self.stop()
        if sys.stdout.isatty() and sys.stderr.isatty() and not quiet() and not multiprocessing.parent_process():
            self.bar.start_task(self.task)
            self.show(done)
            self.bar.start()
            RoundsBar.shown = self

    def show(self, done: int) -> None:
        """Move the bar to ``done``."""
        self.bar.update(self.task, completed=done, step="", nodes="", refresh=True)

    @staticmethod
    def stop() -> None:
        """Remove the bar, if one is shown."""
        if RoundsBar.shown is not None:
            RoundsBar.shown.bar.stop()
            RoundsBar.shown = None


def show_step(step: str, nodes: str | None = "") -> None:
    """Show the step of the round beside the bar, and the nodes that have done it; None leaves the nodes as they are."""
    if RoundsBar.shown is not None:
        fields: dict[str, Any] = {"step": step} if nodes is None else {"step": step, "nodes": nodes}
        RoundsBar.shown.bar.update(RoundsBar.shown.task, **fields)


def keep_log(folder: Path) -> None:
    """Write every line from now on to ``fedgen.log`` in ``folder``, unless Hydra does so already."""
    leave_log()
    show_lines()
    file = (folder / LOG).absolute()
    if str(file) not in [getattr(handler, "baseFilename", None) for handler in logging.getLogger().handlers]:
        handler = logging.FileHandler(file, encoding="utf-8")
        handler.setFormatter(logging.Formatter("[%(asctime)s] %(message)s"))
        own.addHandler(handler)


def leave_log() -> None:
    """Close the log file of the previous run, if there is one."""
    for handler in [handler for handler in own.handlers if isinstance(handler, logging.FileHandler)]:
        own.removeHandler(handler)
        handler.close()

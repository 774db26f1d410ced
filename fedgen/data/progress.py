"""What a run shows and keeps of its course: a bar of rounds on a terminal, log lines above it, a log in its folder."""

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
    """Say whether nothing but warnings and errors is to be shown."""
    return os.environ.get(QUIET, "") not in ("", "0")


@contextmanager
def made_quiet(wanted: bool) -> Iterator[None]:
    """Be quiet, if it is wanted, until the end of the block."""
    before = os.environ.get(QUIET, "")
    os.environ[QUIET] = "1" if wanted else before
    try:
        yield
    finally:
        os.environ[QUIET] = before


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """Writes to what standard output is now: while a bar is shown, to rich's, which puts lines above the bar."""

    stream = property(lambda self: sys.stdout)

    def __init__(self, stream: Any = None) -> None:
        logging.Handler.__init__(self, logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, unless it is quiet and the record is no warning."""
        if record.levelno >= logging.WARNING or not quiet():
            super().emit(record)


def show_lines() -> None:
    """Print fedgen's log lines where nobody has set up logging, as in Flower's server process and in a notebook."""
    if not logging.getLogger().handlers and not any(isinstance(handler, ConsoleHandler) for handler in own.handlers):
        handler = ConsoleHandler()
        handler.setFormatter(logging.Formatter("[%(asctime)s] %(levelname)s %(message)s", "%H:%M:%S"))
        own.addHandler(handler)
        own.setLevel(logging.INFO)


class RoundsBar:
    """Shows how many of ``rounds`` (or of ``what`` else) are done; a terminal has room for one bar, the latest."""

    shown: ClassVar[RoundsBar | None] = None

    def __init__(self, rounds: int, what: str = "rounds") -> None:
        columns = TextColumn(what), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
        where = TextColumn("{task.fields[step]} {task.fields[nodes]}")
        self.bar = Progress(*columns, where, console=Console(), transient=True, refresh_per_second=2)
        self.task = self.bar.add_task(what, start=False, total=rounds, step="", nodes="")

    def start(self, done: int) -> None:
        """Show the bar, unless standard output or error is no terminal, this is one of several jobs, or it is quiet."""
        self.stop()
        if sys.stdout.isatty() and sys.stderr.isatty() and not quiet() and not multiprocessing.parent_process():
            self.bar.start_task(self.task)
            self.show(done)
            self.bar.start()
            RoundsBar.shown = self

    def show(self, done: int) -> None:
        """Move the bar to ``done`` rounds."""
        self.bar.update(self.task, completed=done, step="", nodes="", refresh=True)

    @staticmethod
    def stop() -> None:
        """Take away the bar that is shown, if there is one."""
        if RoundsBar.shown is not None:
            RoundsBar.shown.bar.stop()
            RoundsBar.shown = None


def show_step(step: str, nodes: str | None = "") -> None:
    """Show beside the bar, if there is one, the step of the round, and the nodes that have done it; None: as before."""
    if RoundsBar.shown is not None:
        fields: dict[str, Any] = {"step": step} if nodes is None else {"step": step, "nodes": nodes}
        RoundsBar.shown.bar.update(RoundsBar.shown.task, **fields)


def keep_log(folder: Path) -> None:
    """Write every line from now on to ``fedgen.log`` in ``folder``, unless Hydra does that already."""
    leave_log()
    show_lines()
    file = (folder / LOG).absolute()
    if str(file) not in [getattr(handler, "baseFilename", None) for handler in logging.getLogger().handlers]:
        handler = logging.FileHandler(file, encoding="utf-8")
        handler.setFormatter(logging.Formatter("[%(asctime)s] %(message)s"))
        own.addHandler(handler)


def leave_log() -> None:
    """Close the log of the run before, if there is one."""
    for handler in [handler for handler in own.handlers if isinstance(handler, logging.FileHandler)]:
        own.removeHandler(handler)
        handler.close()

"""What a run shows and keeps of its course: a bar of rounds on a terminal, and a log in the run folder."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, TextIO, TypeGuard

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
    before = os.environ.get(QUIET)
    if wanted:
        os.environ[QUIET] = "1"
    try:
        yield
    finally:
        os.environ.pop(QUIET, None)
        if before is not None:
            os.environ[QUIET] = before


def hush() -> None:
    """Let terminals have warnings and errors alone; log files still get every line."""
    for handler in logging.getLogger().handlers:
        if _writes_to_terminal(handler):
            handler.setLevel(logging.WARNING)


def show_lines() -> None:
    """Print fedgen's own log lines where nobody has set up logging, as in Flower's server process."""
    if not logging.getLogger().handlers and not own.handlers:
        handler = logging.StreamHandler()
        handler.addFilter(_with_kind)
        handler.setFormatter(logging.Formatter("[%(asctime)s] %(kind)s%(message)s", "%H:%M:%S"))
        own.addHandler(handler)
        own.setLevel(logging.INFO)


def _with_kind(record: logging.LogRecord) -> bool:
    """Say of warnings and errors that they are: their line may stand among many of Flower's."""
    record.kind = f"{record.levelname} " if record.levelno >= logging.WARNING else ""
    return True


def warns(line: str) -> bool:
    """Say whether `show_lines` has printed a line as a warning or an error."""
    return re.match(r"\[\d\d:\d\d:\d\d\] (WARNING|ERROR|CRITICAL) ", line) is not None


class RoundsBar:
    """Shows how many rounds are done, and where a round is, where standard output is a terminal.

    Log lines appear above it. A terminal has room for one bar: the latest.

    Parameters
    ----------
    rounds : int
        Of the whole run.
    what : str
        What is counted, where it is not rounds.
    """

    shown: ClassVar[RoundsBar | None] = None

    def __init__(self, rounds: int, what: str = "rounds") -> None:
        self.rounds, self.what = rounds, what
        self._bar: Progress | None = None
        self._nodes = ""
        self._streams: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []

    def start(self, done: int) -> None:
        """Show the bar, unless it is there, nobody looks, others would write over it, or it is to be quiet."""
        if self._bar is not None:
            return
        if RoundsBar.shown is not None:  # of a run that an error has ended
            RoundsBar.shown.stop()
        looks = sys.stdout.isatty() and sys.stderr.isatty() and multiprocessing.parent_process() is None
        if quiet() or not looks:
            return
        times = TimeElapsedColumn(), TimeRemainingColumn()
        columns = TextColumn(self.what), BarColumn(20), MofNCompleteColumn(), *times, TextColumn("{task.fields[step]}")
        self._bar = Progress(*columns, console=Console(), transient=True, refresh_per_second=2)
        self._bar.add_task(self.what, total=self.rounds, completed=done, step="")
        before = {sys.stdout, sys.stderr}
        self._bar.start()  # puts proxies in place of both streams, which write above the bar
        for handler in [*own.handlers, *logging.getLogger().handlers]:
            if _writes_to_terminal(handler) and handler.stream in before:
                self._streams.append((handler, handler.stream))
                handler.setStream(sys.stdout)
        RoundsBar.shown = self
        atexit.register(self.stop)  # a cursor that stays hidden after an error is a nuisance

    def show(self, done: int) -> None:
        """Move the bar to ``done`` rounds."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, step="", refresh=True)

    def tell(self, step: str, nodes: str | None = None) -> None:
        """Say beside the bar where a round is; ``nodes`` are those that have done it, as before by default.

        The terminal is written to when the bar next moves, twice a second: this costs nothing.
        """
        if self._bar is not None:
            self._nodes = self._nodes if nodes is None else nodes
            self._bar.update(self._bar.task_ids[0], step=f"{step} {self._nodes}")

    def stop(self) -> None:
        """Take the bar away; every stream is as before."""
        if self._bar is not None:
            self._bar.stop()
            for handler, stream in self._streams:
                handler.setStream(stream)
            atexit.unregister(self.stop)
            self._bar, self._streams, RoundsBar.shown = None, [], None


def show_step(step: str, done: int = 0, nodes: int = 0) -> None:
    """Say on the terminal, if it shows a bar, which step of a round has begun, and how many nodes have done it."""
    if RoundsBar.shown is not None:
        RoundsBar.shown.tell(step, f"{done}/{nodes} nodes" if nodes else "")


def show_own_step(step: str) -> None:
    """Say the same of a node that works in this process; how many have done it stays."""
    if RoundsBar.shown is not None:
        RoundsBar.shown.tell(step)


def clear() -> None:
    """Take away the bar, and close the log, of a run that an error has ended."""
    if RoundsBar.shown is not None:
        RoundsBar.shown.stop()
    leave_log()


class _RunLog(logging.FileHandler):
    """The log of a run that nothing else keeps one of."""


def keep_log(folder: Path) -> None:
    """Let ``fedgen.log`` in ``folder`` have every line from now on, unless Hydra sees to that already."""
    leave_log()
    file = (folder / LOG).absolute()
    there = [*own.handlers, *logging.getLogger().handlers]
    if any(isinstance(handler, logging.FileHandler) and Path(handler.baseFilename) == file for handler in there):
        return
    if not there:  # a library's use: a first handler would silence the warnings that Python prints where there is none
        assert logging.lastResort is not None
        own.addHandler(logging.lastResort)
        own.setLevel(logging.INFO)
    handler = _RunLog(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("[%(asctime)s] %(message)s"))
    own.addHandler(handler)


def leave_log() -> None:
    """Close the log of the run before, if there is one."""
    for handler in [*own.handlers]:
        if isinstance(handler, _RunLog):
            own.removeHandler(handler)
            handler.close()
    if logging.lastResort in own.handlers:
        own.removeHandler(logging.lastResort)
        own.setLevel(logging.NOTSET)


def _writes_to_terminal(handler: logging.Handler) -> TypeGuard[logging.StreamHandler[TextIO]]:
    return isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)

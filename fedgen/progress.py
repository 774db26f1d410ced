"""What a run shows and keeps of its course: a bar of rounds on a terminal, and a log in the run folder."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, TypeGuard

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


class RoundsBar:
    """Shows how many rounds are done where standard output is a terminal; log lines appear above it.

    Parameters
    ----------
    rounds : int
        Of the whole run.
    what : str
        What is counted, where it is not rounds.
    """

    def __init__(self, rounds: int, what: str = "rounds") -> None:
        self.rounds, self.what = rounds, what
        self._bar: Progress | None = None
        self._streams: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []

    def start(self, done: int) -> None:
        """Show the bar, unless it is there, nobody looks, or it is to be quiet."""
        if self._bar is not None or quiet() or not (sys.stdout.isatty() and sys.stderr.isatty()):
            return
        columns = (TextColumn(self.what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, transient=True, refresh_per_second=2)
        self._bar.add_task(self.what, total=self.rounds, completed=done)
        before = {sys.stdout, sys.stderr}
        self._bar.start()  # puts proxies in place of both streams, which write above the bar
        for handler in [*own.handlers, *logging.getLogger().handlers]:
            if _writes_to_terminal(handler) and handler.stream in before:
                self._streams.append((handler, handler.stream))
                handler.setStream(sys.stdout)
        atexit.register(self.stop)  # a cursor that stays hidden after an error is a nuisance

    def show(self, done: int) -> None:
        """Move the bar to ``done`` rounds."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, refresh=True)

    def stop(self) -> None:
        """Take the bar away; every stream is as before."""
        if self._bar is not None:
            self._bar.stop()
            for handler, stream in self._streams:
                handler.setStream(stream)
            atexit.unregister(self.stop)
            self._bar, self._streams = None, []


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

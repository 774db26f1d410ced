"""Files that outlive a crash: where fedgen keeps its own, whole writes, and locks between processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from fedgen.errors import StorageError

LOCK = ".lock"

logger = logging.getLogger(__name__)


def home() -> Path:
    """Return the folder of stores and of runs without a folder: ``$FEDGEN_HOME``, else ``~/.cache/fedgen``."""
    return Path(os.environ.get("FEDGEN_HOME") or "~/.cache/fedgen").expanduser()


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``: whenever the process dies, the file is the old one or the new one, never half.

    Raises
    ------
    StorageError
        The disk is full, or the file may not be written. The old file is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for abandoned in _abandoned(path):
            abandoned.unlink(missing_ok=True)
        try:
            write_synced(temporary, content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says while ``path`` is written into a `StorageError` that names it."""
    try:
        yield
    except OSError as error:
        reason = f"{path} cannot be written: {error.strerror}. What was saved before is intact"
        raise StorageError(error.errno, f"{reason}; a run goes on from there with resume=RUN_FOLDER") from error


def write_synced(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` and wait until the disk has it; a process that dies meanwhile leaves half of it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for it from working in ``folder``; waits until they have finished.

    The system drops the lock when the process ends, however it ends.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        logger.info("another process works in %s: waiting for it", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Keep other processes from changing ``folder`` while it is read, where this one may lock it."""
    if os.access(folder / LOCK, os.W_OK):
        with locked(folder):
            yield
    else:  # a folder that nobody has written to here, a copy, or one that this user may only read
        yield


def _abandoned(path: Path) -> list[Path]:
    """Return the temporary files of ``path`` whose processes are dead."""
    found = path.parent.glob(f".{escape(path.name)}.*.tmp")
    return [temporary for temporary in found if not psutil.pid_exists(int(temporary.name.split(".")[-2]))]

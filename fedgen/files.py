"""Files that outlive a crash: where fedgen keeps its own, whole writes, and locks between processes."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

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
    """Keep others who ask for it from working in ``folder``; waits until they have finished.

    The lock is the process's: it goes when the process dies, however it dies.
    """
    with (folder / LOCK).open("w") as file:
        _lock(file.fileno(), fcntl.LOCK_EX, folder)
        yield


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Keep others from changing ``folder`` while it is read; needs no right to write, and many may read at once."""
    if not (folder / LOCK).is_file():  # nobody has written here, or it is a copy
        yield
        return
    with (folder / LOCK).open("rb") as file:
        _lock(file.fileno(), fcntl.LOCK_SH, folder)
        yield


def _lock(descriptor: int, kind: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.info("another process works in %s: waiting for it", folder)
        fcntl.flock(descriptor, kind)


def _abandoned(path: Path) -> list[Path]:
    """Return what processes left behind that died while they wrote to ``path``."""
    found = path.parent.glob(f".{escape(path.name)}.*.tmp")
    return [temporary for temporary in found if not _running(temporary.name.split(".")[-2])]


def _running(process: str) -> bool:
    try:
        os.kill(int(process), 0)  # signal 0 only asks
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True
    return True

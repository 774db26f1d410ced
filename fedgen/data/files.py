"""The home folder, digests, atomic writes, and locks between processes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from fedgen.errors import StorageError

LOCK = ".lock"

logger = logging.getLogger(__name__)


def home() -> Path:
    """Return the folder of stores and of runs without a folder: ``$FEDGEN_HOME``, else ``~/.cache/fedgen``."""
    return Path(os.environ.get("FEDGEN_HOME") or "~/.cache/fedgen").expanduser()


def digest(content: bytes | str | Path) -> str:
    """Return the SHA-256 of bytes, of a text or of a file's content: 64 hexadecimal digits."""
    if isinstance(content, Path):
        with content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def save_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON by `write_atomically`."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


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
        for other in path.parent.glob(f".{escape(path.name)}.*.tmp"):
            if not psutil.pid_exists(int(other.name.split(".")[-2])):  # its process is dead
                other.unlink(missing_ok=True)
        try:
            write_synced(temporary, content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` while ``path`` is written into a `StorageError` that names it."""
    try:
        yield
    except OSError as error:
        reason = f"{path} cannot be written: {error.strerror}. What was saved before is intact"
        raise StorageError(error.errno, f"{reason}; a run goes on from there with resume=RUN_FOLDER") from error


def write_synced(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` and wait for the disk; a process that dies meanwhile leaves half of it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Write the file names of ``folder`` to the disk, so that they outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder``; wait while another process holds it. It is dropped when the process ends."""
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
    """Hold the lock of ``folder`` while it is read, if this process may lock it."""
    if os.access(folder / LOCK, os.W_OK):
        with locked(folder):
            yield
    else:  # a copy, or a folder that this user may only read
        yield

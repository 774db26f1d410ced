"""Files are written whole, nothing is left behind, and one process at a time changes a folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedgen.data.files import home, locked, readable, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDGEN_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.setenv("FEDGEN_HOME", "")
    assert home() == Path.home() / ".cache" / "fedgen"


def test_a_file_is_replaced_and_its_folder_made(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "file.json"
    write_atomically(file, b"old")
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new"
    assert names(file.parent) == ["file.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    write_atomically(file, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_what_a_killed_process_left_is_swept_up(tmp_path: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    (tmp_path / f".a[1].{killed.pid}.tmp").write_bytes(b"half")
    (tmp_path / f".a[1].{os.getppid()}.tmp").write_bytes(b"half")  # of a process that lives
    (tmp_path / f".b.{killed.pid}.tmp").write_bytes(b"half")  # of another file
    write_atomically(tmp_path / "a[1]", b"whole")
    assert names(tmp_path) == [f".a[1].{os.getppid()}.tmp", f".b.{killed.pid}.tmp", "a[1]"]


def test_one_process_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    def others_may() -> bool:
        code = "import sys; from filelock import FileLock; FileLock(sys.argv[1]).acquire(blocking=False)"
        return subprocess.run([sys.executable, "-c", code, tmp_path / ".lock"], capture_output=True).returncode == 0

    with readable(tmp_path):  # nobody has ever written: there is nothing to lock
        assert names(tmp_path) == []
    for lock in (locked, readable):
        with lock(tmp_path):
            assert not others_may()
    assert others_may()

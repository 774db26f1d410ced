"""A disk that fills up: a clear error, the last good state intact, and a run that goes on to the same end."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from federations import Federate

from fedgen.config.settings import Config
from fedgen.data.files import write_atomically
from fedgen.errors import FedgenError, StorageError
from fedgen.runs.folder import RunFolder

NAMESPACE = ["unshare", "--map-root-user", "--mount"]


@pytest.fixture(scope="module")
def own_disks() -> list[str]:
    """The command in front of one that mounts a disk, where the system allows that."""
    mount = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    if shutil.which("unshare") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces here, so no small disk to fill")
    return NAMESPACE


def test_a_disk_that_fills_up_in_a_round(
    own_disks: list[str],
    tiny_overrides: list[str],
    tiny: Callable[..., Config],
    federate: Federate,
    figures: Callable[[dict[str, Any]], dict[str, Any]],
    tmp_path: Path,
) -> None:
    overrides = ["mode=combined", "rounds=3", "strategy.min_nodes=1"]
    folder = tmp_path / "disk"
    folder.mkdir()
    script = [
        sys.executable,
        str(Path(__file__).with_name("full_disk.py")),
        str(folder),
        str(tmp_path / "results.json"),
    ]
    done = subprocess.run(
        [*own_disks, *script, *tiny_overrides, *overrides], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "cannot be written: No space left on device. What was saved before is intact" in done.stdout
    expected = federate(tiny(*overrides), tmp_path / "whole")
    assert figures(json.loads((tmp_path / "results.json").read_text())) == figures(expected)


def test_the_error_names_the_file_and_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match=f"{path} cannot be written: No space left on device") as raised:
        write_atomically(path, b"new")
    assert raised.value.errno == errno.ENOSPC
    assert isinstance(raised.value, FedgenError)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert path.read_bytes() == b"old"


def test_metrics_on_a_full_disk_say_so() -> None:
    folder = Path("/dev/full")
    if not folder.exists():
        pytest.skip("no /dev/full here")
    run = RunFolder(folder)
    with pytest.raises(StorageError, match=r"metrics\.jsonl cannot be written"):
        run.log_metrics({"round": 1})

"""Whatever happens in the middle of a save: what is loaded is the old checkpoint or the new one, never half of one."""

import errno
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import torch
from banks import bank, draw, load
from savers import PROCESSES, content, save, save_and_die, save_for_ever

from fedgen.errors import CheckpointError
from fedgen.runs.checkpoint import checkpoints


def loaded_round(folder: Path, granularity: str) -> int:
    """Load the latest checkpoint and every one that was kept; return the latest one's round."""
    rounds = [checkpoint.round for checkpoint in checkpoints(folder).values() if checkpoint.kept]
    for chosen in (*rounds, None):
        into = bank(granularity, fitted=False)
        found = int(load(folder, into, round=chosen)["round"])
        assert chosen in (None, found)
        assert torch.equal(draw(into), draw(content(granularity, found)))
    return found


def check_nothing_is_left_over(folder: Path) -> None:
    found = checkpoints(folder)
    *copies, latest = found.values()
    assert [other.kept for other in copies] == [True] * len(copies)
    assert len(copies) + latest.kept <= 2
    assert {path.name for path in folder.iterdir()} == {".lock", *(path.name for path in found)}
    for path, checkpoint in found.items():
        assert {file.name for file in path.iterdir()} == {"manifest.json", *checkpoint.files}


def saved_till(folder: Path, round: int, granularity: str) -> int:
    """Save up to ``round``; return it."""
    for number in range(1, round + 1):
        save(folder, content(granularity, number), number)
    return round


@pytest.mark.parametrize("granularity", ["unified", "per_class"])
def test_killed_at_random_moments(granularity: str, tmp_path: Path) -> None:
    chance, found = random.Random(granularity), saved_till(tmp_path, 4, granularity)
    for _ in range(20):
        before = [*tmp_path.glob("vae*")]
        process = PROCESSES.Process(target=save_for_ever, args=(tmp_path, granularity, found + 1), daemon=True)
        process.start()
        while [*tmp_path.glob("vae*")] == before and process.is_alive():
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.03))
        process.kill()
        process.join()
        assert process.exitcode == -9
        found, previous = loaded_round(tmp_path, granularity), found
        assert found > previous
        if chance.random() < 0.3:  # else the next process finds what this one left
            save(tmp_path, content(granularity, found + 1), found := found + 1)
            check_nothing_is_left_over(tmp_path)
    save(tmp_path, content(granularity, found + 1), found + 1)
    assert loaded_round(tmp_path, granularity) == found + 1
    check_nothing_is_left_over(tmp_path)


@pytest.mark.parametrize(("granularity", "round"), [("unified", 6), ("per_class", 6), ("per_class", 5)])
def test_dead_at_every_single_step(granularity: str, round: int, tmp_path: Path) -> None:
    """Round 6 is saved, which is kept, and that of round 2 is removed; or round 5 is saved once more."""
    saved_till(tmp_path / "start", 5, granularity)
    rounds = []
    for step in count():
        folder = Path(shutil.copytree(tmp_path / "start", tmp_path / f"died at {step}"))
        process = PROCESSES.Process(target=save_and_die, args=(folder, granularity, round, step), daemon=True)
        process.start()
        process.join()
        rounds.append(loaded_round(folder, granularity))
        save(folder, content(granularity, 7), 7)
        assert loaded_round(folder, granularity) == 7
        check_nothing_is_left_over(folder)
        if process.exitcode != 9:
            break
    assert process.exitcode == 0
    assert rounds == sorted(rounds)  # from some step on it is the new one
    assert set(rounds) == {5, round}
    assert len(rounds) > 10


class TestDiskFull:
    def test_at_every_write(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        saved_till(tmp_path, 5, "per_class")
        fsync = os.fsync
        for written in count():
            steps = iter(range(written))

            def full(descriptor: int, steps: Iterator[int] = steps) -> None:
                if next(steps, None) is None:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                fsync(descriptor)

            with monkeypatch.context() as patched:
                patched.setattr("os.fsync", full)
                try:
                    save(tmp_path, content("per_class", 6), 6)
                except CheckpointError as error:
                    told = str(error)
                else:
                    break
            assert f"checkpoint vae_node0 cannot be saved in {tmp_path}: No space left on device" in told
            assert loaded_round(tmp_path, "per_class") in (5, 6)
            if loaded_round(tmp_path, "per_class") == 6:  # it failed at the very last: start anew
                break
            check_nothing_is_left_over(tmp_path)
        assert written >= 6
        save(tmp_path, content("per_class", 7), 7)
        check_nothing_is_left_over(tmp_path)

    def test_a_disk_that_is_really_full(self, tmp_path: Path) -> None:
        command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small disk is not permitted here")
        try:
            saved_till(tmp_path, 1, "per_class")
            (tmp_path / "filler").write_bytes(bytes(shutil.disk_usage(tmp_path).free))
            with pytest.raises(CheckpointError, match=f"cannot be saved in {tmp_path}: No space left on device"):
                save(tmp_path, content("per_class", 2), 2)
            (tmp_path / "filler").unlink()
            assert loaded_round(tmp_path, "per_class") == 1
            check_nothing_is_left_over(tmp_path)
        finally:
            subprocess.run(["umount", str(tmp_path)], check=True)

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(CheckpointError, match=r"vae_node0 cannot be saved in .*file/checkpoints: Not a directory"):
            save(tmp_path / "file" / "checkpoints", content("unified", 1), 1)

"""What other processes do in the tests of checkpoints: they save at the same time, and are killed while they save."""

import multiprocessing
import os
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import torch
from banks import METADATA, bank

from fedgen.models.generators.bank import Bank
from fedgen.runs.checkpoint import save_bank

PROCESSES = multiprocessing.get_context("forkserver")  # children of one that has imported all and has no threads
PROCESSES.set_forkserver_preload(["pytest", "fedgen.runs.checkpoint"])


@cache
def content(granularity: str, round: int) -> Bank:
    """The bank that is saved after a round: odd and even ones differ."""
    return bank(granularity, seed=round % 2)


def save(folder: Path, made: Bank, round: int) -> None:
    """Save a bank after a round; of every second round a copy is kept, and of these the last two."""
    save_bank(folder, "vae", 0, made, METADATA | {"round": round}, frequency=2, keep_last=2)


def save_five_times(folder: Path, node: int) -> None:
    """Save rounds 1 to 5 of ``node``; copies of rounds 2 and 4 are kept."""
    torch.set_num_threads(1)
    for number in range(1, 6):
        save_bank(folder, "vae", node, bank(), METADATA | {"round": number}, frequency=2, keep_last=2)


def save_for_ever(folder: Path, granularity: str, round: int) -> None:
    """Save round after round, starting with ``round``."""
    torch.set_num_threads(1)
    banks = {number % 2: content(granularity, number) for number in range(2)}
    for number in count(round):
        save(folder, banks[number % 2], number)


def save_and_die(folder: Path, granularity: str, round: int, step: int) -> None:
    """Save once, but die before call number ``step`` of those that change what is on the disk."""
    torch.set_num_threads(1)
    made, calls = content(granularity, round), count()

    def dying(change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(calls) == step:
                if change is fsync and os.fstat(arguments[0]).st_size and not os.path.isdir(arguments[0]):
                    os.ftruncate(arguments[0], os.fstat(arguments[0]).st_size // 2)  # half has reached the disk
                os._exit(9)  # nothing is tidied up
            return change(*arguments, **options)

        return call

    fsync = os.fsync
    os.fsync, os.replace = dying(os.fsync), dying(os.replace)
    os.unlink, os.rmdir = dying(os.unlink), dying(os.rmdir)
    save(folder, made, round)

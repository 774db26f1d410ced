"""Independent random streams from one seed: equal keys give equal streams, regardless of earlier draws."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch


def stream(*key: str | int) -> np.random.RandomState:
    """Return the random stream of ``key``.

    Nodes must agree on encoders, targets, partitions and synthesised clips without exchanging them. NumPy may change
    what its `Generator` draws between versions (NEP 19); the stream of `RandomState` is frozen.
    """
    return np.random.RandomState(np.frombuffer(_digest(key), dtype="<u4"))


def seeded(seed: int, *keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a random generator on ``device`` for ``seed`` and the path of ``keys`` below it.

    ``keys`` name the purpose of the stream, such as a round, a class id or a name. Each path has a stream of its own,
    so that the order and the number of draws for one class never change those for another.
    """
    return torch.Generator(device).manual_seed(int.from_bytes(_digest((seed, *keys))[:8], "little") >> 1)


def _digest(key: tuple[int | str, ...]) -> bytes:
    return hashlib.sha256(json.dumps(key).encode()).digest()

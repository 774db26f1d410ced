"""Independent random streams from one seed: equal keys give equal streams, whatever was drawn before."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch


def stream(*key: str | int) -> np.random.RandomState:
    """Return a random stream that ``key`` alone decides.

    Nodes must agree on encoders, targets, partitions and synthesised clips without exchanging them. NumPy may change
    what its `Generator` draws between versions (NEP 19); the stream of `RandomState` is frozen.
    """
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, dtype="<u4"))


def seeded(seed: int, *keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a random generator for ``seed`` and the path of ``keys`` below it.

    Parameters
    ----------
    seed : int
        Seed of the run.
    keys : int or str
        What the stream is for, such as a round, a class id or a name: each path has a stream of its own, so that the
        order and the number of draws for one class never change those for another.
    device : torch.device or str
        Where the generator draws.
    """
    digest = hashlib.sha256(json.dumps([seed, *keys]).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)

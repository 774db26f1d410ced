"""Random streams that are the same on every machine and under every version of NumPy."""

from __future__ import annotations

import hashlib
import json

import numpy as np


def stream(*key: str | int) -> np.random.RandomState:
    """Return a random stream that ``key`` alone decides.

    Nodes must agree on encoders, targets, partitions and synthesised clips without exchanging them. NumPy may change
    what its `Generator` draws between versions (NEP 19); the stream of `RandomState` is frozen.
    """
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, dtype="<u4"))

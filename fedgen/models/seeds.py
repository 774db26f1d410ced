"""Independent random streams from one seed: equal keys give equal streams, whatever was drawn before."""

from __future__ import annotations

from zlib import crc32

import numpy as np
import torch


def seeded(seed: int, *keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a random generator for ``seed`` and the path of ``keys`` below it.

    Parameters
    ----------
    seed : int
        Seed of the run, at least 0.
    keys : int or str
        What the stream is for, such as a round, a class id or a name: each path has a stream of its own, so that the
        order and the number of draws for one class never change those for another.
    device : torch.device or str
        Where the generator draws.
    """
    path = [crc32(key.encode()) if isinstance(key, str) else key for key in keys]
    state = np.random.SeedSequence([seed, *path]).generate_state(2, np.uint32)
    return torch.Generator(device).manual_seed((int(state[0]) << 31) ^ int(state[1]))

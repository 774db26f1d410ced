"""Bounded sums over clips, and the Gaussian noise that hides one clip in them."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from fedgen.data.seeds import seeded


class Noise:
    """Standard normal numbers: from the operating system's entropy, or repeatable from a seed.

    A seed protects only from those who do not know it.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._generator = None if seed is None else seeded(seed, "privacy")

    def draw(self, *shape: int) -> Tensor:
        """Return ``shape`` numbers, float64."""
        if self._generator is not None:
            return torch.randn(shape, generator=self._generator, dtype=torch.float64)
        system = random.SystemRandom()
        return torch.tensor([system.gauss(0, 1) for _ in range(torch.Size(shape).numel())]).double().view(shape)


def clipped(vectors: Tensor, bound: float) -> Tensor:
    """Return ``vectors`` ``(N, k)``, float64, shortened to norms of at most ``bound``; 0 for those not finite."""
    values = vectors.double()
    values = torch.where(values.isfinite().all(dim=1, keepdim=True), values, torch.zeros_like(values))
    peaks = values.abs().amax(dim=1, keepdim=True).clamp(min=1e-300)
    norms = peaks * (values / peaks).norm(dim=1, keepdim=True)  # squares of large numbers are not finite
    return torch.where(norms > bound, values / norms * bound, values)


def class_sums(vectors: Tensor, rows: Tensor, classes: int) -> Tensor:
    """Return the sums ``(classes, k)`` of ``vectors`` ``(N, k)``, each in the row ``rows`` ``(N,)`` of its class.

    Leaving a vector out changes all sums together by its norm, replacing it by twice the bound of norms at most.
    """
    sums = torch.zeros(classes, vectors.shape[1], dtype=vectors.dtype)
    return sums.index_add_(0, rows, vectors)

"""Latents and conditions small enough to learn in a blink."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedgen.data.targets import Conditions

SIZE = 6  # coefficients of a latent vector
CONDITIONS = Conditions({
    "clip": torch.randn(3, 8, generator=torch.Generator().manual_seed(1)),
    "t5": torch.randn(3, 4, 10, generator=torch.Generator().manual_seed(2)),
})  # fmt: skip


def clusters(counts: Sequence[int] = (30, 30, 30)) -> tuple[Tensor, Tensor]:
    """Return latents ``(N, 6)`` and classes: ``counts`` of class 0, 1, 2, on means of their own, correlated within."""
    generator = torch.Generator().manual_seed(0)
    means = 3 * torch.randn(3, SIZE, generator=generator)
    mixing = torch.randn(3, SIZE, generator=generator)
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    return means[labels] + torch.randn(len(labels), 3, generator=generator) @ mixing, labels

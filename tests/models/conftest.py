"""Latents and conditions small enough to learn in a blink."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from fedgen.data.conditions import Conditions

SIZE = 6

Clusters = Callable[[Sequence[int]], tuple[Tensor, Tensor]]


@pytest.fixture(scope="session")
def clusters() -> Clusters:
    """Gives latents ``(N, 6)`` and classes: ``counts`` of class 0, 1, 2, on means of their own, correlated within."""

    def make(counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        means = 3 * torch.randn(3, SIZE, generator=generator)
        mixing = torch.randn(3, SIZE, generator=generator)
        labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
        return means[labels] + torch.randn(len(labels), 3, generator=generator) @ mixing, labels

    return make


@pytest.fixture(scope="session")
def conditions() -> Conditions:
    """A vector and a token sequence for each of three classes."""
    generator = torch.Generator().manual_seed(1)
    return Conditions({
        "clip": torch.randn(3, 8, generator=generator), "t5": torch.randn(3, 4, 10, generator=generator)
    })  # fmt: skip

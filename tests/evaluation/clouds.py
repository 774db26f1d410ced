"""Clouds of records for the tests of the measures: recordings of a class, what leaks them, and what does not."""

from __future__ import annotations

import torch
from torch import Tensor

from fedgen.evaluation.features import Records
from fedgen.evaluation.quality import Site

CLASSES, CLIPS, HELD_OUT, SAMPLES = 4, 16, 8, 40


def recordings(count: int, seed: int, width: int = 24) -> Records:
    """``count`` clips of each class from one Gaussian a class, of 2 segments."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat_interleave(count)
    means = torch.randn(CLASSES, 2, width, generator=torch.Generator().manual_seed(99))
    return Records(means[labels] + torch.randn(len(labels), 2, width, generator=generator), labels)


def site(synthetic: Records, clips: int = CLIPS, held_out: int = HELD_OUT) -> Site:
    return Site(recordings(clips, seed=1), recordings(held_out, seed=2), synthetic)


def fresh() -> Records:
    """What a perfect generator gives: records of the same distribution, drawn anew."""
    return recordings(SAMPLES, seed=3)


def copies(noise: float = 0.0) -> Records:
    """Training records with a little noise."""
    train, generator = recordings(CLIPS, seed=1), torch.Generator().manual_seed(4)
    chosen = torch.randint(len(train), (CLASSES * SAMPLES,), generator=generator)
    values = train.segments[chosen]
    return Records(values + noise * torch.randn(values.shape, generator=generator), train.labels[chosen])


def interpolations() -> Records:
    """Points between two training records of a class (SMOTE)."""
    train, generator = recordings(CLIPS, seed=1), torch.Generator().manual_seed(5)
    parts = [between(train.segments[train.labels == label], SAMPLES, generator) for label in range(CLASSES)]
    return Records(torch.cat(parts), torch.arange(CLASSES).repeat_interleave(SAMPLES))


def between(values: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` points on the lines between random pairs of ``values`` ``(N, ...)``."""
    first = torch.randint(len(values), (count,), generator=generator)
    second = (first + torch.randint(1, len(values), (count,), generator=generator)) % len(values)
    share = torch.rand(count, *[1] * (values.dim() - 1), generator=generator)
    return values[first] + share * (values[second] - values[first])

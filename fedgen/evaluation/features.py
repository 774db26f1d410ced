"""What the measures of synthetic data look at: mean tokens of time segments, and a space for distances."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedgen.data.tokens import FactoredSource, TokenSource, rows_at_once

SEGMENTS = 4  # of a sequence: enough to hear an order, few enough that noise on single tokens averages out
COMPONENTS = 32


@dataclass(frozen=True)
class Records:
    """Clips or samples as the measures see them.

    Attributes
    ----------
    segments : Tensor
        Mean token of each time segment, ``(N, G, D)``, float32, on the CPU.
    labels : Tensor
        Global class ids ``(N,)``.
    groups : Tensor, optional
        Which clips were taken together, such as a fold, ``(N,)``: clips of one recording are never in two groups.
    """

    segments: Tensor
    labels: Tensor
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def pooled(self) -> Tensor:
        """Mean token ``(N, D)``."""
        return self.segments.mean(dim=1)

    @property
    def flat(self) -> Tensor:
        """All segments in a row ``(N, G * D)``, float64: distances of near records need the digits."""
        return self.segments.flatten(1).double()

    def at(self, chosen: Tensor) -> Records:
        """Return the records that a mask or indices ``chosen`` name."""
        groups = None if self.groups is None else self.groups[chosen]
        return Records(self.segments[chosen], self.labels[chosen], groups)


def read_records(
    source: TokenSource, segments: int = SEGMENTS, groups: Tensor | None = None, batch_size: int = 64
) -> Records:
    """Read ``source`` batch by batch; its tokens are never held together.

    Parameters
    ----------
    source : TokenSource
    segments : int
        Stretches of nearly equal length; at most the tokens of a sequence.
    groups : Tensor, optional
        As `Records` keeps them.
    batch_size : int
        Sequences on the device at a time.
    """
    parts = [
        segment_means(source, indices, segments).cpu()
        for indices in torch.arange(len(source)).split(rows_at_once(source, batch_size))
    ]
    empty = torch.zeros(0, segments, source.shape[1])
    return Records(torch.cat([empty, *parts]), source.labels, groups)


def segment_means(source: TokenSource, indices: Tensor, segments: int) -> Tensor:
    """Return ``(B, G, D)``; a source of factors is never multiplied out, since a mean passes through its basis."""
    if isinstance(source, FactoredSource):
        factors = source.factors(indices)
        return replace(factors, positions=_means(factors.positions, segments)).dense()
    return _means(source.batch(indices), segments)


def _means(sequence: Tensor, segments: int) -> Tensor:
    return torch.stack([part.mean(dim=1) for part in sequence.tensor_split(segments, dim=1)], dim=1)


@dataclass(frozen=True)
class Space:
    """Leading directions in which clips of a class differ, each divided by the square root of its deviation.

    Raw segments let the two or three loudest directions decide what is near; fully whitened ones count noise as much as
    sound. The square root is between, as in the project's codec. In 32 such directions a point between two clips and a
    clip with noise are both clearly nearer to their origin than another recording is.

    Attributes
    ----------
    mean : Tensor
        ``(F,)``.
    directions : Tensor
        ``(F, m)``, each already divided.
    """

    mean: Tensor
    directions: Tensor

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor, components: int = COMPONENTS) -> Space:
        """Fit to ``features`` ``(N, F)`` of classes ``labels`` ``(N,)``; fewer components where there are few records.

        To compare training records with held-out ones fairly, give as many of either: a space fitted to training
        records alone hides what held-out ones have of their own.
        """
        _, rows, counts = labels.unique(return_inverse=True, return_counts=True)
        sums = torch.zeros(len(counts), features.shape[1], dtype=features.dtype).index_add_(0, rows, features)
        centred = features - (sums / counts[:, None])[rows]
        _, values, directions = torch.linalg.svd(centred, full_matrices=False)
        spread = values / max(1, len(features) - len(counts)) ** 0.5
        kept = int((spread[:components] > 1e-9 * spread.max().clamp(min=1e-30)).sum())
        return cls(features.mean(dim=0), directions[:kept].T / spread[:kept].sqrt())

    def project(self, features: Tensor) -> Tensor:
        """Return ``features`` ``(N, F)`` in the space ``(N, m)``."""
        return (features - self.mean) @ self.directions

"""Features of the measures of synthetic data: mean tokens of time segments."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedgen.data.tokens import TokenSource, rows_at_once
from fedgen.models.samples import SyntheticTokens

SEGMENTS = 4  # of a sequence: enough to hear an order, few enough that noise on single tokens averages out


@dataclass(frozen=True)
class Records:
    """Clips or samples in the measures' view."""

    segments: Tensor  # mean token of each time segment, (N, G, D), float32, on the CPU
    labels: Tensor  # global class ids (N,)

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
        """Return the records at a mask or indices ``chosen``."""
        return Records(self.segments[chosen], self.labels[chosen])


def read_records(source: TokenSource, segments: int = SEGMENTS, batch_size: int = 64) -> Records:
    """Read ``source`` in batches of ``batch_size``; its tokens are never held together.

    ``segments`` are stretches of nearly equal length; at most the tokens of a sequence.
    """
    parts = [
        segment_means(source, indices, segments).cpu()
        for indices in torch.arange(len(source)).split(rows_at_once(source, batch_size))
    ]
    empty = torch.zeros(0, segments, source.shape[1])
    return Records(torch.cat([empty, *parts]), source.labels)


def segment_means(source: TokenSource, indices: Tensor, segments: int) -> Tensor:
    """Return ``(B, G, D)``."""
    if isinstance(source, SyntheticTokens):
        return source.segments(indices, segments)
    return torch.stack([part.mean(dim=1) for part in source.batch(indices).tensor_split(segments, dim=1)], dim=1)

"""The attacker's evidence: clips that may have been trained on, and everything that nodes sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedgen.errors import DataError

Draw = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""Fits the run's generators to the candidates at rows ``(n,)`` with a seed, and draws latents and labels as sent."""


@dataclass(frozen=True)
class Candidates:
    """Clips whose membership the attacker must tell; `DataError` if sizes differ."""

    latents: Tensor  # in the public codec (N, k)
    labels: Tensor  # class ids (N,)
    nodes: Tensor  # of a control, the node that would have trained on it (N,)
    members: Tensor  # (N,), bool: trained on, or a control; attacks use its counts alone, which are sent
    recordings: Tensor | None = None  # (N,), int64; members are drawn by recording; by default every clip has its own
    # other vectors (N, F), such as mean tokens, for matrices of that width
    views: Mapping[str, Tensor] = field(default_factory=dict)
    others: Tensor | None = None  # further clips of the population (P, k) that no node trained on
    other_labels: Tensor | None = None  # (P,)

    def __post_init__(self) -> None:
        vectors = {"labels": self.labels, "nodes": self.nodes, "members": self.members, **self.views}
        if self.recordings is not None:
            vectors["recordings"] = self.recordings
        for name, value in vectors.items():
            if len(value) != len(self.latents):
                raise DataError(f"audit: {name} has {len(value)} rows for {len(self.latents)} candidates")

    def __len__(self) -> int:
        return len(self.labels)

    def strata(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield node, class and rows of each pair that has both members and controls."""
        for node, label in torch.stack([self.nodes, self.labels], dim=1).unique(dim=0).tolist():
            rows = ((self.nodes == node) & (self.labels == label)).nonzero()[:, 0]
            if 0 < int(self.members[rows].sum()) < len(rows):
                yield node, label, rows

    def whitening(self) -> Tensor:
        """Return the symmetric matrix ``(k, k)``, float64, that makes all clips white within their classes."""
        others = self.latents[:0] if self.others is None else self.others
        labels = self.labels[:0] if self.other_labels is None else self.other_labels
        clips = torch.cat([self.latents, others]).double()
        classes, rows = torch.cat([self.labels, labels]).unique(return_inverse=True)
        means = torch.stack([clips[rows == row].mean(dim=0) for row in range(len(classes))])
        centred = clips - means[rows]
        from sklearn.covariance import ledoit_wolf  # takes a second to import

        found = torch.from_numpy(ledoit_wolf(centred.numpy(), assume_centered=True)[0])
        values, vectors = torch.linalg.eigh(found * len(clips) / max(1, len(clips) - len(classes)))
        return (vectors / values.clamp(min=1e-12).sqrt()) @ vectors.T


@dataclass(frozen=True)
class GaussianFit:
    """How a run fits class Gaussians: a public setting."""

    shrinkage: float = 0.0  # 0 takes a class's own covariance, 1 the one tied over the classes of the release
    covariance: Tensor | None = None  # a public one (k, k) in place of both
    few: int = 8  # clips below which a class takes the tied covariance alone


@dataclass(frozen=True)
class Release:
    """Everything sent by one node, or by several that pool or average their replies."""

    nodes: tuple[int, ...]  # whose clips it was made from
    latents: Tensor  # all samples of all rounds (M, k)
    labels: Tensor  # (M,)
    matrices: Mapping[str, Tensor] = field(default_factory=dict)  # everything else with rows and columns
    draw: Draw | None = None  # lets the attacker fit shadow generators
    gaussian: GaussianFit | None = None  # where generators are class Gaussians: their likelihood is then known

    def rows(self, candidates: Candidates) -> Tensor:
        """Return the candidates ``(n,)`` that it may have been made from."""
        return torch.isin(candidates.nodes, torch.tensor(self.nodes)).nonzero()[:, 0]

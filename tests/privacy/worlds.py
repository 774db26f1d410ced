"""Federations of Gaussian clips, three nodes of three classes, for attacks whose outcome is known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedgen.data.seeds import seeded
from fedgen.models.generators.density import ClassGaussians
from fedgen.privacy.attacks import all_scores
from fedgen.privacy.evidence import Candidates, Release
from fedgen.privacy.result import Report, measure

NODES, CLASSES = 3, 3  # a node has classes of its own


def audit(candidates: Candidates, releases: Sequence[Release], shadows: int = 16) -> Report | None:
    """Run every attack on ``releases``."""
    return measure(all_scores(candidates, releases, shadows=shadows), candidates)


def world(size: int, seed: int, clips: int = 17, width: int = 0, nodes: int = NODES) -> Candidates:
    """Return as many members as controls, ``clips`` of each class; latents lead a view of ``width``."""
    generator = seeded(seed, "clips", clips)  # worlds of other sizes have the same classes, but no clip in common
    labels = torch.arange(nodes * CLASSES).repeat_interleave(2 * clips)
    wide = max(size, width)
    spread = torch.arange(1, wide + 1).double() ** -0.25  # leading coefficients are larger, as a codec's are
    centres = torch.randn(nodes * CLASSES, wide, generator=seeded(seed, "classes"), dtype=torch.float64) * spread
    noise = torch.randn(len(labels), wide, generator=generator, dtype=torch.float64) * spread
    members = torch.rand(nodes * CLASSES, 2 * clips, generator=generator).argsort(dim=1).flatten() < clips
    values = centres[labels] + noise
    views = {"cores": values} if width else {}
    return Candidates(values[:, :size], labels, labels // CLASSES, members, views=views)


def spread_within(candidates: Candidates) -> Tensor:
    """Return the deviation of each coefficient within classes ``(k,)``."""
    means = torch.stack([candidates.latents[candidates.labels == c].mean(dim=0) for c in range(NODES * CLASSES)])
    return (candidates.latents - means[candidates.labels]).std(dim=0)


def on_nodes(candidates: Candidates, latents: Tensor, labels: Tensor) -> list[Release]:
    """Return what each node sends, at a byte a coefficient."""
    scale = latents.abs().amax(dim=0) / 127
    latents = (latents / scale).round() * scale
    nodes = labels // CLASSES
    return [Release((node,), latents[nodes == node], labels[nodes == node]) for node in nodes.unique().tolist()]


def fitted(latents: Tensor, labels: Tensor, count: int, shrinkage: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return ``count`` samples of each class of class Gaussians."""
    densities = ClassGaussians.fit(latents, labels, shrinkage)
    drawn = [densities.sample(label, count, seeded(seed, label)) for label in densities.classes.tolist()]
    return torch.cat(drawn).double(), densities.classes.repeat_interleave(count)

"""Fidelity of synthetic records: distances between two clouds of features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NEIGHBOURS = 5


@dataclass(frozen=True)
class Fidelity:
    """Differences of two sets of features; see the functions for each measure."""

    frechet: float
    mmd: float
    precision: float
    recall: float
    density: float
    coverage: float


def measure_fidelity(real: Tensor, synthetic: Tensor, neighbours: int = NEIGHBOURS) -> Fidelity | None:
    """Compare ``synthetic`` ``(M, F)`` with ``real`` ``(N, F)``; None with fewer than 3 records on either side.

    Features are divided by one number, the deviation of the real ones over all dimensions together, so that a Fréchet
    distance of 1 is the spread of the real records.
    """
    if min(len(real), len(synthetic)) < 3:
        return None
    centre = real.double().mean(dim=0)
    spread = (real.double() - centre).square().sum().div(len(real) - 1).sqrt()
    real, synthetic = ((x.double() - centre) / spread for x in (real, synthetic))
    count = min(neighbours, len(real) - 1, len(synthetic) - 1)
    return Fidelity(frechet(real, synthetic), mmd(real, synthetic), *prdc(real, synthetic, count))


def frechet(first: Tensor, second: Tensor) -> float:
    """Return the Fréchet distance of the Gaussians with the moments of ``first`` ``(N, F)`` and ``second`` ``(M, F)``.

    ``|m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2))``. With ``C = X' X`` of centred records, the last trace is the
    sum of the singular values of ``X1 X2'``: no root of an ill-conditioned product. Few records raise the distance:
    compare it with that of as many real ones.

    References
    ----------
    Dowson and Landau, "The Fréchet distance between multivariate normal distributions", 1982; Heusel et al., "GANs
    trained by a two time-scale update rule converge to a local Nash equilibrium", NeurIPS 2017.
    """
    first, second = first.double(), second.double()
    gap = (first.mean(dim=0) - second.mean(dim=0)).square().sum()
    roots = [_root(x) for x in (first, second)]
    own = sum((root.square().sum() for root in roots), torch.zeros((), dtype=torch.float64))
    cross = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return float((gap + own - 2 * cross).clamp(min=0))


def _root(features: Tensor) -> Tensor:
    """Return ``X`` with ``X' X`` the covariance of ``features`` ``(N, F)``: at most ``F`` rows."""
    centred = (features - features.mean(dim=0)) / (len(features) - 1) ** 0.5
    return centred if len(centred) <= centred.shape[1] else torch.linalg.qr(centred, mode="r").R


def mmd(real: Tensor, synthetic: Tensor) -> float:
    """Return the squared maximum mean discrepancy, unbiased, so that it may be a little below 0.

    The kernel is ``exp(-d^2 / (2 s^2))`` with ``s`` the median distance of the real records ``(N, F)`` to each other.
    It assumes no shape and, unlike the Fréchet distance, few records do not raise it.

    References
    ----------
    Gretton et al., "A kernel two-sample test", JMLR 2012; Chung et al., "KAD: No more FAD!", 2025 (arXiv 2502.15602).
    """
    real, synthetic = real.double(), synthetic.double()
    within = torch.cdist(real, real)
    width = 2 * _pairs(within).median().square().clamp(min=1e-30)

    def similarity(distances: Tensor) -> Tensor:
        return torch.exp(-distances.square() / width)

    own = _pairs(similarity(within)).mean() + _pairs(similarity(torch.cdist(synthetic, synthetic))).mean()
    return float(own - 2 * similarity(torch.cdist(real, synthetic)).mean())


def _pairs(matrix: Tensor) -> Tensor:
    """Return the elements of ``matrix`` ``(N, N)`` above its diagonal: every pair once."""
    rows, columns = torch.triu_indices(len(matrix), len(matrix), offset=1)
    return matrix[rows, columns]


def prdc(real: Tensor, synthetic: Tensor, neighbours: int = NEIGHBOURS) -> tuple[float, float, float, float]:
    """Return precision, recall, density and coverage of ``synthetic`` ``(M, F)`` against ``real`` ``(N, F)``.

    A ball around each record reaches to its ``neighbours``-th nearest. Precision: share of synthetic records in a ball
    of a real one; recall: the other way round; density: real balls around a synthetic record, by ``neighbours``;
    coverage: share of real balls with a synthetic record in them.

    References
    ----------
    Naeem et al., "Reliable fidelity and diversity metrics for generative models", ICML 2020.
    """
    real, synthetic = real.double(), synthetic.double()
    across = torch.cdist(real, synthetic)  # (N, M)
    inside = across < _radii(real, neighbours)[:, None]
    recalled = across < _radii(synthetic, neighbours)
    density = inside.double().sum(dim=0).mean() / neighbours
    covered = across.min(dim=1).values < _radii(real, neighbours)
    precision, recall, coverage = (float(x.double().mean()) for x in (inside.any(dim=0), recalled.any(dim=1), covered))
    return precision, recall, float(density), coverage


def _radii(records: Tensor, neighbours: int) -> Tensor:
    """Return the distance of each of ``records`` ``(N, F)`` to its ``neighbours``-th nearest other one."""
    return torch.cdist(records, records).kthvalue(neighbours + 1, dim=1).values  # the nearest is the record itself

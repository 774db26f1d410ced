"""Principal components of cores, from the cores of one node or from what several nodes sum over theirs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from fedgen.data.tokens import TokenSource, batches
from fedgen.errors import require
from fedgen.models.bases import Bases

FEWEST_CLIPS = 3  # the mean of one clip is the clip; the mean and the scatter of two give back both
SMALLEST = 1e-6  # deviation below which a value does not vary


@dataclass
class CoreMoments:
    """Count, mean and scatter of cores; those of several nodes add up to those of all their clips.

    Attributes
    ----------
    count : int
        Number of clips.
    mean : Tensor
        ``(n,)``, float64.
    scatter : Tensor
        Sum over clips of the outer product of their distance to the mean ``(n, n)``, float64. Of a codec without
        channels only its diagonal ``(n,)``. About the mean, as float32 of it travels without loss of small variances.

    References
    ----------
    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979 (`+`).
    """

    count: int
    mean: Tensor
    scatter: Tensor

    def __add__(self, other: CoreMoments) -> CoreMoments:
        count, apart = self.count + other.count, self.mean - other.mean
        between = (torch.outer(apart, apart) if self.scatter.dim() == 2 else apart.square()) * self.count * other.count
        mean = (self.count * self.mean + other.count * other.mean) / count
        return CoreMoments(count, mean, self.scatter + other.scatter + between / count)

    @classmethod
    def measure(cls, source: TokenSource, bases: Bases, batch_size: int = 64) -> CoreMoments:
        """Measure the clips of ``source``, each batch on its device, in the bases that all nodes share.

        Raises
        ------
        ConfigError
            So few clips that the moments would give them away.
        """
        check_shareable(len(source))
        full = bases.channels is not None
        parts = (cls.of(bases.to(tokens.device).project(tokens), full) for tokens in batches(source, batch_size))
        return reduce(add, parts)

    @property
    def deviation(self) -> Tensor:
        """Deviation of each core value ``(n,)``, float32; 1 where it does not vary."""
        variance = self.scatter.diagonal() if self.scatter.dim() == 2 else self.scatter
        return _varying((variance / self.count).clamp(min=0).sqrt()).float()

    def principal(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `principal` returns for the cores that were summed, on the CPU; they are not at hand here."""
        covariance = (self.scatter / self.count).cpu()  # (n, n)
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        kept = _rank(values, count, self.count)
        explained = vectors[:, :kept].square() @ values[:kept]  # (n,)
        residual = (covariance.diagonal() - explained).clamp(min=0).sqrt()
        return vectors[:, :kept].T.float().contiguous(), _varying(values[:kept].sqrt()).float(), residual.float()

    @classmethod
    def of(cls, cores: Tensor, full: bool) -> CoreMoments:
        """Measure ``cores`` ``(N, n)``: their whole scatter if ``full``, else its diagonal."""
        cores = cores.double()
        mean = cores.mean(dim=0)
        centred = cores - mean
        return cls(len(cores), mean, centred.T @ centred if full else centred.square().sum(dim=0))


def check_shareable(clips: int) -> None:
    """Raise `ConfigError` where a node has so few ``clips`` that sums over them would give them away."""
    require(
        clips >= FEWEST_CLIPS,
        f"a codec for all nodes needs at least {FEWEST_CLIPS} clips on each, as sums over fewer give them away; "
        f"this node has {clips}: choose sharing=local sharing.codec=own",
    )


def principal(centred: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the principal components of cores, how they vary, and what they leave out.

    Works on the smaller of the two Gram matrices; keeps at least one component, of unit deviation if nothing varies.

    Parameters
    ----------
    centred : Tensor
        Cores less their mean ``(N, n)``.
    count : int
        Most components.

    Returns
    -------
    components, deviation, residual : Tensor
        Orthonormal ``(k, n)``, the deviation of their coefficients ``(k,)``, and that of what the components leave of
        each core value ``(n,)``.
    """
    rows = centred.cpu().double()
    number, size = rows.shape
    wide = number < size
    values, vectors = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    kept = _rank(values, min(count, size), number)
    basis = (rows.T @ vectors[:, :kept]).T if wide else vectors[:, :kept].T  # (k, n)
    basis = basis / basis.norm(dim=1, keepdim=True).clamp(min=1e-12)
    components = basis.float().to(centred.device).contiguous()  # as when it is loaded: layouts round differently
    deviation = _varying((values[:kept] / number).sqrt()).float().to(centred.device)
    residual = (centred - centred @ components.T @ components).std(dim=0, correction=0)
    return components, deviation, residual


def _rank(values: Tensor, count: int, clips: int) -> int:
    """Return how many of the descending eigenvalues ``values`` are worth keeping: at least 1, at most ``count``."""
    return max(1, min(count, int((values > 1e-9 * values[0]).sum()), clips - 1))


def _varying(deviation: Tensor) -> Tensor:
    """Return ``deviation`` with 1 where nothing varies."""
    return torch.where(deviation > SMALLEST, deviation, torch.ones_like(deviation))

"""One Gaussian a class, with covariances shrunk towards the one that all classes share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgen.errors import DataError
from fedgen.models.moments import class_means, root
from fedgen.models.states import ClassTensors, check_tensors, length_of

FEW = 8  # samples below which a class has no covariance of its own
BANDS = 4  # of directions, in which the width of a class is measured
NARROWEST = 0.05  # of the usual variance: no class is narrower in any band


@dataclass(eq=False)
class ClassStatistics(ClassTensors):
    """Counts, means and scatters of classes; those of several nodes add up to those of all their samples.

    References
    ----------
    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """

    dtype = torch.float64

    counts: Tensor  # samples of each class (C,)
    means: Tensor  # (C, k)
    # sums of outer products of deviations from the mean (C, k, k); None where covariances are public
    scatters: Tensor | None = None

    @classmethod
    def empty(cls, size: int, scattered: bool = True) -> ClassStatistics:
        """Return the statistics of no samples of ``size`` coefficients, with scatters or without."""
        scatters = torch.zeros(0, size, size) if scattered else None
        none = torch.zeros(0, dtype=torch.long)
        return cls(none, none, torch.zeros(0, size), scatters)

    @classmethod
    def measure(cls, latents: Tensor, labels: Tensor, scattered: bool = True) -> ClassStatistics:
        """Measure ``latents`` ``(N, k)`` of classes ``labels`` ``(N,)``, with scatters or without."""
        values = latents.detach().cpu().double()
        classes, rows, counts = labels.cpu().unique(return_inverse=True, return_counts=True)
        means = class_means(values, rows)
        if not scattered:
            return cls(classes, counts, means)
        centred = values - means[rows]
        parts = [centred[rows == row] for row in range(len(classes))]
        return cls(classes, counts, means, torch.stack([part.T @ part for part in parts]))

    def __add__(self, other: ClassStatistics) -> ClassStatistics:
        classes, size = torch.cat([self.classes, other.classes]).unique(), self.means.shape[1]
        counts = torch.zeros(len(classes), dtype=torch.long)
        means = torch.zeros(len(classes), size, dtype=torch.float64)
        scatters = None if self.scatters is None else torch.zeros(len(classes), size, size, dtype=torch.float64)
        for part in (self, other):
            rows = torch.searchsorted(classes, part.classes)
            before, added = counts[rows].double()[:, None], part.counts.double()[:, None]  # (C', 1)
            gap = part.means - means[rows]  # (C', k)
            if scatters is not None and part.scatters is not None:
                between = (before * added / (before + added))[..., None] * gap[:, :, None] * gap[:, None]
                scatters[rows] += part.scatters + between
            means[rows] += gap * added / (before + added)
            counts[rows] += part.counts
        return ClassStatistics(classes, counts, means, scatters)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], size: int, scattered: bool = True) -> ClassStatistics:
        """Rebuild statistics of ``size`` coefficients from `state`, with scatters or without.

        Raises
        ------
        DataError
            A tensor is missing, unknown, not finite or of a wrong shape, classes do not ascend, or counts are below 1.
        """
        count = length_of(state, "classes")
        shapes = {"classes": (count,), "counts": (count,), "means": (count, size)}
        check_tensors(state, shapes | ({"scatters": (count, size, size)} if scattered else {}))
        if (state["counts"] < 1).any():
            raise DataError(f"statistics of classes with counts {state['counts'].tolist()}")
        return cls(**state)


@dataclass(eq=False)
class ClassGaussians(ClassTensors):
    """A mean and a covariance for each class; no sample is held, except as the mean of a class of one sample.

    The covariance of class c is ``(1 - s) * own + s * tied``, ``tied`` being the pooled covariance within classes, or
    the variances alone where there is a single class. A class of fewer than `FEW` samples takes the tied one alone:
    drawn from its own, samples would lie between its clips. Larger s hides single clips better, smaller s keeps the
    differences between classes, such as their spread.

    References
    ----------
    Friedman, "Regularized discriminant analysis", JASA 1989; Schaefer and Strimmer, "A shrinkage approach to
    large-scale covariance matrix estimation", 2005 (variances as the target).
    """

    means: Tensor  # (C, k)
    factors: Tensor  # (F, k, k): factor @ factor.T is a covariance
    factor_of: Tensor  # row of factors that each class uses (C,)

    @classmethod
    def fit(cls, latents: Tensor, labels: Tensor, shrinkage: float = 0.3) -> ClassGaussians:
        """Fit to ``latents`` ``(N, k)`` of classes ``labels`` ``(N,)``; ``shrinkage`` is s: 0 own, 1 tied."""
        return cls.from_statistics(ClassStatistics.measure(latents, labels), shrinkage)

    @classmethod
    def from_statistics(cls, statistics: ClassStatistics, shrinkage: float = 0.3) -> ClassGaussians:
        """Return the densities of ``statistics`` with scatters, of at least one class."""
        assert statistics.scatters is not None
        tied, shared = _tied(statistics), None
        factors: list[Tensor] = []
        factor_of: list[int] = []
        for count, scatter in zip(statistics.counts.tolist(), statistics.scatters, strict=True):
            if shrinkage < 1 and count >= FEW:
                factor_of.append(len(factors))
                factors.append(root((1 - shrinkage) * scatter / (count - 1) + shrinkage * tied))
            else:
                if shared is None:  # made once, and only if a class needs it
                    shared = len(factors)
                    factors.append(root(tied))
                factor_of.append(shared)
        return cls(statistics.classes, statistics.means, torch.stack(factors), torch.tensor(factor_of))

    @classmethod
    def around(cls, statistics: ClassStatistics, within: Tensor, widths: Tensor | None = None) -> ClassGaussians:
        """Return densities with the means of ``statistics`` and the public covariance ``within`` ``(k, k)``.

        ``widths`` ``(C, BANDS)``, see `class_widths`, are ratios of each class's variances to the public ones.
        """
        ratios = torch.ones(len(statistics.classes), BANDS) if widths is None else widths
        values, axes = principal_axes(within)
        spread = (values * ratios[:, bands(len(values))].double()).sqrt()  # (C, k)
        factors = (axes * spread[:, None]) @ axes.T
        return cls(statistics.classes, statistics.means, factors, torch.arange(len(factors)))

    def sample(self, label: int, count: int, generator: torch.Generator) -> Tensor:
        """Draw ``count`` vectors ``(count, k)`` of class ``label`` with ``generator`` (on the CPU)."""
        mean, factor = self.of(label)
        return mean + torch.randn(count, len(mean), generator=generator) @ factor.T

    def of(self, label: int) -> tuple[Tensor, Tensor]:
        """Return mean ``(k,)`` and factor ``(k, k)`` of class ``label``; `DataError` if it has no density."""
        if (row := self.row(label)) is None:
            raise DataError(f"no density for class {label}; fitted classes: {self.classes.tolist()}")
        return self.means[row], self.factors[self.factor_of[row]]

    @classmethod
    def from_state(cls, state: dict[str, Tensor], size: int) -> ClassGaussians:
        """Rebuild densities of ``size`` coefficients from `state`; `DataError` names a wrong or missing tensor."""
        count, factors = (length_of(state, name) for name in ("classes", "factors"))
        shapes = {"classes": (count,), "means": (count, size), "factors": (factors, size, size), "factor_of": (count,)}
        check_tensors(state, shapes)
        return cls(**state)


def principal_axes(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variances ``(k,)`` and the axes ``(k, k)``, in columns, of ``covariance``, the widest first."""
    values, axes = torch.linalg.eigh(covariance.double())
    return values.flip(0).clamp(min=1e-12), axes.flip(1)


def bands(size: int) -> Tensor:
    """Return in which of `BANDS` each of ``size`` axes is ``(size,)``: few in the first, where most variance is."""
    place = torch.log2(torch.arange(size) + 1.0) / torch.log2(torch.tensor(size + 1.0))
    return (place * BANDS).long()


def class_widths(latents: Tensor, labels: Tensor, within: Tensor) -> Tensor:
    """Return the ratio of each class's variances to those of ``within`` ``(k, k)`` in each band, ``(C, BANDS)``.

    ``latents`` are ``(N, k)``, ``labels`` ``(N,)``; rows of the result are in ascending order of classes. The ratio is
    1 for a class of one sample, and in a band without axes.
    """
    values, axes = principal_axes(within)
    rows, counts = labels.cpu().unique(return_inverse=True, return_counts=True)[1:]
    points = latents.detach().cpu().double() @ axes  # (N, k)
    squares = (points - class_means(points, rows)[rows]).square() / values
    own = torch.zeros(len(counts), len(values), dtype=torch.float64).index_add_(0, rows, squares)
    own = own / (counts[:, None] - 1).clamp(min=1)
    sizes = bands(len(values)).bincount(minlength=BANDS)
    ratios = torch.zeros(len(counts), BANDS, dtype=torch.float64).index_add_(1, bands(len(values)), own) / sizes
    usual = (counts[:, None] < 2) | (sizes == 0)
    return torch.where(usual, 1.0, ratios).clamp(min=NARROWEST)


def variance_within(values: Tensor, labels: Tensor) -> Tensor:
    """Return the variance of each column of ``values`` ``(N, k)`` within classes ``(k,)``; 0 where no class repeats."""
    classes, rows = labels.unique(return_inverse=True)
    centred = values - class_means(values, rows)[rows]
    return centred.square().sum(dim=0) / max(1, len(values) - len(classes))


def _tied(statistics: ClassStatistics) -> Tensor:
    """Return the covariance within classes ``(k, k)``; that of all samples, or the unit matrix, where none repeats."""
    assert statistics.scatters is not None
    samples, (classes, size) = int(statistics.counts.sum()), statistics.means.shape
    if samples > classes:
        within = statistics.scatters.sum(dim=0) / (samples - classes)
        return within.diagonal().diag() if classes == 1 else within
    if samples > 1:
        return statistics.means.T.cov().reshape(size, size)  # every class has one sample, its mean
    return torch.eye(size, dtype=torch.float64)

"""One Gaussian a class, with covariances shrunk towards the one that all classes share."""

from __future__ import annotations

import torch
from torch import Tensor

from fedgen.errors import DataError

FEW = 8  # samples below which a class has no covariance of its own


class ClassGaussians:
    """A mean and a covariance for each class.

    The covariance of class c is ``(1 - s) * own + s * tied``, ``tied`` being the pooled covariance within classes. A
    class of fewer than `FEW` samples takes the tied one alone (s = 1): drawn from its own, samples would lie between
    its clips. Larger s hides single clips better, smaller s keeps what distinguishes classes, such as their spread.
    Only means and factors of covariances are held: no sample, residual or linear image of one, except that the mean of
    a class of one sample is that sample.

    Attributes
    ----------
    classes : Tensor
        Global class ids ``(C,)``, ascending.
    means : Tensor
        ``(C, k)``.
    factors : Tensor
        ``(F, k, k)``: ``factor @ factor.T`` is a covariance; the first is the tied one.
    factor_of : Tensor
        Row of ``factors`` that each class uses, ``(C,)``.

    References
    ----------
    Friedman, "Regularized discriminant analysis", JASA 1989.
    """

    NAMES = ("classes", "means", "factors", "factor_of")

    def __init__(self, classes: Tensor, means: Tensor, factors: Tensor, factor_of: Tensor) -> None:
        self.classes, self.means = classes.long().cpu(), means.float().cpu()
        self.factors, self.factor_of = factors.float().cpu(), factor_of.long().cpu()
        self._row = {label: row for row, label in enumerate(self.classes.tolist())}

    @classmethod
    def fit(cls, latents: Tensor, labels: Tensor, shrinkage: float = 0.3) -> ClassGaussians:
        """Fit to ``latents`` ``(N, k)`` of classes ``labels`` ``(N,)``; ``shrinkage`` is s: 0 own, 1 tied."""
        values, labels = latents.detach().cpu().double(), labels.cpu()
        classes, rows, counts = labels.unique(return_inverse=True, return_counts=True)
        means = torch.zeros(len(classes), values.shape[1], dtype=torch.float64)
        means = means.index_add_(0, rows, values) / counts[:, None]
        centred = values - means[rows]
        tied = _tied(values, centred, len(classes))
        factors, factor_of = [_factor(tied)], torch.zeros(len(classes), dtype=torch.long)
        for row, count in enumerate(counts.tolist()):
            if shrinkage < 1 and count >= FEW:
                own = centred[rows == row]
                factor_of[row] = len(factors)
                factors.append(_factor((1 - shrinkage) * own.T @ own / (count - 1) + shrinkage * tied))
        return cls(classes, means, torch.stack(factors), factor_of)

    def sample(self, label: int, count: int, generator: torch.Generator) -> Tensor:
        """Draw ``count`` vectors ``(count, k)`` of class ``label`` with ``generator`` (on the CPU).

        Raises
        ------
        DataError
            The class was not in the data that the densities were fitted to.
        """
        if label not in self._row:
            raise DataError(f"no density for class {label}; fitted classes: {sorted(self._row)}")
        row = self._row[label]
        noise = torch.randn(count, self.means.shape[1], generator=generator)
        return self.means[row] + noise @ self.factors[self.factor_of[row]].T

    def state(self) -> dict[str, Tensor]:
        """Return everything that defines the densities, by name."""
        return {name: getattr(self, name) for name in self.NAMES}

    @classmethod
    def from_state(cls, state: dict[str, Tensor], size: int) -> ClassGaussians:
        """Rebuild densities of ``size`` coefficients from `state`.

        Raises
        ------
        DataError
            Names the tensor that is missing or of a wrong shape.
        """
        missing = [name for name in cls.NAMES if name not in state]
        if missing:
            raise DataError(f"a density's state has no {', '.join(missing)}")
        count, factors = len(state["classes"]), len(state["factors"])
        shapes = {"classes": (count,), "means": (count, size), "factors": (factors, size, size), "factor_of": (count,)}
        for name, shape in shapes.items():
            if tuple(state[name].shape) != shape:
                raise DataError(f"density {name} has shape {tuple(state[name].shape)}, expected {shape}")
        return cls(*(state[name] for name in cls.NAMES))


def variance_within(values: Tensor, labels: Tensor) -> Tensor:
    """Return the variance of each column of ``values`` ``(N, k)`` within classes ``(k,)``; 0 where no class repeats."""
    classes, rows = labels.unique(return_inverse=True)
    sums = torch.zeros(len(classes), values.shape[1], device=values.device).index_add_(0, rows, values)
    centred = values - (sums / rows.bincount()[:, None])[rows]
    return centred.square().sum(dim=0) / max(1, len(values) - len(classes))


def _tied(values: Tensor, centred: Tensor, classes: int) -> Tensor:
    """Return the covariance within classes ``(k, k)``; that of all samples, or the unit matrix, where none repeats."""
    if len(values) > classes:
        return centred.T @ centred / (len(values) - classes)
    if len(values) > 1:
        return values.T.cov()  # every class has one sample
    return torch.eye(values.shape[1], dtype=values.dtype)


def _factor(covariance: Tensor) -> Tensor:
    """Return the symmetric square root ``(k, k)`` of ``covariance``, negative rounding errors cut off."""
    values, vectors = torch.linalg.eigh(covariance.reshape(len(covariance), -1))
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T

"""The private release of a node's clips: class Gaussians in a codec of public sounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedgen.data.tokens import TokenSource
from fedgen.errors import DataError
from fedgen.models.generators.density import ClassGaussians
from fedgen.models.moments import root
from fedgen.models.public import PublicSpace
from fedgen.privacy.accountant import Mechanism, Spent, calibrate
from fedgen.privacy.mechanisms import Noise, class_sums, clipped
from fedgen.privacy.settings import PrivacySettings

WIDTHS, SHAPES = 0.15, 0.35  # shares of the budget; means get the rest, and the second where no shape is afforded
IN_MEAN = 1.9  # norm of the noise in a class's mean, in deviations of clips within classes, which is still of use
IN_SHAPE = 0.35  # deviation of the noise in a variance of a shape whose trace is its size, likewise
FEWEST, MOST = 8, 32  # coefficients of a shape: fewer are not worth their budget, more were never better
FARTHEST = 2.0  # natural log of a clip's mean square distance over that of public sounds, either way
LEAST = 0.05  # of the usual variance: no class, and no direction of a shape, has less
ALIKE = 0.4  # deviation between classes of the entries of their shapes


@dataclass(frozen=True)
class Release:
    """Densities of the classes of which the node has clips, and the budget that they have spent."""

    density: ClassGaussians
    spent: Spent

    def generator_state(self, labels: Sequence[int]) -> dict[str, Tensor]:
        """Return the state of a `GaussianGenerator` of the classes ``labels``; `DataError` if one has no density."""
        whole = self.density
        means = torch.stack([whole.of(label)[0] for label in sorted(labels)])
        factors = torch.stack([whole.of(label)[1] for label in sorted(labels)])
        return ClassGaussians(torch.tensor(sorted(labels)), means, factors, torch.arange(len(labels))).state()

    def state(self) -> dict[str, Tensor]:
        """Return the densities by name, to be kept beside ``spent.facts()``."""
        return self.density.state()

    @classmethod
    def from_state(cls, state: dict[str, Tensor], facts: dict[str, Any], size: int) -> Release:
        """Rebuild the release of ``size`` coefficients from `state` and ``spent.facts()``."""
        return cls(ClassGaussians.from_state(state, size), Spent.from_facts(facts))


@dataclass(frozen=True)
class Plan:
    """Division of the budget."""

    means: Mechanism
    widths: Mechanism
    shapes: Mechanism | None
    size: int  # leading whitened coefficients whose means are read
    shaped: int  # leading whitened coefficients of which classes have a shape, 0 without shapes

    @classmethod
    def of(cls, settings: PrivacySettings, size: int, shaped: int, parts: int) -> Plan:
        """Share the budget between means of ``size`` coefficients, widths of ``parts`` parts, and shapes."""
        multiplier, rest = calibrate(settings.budget), 1 - WIDTHS - (SHAPES if shaped else 0)
        means = Mechanism("means", settings.clip * size**0.5, multiplier / rest**0.5, 2.0)
        widths = Mechanism("widths", FARTHEST * parts**0.5, multiplier / WIDTHS**0.5, 2.0)
        shapes = Mechanism("shapes", float(shaped), multiplier / SHAPES**0.5, 2**0.5) if shaped else None
        return cls(means, widths, shapes, size, shaped)

    @classmethod
    def affordable(cls, settings: PrivacySettings, counts: Tensor, size: int) -> Plan:
        """Return the plan that the budget affords for classes of ``counts`` ``(C,)`` clips, which are public."""
        clips, one = float(counts.double().mean()), cls.of(settings, 1, 1, 1)
        assert one.shapes is not None
        shaped = min(int(IN_SHAPE * clips / one.shapes.deviation), MOST, size)  # noise grows with their number
        shaped = shaped if shaped >= FEWEST else 0
        one = cls.of(settings, 1, shaped, 1)
        means = settings.components or max(1, int(IN_MEAN * clips / one.means.deviation))
        return cls.of(settings, min(means, size), shaped, len(parts_of(shaped, size)))

    @property
    def mechanisms(self) -> list[Mechanism]:
        """All mechanisms, in the order in which clips are read."""
        return [one for one in (self.means, self.widths, self.shapes) if one is not None]


def parts_of(shaped: int, size: int) -> list[slice]:
    """Return the parts of ``size`` coefficients that have a width each: with a shape of their own, and without."""
    return [part for part in (slice(0, shaped), slice(shaped, size)) if part.start < part.stop]


def release(source: TokenSource, space: PublicSpace, settings: PrivacySettings, seed: int | None = None) -> Release:
    """Read a node's clips once, and return everything that is ever released of them.

    Called twice on the same clips, it spends twice: keep the result before anything of it leaves the node.

    Parameters
    ----------
    source : TokenSource
        The node's clips.
    space : PublicSpace
        Known before.
    settings : PrivacySettings
        Of ``dp``.
    seed : int, optional
        Of the noise, for simulations; the node's own, from ``settings.seed``. By default nobody can repeat the noise.

    Raises
    ------
    ConfigError
        ``delta`` is too large for so few clips; the accountant is not installed.
    DataError
        The node has no clips.
    """
    if len(source) == 0:
        raise DataError("a private release needs at least 1 clip, got none")
    settings.check_clips(len(source))
    classes, rows, counts = source.labels.unique(return_inverse=True, return_counts=True)
    plan = Plan.affordable(settings, counts, space.codec.size)
    white, colour = whitening(space.within)
    vectors = space.codec.encode_all(source).cpu().double() @ white  # (N, k)
    means, covariances = measured(vectors, rows, counts, plan, Noise(seed))
    density = ClassGaussians(classes, means @ colour, colour @ root(covariances), torch.arange(len(classes)))
    return Release(density, Spent.on(plan.mechanisms, settings.budget[1], len(source)))


def whitening(within: Tensor) -> tuple[Tensor, Tensor]:
    """Return the symmetric matrices ``(k, k)`` that make ``within`` the unit matrix, and the unit matrix ``within``."""
    values, axes = torch.linalg.eigh(within.double())
    deviations = values.sqrt()
    return (axes / deviations) @ axes.T, (axes * deviations) @ axes.T


def measured(vectors: Tensor, rows: Tensor, counts: Tensor, plan: Plan, noise: Noise) -> tuple[Tensor, Tensor]:
    """Return means ``(C, k)`` and covariances ``(C, k, k)`` of classes, the only reads of ``vectors`` ``(N, k)``.

    Coefficients whose means are not read have those of public sounds, zero, and no covariance but their variance.
    """
    size, shaped = vectors.shape[1], plan.shaped
    means = pad(private_means(vectors[:, : plan.size], rows, counts, plan.means, noise), (0, size - plan.size))
    apart = vectors - means[rows]
    widths = private_widths(apart, rows, counts, plan, noise)
    covariances = widths[:, -1, None, None] * torch.eye(size, dtype=torch.float64)
    if plan.shapes is not None:
        shapes = private_shapes(apart[:, :shaped], rows, counts, plan.shapes, noise)
        covariances[:, :shaped, :shaped] = widths[:, 0, None, None] * shapes
    return means, covariances


def private_means(vectors: Tensor, rows: Tensor, counts: Tensor, mechanism: Mechanism, noise: Noise) -> Tensor:
    """Return noisy means ``(C, k)`` of each class of ``vectors`` ``(N, k)``, ``counts`` ``(C,)`` being public."""
    bound = mechanism.sensitivity
    sums = class_sums(clipped(vectors, bound), rows, len(counts))
    means = (sums + mechanism.deviation * noise.draw(*sums.shape)) / counts[:, None]
    return clipped(means, bound)  # no mean of clipped vectors is longer


def private_widths(vectors: Tensor, rows: Tensor, counts: Tensor, plan: Plan, noise: Noise) -> Tensor:
    """Return each class's variance in each of `parts_of`, over that of classes of public sounds ``(C, parts)``.

    ``vectors`` ``(N, k)`` are whitened distances to the noisy means, of the classes ``rows`` ``(N,)``. A clip adds the
    logarithm of its mean square distance, cut to `FARTHEST`: a quiet class counts as much as a loud one. Logarithms are
    shrunk towards the mean of all, and that towards 0, by the ratio of their noise variance to 1, which is about the
    variance between classes.
    """
    parts, own = parts_of(plan.shaped, vectors.shape[1]), plan.widths
    logs = torch.stack([vectors[:, part].square().mean(dim=1).log() for part in parts], dim=1)
    logs = torch.where(vectors.isfinite().all(dim=1, keepdim=True), logs.clamp(-FARTHEST, FARTHEST), 0.0)
    sums = class_sums(logs, rows, len(counts))
    found = (sums + own.deviation * noise.draw(*sums.shape)) / counts[:, None]
    blurred = [max(0, min(plan.size, part.stop) - part.start) / (part.stop - part.start) for part in parts]
    blur = (plan.means.deviation / counts[:, None]).square() * torch.tensor(blurred)  # of the noise in the means
    blur = blur.clamp(max=plan.means.sensitivity**2 / plan.size)  # no mean is longer
    found = (found.clamp(-FARTHEST, FARTHEST).exp() - blur).clamp(min=LEAST).log()
    error = (own.deviation / counts[:, None]).square()
    return _drawn(found, _drawn(found.mean(dim=0), torch.zeros(()), error.mean() / len(error)), error).exp()


def private_shapes(vectors: Tensor, rows: Tensor, counts: Tensor, mechanism: Mechanism, noise: Noise) -> Tensor:
    """Return how classes are stretched: symmetric matrices ``(C, r, r)`` with a trace of ``r``.

    A clip adds the outer product of its direction with itself, times ``r``. Shapes are shrunk towards the mean of the
    node's, and that towards the unit matrix, by their noise. ``vectors`` are the distances of `private_widths` in the
    leading ``r`` coefficients ``(N, r)``.
    """
    size = vectors.shape[1]
    directions = clipped(vectors, 1e-9) * 1e9  # of unit norm, but for those at the mean itself
    sums = class_sums((size * directions[:, :, None] * directions[:, None]).flatten(1), rows, len(counts))
    drawn = noise.draw(len(counts), size, size)
    drawn = (drawn + drawn.transpose(1, 2)) / 2  # standard normal in every direction of symmetric matrices
    found = (sums.view_as(drawn) + mechanism.deviation * drawn) / counts[:, None, None]
    error = (mechanism.deviation / counts[:, None, None] / ALIKE).square()
    found = _drawn(found, _drawn(found.mean(dim=0), torch.eye(size), error.mean() / len(error)), error)
    values, axes = torch.linalg.eigh(found)
    values = values.clamp(min=LEAST)
    values = values * (size / values.sum(dim=1, keepdim=True))
    return (axes * values[:, None]) @ axes.transpose(1, 2)


def _drawn(values: Tensor, towards: Tensor, error: Tensor) -> Tensor:
    """Return ``values`` shrunk towards others by their ``error``, its variance over that between true ones."""
    return (values + error * towards) / (1 + error)

"""What a node gives of its clips: class Gaussians in a codec of public sounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedgen.data.tokens import TokenSource
from fedgen.errors import DataError
from fedgen.models.density import ClassGaussians
from fedgen.models.privacy.accountant import Mechanism, Spent, calibrate
from fedgen.models.privacy.mechanisms import Noise, banded, class_sums, clipped, energies
from fedgen.models.privacy.settings import PrivacySettings
from fedgen.models.public import PublicSpace

BANDS = 4  # of coefficients, in which a class's width is measured
LEAST = 0.05  # of what is usual: no class is narrower


@dataclass(frozen=True)
class Release:
    """What may leave a node, and everything that is computed from it.

    Attributes
    ----------
    density : ClassGaussians
        Of the classes of which the node has clips.
    spent : Spent
    """

    density: ClassGaussians
    spent: Spent

    def generator_state(self, labels: Sequence[int]) -> dict[str, Tensor]:
        """Return what a `GaussianGenerator` of the classes ``labels`` alone loads.

        Raises
        ------
        DataError
            There is no density of a class.
        """
        whole = self.density
        means = torch.stack([whole.of(label)[0] for label in sorted(labels)])
        factors = torch.stack([whole.of(label)[1] for label in sorted(labels)])
        return ClassGaussians(torch.tensor(sorted(labels)), means, factors, torch.arange(len(labels))).state()

    def state(self) -> dict[str, Tensor]:
        """Return the densities by name, to be kept beside ``spent.facts()``."""
        return self.density.state()

    @classmethod
    def from_state(cls, state: dict[str, Tensor], facts: dict[str, Any], size: int) -> Release:
        """Return the release of ``size`` coefficients that gave ``state`` and ``facts``."""
        return cls(ClassGaussians.from_state(state, size), Spent.from_facts(facts))


def release(source: TokenSource, space: PublicSpace, settings: PrivacySettings, seed: int | None = None) -> Release:
    """Read a node's clips once, and return all that is ever to be known of them.

    Called twice on the same clips, it spends twice: keep what it returned, before anything of it leaves the node.

    Parameters
    ----------
    source : TokenSource
        The node's clips.
    space : PublicSpace
        What was known before.
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
    noise, multiplier = Noise(seed), calibrate(settings.budget)
    share = settings.spreads
    latents = space.codec.encode_all(source).cpu()
    classes, rows, counts = source.labels.unique(return_inverse=True, return_counts=True)

    bound = settings.clip * space.norm
    mechanisms = [Mechanism("means", bound, multiplier / (1 - share) ** 0.5, 2.0)]
    vectors = clipped(latents, bound)
    means = private_means(vectors, rows, counts, mechanisms[0], noise)  # (C, k)
    ratios = torch.ones(len(classes), 1, dtype=torch.float64)
    if share:
        reach = settings.clip * space.spread
        mechanisms.append(Mechanism("spreads", reach**2, multiplier / share**0.5, 2**0.5))
        blur = (mechanisms[0].multiplier * bound / counts).square()  # of the means' noise, in every coefficient
        vectors = clipped(latents.double() - means[rows], reach)
        ratios = private_spreads(vectors, rows, counts, space.within, blur, mechanisms[1], noise)
    values, axes = torch.linalg.eigh(space.within)
    factor = (axes * values.clamp(min=0).sqrt()) @ axes.T
    factors = ratios[:, banded(len(factor), ratios.shape[1])].sqrt()[:, :, None] * factor
    density = ClassGaussians(classes, means, factors, torch.arange(len(classes)))
    return Release(density, Spent.on(mechanisms, settings.budget[1], len(source)))


def private_means(vectors: Tensor, rows: Tensor, counts: Tensor, mechanism: Mechanism, noise: Noise) -> Tensor:
    """Return the means ``(C, k)`` of clipped ``vectors`` ``(N, k)`` of each class, ``counts`` ``(C,)`` being public."""
    sums = class_sums(vectors, rows, len(counts))
    deviation = mechanism.multiplier * mechanism.sensitivity
    means = (sums + deviation * noise.draw(*sums.shape)) / counts[:, None]
    return clipped(means, mechanism.sensitivity)  # no mean of clipped vectors is longer


def private_spreads(
    vectors: Tensor,
    rows: Tensor,
    counts: Tensor,
    usual: Tensor,
    blur: Tensor,
    mechanism: Mechanism,
    noise: Noise,
) -> Tensor:
    """Return how much wider classes are than ``usual`` in bands of coefficients: ratios of variances ``(C, bands)``.

    A ratio is drawn towards the mean of all, and that towards 1, by the noise in it: its variance over itself and 1,
    which is about how far ratios are apart.

    Parameters
    ----------
    vectors : Tensor
        Clipped distances to the means ``(N, k)``, of the classes ``rows`` ``(N,)``, ``counts`` ``(C,)`` of each.
    usual : Tensor
        Covariance within classes ``(k, k)``.
    blur : Tensor
        Variance of the noise in each class's mean ``(C,)``.
    """
    number = min(BANDS, len(usual))
    width = energies(usual.diagonal().sqrt()[None], number)[0]
    sums = class_sums(energies(vectors, number), rows, len(counts))
    deviation = mechanism.multiplier * mechanism.sensitivity
    variances = (sums + deviation * noise.draw(*sums.shape)) / counts[:, None]
    variances -= blur[:, None] * banded(len(usual), number).bincount()
    ratios, error = variances / width, deviation / counts[:, None] / width
    sure = 1 / (1 + error.square().mean() / error.numel())
    typical = sure * ratios.mean() + (1 - sure)
    sure = 1 / (1 + error.square())
    return (sure * ratios + (1 - sure) * typical).clamp(min=LEAST)

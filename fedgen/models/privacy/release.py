"""What a node gives of its clips: class Gaussians in a codec of public sounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedgen.data.tokens import TokenSource
from fedgen.errors import DataError
from fedgen.models.density import ClassGaussians
from fedgen.models.privacy.accountant import Mechanism, Spent, calibrate
from fedgen.models.privacy.mechanisms import Noise, class_sums, clipped
from fedgen.models.privacy.settings import PrivacySettings
from fedgen.models.public import PublicSpace

NOISE = 0.35  # deviation in a coefficient of a class's mean, over that of clips within classes, which is still of use
LEAST = 0.05  # of the usual variance: no class, and no direction of public sounds, has less


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
    classes, rows, counts = source.labels.unique(return_inverse=True, return_counts=True)
    size, noise = min(settings.components or affordable(settings, counts), space.codec.size), Noise(seed)
    mechanisms = composed(settings, size)
    white, colour = whitening(space.within[:size, :size])
    vectors = space.codec.encode_all(source)[:, :size].cpu().double() @ white  # (N, size)
    means, widths = measured(vectors, rows, counts, mechanisms, noise)
    means = pad(means @ colour, (0, space.codec.size - size))  # (C, k)
    factors = widths.sqrt()[:, None, None] * whitening(space.within)[1]
    density = ClassGaussians(classes, means, factors, torch.arange(len(classes)))
    return Release(density, Spent.on(mechanisms, settings.budget[1], len(source)))


def affordable(settings: PrivacySettings, counts: Tensor) -> int:
    """Return in how many coefficients the noise of class means is at most `NOISE`, ``counts`` ``(C,)`` being public."""
    of_one, _ = composed(settings, 1)  # the bound, and so the noise in each, grows with the square root of their number
    return max(1, int((NOISE * float(counts.double().mean()) / of_one.deviation) ** 2))


def composed(settings: PrivacySettings, size: int) -> tuple[Mechanism, Mechanism]:
    """Return the two mechanisms, of means and widths of latents of ``size`` coefficients, that use up the budget."""
    multiplier, share, bound = calibrate(settings.budget), settings.widths, settings.clip * size**0.5
    means = Mechanism("means", bound, multiplier / (1 - share) ** 0.5, 2.0)
    return means, Mechanism("widths", bound**2, multiplier / share**0.5, 1.0)  # squared norms are 0 to bound**2


def whitening(within: Tensor) -> tuple[Tensor, Tensor]:
    """Return the symmetric matrices ``(k, k)`` that make ``within`` the unit matrix, and the unit matrix ``within``.

    Where few sounds leave a direction without variance, it gets `LEAST` of what is usual.
    """
    values, axes = torch.linalg.eigh(within.double())
    deviations = values.clamp(min=LEAST * float(values.mean())).sqrt()
    return (axes / deviations) @ axes.T, (axes * deviations) @ axes.T


def measured(
    vectors: Tensor, rows: Tensor, counts: Tensor, mechanisms: tuple[Mechanism, Mechanism], noise: Noise
) -> tuple[Tensor, Tensor]:
    """Return noisy means ``(C, k)`` and widths ``(C,)`` of classes: all that is ever read of whitened ``vectors``."""
    means = private_means(vectors, rows, counts, mechanisms[0], noise)
    return means, private_widths(vectors - means[rows], rows, counts, mechanisms, noise)


def private_means(vectors: Tensor, rows: Tensor, counts: Tensor, mechanism: Mechanism, noise: Noise) -> Tensor:
    """Return noisy means ``(C, k)`` of each class of ``vectors`` ``(N, k)``, ``counts`` ``(C,)`` being public."""
    bound = mechanism.sensitivity
    sums = class_sums(clipped(vectors, bound), rows, len(counts))
    means = (sums + mechanism.deviation * noise.draw(*sums.shape)) / counts[:, None]
    return clipped(means, bound)  # no mean of clipped vectors is longer


def private_widths(
    vectors: Tensor, rows: Tensor, counts: Tensor, mechanisms: tuple[Mechanism, Mechanism], noise: Noise
) -> Tensor:
    """Return the variance of each class, over that of classes of public sounds ``(C,)``.

    A width is drawn towards the mean of all, and that towards 1, by the noise in it: its variance over itself and 1,
    which is about how far widths are apart.

    Parameters
    ----------
    vectors : Tensor
        Whitened distances to the noisy means ``(N, k)``, of the classes ``rows`` ``(N,)``, ``counts`` ``(C,)`` of each.
    mechanisms : tuple
        Of the means, whose noise makes vectors longer, and of the widths.
    """
    (of_means, own), size = mechanisms, vectors.shape[1]
    squares = clipped(vectors, own.sensitivity**0.5).square().sum(dim=1, keepdim=True)  # (N, 1)
    sums = class_sums(squares, rows, len(counts))[:, 0]
    blur = (of_means.deviation / counts).square()  # of the means' noise, in every coefficient
    blur = blur.clamp(max=own.sensitivity / size)  # no mean is longer
    widths = (sums + own.deviation * noise.draw(len(counts))) / counts / size - blur
    error = own.deviation / counts / size
    sure = 1 / (1 + error.square().mean() / len(error))
    typical = sure * widths.mean() + (1 - sure)
    sure = 1 / (1 + error.square())
    return (sure * widths + (1 - sure) * typical).clamp(min=LEAST)

"""What a node gives of its clips: class Gaussians in a codec of public sounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedgen.data.tokens import TokenSource
from fedgen.errors import DataError
from fedgen.models.codec import Codec
from fedgen.models.density import ClassGaussians
from fedgen.models.privacy.accountant import Mechanism, Spent, calibrate
from fedgen.models.privacy.mechanisms import Noise, class_sums, clipped, positive, scatter
from fedgen.models.privacy.settings import PrivacySettings
from fedgen.models.privacy.space import PublicSpace
from fedgen.models.states import join, part_of


@dataclass(frozen=True)
class Release:
    """What may leave a node, and everything that is computed from it.

    Attributes
    ----------
    codec : Codec
    density : ClassGaussians
        Of the classes of which the node has clips.
    spent : Spent
    """

    codec: Codec
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
        rows = torch.zeros(len(labels), dtype=torch.long)  # all classes have one covariance
        return ClassGaussians(torch.tensor(sorted(labels)), means, whole.factors, rows).state()

    def state(self) -> dict[str, Tensor]:
        """Return codec and densities by name, to be kept beside ``spent.facts()``."""
        return join({"codec": self.codec.state(), "density": self.density.state()})

    @classmethod
    def from_state(cls, state: dict[str, Tensor], facts: dict[str, Any]) -> Release:
        """Return the release that gave ``state`` and ``facts``."""
        codec = Codec.from_state(part_of(state, "codec"))
        return cls(codec, ClassGaussians.from_state(part_of(state, "density"), codec.size), Spent.from_facts(facts))


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
    share = settings.covariance
    latents = space.codec.encode_all(source).cpu()
    classes, rows, counts = source.labels.unique(return_inverse=True, return_counts=True)

    bound = settings.clip * space.norm
    mechanisms = [Mechanism("means", bound, multiplier / (1 - share) ** 0.5, 2.0)]
    vectors = clipped(latents, bound)
    means = private_means(vectors, rows, counts, mechanisms[0], noise)  # (C, k)
    covariance = space.within
    if share:
        reach = settings.clip * space.spread
        mechanisms.append(Mechanism("covariance", reach**2, multiplier / share**0.5, 2**0.5))
        vectors = clipped(latents.double() - means[rows], reach)
        covariance = private_covariance(vectors, space.within, mechanisms[1], noise)
    values, axes = torch.linalg.eigh(covariance)
    factor = (axes * values.clamp(min=0).sqrt()) @ axes.T
    density = ClassGaussians(classes, means, factor[None], torch.zeros_like(classes))
    return Release(space.codec, density, Spent.on(mechanisms, settings.budget[1], len(source)))


def private_means(vectors: Tensor, rows: Tensor, counts: Tensor, mechanism: Mechanism, noise: Noise) -> Tensor:
    """Return the means ``(C, k)`` of clipped ``vectors`` ``(N, k)`` of each class, ``counts`` ``(C,)`` being public."""
    sums = class_sums(vectors, rows, len(counts))
    deviation = mechanism.multiplier * mechanism.sensitivity
    means = (sums + deviation * noise.draw(*sums.shape)) / counts[:, None]
    return clipped(means, mechanism.sensitivity)  # no mean of clipped vectors is longer


def private_covariance(vectors: Tensor, usual: Tensor, mechanism: Mechanism, noise: Noise) -> Tensor:
    """Return the covariance ``(k, k)`` of clipped ``vectors`` ``(N, k)`` about 0, shrunk towards the ``usual`` one.

    The usual one is scaled to the same mean variance, and weighs the more, the more noise there is: as much as the
    noise in an eigenvalue, squared, over its own square.
    """
    size = len(usual)
    deviation = mechanism.multiplier * mechanism.sensitivity
    own = positive((scatter(vectors) + deviation * noise.symmetric(size)) / len(vectors))
    error = deviation / len(vectors) * math.sqrt((size + 1) / 2)  # of an eigenvalue, root mean square
    variance = float(own.trace()) / size
    weight = variance**2 / (variance**2 + error**2) if variance else 0.0
    scale = variance * size / float(usual.trace()) if variance else 1.0
    return weight * own + (1 - weight) * scale * usual

"""What the generators are compared with: other ways of making samples of the same clips, and one deliberate leak."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from predecessor import Recipe, Training, sample
from torch import Tensor

from fedgen.data.seeds import seeded
from fedgen.data.tokens import TokenSource, batches
from fedgen.evaluation.features import read_records
from fedgen.models.bases import resampling

COMPONENTS = 3  # of a mixture
NEIGHBOURS = 5  # SMOTE's


@dataclass
class ShortTokens:
    """A token source of sequences ``short`` ``(N, L, D)`` that are up-sampled linearly when they are read."""

    short: Tensor
    labels: Tensor
    shape: tuple[int, int]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        """Return the sequences at ``indices`` ``(B,)``: ``(B, S, D)``."""
        return resampling(self.short.shape[1], self.shape[0], "linear").float() @ self.short[indices]


@dataclass
class Interpolations:
    """A token source of points between two clips of ``source``: clips ``pairs`` ``(N, 2)``, the second's share."""

    source: TokenSource
    pairs: Tensor
    shares: Tensor
    labels: Tensor
    shape: tuple[int, int]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        """Return the sequences at ``indices`` ``(B,)``: ``(B, S, D)``."""
        first, second = (self.source.batch(rows) for rows in self.pairs[indices].unbind(dim=1))
        return first.lerp(second, self.shares[indices].to(first.device)[:, None, None])


def interpolations(source: TokenSource, count: int, seed: int) -> Interpolations:
    """Return ``count`` points a class between a clip and one of its nearest of the class: SMOTE, on purpose a leak.

    References
    ----------
    Chawla et al., "SMOTE: synthetic minority over-sampling technique", JAIR 2002.
    """
    features, generator, pairs = read_records(source).flat, seeded(seed, "interpolations"), []
    for label in source.labels.unique():
        own = (source.labels == label).nonzero().squeeze(1)
        distances = torch.cdist(features[own], features[own]).fill_diagonal_(torch.inf)
        near = distances.argsort(dim=1)[:, : min(NEIGHBOURS, len(own) - 1)]
        first = torch.randint(len(own), (count,), generator=generator)
        second = near[first, torch.randint(near.shape[1], (count,), generator=generator)]
        pairs.append(torch.stack([own[first], own[second]], dim=1))
    chosen = torch.cat(pairs)
    shares, labels = torch.rand(len(chosen), generator=generator), source.labels[chosen[:, 0]]
    return Interpolations(source, chosen, shares, labels, source.shape)


def shortened(source: TokenSource, length: int) -> Tensor:
    """Return the clips of ``source`` as means of neighbouring tokens ``(N, length, D)``, on the CPU."""
    down = resampling(source.shape[0], length, "linear").float()
    return torch.cat([down @ tokens.cpu() for tokens in batches(source, 64)])


def class_gaussian(source: TokenSource, length: int, count: int, shrinkage: float, seed: int) -> ShortTokens:
    """Draw ``count`` sequences a class from Gaussians of flat sequences of ``length`` tokens; 1: of mean tokens.

    Covariances are those of `ClassGaussians`, ``(1 - s) * own + s * tied``, but never made: a sum of
    the clips' deviations from their class mean with normal weights has just that distribution, at any size.

    References
    ----------
    Luo et al., "No fear of heterogeneity" (CCVR), 2106.05001; Beitollahi et al., "FedPFT", 2402.01862.
    """
    values, generator = shortened(source, length).flatten(1), seeded(seed, "class gaussian", length)
    classes, rows, counts = source.labels.unique(return_inverse=True, return_counts=True)
    means = torch.stack([values[rows == row].mean(dim=0) for row in range(len(classes))])
    residuals = values - means[rows]
    tied = (shrinkage / max(1, len(values) - len(classes))) ** 0.5
    made = []
    for row, clips in enumerate(counts.tolist()):
        own = ((1 - shrinkage) / max(1, clips - 1)) ** 0.5
        drawn = torch.randn(count, clips, generator=generator) @ residuals[rows == row] * own
        made.append(means[row] + drawn + torch.randn(count, len(values), generator=generator) @ residuals * tied)
    short = torch.cat(made).view(-1, length, source.shape[1])
    return ShortTokens(short, classes.repeat_interleave(count), source.shape)


def mixture(latents: Tensor, labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw ``count`` latents a class, and their labels, from a mixture of Gaussians with diagonal covariances each."""
    from sklearn.mixture import GaussianMixture

    drawn, classes = [], labels.unique()
    for label in classes.tolist():
        own = latents[labels == label].cpu().numpy()
        state = seeded(seed, "mixture", label).initial_seed() % 2**32
        model = GaussianMixture(min(COMPONENTS, len(own)), covariance_type="diag", random_state=state).fit(own)
        drawn.append(torch.from_numpy(model.sample(count)[0]).float())
    return torch.cat(drawn), classes.repeat_interleave(count)


def predecessor(source: TokenSource, recipe: Recipe, count: int, seed: int) -> ShortTokens:
    """Draw ``count`` sequences of each class from a generator of its own by the predecessor's recipe.

    Adam's step is taken by one fused kernel: the same arithmetic in a third of the time.
    """
    clips, made = shortened(source, recipe.tokens), []
    classes = source.labels.unique()
    for label in classes.tolist():
        training = Training(clips[source.labels == label], recipe, seeded(seed, "predecessor", label).initial_seed())
        training.optimizer = torch.optim.Adam(training.model.parameters(), lr=recipe.lr, fused=True)
        for number in range(recipe.epochs):
            training.epoch(number)
        made.append(sample(training.model.eval(), count, recipe.tokens, seed + label))
    return ShortTokens(torch.cat(made), classes.repeat_interleave(count), source.shape)

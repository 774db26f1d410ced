"""Likelihood ratios: against shadow fits for any generator, and in closed form for class Gaussians."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fedgen.data.seeds import seeded
from fedgen.privacy.evidence import Candidates, GaussianFit, Release

RIDGE = 1e-2  # of whitened covariances: int8 rounding, and clips fewer than coefficients
STEPS, RATE = 60, 0.1


def likelihood_ratio(
    candidates: Candidates,
    release: Release,
    observed: Tensor,
    score: Callable[[Tensor, Tensor], Tensor],
    shadows: int,
    seed: int,
) -> Tensor:
    """Return the log likelihood ratio ``(N,)`` of each candidate's scores, trained on or not.

    Generators are fitted to random subsets of the candidates, as large in each class as the sent counts, and draw as
    many samples. Scores of a candidate are normal about a mean of its own, with a shift by membership and a covariance
    that all candidates share: 8 to 32 shadows are too few for either of a single clip, and pooling was never weaker.

    Parameters
    ----------
    candidates : Candidates
    release : Release
        Has ``draw``.
    observed : Tensor
        Scores ``(N, d)`` by the real samples.
    score : Callable
        Latents and labels of samples to scores ``(N, d)``.
    shadows : int
        At least 2.
    seed : int

    References
    ----------
    Carlini et al., "Membership inference attacks from first principles", S&P 2022 (LiRA, online, several queries).
    """
    if release.draw is None:
        raise ValueError("a likelihood ratio against shadow fits needs release.draw")
    generator = seeded(seed, "audit", *release.nodes)
    drawn, chosen = [], []
    for number in range(shadows):
        rows = random_members(candidates, release, generator)
        drawn.append(score(*release.draw(rows, seeded(seed, "shadow", *release.nodes, number).initial_seed())))
        chosen.append(torch.zeros(len(candidates), dtype=torch.float64).index_fill_(0, rows, 1.0))
    shadow, inside = torch.stack(drawn), torch.stack(chosen)  # (s, N, d), (s, N)
    judged = (observed.isfinite() & shadow.isfinite().all(dim=0)).all(dim=1)
    result = torch.full((len(candidates),), torch.nan, dtype=torch.float64)
    if judged.any():
        result[judged] = _ratio(observed[judged], shadow[:, judged], inside[:, judged])
    return result


def _ratio(observed: Tensor, shadow: Tensor, inside: Tensor) -> Tensor:
    """Return log ratios ``(n,)``, less a constant, of ``observed`` ``(n, d)`` by ``shadow`` ``(s, n, d)``."""
    usual, lever = shadow.mean(dim=0), inside - inside.mean(dim=0)
    shift = torch.einsum("sn,snd->d", lever, shadow - usual) / lever.square().sum().clamp(min=1.0)
    rest = (shadow - usual - lever[..., None] * shift).flatten(0, 1)
    covariance = rest.T @ rest / max(1, len(rest) - len(observed))
    scale = covariance.diagonal().clamp(min=1e-30).sqrt()
    alike = covariance / scale / scale[:, None] + 1e-6 * torch.eye(len(scale), dtype=torch.float64)
    return ((observed - usual) / scale) @ torch.linalg.solve(alike, shift / scale)


def random_members(candidates: Candidates, release: Release, generator: torch.Generator) -> Tensor:
    """Return as many random rows of each node and class as were trained on, whole recordings first."""
    found = []
    recordings = torch.arange(len(candidates)) if candidates.recordings is None else candidates.recordings
    rows = release.rows(candidates)
    keys = torch.stack([candidates.nodes[rows], candidates.labels[rows]], dim=1)
    for key in keys.unique(dim=0):
        own = rows[(keys == key).all(dim=1)]
        which = recordings[own].unique(return_inverse=True)[1]
        order = torch.randperm(int(which.max()) + 1, generator=generator)[which].argsort(stable=True)
        found.append(own[order[: int(candidates.members[own].sum())]])
    return torch.cat(found).sort().values


def gaussian_posterior(candidates: Candidates, release: Release, whitening: Tensor) -> Tensor:
    """Return the log odds ``(N,)`` that each candidate was trained on, given the samples of class Gaussians.

    The likelihood of the samples is known for any set of members. Memberships are independent chances (mean field), and
    gradient steps raise the lower bound of the evidence from the shares of the sent counts. The first step alone is the
    likelihood ratio of adding and removing a single clip.

    References
    ----------
    Blei, Kucukelbir and McAuliffe, "Variational inference: a review for statisticians", JASA 2017.
    """
    result = torch.full((len(candidates),), torch.nan, dtype=torch.float64)
    rows = release.rows(candidates)
    sent = release.labels.unique()
    rows = rows[torch.isin(candidates.labels[rows], sent)]
    classes, place = candidates.labels[rows].unique(return_inverse=True)
    counts = torch.stack([candidates.members[rows][place == c].sum() for c in range(len(classes))])
    share = (counts.double() / place.bincount(minlength=len(classes)))[place].clamp(1e-3, 1 - 1e-3)
    start = share.logit()
    clips, samples = (x.double() @ whitening for x in (candidates.latents[rows], release.latents))
    groups = [samples[release.labels == label] for label in classes]
    fit = release.gaussian or GaussianFit()
    public = None if fit.covariance is None else whitening @ fit.covariance.double() @ whitening
    odds = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([odds], lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        chance = odds.sigmoid()
        means, covariances = _fitted(chance, clips, place, counts, fit, public)
        distance = (chance * (odds - start) + logsigmoid(-odds) - logsigmoid(-start)).sum()  # from the prior
        (distance - _log_likelihood(groups, means, covariances)).backward()
        optimizer.step()
    result[rows] = odds.detach()
    return result


def _fitted(
    chance: Tensor, clips: Tensor, place: Tensor, counts: Tensor, fit: GaussianFit, public: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Return mean ``(k,)`` and covariance ``(k, k)`` of each class, fitted as in the run to clips of such chances."""
    means, scatters = [], []
    for number, count in enumerate(counts.tolist()):
        weights, own = chance[place == number], clips[place == number]
        weights = weights / weights.sum()
        means.append(weights @ own)
        centred = own - means[-1]
        scatters.append(count * (weights[:, None] * centred).T @ centred)
    if public is not None:
        return means, [public] * len(means)
    tied = torch.stack(scatters).sum(dim=0) / max(1, int(counts.sum()) - len(counts))
    tied = tied.diagonal().diag() if len(counts) == 1 else tied
    shares = [fit.shrinkage if count >= fit.few else 1.0 for count in counts.tolist()]
    pairs = zip(shares, counts.tolist(), scatters, strict=True)
    return means, [(1 - s) * scatter / max(1, count - 1) + s * tied for s, count, scatter in pairs]


def _log_likelihood(groups: list[Tensor], means: list[Tensor], covariances: list[Tensor]) -> Tensor:
    """Return the log likelihood of the samples of each class ``(m, k)``, less a constant."""
    total = torch.zeros((), dtype=torch.float64)
    for samples, mean, covariance in zip(groups, means, covariances, strict=True):
        factor = torch.linalg.cholesky(covariance + RIDGE * torch.eye(len(mean), dtype=torch.float64))
        white = torch.linalg.solve_triangular(factor, (samples - mean).T, upper=False)
        total = total - 0.5 * white.square().sum() - len(samples) * factor.diagonal().log().sum()
    return total

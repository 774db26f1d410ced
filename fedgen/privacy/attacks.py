"""Membership attacks on what nodes send; each returns a score for every candidate, higher for likelier members."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedgen.privacy.evidence import Candidates, Release
from fedgen.privacy.shadows import gaussian_posterior, likelihood_ratio

Score = Callable[[Tensor, Tensor, int], Tensor]
"""Scores whitened candidates ``(n, k)`` of one class against its samples ``(m, k)``, knowing the number of members."""

GAP = 10.0  # between two singular values: the smaller ones are rounding
TINY = 1e-12


def all_scores(
    candidates: Candidates,
    releases: Sequence[Release],
    losses: tuple[Tensor, Tensor] | None = None,
    shadows: int = 16,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return the scores ``(N,)`` of every attack by name; nan where it does not apply.

    No two ``releases`` are of the same node; ``losses`` are those of `loss`. ``shadows`` are fits of each release that
    can be drawn from again, seeded by ``seed``; 8 to 32 do.
    """
    found: dict[str, Tensor] = {}
    whitening = candidates.whitening()
    for release in releases:
        measured = sample_scores(candidates, release, whitening)
        own = {**dict(zip(SCORES, measured.unbind(dim=1), strict=True)), **projection(candidates, release)}
        if release.draw is not None and shadows > 1:

            def drawn(latents: Tensor, labels: Tensor, nodes: tuple[int, ...] = release.nodes) -> Tensor:
                return sample_scores(candidates, Release(nodes, latents, labels), whitening)

            own["likelihood_ratio"] = likelihood_ratio(candidates, release, measured, drawn, shadows, seed)
        if release.gaussian is not None:
            own["posterior"] = gaussian_posterior(candidates, release, whitening)
        rows = release.rows(candidates)
        for name, scores in own.items():
            found.setdefault(name, torch.full((len(candidates),), torch.nan, dtype=torch.float64))[rows] = scores[rows]
    found |= {} if losses is None else loss(*losses)
    return {name: scores for name, scores in found.items() if not scores.isnan().all()}


def sample_scores(candidates: Candidates, release: Release, whitening: Tensor) -> Tensor:
    """Return the scores ``(N, len(SCORES))`` of every attack on samples; nan where a class has none."""
    found = torch.full((len(candidates), len(SCORES)), torch.nan, dtype=torch.float64)
    rows = release.rows(candidates)
    for label in release.labels.unique():
        chosen = rows[candidates.labels[rows] == label]
        count = int(candidates.members[chosen].sum())
        if not 0 < count < len(chosen):
            continue
        clips = candidates.latents[chosen].double() @ whitening
        samples = release.latents[release.labels == label].double() @ whitening
        centre = clips.mean(dim=0)
        scores = [score(clips - centre, samples - centre, count) for score in SCORES.values()]
        found[chosen] = torch.stack(scores, dim=1)
    return found


def nearest(clips: Tensor, samples: Tensor, _: int) -> Tensor:
    """Return minus the distance to the nearest sample ``(n,)`` (Chen et al., "GAN-Leaks", CCS 2020)."""
    return -torch.cdist(clips, samples, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1).values


def density(clips: Tensor, samples: Tensor, _: int) -> Tensor:
    """Return the log density ``(n,)`` under the samples' Gaussian, shrunk as Ledoit and Wolf 2004, less a constant."""
    centred = clips - samples.mean(dim=0)
    from sklearn.covariance import ledoit_wolf  # takes a second to import

    precision = torch.linalg.pinv(torch.from_numpy(ledoit_wolf(samples.numpy())[0]), hermitian=True)
    return -0.5 * ((centred @ precision) * centred).sum(dim=1)


def density_ratio(clips: Tensor, samples: Tensor, members: int) -> Tensor:
    """Return `density` less the log density ``(n,)`` under the population's whitened Gaussian."""
    return density(clips, samples, members) + 0.5 * clips.square().sum(dim=1)


def class_mean(clips: Tensor, samples: Tensor, members: int) -> Tensor:
    """Return the best linear estimate ``(n,)`` of membership from the samples' mean.

    The inner product of a clip with the samples' mean (Homer et al. 2008; Dwork et al., "Robust traceability from
    trace amounts", FOCS 2015), less the possible additions of the other candidates.
    """
    return _unmixed(clips @ clips.T, (clips @ samples.T).mean(dim=1), members, len(samples))


def moments(clips: Tensor, samples: Tensor, members: int) -> Tensor:
    """Return the same estimate ``(n,)`` from mean and second moments together."""
    own, cross = clips @ clips.T, clips @ samples.T
    own, cross = own + 0.5 * own.square(), (cross + 0.5 * cross.square()).mean(dim=1)
    usual = own.mean(dim=1)
    gram = own - usual - usual[:, None] + usual.mean()
    return _unmixed(gram, cross - usual - cross.mean() + usual.mean(), members, len(samples))


SCORES: dict[str, Score] = {
    "nearest": nearest,
    "density": density,
    "density_ratio": density_ratio,
    "class_mean": class_mean,
    "moments": moments,
}


def _unmixed(gram: Tensor, cross: Tensor, members: int, samples: int) -> Tensor:
    """Return the linear minimum-mean-square estimate of membership less its share ``(n,)``.

    The sent moment is the mean of ``members`` candidates, each in it with the same chance, and noise of drawing
    ``samples``; ``gram`` ``(n, n)`` and ``cross`` ``(n,)`` are inner products of centred statistics.
    """
    share = members / len(gram)
    ridge = members**2 / (share * (1 - share) * samples)
    return members * torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), cross)


def projection(candidates: Candidates, release: Release) -> dict[str, Tensor]:
    """Return the share of a clip in the row or column space of each sent matrix, as a score ``(N,)`` by name.

    A matrix fitted to few clips spans them. It is compared with every view of the clips that is as wide as one of its
    sides; one that spans the whole space is left out.
    """
    views, found = {"latents": candidates.latents, **candidates.views}, {}
    rows = release.rows(candidates)
    for name, matrix in release.matrices.items():
        for view, clips in views.items():
            for side, sent in (("rows", matrix), ("columns", matrix.T)):
                basis = _spanned(sent.double()) if sent.shape[1] == clips.shape[1] else None
                if basis is not None:
                    scores = torch.full((len(candidates),), torch.nan, dtype=torch.float64)
                    centred = clips[rows].double() - clips[rows].double().mean(dim=0)
                    left = (centred - centred @ basis @ basis.T).square().sum(dim=1)
                    scores[rows] = -(left / centred.square().sum(dim=1).clamp(min=TINY) + TINY).log()
                    found[f"projection: {name}, {side} of {view}"] = scores
    return found


def _spanned(matrix: Tensor) -> Tensor | None:
    """Return an orthonormal basis ``(F, r)`` of the rows of ``matrix`` ``(n, F)``; None if they span everything."""
    values, vectors = torch.linalg.svd(matrix, full_matrices=False)[1:]
    values = values.clamp(min=TINY * max(TINY, float(values.max())))
    ratios = values[:-1] / values[1:]
    rank = int(ratios.argmax()) + 1 if len(ratios) and float(ratios.max()) > GAP else len(values)
    return vectors[:rank].T if rank < matrix.shape[1] else None


def loss(before: Tensor, after: Tensor) -> dict[str, Tensor]:
    """Return two scores ``(N,)``: minus the loss of adapters after training, and the decrease of the loss by training.

    ``before`` and ``after`` ``(rounds, N)`` are losses of each candidate under the adapters that a node was sent, and
    under those of its reply; nan for clips of other nodes (Yeom et al. 2018; the decrease calibrates each clip, Watson
    et al. 2022).
    """
    return {"loss": -after.double().sum(dim=0), "loss_drop": (before - after).double().sum(dim=0)}

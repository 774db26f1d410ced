"""Do synthetic samples give away training records? Distances to training records against those of held-out ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgen.evaluation.features import Records, Space
from fedgen.models.seeds import seeded

NEAR = 0.5  # of the median distance of a held-out record to its closest training record
MOST_DRAWS = 8


@dataclass(frozen=True)
class Site:
    """What one node trained on, what it never saw of the same classes, and what it generated."""

    train: Records
    held_out: Records
    synthetic: Records


@dataclass(frozen=True)
class Privacy:
    """How much synthetic samples give away.

    Attributes
    ----------
    distance_ratio : float
        Median distance of a synthetic sample to its closest training record, over that of held-out records. Below 1,
        samples are closer to training records than another recording is.
    near_copies : float
        Share of samples closer than half the median distance of held-out records.
    near_copies_held_out : float
        Share of held-out records closer than that: what chance gives.
    membership_auc : float
        Chance that a training record is closer to its nearest sample than a held-out one is: 0.5 tells nothing.
    membership_error : float
        Its standard error. Clips of one recording are alike, so the true one is somewhat larger.
    membership_reference : float or None
        The AUC if real clips of another group were handed out as samples: what the choice of held-out clips does.
    train, held_out, synthetic : int
        Records compared.
    """

    distance_ratio: float
    near_copies: float
    near_copies_held_out: float
    membership_auc: float
    membership_error: float
    membership_reference: float | None
    train: int
    held_out: int
    synthetic: int


@dataclass(frozen=True)
class PrivacyReport:
    """`Privacy` overall, of each class id, and of each node that has anything to compare."""

    overall: Privacy
    classes: dict[int, Privacy]
    sites: dict[int, Privacy]


@dataclass(frozen=True)
class Stratum:
    """The records of one class on one site, as features ``(N, F)``; ``groups`` are those of the training records."""

    site: int
    label: int
    train: Tensor
    held_out: Tensor
    synthetic: Tensor
    groups: Tensor | None


@dataclass(frozen=True)
class Evidence:
    """What one draw of training records says of one stratum.

    Attributes
    ----------
    ratios, held_out_ratios : Tensor
        Distance to the closest training record, of each sample and of each held-out record, over the latter's median.
    auc, reference : float
        Membership AUC of the samples, and of real clips in their place (nan if there are no groups).
    variances : tuple[float, float]
        What the choice of training and of held-out records adds to the AUC's squared error.
    """

    ratios: Tensor
    held_out_ratios: Tensor
    auc: float
    reference: float
    variances: tuple[float, float]


def measure_privacy(sites: Mapping[int, Site], seed: int) -> PrivacyReport | None:
    """Measure every class of every site by itself, and put the figures together.

    Distances are taken in a `Space` that is fitted to as many training as held-out records of each class; training
    records are dealt over several draws, so that each has its turn. Classes without samples, or with fewer than two
    training or held-out records, say nothing; None if no class is left.

    Parameters
    ----------
    sites : Mapping[int, Site]
        By the node's number.
    seed : int
        Of the deal.

    References
    ----------
    Meehan et al., "A non-parametric test to detect data-copying in generative models", AISTATS 2020 (distances of
    samples against those of held-out records); Carlini et al., "Extracting training data from diffusion models", USENIX
    Security 2023 (a copy is near relative to what is usual); Chen et al., "GAN-Leaks", CCS 2020 (the distance to the
    nearest sample tells members).
    """
    strata = [stratum for number, site in sites.items() for stratum in _strata(number, site)]
    if not strata:
        return None
    deals = [_deal(stratum, seed) for stratum in strata]
    evidence: list[list[Evidence]] = [[] for _ in strata]
    for draw in range(min(MOST_DRAWS, max(map(len, deals)))):
        chosen = [deal[draw % len(deal)] for deal in deals]
        space = _balanced_space(strata, chosen)
        for found, stratum, rows in zip(evidence, strata, chosen, strict=True):
            found.append(_evidence(stratum, rows, space))
    everything = list(zip(strata, evidence, strict=True))

    def summary(site: int | None = None, label: int | None = None) -> Privacy:
        return _summary([(s, e) for s, e in everything if site in (None, s.site) and label in (None, s.label)])

    labels, numbers = (sorted({getattr(s, name) for s in strata}) for name in ("label", "site"))
    return PrivacyReport(
        summary(), {label: summary(label=label) for label in labels}, {n: summary(site=n) for n in numbers}
    )


def _strata(number: int, site: Site) -> list[Stratum]:
    found = []
    for label in site.synthetic.labels.unique().tolist():
        train, held_out, synthetic = (r.at(r.labels == label) for r in (site.train, site.held_out, site.synthetic))
        if min(len(train), len(held_out)) >= 2:
            found.append(Stratum(number, label, train.flat, held_out.flat, synthetic.flat, train.groups))
    return found


def _deal(stratum: Stratum, seed: int) -> list[Tensor]:
    """Return draws of training records, each as large as the held-out set, or of all if there are no more."""
    generator = seeded(seed, "privacy", stratum.site, stratum.label)
    order = torch.randperm(len(stratum.train), generator=generator)
    size = min(len(stratum.train), len(stratum.held_out))
    count = -(-len(order) // size)
    return [order.roll(-size * draw)[:size] for draw in range(count)]  # the last may begin anew


def _balanced_space(strata: list[Stratum], chosen: list[Tensor]) -> Space:
    features, numbers = [], []
    for number, (stratum, rows) in enumerate(zip(strata, chosen, strict=True)):
        features += [stratum.train[rows], stratum.held_out[: len(rows)]]
        numbers += [number] * 2 * len(rows)
    return Space.fit(torch.cat(features), torch.tensor(numbers))


def _evidence(stratum: Stratum, rows: Tensor, space: Space) -> Evidence:
    train, held_out, synthetic = (space.project(x) for x in (stratum.train, stratum.held_out, stratum.synthetic))
    usual = nearest(held_out, train)
    scale = usual.median().clamp(min=torch.finfo(usual.dtype).tiny)
    auc, variances = membership(nearest(train[rows], synthetic), nearest(held_out, synthetic))
    reference = float("nan")
    if stratum.groups is not None:
        reference = _reference(train, rows, held_out, stratum.groups)
    return Evidence(nearest(synthetic, train) / scale, usual / scale, auc, reference, variances)


def _reference(train: Tensor, rows: Tensor, held_out: Tensor, groups: Tensor) -> float:
    """Return the mean AUC of the drawn records of all groups but one, whose clips stand in for samples."""
    found = []
    for group in groups.unique():
        members, others = train[groups == group], rows[groups[rows] != group]
        if len(others):
            found.append(membership(nearest(train[others], members), nearest(held_out, members))[0])
    return sum(found) / len(found) if found else float("nan")


def nearest(records: Tensor, others: Tensor) -> Tensor:
    """Return the distance of each of ``records`` ``(N, m)`` to the closest of ``others`` ``(M, m)``: ``(N,)``."""
    parts = [torch.cdist(part, others, compute_mode="donot_use_mm_for_euclid_dist") for part in records.split(1024)]
    return torch.cat(parts).min(dim=1).values


def membership(members: Tensor, others: Tensor) -> tuple[float, tuple[float, float]]:
    """Return the chance that a member's distance is the smaller one, and what either side adds to its squared error.

    References
    ----------
    DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two or more correlated ROC curves", Biometrics 1988.
    """
    wins = (members[:, None] < others).double() + 0.5 * (members[:, None] == others)  # (N, M)
    sides = wins.mean(dim=1), wins.mean(dim=0)
    first, second = (float(side.var()) / len(side) if len(side) > 1 else 1 / 12 for side in sides)
    return float(wins.mean()), (first, second)


def _summary(found: list[tuple[Stratum, list[Evidence]]]) -> Privacy:
    """Put strata together; each counts for the AUC by the pairs that it compares."""
    ratios = torch.cat([e.ratios for _, draws in found for e in draws])
    usual = torch.cat([e.held_out_ratios for _, draws in found for e in draws])
    pairs = torch.tensor([len(s.train) * len(s.held_out) for s, _ in found], dtype=torch.float64)
    weights = pairs / pairs.sum()
    aucs = torch.tensor(
        [[_average([e.auc for e in draws]), _average([e.reference for e in draws])] for _, draws in found]
    )
    variances = torch.tensor([_variance(draws) for _, draws in found], dtype=torch.float64)
    auc, reference = (weights @ aucs.double()).tolist()
    return Privacy(
        distance_ratio=float(ratios.median()),
        near_copies=float((ratios < NEAR).double().mean()),
        near_copies_held_out=float((usual < NEAR).double().mean()),
        membership_auc=auc,
        membership_error=float((weights.square() @ variances).sqrt()),
        membership_reference=None if reference != reference else reference,
        train=sum(len(s.train) for s, _ in found),
        held_out=sum(len(s.held_out) for s, _ in found),
        synthetic=sum(len(s.synthetic) for s, _ in found),
    )


def _average(values: list[float]) -> float:
    return sum(values) / len(values)


def _variance(draws: list[Evidence]) -> float:
    """Return the squared error of the mean AUC: draws have other training records, but the same held-out ones."""
    return _average([e.variances[0] for e in draws]) / len(draws) + _average([e.variances[1] for e in draws])

"""Figures of one attack: AUC with an error that holds for few clips, true positives, a bound on epsilon."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

DRAWS = 5_000
TOPS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 0.9)  # shares of clips that are called members


@dataclass(frozen=True)
class Figures:
    """How well an attack tells members from controls."""

    auc: float  # chance that a member scores above a control of its node and class: 0.5 tells nothing
    # standard error: that of DeLong et al. 1988 by recording, or that of drawing members at random if larger
    error: float
    tpr_1: float  # share of members found at 1 % false positives; with fewer controls than that, at none
    tpr_01: float  # the same at 0.1 %
    epsilon: float  # lower bound, at 95 % confidence, on the epsilon of any differential privacy of the release
    members: int  # clips compared
    controls: int


@dataclass(frozen=True)
class Stratum:
    """Scores of one attack for one class on one node."""

    node: int
    label: int
    rows: Tensor  # candidates (n,)
    members: Tensor  # whether each was trained on (n,), bool
    scores: Tensor  # standardised over the rows, blind to membership (n,)
    auc: float
    pairs: int  # members times controls
    influence: Tensor  # estimated contribution of each clip to the error of the AUC (n,)
    chance: Tensor  # the same by the draw of members alone (n,)

    @classmethod
    def of(cls, node: int, label: int, rows: Tensor, scores: Tensor, members: Tensor) -> Stratum:
        """Compare ``scores`` ``(n,)`` of members with those of controls; at least one of each."""
        everyone = (scores[:, None] > scores).double() + 0.5 * (scores[:, None] == scores)  # (n, n)
        wins = everyone[members][:, ~members]  # (m, c)
        auc = float(wins.mean())
        influence = torch.zeros(len(scores), dtype=torch.float64)
        influence[members] = _centred(wins.mean(dim=1), auc)
        influence[~members] = -_centred(wins.mean(dim=0), auc)
        ranks, pairs = everyone.sum(dim=1), wins.numel()
        chance = (ranks - ranks.mean()) / math.sqrt(pairs * len(scores) * (len(scores) - 1))
        spread = scores.std(correction=0).clamp(min=1e-300)
        return cls(node, label, rows, members, (scores - scores.mean()) / spread, auc, pairs, influence, chance)


def _centred(placements: Tensor, auc: float) -> Tensor:
    """Return deviations ``(n,)`` whose squares sum to the variance of the mean of ``placements``."""
    count = len(placements)
    if count == 1:
        return torch.full((1,), math.sqrt(1 / 12), dtype=torch.float64)
    return (placements - auc) / math.sqrt(count * (count - 1))


def summed(strata: Sequence[Stratum], recordings: Tensor, name: str) -> Tensor:
    """Return ``influence`` or ``chance`` of all strata, weighted by pairs, summed by recording ``(R,)``."""
    total = sum(s.pairs for s in strata)
    found = torch.zeros(int(recordings.max()) + 1, dtype=torch.float64)
    for stratum in strata:
        found.index_add_(0, recordings[stratum.rows], getattr(stratum, name) * (stratum.pairs / total))
    return found


def figures(strata: Sequence[Stratum], recordings: Tensor, delta: float) -> Figures:
    """Return the figures of one attack over ``strata`` (at least one), weighted by their pairs in the AUC.

    ``recordings`` ``(N,)`` of all candidates count from 0: clips of one are drawn together, and count as one in the
    error. ``delta`` belongs to the bound on epsilon.

    References
    ----------
    DeLong, DeLong and Clarke-Pearson, Biometrics 1988; Obuchowski, Biometrics 1997 (clustered data).
    """
    total = sum(s.pairs for s in strata)
    variance = max(float(summed(strata, recordings, name).square().sum()) for name in ("influence", "chance"))
    scores, members = (torch.cat([getattr(s, name) for s in strata]).numpy() for name in ("scores", "members"))
    high, low = scores[members], scores[~members]
    auc = sum(s.auc * s.pairs for s in strata) / total
    rates = true_positives(high, low, 0.01), true_positives(high, low, 0.001)
    return Figures(auc, math.sqrt(variance), *rates, epsilon_bound(high, low, delta), len(high), len(low))


def true_positives(members: np.ndarray, controls: np.ndarray, rate: float) -> float:
    """Return the share of ``members`` ``(m,)`` above all but the share ``rate`` of ``controls`` ``(c,)``."""
    allowed = math.floor(rate * len(controls) + 1e-9)
    return 1.0 if allowed >= len(controls) else float((members > np.sort(controls)[::-1][allowed]).mean())


def epsilon_bound(members: np.ndarray, controls: np.ndarray, delta: float = 1e-5, level: float = 0.05) -> float:
    """Return a lower bound on epsilon, at confidence 1 - ``level``, from scores ``(m,)`` and ``(c,)``.

    Differential privacy limits every test: ``TPR <= exp(epsilon) FPR + delta``, and the same of the shares called
    controls. Thresholds are blind to membership; rates get Clopper-Pearson limits that hold for all thresholds, both
    rates and both directions at once. Rates are taken as of independent clips.

    References
    ----------
    Jagielski, Ullman and Oprea, "Auditing differentially private machine learning", NeurIPS 2020; Nasr et al.,
    "Tight auditing of differentially private machine learning", USENIX Security 2023.
    """
    everyone = np.sort(np.concatenate([members, controls]))[::-1]
    places = np.minimum((np.array(TOPS) * len(everyone)).astype(int), len(everyone) - 1)
    cuts = np.unique(everyone[places])
    each = level / (4 * len(cuts))  # two rates and two directions
    best = 0.0
    for calls in (
        (members > cuts[:, None], controls > cuts[:, None]),
        (controls <= cuts[:, None], members <= cuts[:, None]),
    ):
        (hits, right), (false, wrong) = ((call.sum(axis=1), call.shape[1]) for call in calls)
        from scipy.special import betaincinv  # takes a second to import

        lower = np.where(hits > 0, betaincinv(np.maximum(hits, 1), right - hits + 1, each), 0.0)
        upper = np.where(false < wrong, betaincinv(false + 1, np.maximum(wrong - false, 1), 1 - each), 1.0)
        best = max(best, float(np.log(np.maximum((lower - delta) / upper, 1.0)).max()))
    return best


def effective_tests(errors: Sequence[Tensor], seed: int = 0) -> float:
    """Return the number of independent tests whose largest behaves as that of these correlated ones, at 5 %.

    ``errors`` ``(R,)`` are each recording's contributions to the error of each AUC by the draw of members alone.

    References
    ----------
    Westfall and Young, "Resampling-based multiple testing", 1993 (single-step maximum).
    """
    rows = torch.stack([error / error.norm().clamp(min=1e-300) for error in errors])  # (T, R)
    alike = rows @ rows.T
    values, vectors = torch.linalg.eigh(alike)
    root = vectors * values.clamp(min=0).sqrt()
    normal = torch.randn(DRAWS, len(rows), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    highest = float((normal @ root.T).max(dim=1).values.quantile(0.95))
    return max(1.0, math.log(0.95) / math.log(NormalDist().cdf(highest)))

"""Figures: errors that hold, bounds on epsilon that hold and are not trivial, counts of correlated tests."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from fedgen.privacy.evidence import Candidates
from fedgen.privacy.figures import effective_tests, epsilon_bound, true_positives
from fedgen.privacy.result import measure


def candidates(members: torch.Tensor, strata: int, recordings: torch.Tensor | None = None) -> Candidates:
    labels = torch.arange(strata).repeat_interleave(len(members) // strata)
    return Candidates(torch.zeros(len(members), 2), labels, labels // 3, members, recordings)


def drawn(rng: np.random.RandomState, clips: int, strata: int, shift: float) -> tuple[torch.Tensor, torch.Tensor]:
    members = torch.from_numpy(np.tile(np.arange(2 * clips) < clips, strata))
    offsets = np.repeat(100 * rng.randn(strata), 2 * clips)  # strata differ: only comparisons within them count
    return torch.from_numpy(rng.randn(len(members)) + shift * members.numpy() + offsets), members


def test_auc_is_that_of_each_stratum() -> None:
    scores, members = drawn(np.random.RandomState(0), 17, 9, 1.0)
    report = measure({"x": scores}, candidates(members, 9))
    assert report is not None
    each = [roc_auc_score(m, s) for m, s in zip(members.chunk(9), scores.chunk(9), strict=True)]
    assert report.attacks[0].overall.auc == pytest.approx(np.mean(each))
    assert report.attacks[0].classes[4].auc == pytest.approx(each[4])


@pytest.mark.parametrize(("clips", "shift", "truth"), [(17, 0.0, 0.5), (17, 1.0, 0.7602), (4, 0.0, 0.5)])
def test_errors_hold(clips: int, shift: float, truth: float) -> None:
    rng, found = np.random.RandomState(1), []
    for _ in range(200):
        scores, members = drawn(rng, clips, 3, shift)
        report = measure({"x": scores}, candidates(members, 3))
        assert report is not None
        found.append((report.attacks[0].overall.auc - truth) / report.attacks[0].overall.error)
    assert np.mean(found) == pytest.approx(0, abs=0.25)
    assert 0.75 < np.std(found) < 1.15  # errors are never below those of a random draw


def test_clips_of_one_recording_count_as_one() -> None:
    """Four copies of each clip: the error stays that of the clips."""
    rng, found = np.random.RandomState(2), []
    for _ in range(200):
        scores, members = drawn(rng, 15, 1, 0.0)
        recordings = torch.arange(30).repeat_interleave(4)
        copied = candidates(members.repeat_interleave(4), 1, recordings)
        report = measure({"x": scores.repeat_interleave(4)}, copied)
        assert report is not None
        found.append((report.attacks[0].overall.auc - 0.5) / report.attacks[0].overall.error)
    assert 0.8 < np.std(found) < 1.15


def test_true_positives_with_fewer_controls_than_the_rate_asks_for() -> None:
    assert true_positives(np.array([3.0, 5.0]), np.array([1.0, 4.0]), 0.01) == 0.5
    assert true_positives(np.array([3.0, 5.0]), np.array([1.0, 4.0]), 0.5) == 1.0
    assert true_positives(np.array([2.0, 2.0]), np.array([2.0, 2.0]), 0.01) == 0.0


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon of mu-GDP at delta (Balle and Wang 2018; Dong et al. 2022)."""

    def cdf(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    low, high = 0.0, 50.0
    for _ in range(80):
        middle = (low + high) / 2
        spent = cdf(-middle / mu + mu / 2) - math.exp(middle) * cdf(-middle / mu - mu / 2)
        low, high = (middle, high) if spent > delta else (low, middle)
    return high


@pytest.mark.parametrize("mu", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("clips", [50, 2000])
def test_epsilon_is_not_above_that_of_a_gaussian_mechanism(mu: float, clips: int) -> None:
    rng, truth = np.random.RandomState(3), gaussian_epsilon(mu, 1e-3)
    bounds = np.array([epsilon_bound(rng.randn(clips) + mu, rng.randn(clips), 1e-3) for _ in range(200)])
    assert (bounds > truth).mean() <= 0.05
    assert (bounds >= 0).all()
    assert clips == 50 or bounds.mean() > 0.15 * truth


def test_epsilon_of_randomised_response() -> None:
    """Here one threshold shows all of epsilon, so a bound without confidence would often be above it."""
    rng, share = np.random.RandomState(6), 1 / (1 + math.exp(-1))
    bounds = np.array(
        [epsilon_bound(1.0 * (rng.rand(1000) < share), 1.0 * (rng.rand(1000) > share), 0.0) for _ in range(200)]
    )
    assert (bounds > 1).mean() <= 0.05
    assert bounds.mean() > 0.6


def test_epsilon_of_one_noisy_mean_of_all_members() -> None:
    """One run, every clip a canary: the mean of clipped clips with noise, and the best linear attack on it."""
    rng, above = np.random.RandomState(4), []
    clips, mu = 50, 2.0
    for _ in range(200):
        vectors = rng.randn(2 * clips, 400)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        sent = vectors[:clips].sum(axis=0) + rng.randn(400) / mu
        scores = vectors @ sent
        above.append(epsilon_bound(scores[:clips], scores[clips:], 1e-3) > gaussian_epsilon(mu, 1e-3))
    assert np.mean(above) <= 0.05


def test_epsilon_of_a_blatant_leak_and_of_none() -> None:
    rng = np.random.RandomState(5)
    assert epsilon_bound(rng.randn(150) + 10, rng.randn(150)) > 2.5
    assert epsilon_bound(rng.randn(15) + 10, rng.randn(15)) > 0.2
    nothing = [epsilon_bound(rng.randn(150), rng.randn(150)) for _ in range(200)]
    assert np.mean(np.array(nothing) > 0) <= 0.05


def test_effective_tests() -> None:
    generator = torch.Generator().manual_seed(0)
    errors = list(torch.randn(10, 5000, generator=generator, dtype=torch.float64))
    assert effective_tests(errors) == pytest.approx(10, rel=0.25)
    assert effective_tests(errors[:1] * 10) == pytest.approx(1, rel=0.25)

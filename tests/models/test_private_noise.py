"""The promise of a private release, from outside: what a clip changes, what hides it, and what is said of both.

Each test is made to fail by a defect that leaves the reported epsilon as it is. Seeds are fixed; the limits of the
statistical ones are five standard errors or more away.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module

import numpy as np
import pytest
import torch
from torch import Tensor

from fedgen.data.tokens import TensorTokens
from fedgen.models.bases import CodecSettings
from fedgen.models.lengths import Lengths
from fedgen.models.privacy import PrivacySettings, Spent, release
from fedgen.models.privacy.accountant import Mechanism, calibrate, compose, epsilon
from fedgen.models.privacy.mechanisms import Noise
from fedgen.models.privacy.release import affordable, composed, measured, private_means, private_widths, whitening
from fedgen.models.public import PublicSpace

accounting = pytest.importorskip("dp_accounting")
stats = pytest.importorskip("scipy.stats")

SIZE = 6
DELTA = 1e-3
DP = PrivacySettings("dp", epsilon=30.0, delta=DELTA, components=SIZE, clip=2.0, widths=0.3)
COUNTS = torch.tensor([30, 25, 35])
SEEDS = 200
BOUND = DP.clip * SIZE**0.5
QUIET = Mechanism("means", BOUND, 1e-6, 2.0), Mechanism("widths", BOUND**2, 1e-6, 1.0)
TRIALS = 50_000


@pytest.fixture(scope="module")
def source() -> TensorTokens:
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(3).repeat_interleave(COUNTS)
    basis = torch.randn(SIZE, 20 * 12, generator=generator)
    latents = torch.randn(3, SIZE, generator=generator)[labels] + torch.randn(len(labels), SIZE, generator=generator)
    return TensorTokens((latents @ basis).view(-1, 20, 12), labels)


@pytest.fixture(scope="module")
def space(source: TensorTokens) -> PublicSpace:
    return PublicSpace.of(source, CodecSettings(channels=4, positions=5, components=SIZE), Lengths())


def read(source: TensorTokens, space: PublicSpace, settings: PrivacySettings, seed: int) -> tuple[Tensor, Tensor]:
    """Return the whitened means ``(C, k)`` and the widths ``(C,)`` that a release tells."""
    density = release(source, space, settings, seed).density
    size = settings.components or SIZE
    widths = (
        density.factors.double().diagonal(dim1=1, dim2=2).sum(dim=1) / whitening(space.within)[1].trace()
    ).square()
    return density.means[:, :size].double() @ whitening(space.within[:size, :size])[0], widths


def with_clip(source: TensorTokens, value: float | Tensor) -> TensorTokens:
    """Return the same clips but for the first."""
    tokens = source.tokens.clone()
    tokens[0] = value
    return TensorTokens(tokens, source.labels)


@pytest.mark.parametrize("size", [2, SIZE])  # torch draws fewer than 16 numbers in another way
def test_all_noise_is_there_as_reported_and_none_is_used_twice(
    size: int, source: TensorTokens, space: PublicSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(DP, components=size)
    monkeypatch.setattr(import_module("fedgen.models.privacy.release"), "calibrate", cache(calibrate))  # in less time
    monkeypatch.setattr("fedgen.models.privacy.accountant.epsilon", cache(epsilon))
    means, widths = zip(*(read(source, space, settings, seed) for seed in range(SEEDS)), strict=True)
    of_means, of_widths = release(source, space, settings, 0).spent.mechanisms
    scaled = torch.stack(means) * COUNTS[:, None] / (of_means.multiplier * of_means.sensitivity)  # (SEEDS, C, size)
    squares = torch.stack(widths) * COUNTS * size / (of_widths.multiplier * of_widths.sensitivity)
    torch.testing.assert_close(scaled.std(dim=0).mean(dim=1), torch.ones(3).double(), atol=0.1, rtol=0)
    torch.testing.assert_close(squares.std(dim=0), torch.ones(3).double(), atol=0.2, rtol=0)
    drawn = torch.cat([scaled.flatten(1), squares], dim=1)  # (SEEDS, C * size + C)
    correlations = drawn.T.corrcoef() - torch.eye(drawn.shape[1])
    assert correlations.abs().max() < 0.35  # five standard errors


def test_an_outlier_changes_a_release_by_its_sensitivities_at_most(source: TensorTokens, space: PublicSpace) -> None:
    """With the same noise; a clip that is not finite counts as none."""
    without = read(with_clip(source, torch.nan), space, DP, seed=1)
    mechanisms = release(source, space, DP, 1).spent.mechanisms
    reached = []
    for outlier in (1e12 * source.tokens[0], -1e12 * source.tokens[40], 1e12 * source.tokens[70]):
        means, widths = read(with_clip(source, outlier), space, DP, seed=1)
        moved = (means - without[0]).norm(dim=1) * COUNTS
        assert (moved[1:] < 1e-4).all()
        assert (widths - without[1])[1:].abs().max() < 0.01  # by the shrinkage alone, which is no secret
        assert (widths < DP.clip**2 * 1.1).all()  # that of clips at the bound
        reached.append(float(moved[0]) / mechanisms[0].sensitivity)
    assert max(reached) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("far", [0.1, 1.0, 1e3, 1e200, torch.inf, torch.nan])
def test_one_distance_changes_the_sum_of_squares_by_the_sensitivity_at_most(far: float) -> None:
    vectors = 0.5 * torch.randn(20, SIZE, generator=torch.Generator().manual_seed(0)).double()
    rows, counts = torch.zeros(20, dtype=torch.long), torch.tensor([20])

    def total(first: float) -> float:
        changed = torch.cat([torch.full((1, SIZE), first, dtype=torch.float64), vectors[1:]])
        return float(private_widths(changed, rows, counts, QUIET, Noise(1))) * 20 * SIZE

    moved = total(far) - total(0.0)
    assert -1e-3 <= moved <= QUIET[1].sensitivity * (1 + 1e-3)
    if 1e2 < far < torch.inf:
        assert moved == pytest.approx(QUIET[1].sensitivity, rel=1e-2)


def test_each_clip_is_shortened_before_the_sum() -> None:
    """In the mean, then: clips at the bound on one side are at the bound, and one far clip is one clip."""
    vectors = torch.zeros(10, SIZE).double()
    vectors[:, 0] = torch.tensor([1e9] * 4 + [0.5] * 6)
    found = private_means(vectors, torch.zeros(10, dtype=torch.long), torch.tensor([10]), QUIET[0], Noise(1))
    assert float(found[0, 0]) == pytest.approx((4 * BOUND + 6 * 0.5) / 10, rel=1e-3)


def test_without_noise_it_tells_means_and_widths(source: TensorTokens, space: PublicSpace) -> None:
    means, widths = read(source, space, replace(DP, epsilon=1e6, clip=5.0), seed=1)
    latents = space.codec.encode_all(source).double() @ whitening(space.within)[0]
    for label in range(3):
        own = latents[source.labels == label]
        torch.testing.assert_close(means[label], own.mean(dim=0), atol=1e-2, rtol=0)
        expected = float((own - own.mean(dim=0)).square().mean())
        assert float(widths[label]) == pytest.approx(expected, rel=0.03)


def test_coefficients_that_are_not_read_are_those_of_public_sounds(source: TensorTokens, space: PublicSpace) -> None:
    found = release(source, space, replace(DP, components=2), seed=1)
    assert (found.density.means[:, :2] != 0).all()
    assert (found.density.means[:, 2:] == 0).all()
    assert found.spent.mechanisms[0].sensitivity == pytest.approx(DP.clip * 2**0.5)


def test_the_budget_decides_how_many_coefficients_are_read() -> None:
    found = [
        affordable(PrivacySettings("dp", epsilon=e, delta=DELTA), torch.full((3,), count))
        for e, count in ((1.0, 32), (3.0, 32), (8.0, 32), (1.0, 320))
    ]
    assert found == [11, 72, 340, 1182]


def test_widths_give_way_to_what_is_usual_as_noise_grows() -> None:
    vectors = 3 * torch.randn(200, SIZE, generator=torch.Generator().manual_seed(0)).double()
    rows, counts = torch.arange(200) % 2, torch.tensor([100, 100])
    settings = replace(DP, clip=5.0)
    found = [
        private_widths(vectors, rows, counts, composed(replace(settings, epsilon=e), SIZE), Noise(1)).mean()
        for e in (1e4, 1e-4)
    ]
    assert found[0] == pytest.approx(9.0, rel=0.1)
    assert found[1] == pytest.approx(1.0, abs=0.1)


def test_noise_without_a_seed_follows_no_generator_that_can_be_set() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        drawn.append(Noise().draw(500))
    assert (drawn[0] != drawn[1]).all()
    assert drawn[0].std() == pytest.approx(1.0, abs=0.2)
    assert (Noise(4).draw(5) == Noise(4).draw(5)).all()
    assert (Noise(4).draw(5) != Noise(5).draw(5)).all()


def delta_of(mu: float, spent: float) -> float:
    """Balle and Wang 2018, equation 6, with ``mu`` the sensitivity over the deviation."""
    below = stats.norm.cdf
    return float(below(mu / 2 - spent / mu) - np.exp(spent) * below(-mu / 2 - spent / mu))


@pytest.mark.parametrize(("budget", "golden"), [(1.0, 2.574), (3.0, 1.037), (8.0, 0.480)])
def test_a_budget_is_spent_and_no_more_by_every_accountant(
    budget: float, golden: float, source: TensorTokens, space: PublicSpace
) -> None:
    settings = replace(DP, epsilon=budget)
    spent = release(source, space, settings, seed=1).spent
    multipliers = [mechanism.multiplier for mechanism in spent.mechanisms]
    assert compose(multipliers) == pytest.approx(golden, abs=1e-3)
    assert (spent.epsilon, spent.delta, spent.clips) == (pytest.approx(budget, rel=1e-6), DELTA, 90)
    assert delta_of(1 / compose(multipliers), spent.epsilon) == pytest.approx(DELTA, rel=1e-4)
    assert _by(accounting.pld.PLDAccountant(), multipliers) == pytest.approx(budget, rel=2e-3)
    assert budget <= _by(accounting.rdp.RdpAccountant(), multipliers) < 1.5 * budget  # an upper bound
    for mechanism in spent.mechanisms:
        assert delta_of(1 / mechanism.multiplier, spent.epsilon_of[mechanism.name]) == pytest.approx(DELTA, rel=1e-4)
    assert Spent.from_facts(spent.facts()) == spent


def _by(accountant: object, multipliers: Sequence[float]) -> float:
    events = [accounting.GaussianDpEvent(multiplier) for multiplier in multipliers]
    accountant.compose(accounting.ComposedDpEvent(events))  # type: ignore[attr-defined]
    return float(accountant.get_epsilon(DELTA))  # type: ignore[attr-defined]


def test_replacing_a_clip_changes_means_by_twice_the_bound_and_widths_by_one() -> None:
    spent = Spent.on(composed(DP, SIZE), DELTA, 90)
    means, widths = spent.mechanisms
    mu = (4 / means.multiplier**2 + 1 / widths.multiplier**2) ** 0.5
    assert delta_of(mu, spent.epsilon_replaced) == pytest.approx(DELTA, rel=1e-4)


def test_what_is_reported_of_a_mechanism_is_what_the_settings_ask_for() -> None:
    means, widths = composed(DP, SIZE)
    assert (means.sensitivity, widths.sensitivity) == (BOUND, BOUND**2)
    assert means.multiplier**-2 + widths.multiplier**-2 == pytest.approx(calibrate(DP.budget) ** -2)
    assert widths.multiplier**-2 == pytest.approx(0.3 * calibrate(DP.budget) ** -2)
    assert epsilon(means.multiplier, DELTA) < DP.budget[0]


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_an_attack_finds_no_more_than_the_reported_epsilon(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best test there is, on releases with and without one clip far away; with half of the noise it finds more."""
    monkeypatch.setattr(import_module("fedgen.models.privacy.release"), "LEAST", -1e9)  # cut nothing of what is told
    mechanisms, draw = composed(replace(DP, epsilon=3.0), 2), Noise.draw
    monkeypatch.setattr(Noise, "draw", lambda self, *shape: scale * draw(self, *shape))
    without, used = (_evidence(far, mechanisms, seed) for seed, far in enumerate((0.0, 1e6)))
    limit = float(without[:TRIALS].quantile(0.998))  # of other releases than those that are counted
    alarms, hits = (int((values[TRIALS:] > limit).sum()) for values in (without, used))
    bound = _least_epsilon(alarms, hits, TRIALS)
    assert 1.0 < bound < 3.0 if scale == 1.0 else bound > 3.3


def _evidence(far: float, mechanisms: tuple[Mechanism, Mechanism], seed: int) -> Tensor:
    """Return the log of the likelihood ratio, up to constants, of releases of a class with one clip at ``far``."""
    rows = torch.arange(2 * TRIALS)  # as many classes at once, each a release of its own
    counts = torch.full((2 * TRIALS,), 1000)  # public; of so many that no mean is shortened and no width shrunk
    clips = torch.tensor([[far, 0.0]]).double().expand(2 * TRIALS, 2)
    means, widths = measured(clips, rows, counts, mechanisms, Noise(seed))
    sums = means[:, 0] * 1000, widths * 1000 * 2
    return sum((part / one.deviation / one.multiplier for part, one in zip(sums, mechanisms, strict=True)), rows * 0.0)


def _least_epsilon(alarms: int, hits: int, trials: int) -> float:
    """Return a lower bound on epsilon from false alarms and hits, each in ``trials``; wrong with odds of 1 in 5000."""
    most = stats.beta.ppf(1 - 1e-4, alarms + 1, trials - alarms)
    least = stats.beta.ppf(1e-4, hits, trials - hits + 1)
    return float(np.log(max(least - DELTA, 1e-12) / most))

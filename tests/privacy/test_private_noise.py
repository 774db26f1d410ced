"""The promise of a private release, from outside: what a clip changes, what hides it, and what is said of both.

Each test is made to fail by a defect that leaves the reported epsilon as it is. Seeds are fixed; the limits of the
statistical ones are five standard errors or more away.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from torch import Tensor

from fedgen.data.tokens import TensorTokens
from fedgen.models.public import PublicSpace
from fedgen.models.settings import CodecSettings, Lengths
from fedgen.privacy.accountant import Mechanism, Spent, calibrate, compose
from fedgen.privacy.mechanisms import Noise
from fedgen.privacy.release import (
    ALIKE,
    FARTHEST,
    SHAPES,
    WIDTHS,
    Plan,
    measured,
    private_means,
    private_shapes,
    private_widths,
    release,
    whitening,
)
from fedgen.privacy.settings import PrivacySettings

accounting = pytest.importorskip("dp_accounting")
stats = pytest.importorskip("scipy.stats")

MODULE = import_module("fedgen.privacy.release")  # the package has a function of that name
SIZE = 6
DELTA = 1e-3
DP = PrivacySettings("dp", epsilon=30.0, delta=DELTA, components=SIZE, clip=2.0)
COUNTS = torch.tensor([30, 25, 35])
SEEDS = 200
BOUND = DP.clip * SIZE**0.5
QUIET = Plan(
    Mechanism("means", BOUND, 1e-6, 2.0),
    Mechanism("widths", FARTHEST * 2**0.5, 1e-6, 2.0),
    Mechanism("shapes", 4.0, 1e-6, 2**0.5),
    SIZE,
    4,
)
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


def read(
    source: TensorTokens, space: PublicSpace, settings: PrivacySettings, seed: int, shaped: int = 0
) -> tuple[Tensor, Tensor]:
    """Return the whitened means ``(C, k)`` and covariances ``(C, k, k)`` that a release tells."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "FEWEST", shaped or SIZE + 1)
        patch.setattr(MODULE, "MOST", shaped or SIZE)
        density = release(source, space, settings, seed).density
    white = whitening(space.within)[0]
    factors = white @ density.factors.double()
    return density.means.double() @ white, factors @ factors.transpose(1, 2)


def with_clip(source: TensorTokens, value: float | Tensor) -> TensorTokens:
    """Return the same clips but for the first."""
    tokens = source.tokens.clone()
    tokens[0] = value
    return TensorTokens(tokens, source.labels)


def alike(count: int = 400) -> tuple[Tensor, Tensor, Tensor]:
    """Return standard normal vectors ``(3 * count, SIZE)`` of three classes, their rows, and the counts."""
    vectors = torch.randn(3 * count, SIZE, generator=torch.Generator().manual_seed(3)).double()
    return vectors, torch.arange(3).repeat_interleave(count), torch.full((3,), count)


def test_all_noise_is_there_as_planned_and_none_is_used_twice() -> None:
    plan, count = Plan.of(replace(DP, epsilon=3.0), SIZE, 4, 2), 400
    assert plan.shapes is not None
    found = [measured(*alike(count), plan, Noise(seed)) for seed in range(SEEDS)]
    means, covariances = (torch.stack(part) for part in zip(*found, strict=True))  # (SEEDS, C, k), (SEEDS, C, k, k)
    top = covariances[..., :4, :4].diagonal(dim1=2, dim2=3).mean(dim=2)  # a shape's trace is its size
    widths = torch.stack([top, covariances[..., 5, 5]], dim=2).log()
    shapes = covariances[..., :4, :4] / top[..., None, None]
    apart = torch.stack([shapes[..., i, j] for i in range(4) for j in range(i)], dim=2)
    drawn = []
    for values, mechanism, scale in (
        (means, plan.means, 1.0),
        (widths, plan.widths, 1.0),
        (apart, plan.shapes, 0.5**0.5),
    ):
        scaled = values * count / mechanism.deviation / scale
        shrunk = 1 + (mechanism.deviation / count / (ALIKE if mechanism is plan.shapes else 1e9)) ** 2
        expected = torch.ones(3, dtype=torch.float64) / (1.0 if mechanism is plan.means else shrunk)
        torch.testing.assert_close(scaled.std(dim=0).mean(dim=1), expected, atol=0.15, rtol=0)
        drawn.append(scaled.flatten(1))
    between = torch.stack([shapes[..., i, i] - shapes[..., i + 1, i + 1] for i in (0, 2)], dim=2)
    torch.testing.assert_close(
        (between * count / plan.shapes.deviation).std(dim=0).mean(), torch.tensor(2.0).sqrt().double(), atol=0.2, rtol=0
    )
    values = torch.cat(drawn, dim=1)
    correlations = values.T.corrcoef() - torch.eye(values.shape[1])
    assert correlations.abs().max() < 0.4  # five standard errors and more


def test_a_release_has_the_noise_that_it_reports(source: TensorTokens, space: PublicSpace) -> None:
    spent = release(source, space, DP, 0).spent
    means = torch.stack([read(source, space, DP, seed)[0] for seed in range(60)])
    scaled = means * COUNTS[:, None] / spent.mechanisms[0].deviation
    torch.testing.assert_close(scaled.std(dim=0).mean(dim=1), torch.ones(3).double(), atol=0.2, rtol=0)


def test_an_outlier_changes_a_release_by_its_sensitivities_at_most(source: TensorTokens, space: PublicSpace) -> None:
    """With the same noise; a clip that is not finite counts as none."""
    without = read(with_clip(source, torch.nan), space, DP, seed=1)
    means_of, widths_of = release(source, space, DP, 1).spent.mechanisms
    reached = []
    for outlier in (1e12 * source.tokens[0], -1e12 * source.tokens[40], 1e12 * source.tokens[70]):
        means, covariances = read(with_clip(source, outlier), space, DP, seed=1)
        moved = (means - without[0]).norm(dim=1) * COUNTS
        assert (moved[1:] < 1e-4).all()
        wider = (covariances / without[1]).diagonal(dim1=1, dim2=2).log() * COUNTS[:, None]
        assert wider[1:].abs().max() < 0.05 * widths_of.sensitivity  # by the shrinkage alone, which is no secret
        assert wider[0].abs().max() < 1.5 * widths_of.sensitivity  # also by the mean, which has moved
        reached.append(float(moved[0]) / means_of.sensitivity)
    assert max(reached) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("far", [0.0, 0.1, 1.0, 1e3, 1e200, torch.inf, torch.nan])
def test_one_distance_changes_the_sum_of_logarithms_by_the_sensitivity_at_most(far: float) -> None:
    vectors = 0.5 * torch.randn(20, SIZE, generator=torch.Generator().manual_seed(0)).double()
    rows, counts = torch.zeros(20, dtype=torch.long), torch.tensor([20])

    def total(first: float) -> Tensor:
        changed = torch.cat([torch.full((1, SIZE), first, dtype=torch.float64), vectors[1:]])
        return private_widths(changed, rows, counts, QUIET, Noise(1))[0].log() * 20

    moved = total(far) - total(torch.nan)
    assert moved.norm() <= QUIET.widths.sensitivity * (1 + 1e-3)
    if far == 0 or 1e2 < far < torch.inf:
        assert moved.norm() == pytest.approx(QUIET.widths.sensitivity, rel=1e-2)
        assert (moved > 0).all() == (far > 0)


@pytest.mark.parametrize("far", [1e-3, 1.0, 1e12])
def test_one_direction_changes_the_sum_of_shapes_by_the_sensitivity_at_most(far: float) -> None:
    vectors = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)).double()
    rows, counts = torch.zeros(60, dtype=torch.long), torch.tensor([60])
    assert QUIET.shapes is not None
    found = []
    for axis in (0, 1):  # two clips as unlike as can be
        vectors[0] = far * torch.eye(4)[axis]
        found.append(60 * private_shapes(vectors, rows, counts, QUIET.shapes, Noise(1))[0])
    moved = float((found[0] - found[1]).norm())
    assert moved == pytest.approx(QUIET.shapes.replacement * QUIET.shapes.sensitivity, rel=1e-3)


def test_each_clip_is_shortened_before_the_sum() -> None:
    """In the mean, then: clips at the bound on one side are at the bound, and one far clip is one clip."""
    vectors = torch.zeros(10, SIZE).double()
    vectors[:, 0] = torch.tensor([1e9] * 4 + [0.5] * 6)
    found = private_means(vectors, torch.zeros(10, dtype=torch.long), torch.tensor([10]), QUIET.means, Noise(1))
    assert float(found[0, 0]) == pytest.approx((4 * BOUND + 6 * 0.5) / 10, rel=1e-3)


@pytest.mark.parametrize("shaped", [0, 4, SIZE])
def test_without_noise_it_tells_means_widths_and_shapes(shaped: int, source: TensorTokens, space: PublicSpace) -> None:
    means, covariances = read(source, space, replace(DP, epsilon=1e7, clip=5.0), seed=1, shaped=shaped)
    latents = space.codec.encode_all(source).double() @ whitening(space.within)[0]
    for label in range(3):
        own = latents[source.labels == label]
        apart = own - own.mean(dim=0)
        torch.testing.assert_close(means[label], own.mean(dim=0), atol=1e-2, rtol=0)
        expected = torch.zeros(SIZE, SIZE).double()
        for part in (slice(0, shaped), slice(shaped, SIZE)):
            if part.start < part.stop:
                width = apart[:, part].square().mean(dim=1).log().clamp(-FARTHEST, FARTHEST).mean().exp()
                expected[part, part] = width * torch.eye(part.stop - part.start)
        if shaped:
            unit = apart[:, :shaped] / apart[:, :shaped].norm(dim=1, keepdim=True)
            expected[:shaped, :shaped] = expected[0, 0] * shaped * unit.T @ unit / len(unit)
        torch.testing.assert_close(covariances[label], expected, atol=2e-2, rtol=2e-2)


def test_coefficients_that_are_not_read_are_those_of_public_sounds(source: TensorTokens, space: PublicSpace) -> None:
    means, _ = read(source, space, replace(DP, components=2), seed=1)
    assert (means[:, :2].abs() > 1e-3).all()
    assert means[:, 2:].abs().max() < 1e-4
    found = release(source, space, replace(DP, components=2), seed=1)
    assert found.spent.mechanisms[0].sensitivity == pytest.approx(DP.clip * 2**0.5)


def test_the_budget_decides_how_many_coefficients_are_read() -> None:
    found = []
    for budget, count in ((1.0, 32), (3.0, 32), (8.0, 32), (1.0, 320)):
        settings = PrivacySettings("dp", epsilon=budget, delta=DELTA)
        plan = Plan.affordable(settings, torch.full((3,), count), 128)
        found.append((plan.size, plan.shaped))
        assert plan.mechanisms == Plan.of(settings, *found[-1], 2 if plan.shaped else 1).mechanisms
    assert found == [(18, 0), (45, 0), (74, 13), (128, 25)]


def test_widths_and_shapes_give_way_to_what_is_usual_as_noise_grows() -> None:
    vectors, rows, counts = alike(100)
    vectors = 2.0 * vectors * torch.tensor([2, 1, 1, 0.5, 1, 1])
    wide, usual = (
        measured(vectors, rows, counts, Plan.of(replace(DP, clip=5.0, epsilon=e), SIZE, 4, 2), Noise(1))[1].mean(dim=0)
        for e in (1e5, 1e-4)
    )
    assert float(wide[0, 0]) > 3 * float(wide[3, 3]) > 3
    torch.testing.assert_close(usual, torch.eye(SIZE).double(), atol=0.2, rtol=0)


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
    budget: float, golden: float, source: TensorTokens, space: PublicSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "FEWEST", 1)  # all three mechanisms, at every budget
    monkeypatch.setattr(MODULE, "IN_SHAPE", 100.0)
    settings = replace(DP, epsilon=budget)
    spent = release(source, space, settings, seed=1).spent
    assert [mechanism.name for mechanism in spent.mechanisms] == ["means", "widths", "shapes"]
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


def test_what_replacing_a_clip_changes_is_reported() -> None:
    plan = Plan.of(DP, SIZE, 4, 2)
    spent = Spent.on(plan.mechanisms, DELTA, 90)
    means, widths, shapes = spent.mechanisms
    mu = (4 / means.multiplier**2 + 4 / widths.multiplier**2 + 2 / shapes.multiplier**2) ** 0.5
    assert delta_of(mu, spent.epsilon_replaced) == pytest.approx(DELTA, rel=1e-4)


@pytest.mark.parametrize("shaped", [0, 4])
def test_what_is_reported_of_a_mechanism_is_what_the_settings_ask_for(shaped: int) -> None:
    plan = Plan.of(DP, SIZE, shaped, 2)
    whole = calibrate(DP.budget) ** -2
    assert plan.means.sensitivity == BOUND
    assert plan.widths.sensitivity == pytest.approx(FARTHEST * 2**0.5)
    assert plan.widths.multiplier**-2 == pytest.approx(WIDTHS * whole)
    assert sum(mechanism.multiplier**-2 for mechanism in plan.mechanisms) == pytest.approx(whole)
    assert (plan.shapes is None) == (shaped == 0)
    if plan.shapes is not None:
        assert plan.shapes.sensitivity == shaped
        assert plan.shapes.multiplier**-2 == pytest.approx(SHAPES * whole)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_an_attack_finds_no_more_than_the_reported_epsilon(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best test there is, on releases with and without one clip far away; with half of the noise it finds more."""
    plan, draw = Plan.of(replace(DP, epsilon=3.0), 2, 0, 1), Noise.draw
    monkeypatch.setattr(Noise, "draw", lambda self, *shape: scale * draw(self, *shape))
    without, used = (_evidence(far, plan, seed) for seed, far in enumerate((torch.nan, 1e6)))
    limit = float(without[:TRIALS].quantile(0.998))  # of other releases than those that are counted
    alarms, hits = (int((values[TRIALS:] > limit).sum()) for values in (without, used))
    bound = _least_epsilon(alarms, hits, TRIALS)
    assert 1.0 < bound < 3.0 if scale == 1.0 else bound > 3.3


def _evidence(far: float, plan: Plan, seed: int) -> Tensor:
    """Return the log of the likelihood ratio, up to constants, of releases of a class with one clip at ``far``."""
    count = 1000  # public; of so many that no mean is shortened and no width shrunk
    rows = torch.arange(2 * TRIALS)  # as many classes at once, each a release of its own
    clips = torch.tensor([[far, 0.0]]).double().expand(2 * TRIALS, 2)
    means, covariances = measured(clips, rows, torch.full((2 * TRIALS,), count), plan, Noise(seed))
    logs = (covariances[:, 0, 0] + (plan.means.deviation / count) ** 2).log()
    pairs = ((means[:, 0], plan.means), (logs, plan.widths))
    return sum((count * part / one.deviation / one.multiplier for part, one in pairs), rows * 0.0)


def _least_epsilon(alarms: int, hits: int, trials: int) -> float:
    """Return a lower bound on epsilon from false alarms and hits, each in ``trials``; wrong with odds of 1 in 5000."""
    most = stats.beta.ppf(1 - 1e-4, alarms + 1, trials - alarms)
    least = stats.beta.ppf(1e-4, hits, trials - hits + 1)
    return float(np.log(max(least - DELTA, 1e-12) / most))

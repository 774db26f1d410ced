"""The private release: what one clip can change, the noise on it, what that spends, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fedgen.data.tokens import TensorTokens
from fedgen.errors import ConfigError, DataError
from fedgen.models.bases import CodecSettings
from fedgen.models.generators import GeneratorSettings, open_generator
from fedgen.models.privacy import PrivacySettings, Release, Spent, release
from fedgen.models.privacy.accountant import Mechanism, calibrate, compose, epsilon
from fedgen.models.privacy.mechanisms import Noise, class_sums, clipped, energies
from fedgen.models.privacy.release import private_means, private_spreads
from fedgen.models.public import PublicSpace

pytest.importorskip("dp_accounting")

SHAPE = (20, 12)  # tokens of a sequence, values of a token
SETTINGS = GeneratorSettings()
DP = PrivacySettings("dp", epsilon=2.0, delta=1e-3, components=8)
CLOSE = replace(DP, epsilon=1e6, clip=10.0)  # hardly any noise, and nothing clipped
DRAWS = 400


def sounds(seed: int, counts: tuple[int, ...] = (30, 25, 35), distance: float = 2.0) -> TensorTokens:
    """Return clips of low rank around a mean for each class."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(SHAPE[0], 3, generator=torch.Generator().manual_seed(1))
    columns = torch.randn(3, SHAPE[1], generator=torch.Generator().manual_seed(2))
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    means = distance * torch.randn(len(counts), 3, 3, generator=generator)
    cores = means[labels] + torch.randn(len(labels), 3, 3, generator=generator)
    noise = 0.1 * torch.randn(len(labels), *SHAPE, generator=generator)
    return TensorTokens(rows @ cores @ columns + noise, labels)


@pytest.fixture(scope="module")
def space() -> PublicSpace:
    return PublicSpace.of(sounds(seed=7), CodecSettings(channels=4, positions=5, components=8))


def neighbours(kind: str) -> list[Tensor]:
    """Return clips' vectors ``(12, 6)`` with outliers of one kind among them."""
    vectors = torch.randn(12, 6, generator=torch.Generator().manual_seed(3)).double()
    outliers = {
        "usual": vectors[:4],
        "far": 1e9 * vectors[:4],
        "opposite": torch.stack([1e3 * vectors[4], -1e3 * vectors[4]]),
        "overflowing": torch.full((2, 6), 1e200, dtype=torch.float64),
        "not finite": torch.tensor([[math.nan] * 6, [math.inf] * 6, [-math.inf, *[0.0] * 5]]).double(),
        "nothing": torch.zeros(1, 6).double(),
    }[kind]
    return [torch.cat([outlier[None], vectors[1:]]) for outlier in outliers]


@pytest.mark.parametrize("kind", ["usual", "far", "opposite", "overflowing", "not finite", "nothing"])
@pytest.mark.parametrize("bound", [0.5, 3.0])
def test_no_clip_changes_a_sum_by_more_than_the_sensitivity(kind: str, bound: float) -> None:
    rows = torch.arange(12) % 3
    found = [clipped(vectors, bound) for vectors in neighbours(kind)]
    for vectors in found:
        assert vectors.isfinite().all()
        without = torch.cat([torch.zeros_like(vectors[:1]), vectors[1:]])
        moved = class_sums(vectors, rows, 3) - class_sums(without, rows, 3)
        assert moved.norm() <= bound * (1 + 1e-12)
        spreads = class_sums(energies(vectors, 4), rows, 3)
        assert (spreads - class_sums(energies(without, 4), rows, 3)).norm() <= bound**2 * (1 + 1e-12)
        for other in found:  # one clip replaced by another
            assert (class_sums(vectors, rows, 3) - class_sums(other, rows, 3)).norm() <= 2 * bound * (1 + 1e-12)
            changed = spreads - class_sums(energies(other, 4), rows, 3)
            assert changed.norm() <= 2**0.5 * bound**2 * (1 + 1e-12)


def test_the_bounds_are_reached() -> None:
    """Less noise than for these would be too little."""
    far = clipped(torch.tensor([[1e9, 0.0], [-1e9, 0.0], [0.0, 1e9]]), 2.0)
    rows = torch.zeros(1, dtype=torch.long)
    sums = [class_sums(vector[None], rows, 1) for vector in far]
    assert (sums[0] - sums[1]).norm() == pytest.approx(4.0)
    assert (energies(far[:1], 2) - energies(far[2:], 2)).norm() == pytest.approx(2**0.5 * 4.0)


def test_what_is_within_the_bound_stays() -> None:
    vectors = torch.tensor([[0.3, 0.4], [0.0, 0.0]]).double()
    torch.testing.assert_close(clipped(vectors, 0.5), vectors)


def test_a_release_reads_no_more_of_an_outlier_than_its_bound(space: PublicSpace) -> None:
    """End to end: with the same noise, releases of neighbours differ by what one clip may change."""
    source = sounds(seed=5)
    tokens = source.tokens.clone()
    tokens[0] = 1e12 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(8))
    with_outlier = release(TensorTokens(tokens, source.labels), space, DP, seed=1).density
    without = release(source, space, DP, seed=1).density
    bound = DP.clip * space.norm
    moved = (with_outlier.means - without.means).norm(dim=1)
    assert 0 < moved[0] <= 2 * bound / 30 + 1e-5
    assert moved[1:].max() == 0  # of the other classes nothing


def test_the_noise_has_the_calibrated_deviation() -> None:
    vectors, rows = torch.zeros(90, 4).double(), torch.arange(90) % 3
    mechanism = Mechanism("means", sensitivity=1e-3, multiplier=5.0, replacement=2.0)
    counts = torch.tensor([10, 30, 50])
    wide = replace(mechanism, sensitivity=1e6)
    drawn = torch.stack([Noise(seed).draw(3, 4) for seed in range(DRAWS)])
    assert drawn.std(dim=0).mean() == pytest.approx(1.0, abs=0.03)
    sums = torch.stack([private_means(vectors, rows, counts, mechanism, Noise(seed)) for seed in range(DRAWS)])
    longest = sums.norm(dim=2).max(dim=0).values
    assert (longest <= 1e-3 + 1e-12).all()  # no mean of clipped clips is longer
    noise = Noise(3)
    few = private_means(vectors, rows, counts * 10**3, wide, noise)  # so many that nothing is shortened
    expected = 5e6 * Noise(3).draw(3, 4) / (counts[:, None] * 10**3)
    torch.testing.assert_close(few, expected)


def test_widths_of_classes_give_way_to_their_mean_as_noise_grows() -> None:
    generator = torch.Generator().manual_seed(0)
    widths = torch.tensor([[1.0, 4.0, 1.0, 0.5], [9.0, 0.25, 2.0, 1.0]]).double()  # in four bands of two coefficients
    rows = torch.arange(8000) % 2
    usual = torch.tensor([2.0, 2.0, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0]).double()
    vectors = torch.randn(8000, 8, generator=generator).double() * usual.sqrt()
    vectors *= widths[rows].sqrt().repeat_interleave(2, dim=1)
    counts, quiet = torch.tensor([4000, 4000]), Mechanism("spreads", 100.0, 1e-3, 2**0.5)

    def found(mechanism: Mechanism, of: Tensor = vectors, blur: float = 0.0) -> Tensor:
        return private_spreads(of, rows, counts, usual.diag(), torch.full((2,), blur).double(), mechanism, Noise(1))

    torch.testing.assert_close(found(quiet), widths, atol=0, rtol=0.1)
    torch.testing.assert_close(found(quiet, vectors + 0.7, 0.49), widths, atol=0.1, rtol=0.1)
    torch.testing.assert_close(found(replace(quiet, multiplier=1e6)), torch.ones_like(widths), atol=0.05, rtol=0)
    assert found(replace(quiet, multiplier=300.0)).min() > 0


def test_noise_without_a_seed_is_never_the_same() -> None:
    first, second = Noise().draw(500), Noise().draw(500)
    assert (first != second).all()
    assert first.std() == pytest.approx(1.0, abs=0.15)
    assert (Noise(4).draw(5) == Noise(4).draw(5)).all()


def delta_of(mu: float, spent: float) -> float:
    """Balle and Wang 2018, equation 6, with ``mu`` the sensitivity over the deviation."""

    def below(value: float) -> float:
        return 0.5 * math.erfc(-value / 2**0.5)

    return below(mu / 2 - spent / mu) - math.exp(spent) * below(-mu / 2 - spent / mu)


@pytest.mark.parametrize("budget", [(0.1, 1e-5), (1.0, 1e-3), (8.0, 1e-3), (30.0, 1e-6)])
def test_epsilon_is_that_of_the_closed_form(budget: tuple[float, float]) -> None:
    multiplier = calibrate(budget)
    assert delta_of(1 / multiplier, budget[0]) == pytest.approx(budget[1], rel=1e-4)
    assert epsilon(multiplier, budget[1]) == pytest.approx(budget[0], rel=1e-6)
    assert epsilon(multiplier / 1.1, budget[1]) > 1.02 * budget[0]


def test_composition_adds_squares() -> None:
    assert compose([3.0]) == pytest.approx(3.0)
    assert compose([2.0, 2.0]) == pytest.approx(2.0 / 2**0.5)
    assert compose([1.0, 1e9]) == pytest.approx(1.0)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_release_spends_its_budget_and_no_more(space: PublicSpace, share: float) -> None:
    spent = release(sounds(seed=5), space, replace(DP, spreads=share), seed=1).spent
    assert (spent.epsilon, spent.delta) == (pytest.approx(2.0, rel=1e-6), 1e-3)
    assert list(spent.epsilon_of) == (["means", "spreads"] if share else ["means"])
    assert max(spent.epsilon_of.values()) <= 2.0 + 1e-6
    assert sum(spent.epsilon_of.values()) >= 2.0 - 1e-6
    assert spent.epsilon < spent.epsilon_replaced
    if not share:  # replacing a clip is leaving out with half the noise
        assert delta_of(2 / spent.mechanisms[0].multiplier, spent.epsilon_replaced) == pytest.approx(1e-3, rel=1e-4)
    assert spent.clips == 90
    assert Spent.from_facts(spent.facts()) == spent


def test_a_release_has_the_noise_that_it_reports(space: PublicSpace) -> None:
    settings = replace(DP, spreads=0.3, clip=2.0, epsilon=30.0)
    found = [release(sounds(seed=5), space, settings, seed) for seed in range(40)]
    means, spreads = found[0].spent.mechanisms
    assert (means.sensitivity, means.replacement) == (2.0 * space.norm, 2.0)
    assert (spreads.sensitivity, spreads.replacement) == ((2.0 * space.spread) ** 2, 2**0.5)
    drawn = torch.stack([one.density.means for one in found]).std(dim=0).mean(dim=1)
    expected = means.multiplier * means.sensitivity / torch.tensor([30.0, 25.0, 35.0])
    torch.testing.assert_close(drawn, expected, rtol=0.2, atol=0)


def test_more_epsilon_comes_nearer_to_the_clips(space: PublicSpace) -> None:
    source = sounds(seed=5)
    latents = space.codec.encode_all(source)
    means = torch.stack([latents[source.labels == label].mean(dim=0) for label in range(3)])
    away = [
        sum(float((release(source, space, replace(DP, epsilon=e, clip=3.0), seed).density.means - means).norm())
            for seed in range(10))
        for e in (0.3, 3.0, 30.0)
    ]  # fmt: skip
    assert away[0] > 2 * away[1] > 4 * away[2]


def test_without_noise_it_is_the_plain_generator(space: PublicSpace) -> None:
    source = sounds(seed=5)
    latents = space.codec.encode_all(source).double()
    found = release(source, space, replace(CLOSE, spreads=0.5), seed=1).density
    means = torch.stack([latents[source.labels == label].mean(dim=0) for label in range(3)])
    torch.testing.assert_close(found.means.double(), means, atol=0.02, rtol=0)
    for label in range(3):
        covariance = found.of(label)[1].double() @ found.of(label)[1].double().T
        within = latents[source.labels == label] - means[label]
        expected, variances = energies(within, 4).mean(dim=0), covariance.diagonal()
        torch.testing.assert_close(energies(variances.sqrt()[None], 4)[0], expected, atol=0.02, rtol=0.05)


def test_without_a_share_the_covariance_is_that_of_public_sounds(space: PublicSpace) -> None:
    found = [release(sounds(seed), space, replace(DP, spreads=0.0), seed=1).density.factors[0] for seed in (5, 6)]
    torch.testing.assert_close(found[0] @ found[0].T, space.within.float(), atol=1e-4, rtol=1e-4)
    assert (found[0] == found[1]).all()


def test_generators_of_every_granularity_load_it(space: PublicSpace) -> None:
    whole = release(sounds(seed=5), space, DP, seed=1)
    for labels in ([0, 1, 2], [2], [2, 0]):
        generator = open_generator(SETTINGS, space.codec.size, None)
        generator.load_state(whole.generator_state(labels))
        drawn = generator.sample(2, 2000, torch.Generator().manual_seed(0))
        torch.testing.assert_close(drawn.mean(dim=0), whole.density.means[2], atol=0.25, rtol=0)
    with pytest.raises(DataError, match="class 4"):
        whole.generator_state([0, 4])


def test_it_is_kept_and_read_again(space: PublicSpace) -> None:
    whole = release(sounds(seed=5), space, DP, seed=1)
    again = Release.from_state(whole.state(), whole.spent.facts(), space.codec.size)
    assert again.spent == whole.spent
    for name, value in whole.state().items():
        torch.testing.assert_close(again.state()[name], value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "pate"}, "privacy='pate' is not one of none, dp"),
        ({"name": "dp", "delta": 1e-3}, "needs privacy.epsilon"),
        ({"name": "dp", "epsilon": 1.0}, "needs privacy.delta"),
        ({"name": "dp", "epsilon": 0.0, "delta": 1e-3}, "privacy.epsilon=0.0 must be"),
        ({"name": "dp", "epsilon": math.inf, "delta": 1e-3}, "privacy.epsilon=inf must be"),
        ({"name": "dp", "epsilon": math.nan, "delta": 1e-3}, "privacy.epsilon=nan must be"),
        ({"name": "dp", "epsilon": 1.0, "delta": 0.0}, "privacy.delta=0.0 must be"),
        ({"name": "dp", "epsilon": 1.0, "delta": 1.0}, "privacy.delta=1.0 must be"),
        ({"name": "dp", "epsilon": 1.0, "delta": 1e-3, "clip": 0.0}, "privacy.clip=0.0"),
        ({"name": "dp", "epsilon": 1.0, "delta": 1e-3, "components": 0}, "privacy.components=0"),
        ({"name": "dp", "epsilon": 1.0, "delta": 1e-3, "spreads": 1.0}, "privacy.spreads=1.0"),
        ({"name": "dp", "epsilon": 1.0, "delta": 1e-3, "seed": -1}, "privacy.seed=-1"),
        ({"epsilon": 1.0}, "privacy.epsilon=1.0 means nothing with privacy=none"),
    ],
)
def test_wrong_and_missing_settings_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PrivacySettings(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("generator", "sharing", "words"),
    [
        (GeneratorSettings(kind="vae"), "local", "needs generator=gaussian"),
        (GeneratorSettings(kind="gan"), "local", "needs generator=gaussian"),
        (SETTINGS, "shared", "needs sharing=local"),
    ],
)
def test_what_a_release_cannot_serve_is_refused(generator: GeneratorSettings, sharing: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DP.check(generator, sharing)
    PrivacySettings().check(generator, sharing)


def test_a_large_delta_is_refused(space: PublicSpace) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.delta=0\.02 is too large"):
        release(sounds(seed=5), space, replace(DP, delta=0.02), seed=1)
    release(sounds(seed=5), space, replace(DP, delta=0.011), seed=1)


def test_no_clips_are_refused(space: PublicSpace) -> None:
    with pytest.raises(DataError, match="at least 1 clip"):
        release(TensorTokens(torch.zeros(0, *SHAPE), torch.zeros(0)), space, DP)


def test_a_missing_accountant_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting.gaussian_mechanism", None)
    with pytest.raises(ConfigError, match=r"fedgen\[privacy\]"):
        calibrate((1.0, 1e-3))

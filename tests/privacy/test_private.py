"""The private release: what one clip can change, the noise on it, what that spends, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fedgen.config.compose import load_config
from fedgen.data.tokens import TensorTokens
from fedgen.errors import ConfigError, DataError
from fedgen.models.generators import open_generator
from fedgen.models.public import PublicSpace
from fedgen.models.settings import CodecSettings, GeneratorSettings
from fedgen.privacy.accountant import calibrate
from fedgen.privacy.mechanisms import class_sums, clipped
from fedgen.privacy.release import Release, release
from fedgen.privacy.settings import PrivacySettings

pytest.importorskip("dp_accounting")

SHAPE = (20, 12)  # tokens of a sequence, values of a token
SETTINGS = GeneratorSettings()
DP = PrivacySettings("dp", epsilon=2.0, delta=1e-3, components=8)


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
        assert (class_sums(vectors, rows, 3) - class_sums(without, rows, 3)).norm() <= bound * (1 + 1e-12)
        for other in found:  # one clip replaced by another
            assert (class_sums(vectors, rows, 3) - class_sums(other, rows, 3)).norm() <= 2 * bound * (1 + 1e-12)


def test_what_is_within_the_bound_stays() -> None:
    vectors = torch.tensor([[0.3, 0.4], [0.0, 0.0]]).double()
    torch.testing.assert_close(clipped(vectors, 0.5), vectors)


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
        ({"name": "dp", "epsilon": 1.0, "delta": 1e-3, "seed": -1}, "privacy.seed=-1"),
        ({"epsilon": 1.0}, "privacy.epsilon=1.0 means nothing with privacy=none"),
    ],
)
def test_wrong_and_missing_settings_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PrivacySettings(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("generator=vae", "needs generator=gaussian"),
        ("generator=gan", "needs generator=gaussian"),
        ("sharing=shared", "needs sharing=local"),
    ],
)
def test_what_a_release_cannot_serve_is_refused(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(["privacy=dp", "privacy.epsilon=8", "privacy.delta=0.001", override])


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

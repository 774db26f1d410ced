"""Granularities give every class one generator; a bank fits and samples all of them."""

from dataclasses import replace

import pytest
import torch
from spaces import toy_space

from fedgen.data.targets import Conditions
from fedgen.data.tokens import TensorTokens
from fedgen.errors import ConfigError, DataError
from fedgen.models.generators.bank import Bank, slots
from fedgen.models.settings import GRANULARITIES, GeneratorSettings, GeneratorTraining, GranularitySettings

NAMES = ["cow", "dog", "rain", "wind", "siren"]
GROUPS = {"animals": ["dog", "cow"], "weather": ["rain", "wind"], "machines": ["engine"]}
SETTINGS = GeneratorSettings(width=16, latents=4, training=GeneratorTraining(epochs=5, lr=1e-2, validation=0.0))
SPACE = toy_space()


def source(classes: tuple[int, ...] = (0, 1, 2), count: int = 60) -> TensorTokens:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor(classes)[torch.arange(count) % len(classes)]
    return TensorTokens(torch.randn(count, 7, 5, generator=generator) + labels[:, None, None], labels)


def bank(granularity: str = "unified", kind: str = "gaussian", names: list[str] = NAMES) -> Bank:
    return Bank(
        replace(SETTINGS, kind=kind),
        GranularitySettings(granularity, GROUPS),
        names,
        SPACE,
        Conditions({"text": torch.eye(len(NAMES))}),
    )


@pytest.mark.parametrize(
    ("granularity", "expected"),
    [
        ("unified", {"unified": ["rain", "dog"]}),
        ("per_class", {"rain": ["rain"], "dog": ["dog"]}),
        ("per_group", {"animals": ["dog"], "weather": ["rain"]}),
    ],
)
def test_slots(granularity: str, expected: dict[str, list[str]]) -> None:
    assert slots(GranularitySettings(granularity, GROUPS), ["rain", "dog"]) == expected


def test_granularities_that_do_not_fit_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"in no group of granularity\.groups: siren"):
        slots(GranularitySettings("per_group", GROUPS), ["dog", "siren"])
    with pytest.raises(ConfigError, match=r"needs granularity\.groups"):
        slots(GranularitySettings("per_group"), ["dog"])
    with pytest.raises(ConfigError, match=r"granularity='per_clas'.*Did you mean 'per_class'"):
        GranularitySettings("per_clas")
    with pytest.raises(ConfigError, match="names dog more than once"):
        GranularitySettings("per_group", {"a": ["dog"], "b": ["dog"]})


@pytest.mark.parametrize("kind", ["gaussian", "vae", "conditioned_vae"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_every_kind_serves_every_granularity(kind: str, granularity: str) -> None:
    generators = bank(granularity, kind)
    losses = generators.fit(source(), seed=0)
    keys = list(slots(generators.granularity, ["cow", "dog", "rain"]))
    assert list(generators.generators) == keys
    assert [(row["generator"], row["epoch"]) for row in losses if row["epoch"] == 0] == [(key, 0) for key in keys]
    samples = generators.sample({0: 4, 2: 3}, seed=1)
    assert samples.counts() == {0: 4, 2: 3}
    assert samples.batch(torch.arange(7)).shape == (7, 7, 5)
    assert samples.batch(torch.arange(7)).isfinite().all()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_samples_depend_on_seed_and_class_not_on_the_others_or_their_order(granularity: str) -> None:
    generators = bank(granularity)
    generators.fit(source(), seed=0)
    both, reverse = generators.sample({0: 4, 2: 3}, seed=1), generators.sample({2: 3, 0: 4}, seed=1)
    assert torch.equal(both.latents, reverse.latents)
    assert torch.equal(both.latents[4:], generators.sample({2: 3}, seed=1).latents)
    assert not torch.equal(both.latents, generators.sample({0: 4, 2: 3}, seed=2).latents)


def test_samples_look_like_their_class() -> None:
    generators = bank()
    generators.fit(source(), seed=0)
    tokens = generators.sample({0: 50, 1: 50, 2: 50}, seed=0).batch(torch.arange(150))
    means = [part.mean().item() for part in tokens.split(50)]
    assert means == pytest.approx([0, 1, 2], abs=0.2)


def test_a_later_fit_trains_on() -> None:
    training = replace(SETTINGS.training, epochs=40)
    generators = Bank(replace(SETTINGS, kind="vae", training=training), GranularitySettings(), NAMES, SPACE)
    first = generators.fit(source(), seed=0)
    second = generators.fit(source(), seed=1)
    assert second[0]["reconstruction"] < 0.8 * first[0]["reconstruction"]


def test_whatever_a_bank_is_fitted_to_the_codec_stays_the_public_one() -> None:
    one, other = bank(), bank()
    before = {name: value.clone() for name, value in SPACE.codec.state().items()}
    one.fit(source(), seed=0)
    other.fit(source((3, 4)), seed=0)
    assert one.codec is other.codec is SPACE.codec
    torch.testing.assert_close(SPACE.codec.state(), before, atol=0, rtol=0)


def test_classes_without_a_generator_are_errors() -> None:
    generators = bank()
    with pytest.raises(DataError, match="no generator for cow; this node has generators for no class"):
        generators.sample({0: 1}, seed=0)
    generators.fit(source(), seed=0)
    with pytest.raises(DataError, match="no generator for siren; this node has generators for cow, dog, rain"):
        generators.sample({4: 1}, seed=0)
    with pytest.raises(DataError, match="class id 17"):
        generators.sample({17: 1}, seed=0)
    assert len(generators.sample({}, seed=0)) == 0


def test_conditions_are_checked_before_anything_is_trained() -> None:
    conditioned = replace(SETTINGS, kind="conditioned_vae")
    with pytest.raises(ConfigError, match="needs conditions for each class, got none"):
        Bank(conditioned, GranularitySettings(), NAMES, SPACE)
    with pytest.raises(ConfigError, match="for each of 5 classes, got 4"):
        Bank(conditioned, GranularitySettings(), NAMES, SPACE, Conditions({"text": torch.eye(4)}))

"""Every kind of generator keeps the same promises."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from toy_latents import CONDITIONS, SIZE, clusters

from fedgen.data.targets import Conditions
from fedgen.errors import ConfigError, DataError
from fedgen.models.generators import KINDS, Generator, Part, open_generator
from fedgen.models.generators.neural import NeuralGenerator
from fedgen.models.settings import GeneratorSettings, GeneratorTraining

TRAINING = GeneratorTraining(epochs=30, batch_size=16, lr=5e-3, validation=0.0)
FLUX = Conditions({"clip": torch.zeros(2, 768), "t5": torch.zeros(2, 17, 4096)})


def settings(kind: str, training: GeneratorTraining = TRAINING) -> GeneratorSettings:
    return GeneratorSettings(kind=kind, width=32, latents=4, embedding=8, training=training)


def fitted(kind: str, training: GeneratorTraining = TRAINING) -> Generator:
    generator = open_generator(settings(kind, training), SIZE, CONDITIONS)
    generator.fit(Part(*clusters(), seed=0))
    return generator


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def draw(generator: Generator, label: int = 1, count: int = 5) -> Tensor:
    return generator.sample(label, count, torch.Generator().manual_seed(9))


def test_samples_have_the_class_mean_and_its_spread(kind: str) -> None:
    latents, labels = clusters([200, 200, 200])
    training = replace(TRAINING, epochs=60, batch_size=64)
    generator = open_generator(settings(kind, training), SIZE, CONDITIONS)
    generator.fit(Part(latents, labels, seed=0))
    for label in range(3):
        real, samples = latents[labels == label], draw(generator, label, 2000)
        assert ((samples.mean(0) - real.mean(0)) / real.std(0)).abs().max() < 0.35
        assert samples.var(0).sum() == pytest.approx(real.var(0).sum().item(), rel=0.3)


def test_sampling_repeats_with_its_seed_and_training_with_its_own(kind: str) -> None:
    state = torch.random.get_rng_state()
    one, other = fitted(kind), fitted(kind)
    assert torch.equal(draw(one), draw(one))
    assert torch.equal(draw(one), draw(other))
    assert draw(one, 1).shape == (5, SIZE)
    assert torch.equal(state, torch.random.get_rng_state())  # the global random state is nobody's


def test_state_makes_a_twin_that_also_trains_on_alike(kind: str) -> None:
    training = replace(TRAINING, epochs=5, validation=0.2)
    generator = fitted(kind, training)
    twin = open_generator(settings(kind, training), SIZE, CONDITIONS)
    twin.load_state(generator.state())
    assert torch.equal(draw(generator), draw(twin))
    losses = [one.fit(Part(*clusters(), seed=1)) for one in (generator, twin)]
    assert losses[0] == losses[1]
    assert torch.equal(draw(generator), draw(twin))


def test_no_training_row_is_in_the_state(kind: str) -> None:
    latents, _ = clusters()
    for name, value in fitted(kind).state().items():
        if value.dim() == 2 and value.shape[1] == SIZE:
            assert torch.cdist(value, latents).min() > 1e-2, name


def test_a_broken_state_changes_nothing(kind: str) -> None:
    generator = fitted(kind)
    before, state = draw(generator), generator.state()
    for name in [*list(state)[:3], *list(state)[-3:]]:
        value = state[name].double()
        missing = {other: state[other] for other in state if other != name}
        broken = [
            missing,
            state | {name: torch.zeros(1, 1, 1, 1)},
            state | {name: value * torch.nan},
            state | {f"{name}.more": value},
        ]
        for bad in broken:
            with pytest.raises(DataError):
                generator.load_state(bad)
            assert torch.equal(draw(generator), before)
    with pytest.raises(DataError):
        generator.load_state({})


def test_unfitted_generators_and_unknown_classes_are_errors(kind: str) -> None:
    with pytest.raises(DataError, match="not fitted"):
        draw(open_generator(settings(kind), SIZE, CONDITIONS))
    with pytest.raises(DataError, match="class 8"):
        draw(fitted(kind), label=8)


@pytest.mark.parametrize("counts", [(1, 0, 0), (1, 1, 1), (2, 1, 30)])
def test_classes_of_one_or_two_clips_are_learned_too(kind: str, counts: tuple[int, int, int]) -> None:
    generator = open_generator(settings(kind, replace(TRAINING, epochs=2, validation=0.2)), SIZE, CONDITIONS)
    generator.fit(Part(*clusters(counts), seed=0))
    samples = draw(generator, label=0)
    assert samples.isfinite().all()
    assert samples.std(dim=0).max() > 0  # not one clip over and over


def test_a_later_fit_never_ends_worse_on_clips_that_were_held_out(kind: str) -> None:
    training = replace(TRAINING, epochs=10, validation=0.3, patience=3)
    generator = open_generator(settings(kind, training), SIZE, CONDITIONS)
    best = []
    for seed in range(4):
        losses = generator.fit(Part(*clusters(), seed))
        best.append(min([row.get("validation_loss", 0.0) for row in losses] + best))
        if "validation_loss" in losses[0]:
            assert validation_loss(generator) <= best[-1] * 1.0001  # that of a start that nothing beats is in no row


def validation_loss(generator: Generator) -> float:
    """The loss of the held-out clips at the current weights: what a fit starts from."""
    assert isinstance(generator, NeuralGenerator)
    resting = replace(generator.settings.training, epochs=1, lr=1e-30, weight_decay=0.0)
    twin = type(generator)(replace(generator.settings, training=resting), SIZE, CONDITIONS)
    twin.load_state(generator.state())
    return twin.fit(Part(*clusters(), seed=0))[0]["validation_loss"]


def test_no_kind_has_more_than_two_million_parameters(kind: str) -> None:
    """At the default width, in a codec of 128 coefficients, conditioned on all that FLUX has."""
    generator = open_generator(GeneratorSettings(kind=kind), 128, FLUX)
    generator.initialise(seed=0)
    assert sum(value.numel() for value in generator.shared_state().values()) <= 2_000_000


def test_conditions_are_checked_before_anything_is_trained(kind: str) -> None:
    if KINDS[kind].conditioned:
        with pytest.raises(ConfigError, match=f"generator.kind={kind} needs conditions"):
            open_generator(settings(kind), SIZE)
        with pytest.raises(
            ConfigError, match=r"generator\.conditions names 't6', the target has clip, t5\. Did you mean"
        ):
            open_generator(replace(settings(kind), conditions=["t6"]), SIZE, CONDITIONS)
        open_generator(replace(settings(kind), conditions=["t5"]), SIZE, CONDITIONS)
    else:
        with pytest.raises(ConfigError, match=rf"generator\.conditions=\[clip\], but generator\.kind={kind} sees none"):
            open_generator(replace(settings(kind), conditions=["clip"]), SIZE, CONDITIONS)


def test_only_kinds_that_can_do_without_a_condition_are_asked_to(kind: str) -> None:
    generator = fitted(kind, replace(TRAINING, epochs=1))
    with pytest.raises(ConfigError, match=rf"absent=\['t6'\]: generator\.kind={kind} can do without"):
        generator.sample(1, 2, torch.Generator(), absent=["t6"])


def test_unknown_kinds_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"generator\.kind='gausian'.*Did you mean 'gaussian'"):
        open_generator(settings("gausian"), SIZE)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", 0),
        ("lr", 0.0),
        ("clip", -1.0),
        ("beta", -1.0),
        ("validation", 1.0),
        ("patience", 0),
        ("condition_dropout", 1.0),
        ("fakes", 1),
        ("adversarial", -1.0),
        ("feature_matching", -1.0),
        ("gradient_penalty", -1.0),
    ],
)
def test_training_settings_name_what_is_wrong(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"generator\.training\.{key}={value}"):
        GeneratorTraining(**{key: value})

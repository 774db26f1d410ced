"""Every kind of generator keeps the same promises."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fedgen.data.conditions import Conditions
from fedgen.errors import ConfigError, DataError
from fedgen.models.generators import KINDS, Generator, GeneratorSettings, GeneratorTraining, open_generator
from fedgen.models.generators.vae import VAEGenerator

TRAINING = GeneratorTraining(epochs=30, batch_size=16, lr=5e-3, validation=0.0)
SIZE = 6
CONDITIONS = Conditions({"text": torch.eye(3)})


def settings(kind: str, training: GeneratorTraining = TRAINING) -> GeneratorSettings:
    return GeneratorSettings(kind=kind, width=32, latents=4, training=training)


def clusters(count: int = 90) -> tuple[Tensor, Tensor]:
    """Three classes on different means, correlated within."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    means = 3 * torch.randn(3, SIZE, generator=generator)
    noise = torch.randn(count, 3, generator=generator) @ torch.randn(3, SIZE, generator=generator)
    return means[labels] + noise, labels


def fitted(kind: str, training: GeneratorTraining = TRAINING) -> Generator:
    generator = open_generator(settings(kind, training), SIZE, CONDITIONS)
    generator.fit(*clusters(), seed=0)
    return generator


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def draw(generator: Generator, label: int = 1, count: int = 5) -> Tensor:
    return generator.sample(label, count, torch.Generator().manual_seed(9))


def test_samples_have_the_class_mean_and_its_spread(kind: str) -> None:
    latents, labels = clusters(600)
    training = replace(TRAINING, epochs=60, batch_size=64)
    generator = open_generator(settings(kind, training), SIZE, CONDITIONS)
    generator.fit(latents, labels, seed=0)
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
    generator = fitted(kind)
    twin = open_generator(settings(kind), SIZE, CONDITIONS)
    twin.load_state(generator.state())
    assert torch.equal(draw(generator), draw(twin))
    losses = [one.fit(*clusters(), seed=1) for one in (generator, twin)]
    assert losses[0] == losses[1]
    assert torch.equal(draw(generator), draw(twin))


def test_no_training_row_is_in_the_state(kind: str) -> None:
    latents, _ = clusters()
    for name, value in fitted(kind).state().items():
        if value.dim() == 2 and value.shape[1] == SIZE:
            assert torch.cdist(value, latents).min() > 1e-2, name


def test_a_broken_state_changes_nothing(kind: str) -> None:
    generator = fitted(kind)
    before = draw(generator)
    state = generator.state()
    for name in [name for name in state if name not in ("classes", "factor_of")][:4]:
        with pytest.raises(DataError):
            generator.load_state({**state, name: torch.zeros(1, 1, 1, 1)})
        assert torch.equal(draw(generator), before)
    with pytest.raises(DataError):
        generator.load_state({})


def test_unfitted_generators_and_unknown_classes_are_errors(kind: str) -> None:
    with pytest.raises(DataError, match="not fitted"):
        draw(open_generator(settings(kind), SIZE, CONDITIONS))
    with pytest.raises(DataError, match="class 8"):
        draw(fitted(kind), label=8)


@pytest.mark.parametrize("kind", ["vae", "conditioned_vae"])
def test_losses_come_by_component_and_fall(kind: str) -> None:
    losses = open_generator(settings(kind), SIZE, CONDITIONS).fit(*clusters(), seed=0)
    assert len(losses) == TRAINING.epochs
    assert set(losses[0]) == {"similarity", "reconstruction", "kl", "loss"}
    assert losses[-1]["reconstruction"] < 0.5 * losses[0]["reconstruction"]
    last = losses[-1]
    assert last["loss"] == pytest.approx(last["reconstruction"] + TRAINING.beta * last["kl"], rel=1e-4)


def test_beta_rises_over_its_share_of_the_configured_steps_only_at_first() -> None:
    training = replace(TRAINING, epochs=10, beta=1.0, beta_warmup=0.5)
    generator = open_generator(settings("vae", training), SIZE)
    first, second = (generator.fit(*clusters(), seed=0) for _ in range(2))
    weights = [(row["loss"] - row["reconstruction"]) / row["kl"] for row in (*first, *second)]
    assert weights[0] < 0.2
    assert weights[:5] == sorted(weights[:5])
    assert weights[6:] == pytest.approx([1.0] * 14, abs=1e-3)


def test_training_stops_early_and_keeps_the_best_weights() -> None:
    training = replace(TRAINING, epochs=400, lr=0.02, validation=0.3, patience=5)
    generator = VAEGenerator(settings("vae", training), SIZE)
    losses = generator.fit(*clusters(30), seed=0)
    scores = [row["validation_loss"] for row in losses]
    assert len(losses) < 400
    assert scores.index(min(scores)) == len(scores) - 1 - training.patience


def test_a_second_fit_continues_where_the_first_stopped() -> None:
    generator = VAEGenerator(settings("vae"), SIZE)
    first = generator.fit(*clusters(), seed=0)
    steps = generator.moments["step.decoder.0.weight"].item()
    second = generator.fit(*clusters(), seed=1)
    assert steps == TRAINING.epochs * 6
    assert generator.moments["step.decoder.0.weight"].item() == 2 * steps
    assert second[0]["reconstruction"] < 1.2 * first[-1]["reconstruction"] < 0.5 * first[0]["reconstruction"]


def test_input_noise_changes_training_but_never_sampling() -> None:
    noisy = fitted("vae", replace(TRAINING, noise=0.5))
    assert not torch.equal(draw(noisy), draw(fitted("vae")))
    assert torch.equal(draw(noisy), draw(noisy))


def test_the_condition_decides_what_a_conditioned_decoder_makes() -> None:
    generator = fitted("conditioned_vae")
    before = draw(generator)
    generator.embeddings = {"pooled": torch.eye(3).roll(1, dims=0)}
    assert (draw(generator) - before).abs().max() > 0.1


def test_conditions_and_kinds_are_checked() -> None:
    with pytest.raises(ConfigError, match="conditioned_vae needs conditions"):
        open_generator(settings("conditioned_vae"), SIZE)
    with pytest.raises(ConfigError, match=r"generator\.kind='gausian'.*Did you mean 'gaussian'"):
        open_generator(settings("gausian"), SIZE)


@pytest.mark.parametrize(
    ("key", "value"), [("epochs", 0), ("lr", 0.0), ("clip", -1.0), ("beta", -1.0), ("validation", 1.0), ("patience", 0)]
)
def test_training_settings_name_what_is_wrong(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"generator\.training\.{key}={value}"):
        GeneratorTraining(**{key: value})

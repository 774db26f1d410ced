"""Variational autoencoders: losses, ramps, noise, conditions and what samples are made of."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from toy_latents import CONDITIONS, SIZE, clusters

from fedgen.data.targets import Conditions
from fedgen.models.generators import Part, open_generator
from fedgen.models.generators.loop import Batch
from fedgen.models.generators.vae import AttentionPool, FusedConditions, VAEGenerator, vae_losses
from fedgen.models.settings import GeneratorSettings, GeneratorTraining

TRAINING = GeneratorTraining(epochs=30, batch_size=16, lr=5e-3, validation=0.0)
KINDS = ["vae", "conditioned_vae", "multimodal_vae"]


def vae(kind: str = "vae", training: GeneratorTraining = TRAINING, conditions: Conditions = CONDITIONS) -> VAEGenerator:
    settings = GeneratorSettings(kind=kind, width=32, latents=4, embedding=8, training=training)
    generator = open_generator(settings, SIZE, conditions)
    assert isinstance(generator, VAEGenerator)
    return generator


def fitted(kind: str = "vae", training: GeneratorTraining = TRAINING) -> VAEGenerator:
    generator = vae(kind, training)
    generator.fit(Part(*clusters(), seed=0))
    return generator


def draw(generator: VAEGenerator, label: int = 1, absent: Sequence[str] = ()) -> Tensor:
    return generator.sample(label, 50, torch.Generator().manual_seed(9), absent)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_come_by_component_and_fall(kind: str) -> None:
    losses = vae(kind).fit(Part(*clusters(), seed=0))
    assert len(losses) == TRAINING.epochs
    assert list(losses[0]) == ["similarity", "reconstruction", "kl", "loss"]
    first, last = losses[0], losses[-1]
    assert last["reconstruction"] < 0.5 * first["reconstruction"]
    assert first["similarity"] < last["similarity"] <= 1
    assert last["loss"] == pytest.approx(last["reconstruction"] + TRAINING.beta * last["kl"], rel=1e-4)


def test_beta_rises_over_its_share_of_the_configured_steps_only_at_first() -> None:
    generator = vae(training=replace(TRAINING, epochs=10, beta=1.0, beta_warmup=0.5))
    first, second = (generator.fit(Part(*clusters(), seed=0)) for _ in range(2))
    weights = [(row["loss"] - row["reconstruction"]) / row["kl"] for row in (*first, *second)]
    assert weights[0] < 0.2
    assert weights[:5] == sorted(weights[:5])
    assert weights[6:] == pytest.approx([1.0] * 14, abs=1e-3)


def test_a_second_fit_continues_where_the_first_stopped() -> None:
    generator = vae()
    first = generator.fit(Part(*clusters(), seed=0))
    steps = generator.moments["step.decoder.0.weight"].item()
    second = generator.fit(Part(*clusters(), seed=1))
    assert steps == TRAINING.epochs * 6
    assert generator.moments["step.decoder.0.weight"].item() == 2 * steps
    assert second[0]["reconstruction"] < 1.2 * first[-1]["reconstruction"] < 0.5 * first[0]["reconstruction"]


def batch(generator: VAEGenerator, **noise: Tensor) -> Batch:
    latents, labels = clusters([5, 5, 5])
    classes, tables = generator.classes_of(labels)
    rows = {"values": latents, "classes": classes}
    return Batch(rows, tables, noise, torch.full((15,), 1 / 15), torch.tensor(1.0))


def test_noise_goes_on_the_input_and_never_on_the_target() -> None:
    """The same loss, written out: the clean values are what is to be reconstructed."""
    generator = vae(training=replace(TRAINING, noise=0.5, beta=0.0))
    generator.initialise(seed=0)
    noisy, clean = torch.randn(15, SIZE), torch.zeros(15, 4)
    found = vae_losses(generator.model, batch(generator, input=noisy, codes=clean), generator.settings.training)
    values, none = clusters([5, 5, 5])[0], torch.zeros(15, 0)
    codes, _ = generator.model.encode(values + 0.5 * noisy, none)
    expected = (generator.model.decode(codes, none) - values).square().mean()
    assert found[1].item() == pytest.approx(expected.item(), rel=1e-5)
    assert found[-1] == found[1]


def test_samples_do_not_depend_on_training_noise_or_mode() -> None:
    generator = fitted("multimodal_vae", replace(TRAINING, noise=0.5, condition_dropout=0.9))
    before = draw(generator)
    generator.model.train()
    assert torch.equal(draw(generator), before)


def test_few_clips_are_all_trained_on_and_many_stop_early() -> None:
    training = replace(TRAINING, epochs=400, lr=0.02, validation=0.3, patience=5)
    losses = vae(training=training).fit(Part(*clusters([10, 10, 10]), seed=0))
    scores = [row["validation_loss"] for row in losses]
    assert len(losses) < 400
    assert scores.index(min(scores)) == len(scores) - 1 - training.patience


@pytest.mark.parametrize("kind", ["conditioned_vae", "multimodal_vae"])
def test_the_condition_decides_what_a_conditioned_decoder_makes(kind: str) -> None:
    generator = fitted(kind)
    before = draw(generator)
    generator.embeddings = {name: value.roll(1, dims=0) for name, value in generator.embeddings.items()}
    assert (draw(generator) - before).abs().max() > 0.1


def test_pooled_conditions_are_those_of_fitting_and_sampling() -> None:
    generator = vae("conditioned_vae")
    assert torch.equal(generator.embeddings["pooled"], CONDITIONS.pooled())
    assert generator.model.condition is not None
    _, tables = generator.classes_of(torch.tensor([2, 0, 2]))
    assert torch.equal(tables["pooled"], CONDITIONS.pooled()[[0, 2]])


# Conditions that may be absent


ABSENT = [(), ("clip",), ("t5",), ("clip", "t5")]


@pytest.mark.parametrize("absent", ABSENT, ids=str)
def test_any_condition_or_all_may_be_absent(absent: tuple[str, ...]) -> None:
    """Without a condition the samples are others, but still of their class."""
    generator = fitted("multimodal_vae", replace(TRAINING, epochs=60, condition_dropout=0.3))
    latents, labels = clusters()
    samples = draw(generator, 1, absent)
    assert torch.equal(samples, draw(generator, 1, absent))
    assert torch.equal(samples, draw(generator, 1)) == (not absent)
    distances = (samples.mean(dim=0) - torch.stack([latents[labels == label].mean(dim=0) for label in range(3)])).norm(
        dim=1
    )
    assert distances.argmin() == 1


def test_what_is_absent_does_not_matter() -> None:
    generator = fitted("multimodal_vae")
    before = draw(generator, 1, ["t5"])
    generator.embeddings["t5"] = torch.randn_like(generator.embeddings["t5"])
    assert torch.equal(draw(generator, 1, ["t5"]), before)


def test_conditions_are_dropped_one_by_one_in_training() -> None:
    """Each of a sample's conditions with the configured chance, independent of the other: all four cases occur."""
    spec = vae("multimodal_vae", replace(TRAINING, condition_dropout=0.3)).spec
    absent = spec.noise(20_000, torch.Generator().manual_seed(0))["absent"]
    assert absent.float().mean(dim=0).tolist() == pytest.approx([0.3, 0.3], abs=0.02)
    assert absent.all(dim=1).float().mean().item() == pytest.approx(0.09, abs=0.01)
    assert "absent" not in vae("conditioned_vae").spec.noise(5, torch.Generator())


def test_a_target_with_one_condition_will_do() -> None:
    generator = vae("multimodal_vae", conditions=Conditions({"text": torch.eye(3)}))
    generator.fit(Part(*clusters(), seed=0))
    assert draw(generator, 1, ["text"]).isfinite().all()


def test_fusing_all_vectors_is_one_linear_layer() -> None:
    """Which is what `conditioned_vae` has: fusing loses nothing against it."""
    fused = FusedConditions({"a": (5,), "b": (7,)}, width=3)
    for parameter in fused.parameters():
        torch.nn.init.normal_(parameter)
    tables = {"a": torch.randn(4, 5), "b": torch.randn(4, 7)}
    layers = [layer for layer in fused.encoders if isinstance(layer, torch.nn.Linear)]
    weight, bias = torch.cat([layer.weight for layer in layers], dim=1), layers[0].bias + layers[1].bias
    expected = torch.cat([tables["a"], tables["b"]], dim=1) @ weight.T + bias
    torch.testing.assert_close(fused(torch.eye(4), tables, None), expected)


def test_attention_pooling_can_tell_the_order_of_tokens() -> None:
    pool = AttentionPool(tokens=4, inputs=6, width=5)
    for parameter in pool.parameters():
        torch.nn.init.normal_(parameter)
    sequences = torch.randn(3, 4, 6)
    assert pool(sequences).shape == (3, 5)
    assert (pool(sequences) - pool(sequences.flip(1))).abs().max() > 1e-2

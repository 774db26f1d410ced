"""The GAN starts at the class Gaussians, leaves them only for what holds on other clips, and keeps them on the node."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from toy_latents import CONDITIONS, SIZE, clusters

from fedgen.data.seeds import seeded
from fedgen.models.generators import Generator, Part, open_generator
from fedgen.models.generators.density import ClassGaussians
from fedgen.models.generators.gan import (
    GANGenerator,
    discriminator_losses,
    energy_score,
    generator_losses,
    held_out_energy,
)
from fedgen.models.generators.loop import Batch, TrainingSpec, train
from fedgen.models.settings import GeneratorSettings, GeneratorTraining, Schedule

TRAINING = GeneratorTraining(epochs=5, batch_size=16, lr=5e-3, validation=0.3)
RESTING = replace(TRAINING, epochs=1, lr=1e-30, weight_decay=0.0)


def gan(training: GeneratorTraining = TRAINING) -> GANGenerator:
    settings = GeneratorSettings(kind="gan", width=32, embedding=8, shrinkage=0.0, training=training)
    generator = open_generator(settings, SIZE, CONDITIONS)
    assert isinstance(generator, GANGenerator)
    return generator


def fitted(training: GeneratorTraining = TRAINING) -> GANGenerator:
    generator = gan(training)
    generator.fit(Part(*clusters(), seed=0))
    return generator


def draw(generator: Generator, label: int = 1, count: int = 50) -> Tensor:
    return generator.sample(label, count, torch.Generator().manual_seed(9))


def batch(generator: GANGenerator, noise: bool = True) -> Batch:
    """What a step on 15 clips sees; without ``noise``, what validation sees."""
    job = generator._train_state(Part(*clusters([5, 5, 5]), seed=0), shared=False)
    drawn = generator.spec.noise(15, torch.Generator().manual_seed(0)) if noise else {}
    return Batch(job.rows, job.tables, drawn, torch.full((15,), 1 / 15), torch.tensor(1.0))


# The start, and what leads away from it


def test_before_training_it_is_the_map_of_the_class_gaussians() -> None:
    """The same codes, the same samples."""
    generator = gan()
    generator.initialise(seed=0)
    latents, labels = clusters()
    generator.finalize(latents, labels)
    gaussians = ClassGaussians.fit(latents, labels, shrinkage=0.0)
    for label in range(3):
        expected = gaussians.sample(label, 50, torch.Generator().manual_seed(9))
        torch.testing.assert_close(draw(generator, label), expected)


def test_a_training_that_only_makes_things_worse_ends_at_the_start() -> None:
    """The start is judged by the held-out clips too; with none held out the last weights stay."""
    wild = replace(TRAINING, lr=1.0, clip=1e6, patience=2)
    still = draw(fitted(RESTING))
    assert torch.equal(draw(fitted(wild)), still)
    assert (draw(fitted(replace(wild, validation=0.0))) - still).abs().max() > 0.1


def test_held_out_clips_are_not_in_the_gaussians_that_they_judge() -> None:
    """Samples, though, start from the Gaussians of all clips."""
    latents, labels = clusters()
    for share, kept in ((0.3, 63), (0.0, 90)):
        generator = gan(replace(TRAINING, validation=share))
        generator.initialise(seed=0)
        job = generator._train_state(Part(latents, labels, seed=0), shared=False)
        order = torch.randperm(90, generator=seeded(0, "validation"))[90 - kept :]
        expected = torch.stack([latents[order][labels[order] == label].mean(dim=0) for label in range(3)])
        torch.testing.assert_close(job.tables["means"], expected)
        generator.finalize(latents, labels)
        torch.testing.assert_close(generator.require_density().means, ClassGaussians.fit(latents, labels).means)


def test_a_class_whose_clips_are_all_held_out_has_a_gaussian_all_the_same() -> None:
    latents, labels = clusters([12, 1, 1])
    for split_seed in range(12):  # each clip is held out in some of the splits
        job = gan(replace(TRAINING, validation=0.5))._train_state(Part(latents, labels, 0, split_seed), shared=False)
        assert job.tables["means"].shape == (3, SIZE)


def two_lobes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return clips ``(N, 6)`` of one class that is no Gaussian: two lobes far apart."""
    generator = torch.Generator().manual_seed(seed)
    sides = 2.0 * torch.randint(2, (count, 1), generator=generator) - 1
    direction = torch.zeros(SIZE).index_fill(0, torch.tensor([0]), 4.0)
    return sides * direction + 0.5 * torch.randn(count, SIZE, generator=generator), torch.zeros(count, dtype=torch.long)


def test_it_learns_what_no_gaussian_is() -> None:
    """By the energy distance to other clips, of which less than two thirds are left."""
    training = replace(TRAINING, epochs=25)
    others, _ = two_lobes(400, seed=1)
    distances = {}
    for kind in ("gaussian", "gan"):
        generator = open_generator(GeneratorSettings(kind=kind, width=64, training=training), SIZE, CONDITIONS)
        generator.fit(Part(*two_lobes(400, seed=0), seed=0))
        distances[kind] = energy_distance(draw(generator, label=0, count=400), others)
    assert distances["gan"] < 0.67 * distances["gaussian"]


def energy_distance(one: Tensor, other: Tensor) -> float:
    """Of two sets of vectors of the same size."""
    between, *within = (torch.cdist(a, b).sum() for a, b in ((one, other), (one, one), (other, other)))
    count = len(one)
    return (2 * between / count**2 - sum(within) / (count * (count - 1))).item()


# Losses


def test_losses_of_both_networks_come_by_component() -> None:
    losses = gan().fit(Part(*clusters(), seed=0))
    judge, make = ["score_gap", "gradient_penalty", "discriminator_loss"], ["adversarial", "feature_matching", "energy"]
    assert [list(row) for row in losses] == [[*judge, *make, "loss", "validation_loss"]] * len(losses)
    for row in losses:
        weighted = TRAINING.adversarial * row["adversarial"]
        weighted += TRAINING.feature_matching * (row["feature_matching"] + row["energy"])
        assert row["loss"] == pytest.approx(weighted, rel=1e-4)


def test_the_gradient_penalty_is_half_the_squared_slope_at_the_clips() -> None:
    generator = gan(replace(TRAINING, gradient_penalty=3.0))
    generator.initialise(seed=0)
    seen = batch(generator)
    values = seen.rows["values"][:, None].requires_grad_()
    scores, _ = generator.model.discriminator(values, seen.rows["classes"], seen.tables)
    (slopes,) = torch.autograd.grad(scores.sum(), values)
    found = discriminator_losses(generator.model, seen, generator.settings.training)
    without = discriminator_losses(generator.model, seen, replace(generator.settings.training, gradient_penalty=0.0))
    expected = 0.5 * slopes.square().sum() / 15
    torch.testing.assert_close(found[1], expected)
    torch.testing.assert_close(found[2] - without[2], 3 * expected)


def test_noise_reaches_the_discriminator_and_never_the_latents_to_match() -> None:
    generator = gan(replace(TRAINING, noise=0.5))
    generator.initialise(seed=0)
    noisy = batch(generator)
    clean = noisy._replace(noise={"codes": noisy.noise["codes"]})
    found, expected = (generator_losses(generator.model, each, generator.settings.training) for each in (noisy, clean))
    assert found[2] == expected[2]  # energy
    assert (found[:2] != expected[:2]).all()  # adversarial, feature matching


def test_the_energy_score_is_lowest_for_samples_of_the_same_distribution() -> None:
    """Of samples that are too narrow, right, too wide and beside."""
    generator = torch.Generator().manual_seed(0)
    real, codes = torch.randn(4000, 3, generator=generator), torch.randn(4000, 4, 3, generator=generator)
    narrow, right, wide, beside = (
        energy_score(made, real).mean() for made in (0.5 * codes, codes, 2 * codes, codes + 1)
    )
    assert right < min(narrow, wide, beside)


def test_validation_repeats_exactly_and_uses_nothing_random() -> None:
    generator = gan()
    generator.initialise(seed=0)
    state = torch.random.get_rng_state()
    scores = [held_out_energy(generator.model, batch(generator, noise=False)) for _ in range(2)]
    assert torch.equal(*scores)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("number", [0, 1], ids=["discriminator", "generator"])
def test_each_network_has_a_gradient_of_its_own_and_it_is_clipped(number: int) -> None:
    """The moments of a training of one step are a tenth of its gradients."""
    generator = gan()
    job = generator._train_state(Part(*clusters([5, 5, 5]), seed=0), shared=True)
    step = generator.spec.steps[number]
    train(job, TrainingSpec((step,), generator.spec.noise), replace(TRAINING, epochs=1, clip=1e-3))
    own = {name: value for name, value in job.moments.items() if name.startswith("exp_avg.")}
    assert all(name.startswith(f"exp_avg.{step.part}.") for name in own)
    others = [value for name, value in job.model.named_parameters() if not name.startswith(f"{step.part}.")]
    assert all(value.grad is None for value in others)
    assert torch.stack([value.norm() for value in own.values()]).norm() == pytest.approx(1e-4, rel=1e-2)


# What is the node's own


def test_sampling_needs_no_discriminator() -> None:
    generator = fitted()
    before = draw(generator)
    for parameter in generator.model.discriminator.parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(draw(generator), before)


def test_nodes_share_networks_and_optimisers_and_no_gaussian() -> None:
    """A node's Gaussians follow from its clips: the same network makes other samples on another node."""
    latents, labels = clusters()
    sender, receiver = gan(), gan()
    sender.initialise(seed=0)
    sender.fit(Part(latents, labels, 0), schedule=Schedule())
    sender.finalize(latents, labels)
    state = sender.shared_state()
    networks = {f"model.{name}" for name in sender.model.state_dict()}
    assert {name for name in state if not name.startswith("optimizer.")} == networks
    assert all(any(name.endswith(weight[6:]) for weight in networks) for name in state)
    receiver.load_shared_state(state)
    receiver.finalize(latents + 5, labels)
    torch.testing.assert_close(draw(receiver), draw(sender) + 5)


def test_the_condition_decides_what_the_network_adds() -> None:
    generator = fitted(replace(TRAINING, validation=0.0, epochs=20))
    before = draw(generator)
    generator.embeddings = {name: value.roll(1, dims=0) for name, value in generator.embeddings.items()}
    assert (draw(generator) - before).abs().max() > 1e-2


def test_an_out_of_memory_split_adds_up() -> None:
    """Losses are sums over rows: two halves make the whole."""
    generator = gan()
    generator.initialise(seed=0)
    whole = batch(generator)
    halves = [
        whole._replace(
            rows={name: value[rows] for name, value in whole.rows.items()},
            noise={name: value[rows] for name, value in whole.noise.items()},
            share=whole.share[rows],
        )
        for rows in (slice(0, 8), slice(8, 15))
    ]
    for losses in (discriminator_losses, generator_losses):
        parts = [losses(generator.model, half, TRAINING) for half in halves]
        torch.testing.assert_close(sum(parts), losses(generator.model, whole, TRAINING))

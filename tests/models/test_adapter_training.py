"""Training of adapters: what it learns, what it repeats, and what goes on over several calls."""

import logging
from dataclasses import replace

import pytest
import torch

from fedgen.data.tokens import Summaries, summarise
from fedgen.errors import ConfigError
from fedgen.models.adapters import Adapters, build_adapters
from fedgen.models.memory import BatchLimit
from fedgen.models.settings import AdapterSettings, GlobalTrainingSettings, Schedule, TrainingSettings
from fedgen.models.training import TrainingOptions, pull, target_losses, train_adapters

ADAPTERS = AdapterSettings(width=8, hidden=16, dropout=0.0)
SETTINGS = TrainingSettings(epochs=1, lr=1e-2, batch_size=6)
TARGETS = {"clip": torch.eye(3, 7), "t5": torch.stack([torch.eye(2, 5).roll(i, 1) for i in range(3)])}


def source() -> Summaries:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(18) % 3
    tokens = torch.randn(18, 9, 6, generator=generator) + 2 * torch.eye(3, 6)[labels][:, None]
    return Summaries(summarise(tokens, bands=1), labels)


def adapters(dropout: float = 0.0) -> Adapters:
    shapes = {name: tuple(value.shape[1:]) for name, value in TARGETS.items()}
    return build_adapters(6, shapes, replace(ADAPTERS, dropout=dropout), seed=0)


def weights(model: Adapters) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_it_learns() -> None:
    model = adapters()
    before, _ = train_adapters(model, source(), TARGETS, SETTINGS, seed=0)
    after, _ = train_adapters(model, source(), TARGETS, replace(SETTINGS, epochs=30), seed=0)
    assert set(after) == {"loss", "clip_loss", "t5_loss"}
    assert after["loss"] == pytest.approx(after["clip_loss"] + after["t5_loss"], rel=1e-4)
    assert after["loss"] < 0.5 * before["loss"]
    assert not model.training


def test_the_same_seed_gives_the_same_weights_and_losses() -> None:
    first, again, other = adapters(0.2), adapters(0.2), adapters(0.2)
    losses = [
        train_adapters(m, source(), TARGETS, SETTINGS, seed=s)[0] for m, s in ((first, 5), (again, 5), (other, 6))
    ]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))


def test_the_global_random_state_stays_as_it_was() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    train_adapters(adapters(0.2), source(), TARGETS, SETTINGS, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("calls", [1, 2, 5])
def test_the_schedule_of_several_calls_is_that_of_one(calls: int) -> None:
    whole = [Schedule().rate(step, 40, 0.1) for step in range(40)]
    steps = 40 // calls
    pieces = [Schedule(i, calls).rate(step, steps, 0.1) for i in range(calls) for step in range(steps)]
    assert pieces == pytest.approx(whole)
    assert whole[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert whole[-1] < 0.01
    assert max(whole) == 1.0


def test_training_on_from_the_moments_is_one_long_training() -> None:
    """With a single clip, where there is no order, two calls of one epoch are one call of two."""
    settings = replace(SETTINGS, warmup=0.0)
    clip = Summaries(source().values[:1], source().labels[:1])
    whole, pieces, forgetful = adapters(), adapters(), adapters()
    _, long = train_adapters(whole, clip, TARGETS, replace(settings, epochs=2), seed=0)
    _, state = train_adapters(pieces, clip, TARGETS, settings, seed=0, options=TrainingOptions(Schedule(0, 2)))
    _, state = train_adapters(
        pieces, clip, TARGETS, settings, 1, optimizer_state=state, options=TrainingOptions(Schedule(1, 2))
    )
    torch.testing.assert_close(weights(pieces), weights(whole))
    torch.testing.assert_close(state, long)
    for index in range(2):
        train_adapters(forgetful, clip, TARGETS, settings, index, options=TrainingOptions(Schedule(index, 2)))
    assert not torch.allclose(weights(forgetful), weights(whole), rtol=1e-4, atol=1e-5)


def test_moments_have_names_and_count_on() -> None:
    model = adapters()
    _, state = train_adapters(model, source(), TARGETS, SETTINGS, seed=0)
    assert float(state["step.narrow.weight"]) == 3
    assert set(state) == {f"{m}.{n}" for n, _ in model.named_parameters() for m in ("step", "exp_avg", "exp_avg_sq")}
    _, state = train_adapters(model, source(), TARGETS, SETTINGS, seed=1, optimizer_state=state)
    assert float(state["step.narrow.weight"]) == 6


def test_the_proximal_term_holds_the_weights_back() -> None:
    start = weights(adapters())
    moved = {}
    for mu in (0.0, 1.0, 100.0):
        model = adapters()
        losses, _ = train_adapters(
            model, source(), TARGETS, replace(SETTINGS, epochs=5), seed=0, options=TrainingOptions(proximal_mu=mu)
        )
        moved[mu] = float((weights(model) - start).norm())
        assert losses["loss"] == pytest.approx(losses["clip_loss"] + losses["t5_loss"], rel=1e-4)  # without the term
    assert moved[0.0] > moved[1.0] > moved[100.0]


def test_the_proximal_term_is_half_mu_times_the_squared_distance() -> None:
    """Its gradient is mu times the way so far, so that one step from the start feels nothing of it."""
    one = replace(SETTINGS, batch_size=18)
    free, held = adapters(), adapters()
    train_adapters(free, source(), TARGETS, one, seed=0)
    train_adapters(held, source(), TARGETS, one, seed=0, options=TrainingOptions(proximal_mu=50.0))
    assert torch.equal(weights(free), weights(held))
    anchor = [parameter.detach() - 2 for parameter in held.parameters()]
    for parameter in held.parameters():
        parameter.grad = torch.ones_like(parameter)
    pull(held, anchor, mu=3.0)
    assert all(torch.allclose(p.grad, torch.tensor(7.0)) for p in held.parameters() if p.grad is not None)


def predictions(model: Adapters) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([output.flatten(1) for output in model(source().values).values()], dim=1)


@pytest.mark.parametrize("mu", [0.0, 10.0])
@pytest.mark.parametrize("rows", [1, 4, 6])
def test_small_parts_of_a_batch_learn_what_the_whole_batch_learns(rows: int, mu: float) -> None:
    """Also with FedProx's distance, which counts once for the batch and not once for each part."""
    whole, parts = adapters(), adapters()
    settings = replace(SETTINGS, epochs=3)
    expected, _ = train_adapters(whole, source(), TARGETS, settings, seed=0, options=TrainingOptions(proximal_mu=mu))
    losses, _ = train_adapters(
        parts, source(), TARGETS, settings, seed=0, options=TrainingOptions(proximal_mu=mu, limit=BatchLimit(rows))
    )
    assert losses == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(predictions(parts), predictions(whole), rtol=1e-3, atol=1e-4)


class Scarce(Summaries):
    """Summaries on a device that has memory for two at a time."""

    def summaries(self, indices: torch.Tensor) -> torch.Tensor:
        if len(indices) > 2:
            raise torch.OutOfMemoryError
        return super().summaries(indices)


def test_out_of_memory_halves_the_batch_and_repeats_the_step(caplog: pytest.LogCaptureFixture) -> None:
    undisturbed, disturbed = adapters(), adapters()
    expected, state = train_adapters(undisturbed, source(), TARGETS, SETTINGS, seed=0)
    limit = BatchLimit()
    with caplog.at_level(logging.WARNING):
        scarce = Scarce(source().values, source().labels)
        losses, moments = train_adapters(
            disturbed, scarce, TARGETS, SETTINGS, seed=0, options=TrainingOptions(limit=limit)
        )
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory with 6 rows in a batch: going on with 3",
        "out of memory with 3 rows in a batch: going on with 1",
    ]
    assert limit.rows == 1  # for the rest of the training too
    assert losses == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(predictions(disturbed), predictions(undisturbed), rtol=1e-3, atol=1e-4)
    assert moments["step.narrow.weight"] == state["step.narrow.weight"] == 3  # no step was taken twice


def test_what_does_not_fit_at_all_is_an_error() -> None:
    class Full(Summaries):
        def summaries(self, indices: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        train_adapters(adapters(), Full(source().values, source().labels), TARGETS, SETTINGS, seed=0)


def test_an_output_of_another_shape_is_refused() -> None:
    labels = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"head 'clip' gives \(2, 1, 7\) where its target is \(2, 7\)"):
        target_losses({"clip": torch.zeros(2, 1, 7)}, TARGETS, labels, SETTINGS)
    with pytest.raises(ValueError, match="'t5'"):
        target_losses({"t5": torch.zeros(2, 5)}, TARGETS, labels, SETTINGS)


def test_losses_by_hand() -> None:
    labels = torch.tensor([0, 2])
    perfect = target_losses({"clip": TARGETS["clip"][labels]}, TARGETS, labels, SETTINGS)["clip"]
    chance = torch.tensor([10.0, 0, 0]).log_softmax(0)[0]  # cosines 1, 0, 0 over a temperature of 0.1
    assert float(perfect) == pytest.approx(float(-chance), rel=1e-4, abs=1e-6)
    squared = replace(SETTINGS, contrastive_weight=0.0)
    none = target_losses({"clip": torch.zeros(2, 7)}, TARGETS, labels, squared)["clip"]
    assert float(none) == pytest.approx(1.0)  # an output of zeros misses the whole mean square
    scaled = target_losses({"clip": torch.zeros(2, 7)}, {"clip": 9 * TARGETS["clip"]}, labels, squared)["clip"]
    assert float(scaled) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["epochs", "batch_size", "lr", "clip", "temperature"])
def test_zero_is_refused_by_its_key(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"adapter\.training\.{name}=0"):
        TrainingSettings(**{name: 0})
    with pytest.raises(ConfigError, match=rf"global_training\.{name}=0"):
        GlobalTrainingSettings(**{name: 0})


def test_settings_that_learn_nothing_or_are_unknown() -> None:
    with pytest.raises(ConfigError, match="nothing to learn"):
        TrainingSettings(mse_weight=0, contrastive_weight=0)
    with pytest.raises(ConfigError, match=r"adapter\.training\.warmup=1\.0"):
        TrainingSettings(warmup=1.0)
    with pytest.raises(ConfigError, match=r"global_training='superviced'.*Did you mean 'supervised'"):
        GlobalTrainingSettings(name="superviced")

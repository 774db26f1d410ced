"""The loop that trains a generator: batches, schedule, clipping, early stopping, and memory that runs out."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from fedgen.errors import DataError
from fedgen.models.generators.loop import Batch, OptimStep, TrainingSpec, TrainState, train
from fedgen.models.memory import BatchLimit
from fedgen.models.settings import GeneratorTraining, Schedule

TRAINING = GeneratorTraining(epochs=4, batch_size=8, lr=1e-2, validation=0.0)
ROWS = [19, 8, 30, 1]  # 3, 1, 4 and 1 batches of 8


class Line(nn.Module):
    """Two linear maps, of the values to themselves."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(3, 3, generator=generator))
        self.second = nn.Parameter(torch.randn(3, 3, generator=generator))

    def forward(self, values: Tensor) -> Tensor:
        return values @ self.first @ self.second


def line_losses(model: Line, batch: Batch, scale: float = 1.0) -> Tensor:
    """Progress, and the squared error of noisy inputs."""
    values = batch.rows["values"]
    inputs = values + 0.1 * batch.noise["input"] if batch.noise else values
    error = (model(inputs) - values).square().mean(dim=1)
    return torch.stack([batch.progress * batch.share.sum(), scale * error @ batch.share])


def noise(rows: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {"input": torch.randn(rows, 3, generator=generator)}


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Fills with the learning rate of the first model in every optimiser step."""
    found: list[float] = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self: (found.append(self.param_groups[0]["lr"]), step(self))[1]
    )
    return found


SPEC = TrainingSpec((OptimStep(line_losses, ("progress", "loss")),), noise, line_losses)


def rows(count: int, seed: int = 0) -> dict[str, Tensor]:
    return {"values": torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))}


def job(count: int = 19, seed: int = 0) -> TrainState:
    return TrainState(Line(seed), rows(count, seed), seed=seed, split_seed=seed)


@pytest.mark.parametrize("count", ROWS)
def test_an_epoch_takes_each_batch_once(count: int) -> None:
    own = job(count)
    train(own, SPEC, TRAINING)
    assert own.moments["step.first"] == 4 * -(-count // 8)


@pytest.mark.parametrize("count", ROWS)
def test_every_row_counts_once_in_the_mean_of_a_batch(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no step taken, an epoch's loss is the mean over all rows, however the batches are cut."""
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
    still = TrainingSpec((OptimStep(line_losses, ("progress", "loss")),), lambda count, generator: {})
    own = job(count)
    values = own.rows["values"]
    expected = (own.model(values) - values).square().mean().item()
    losses = train(own, still, TRAINING)
    assert [epoch["loss"] for epoch in losses] == pytest.approx([expected] * 4, rel=1e-5)


def test_a_training_that_is_cut_into_calls_has_one_schedule(rates: list[float]) -> None:
    training = replace(TRAINING, epochs=6, warmup=0.2)
    whole = train(job(16), SPEC, training)
    own, pieces = job(16), []
    for call in range(3):
        pieces += train(own, SPEC, replace(training, epochs=2), Schedule(call, 3))
    assert rates[:12] == pytest.approx(rates[12:])
    assert rates[0] < max(rates) == pytest.approx(TRAINING.lr)
    assert [epoch["progress"] for epoch in pieces] == pytest.approx([epoch["progress"] for epoch in whole])
    assert own.moments["step.first"] == 12


def test_gradients_are_clipped() -> None:
    def losses(model: Line, batch: Batch) -> Tensor:
        return line_losses(model, batch, scale=1e6)

    own = job(16)
    train(own, TrainingSpec((OptimStep(losses, ("progress", "loss")),), noise), replace(TRAINING, clip=0.01))
    assert 0 < max(value.norm() for name, value in own.moments.items() if name.startswith("exp_avg.")) < 0.01


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the losses fail, as a full device would, with more rows than ``most``."""

    def fill(most: int) -> None:
        def full(model: Line, batch: Batch) -> Tensor:
            if batch.noise and len(batch.share) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return line_losses(model, batch)

        monkeypatch.setattr(f"{__name__}.SPEC", TrainingSpec((OptimStep(full, ("progress", "loss")),), noise, full))

    return fill


def test_out_of_memory_halves_the_batch_and_changes_nothing_else(
    memory: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    plenty, little, limit = job(), job(), BatchLimit()
    expected = train(plenty, SPEC, TRAINING)
    memory(3)
    with caplog.at_level(logging.WARNING):
        losses = train(little, SPEC, TRAINING, limit=limit)
    assert limit.rows == 2
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory with 8 rows in a batch: going on with 4",
        "out of memory with 4 rows in a batch: going on with 2",
    ]
    assert [epoch["loss"] for epoch in losses] == pytest.approx([epoch["loss"] for epoch in expected], rel=1e-3)
    torch.testing.assert_close(plenty.model.state_dict(), little.model.state_dict(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(plenty.moments, little.moments, atol=1e-4, rtol=1e-4)


def test_a_device_that_holds_not_even_one_row_is_an_error(memory: Callable[[int], None]) -> None:
    memory(0)
    with pytest.raises(torch.OutOfMemoryError):
        train(job(4), SPEC, TRAINING)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_model_that_gets_no_better_stops(seed: int) -> None:
    """The first starts where its validation loss can only rise; weights and moments are those of the best epoch."""
    own = job(20, seed)
    if seed == 0:
        for weights in (own.model.first, own.model.second):
            nn.init.eye_(weights)
    losses = train(own, SPEC, replace(TRAINING, epochs=30, validation=0.3, patience=3, lr=0.05))
    scores = [epoch["validation_loss"] for epoch in losses]
    best = scores.index(min(scores)) + 1
    assert own.moments["step.first"] == best * 2  # 14 rows: two batches
    assert len(scores) in (best + 3, 30)
    assert seed or len(scores) < 30


def test_held_out_rows_are_the_same_in_every_call() -> None:
    training = replace(TRAINING, validation=0.25)
    held = []
    for seed in (0, 1):
        marked = rows(20)
        own = TrainState(Line(), marked | {"number": torch.arange(20)}, seed, split_seed=7)
        seen: set[int] = set()

        def losses(model: Line, batch: Batch, seen: set[int]) -> Tensor:
            if batch.noise:
                seen |= set(batch.rows["number"].tolist())
            return line_losses(model, batch)

        seeing = partial(losses, seen=seen)
        train(own, TrainingSpec((OptimStep(seeing, ("progress", "loss")),), noise, seeing), training)
        held.append(set(range(20)) - seen)
    assert len(held[0]) == 5
    assert held[0] == held[1]


def test_a_later_call_never_ends_worse_on_the_held_out_rows() -> None:
    """Its first mark is the loss that it starts with: a training that only does harm is undone, moments too."""
    training = replace(TRAINING, validation=0.25, epochs=20)
    own = job(20)
    train(own, SPEC, training)
    weights, moments = {name: value.clone() for name, value in own.model.state_dict().items()}, dict(own.moments)
    own.resumed = True
    losses = train(own, SPEC, replace(training, lr=10.0, epochs=3))
    assert all(epoch["progress"] == 1 for epoch in losses)  # ramps are over
    torch.testing.assert_close(own.model.state_dict(), weights, atol=0, rtol=0)
    torch.testing.assert_close(own.moments, moments, atol=0, rtol=0)


@pytest.mark.parametrize(("count", "validates"), [(1, False), (2, False), (3, True)])
def test_few_rows_are_all_trained_on(count: int, validates: bool) -> None:
    losses = train(job(count), SPEC, replace(TRAINING, validation=0.4))
    assert ["validation_loss" in epoch for epoch in losses] == [validates] * 4


def test_divergence_is_an_error_that_says_what_to_change() -> None:
    broken = TrainState(Line(), {"values": torch.tensor([[float("inf")] * 3])}, seed=0)
    with pytest.raises(DataError, match=r"diverged in epoch 0.*generator\.training\.lr=0\.01"):
        train(broken, SPEC, TRAINING)


# Two networks that step in turn


def first_losses(model: Line, batch: Batch) -> Tensor:
    return line_losses(model, batch)[1:]


def second_losses(model: Line, batch: Batch) -> Tensor:
    return -1e3 * line_losses(model, batch)[1:]


class Pair(nn.Module):
    """Two networks with names."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.up, self.down = Line(seed), Line(seed + 1)

    def forward(self, values: Tensor) -> Tensor:
        return self.up(values) + self.down(values)


DUEL = TrainingSpec(
    (OptimStep(first_losses, ("fall",), "down"), OptimStep(second_losses, ("rise",), "up", rate=0.5)), noise
)


def pair() -> TrainState:
    return TrainState(Pair(0), rows(19), seed=0)


def test_networks_step_in_turn_each_with_its_own_optimiser_and_clipping(rates: list[float]) -> None:
    own = pair()
    before = {name: value.clone() for name, value in own.model.state_dict().items()}
    losses = train(own, DUEL, replace(TRAINING, epochs=1, clip=0.1))
    assert list(losses[0]) == ["fall", "rise"]
    assert rates[1::2] == pytest.approx([rate / 2 for rate in rates[::2]])
    assert {value.item() for name, value in own.moments.items() if name.startswith("step.")} == {3.0}
    norms = {name: value.norm() for name, value in own.moments.items() if name.startswith("exp_avg.")}
    assert all(0 < norm <= 0.1 for norm in norms.values())  # though the second's gradients are a thousand times larger
    assert all(not torch.equal(value, before[name]) for name, value in own.model.state_dict().items())
    assert all(parameter.requires_grad for parameter in own.model.parameters())


def test_a_turn_moves_its_own_part_alone() -> None:
    own = pair()
    before = {name: value.clone() for name, value in own.model.state_dict().items()}
    train(own, TrainingSpec(DUEL.steps[:1], noise), TRAINING)
    for name, value in own.model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("up."), name

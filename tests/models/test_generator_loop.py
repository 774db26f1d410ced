"""The loop trains many models as if each were alone; schedule, clipping, early stopping and memory are its business."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from fedgen.errors import DataError
from fedgen.models.batches import BatchLimit
from fedgen.models.generators import GeneratorTraining
from fedgen.models.generators.jobs import Job
from fedgen.models.generators.loop import Recipe, Turn, train
from fedgen.models.generators.stack import Batch
from fedgen.models.schedule import Schedule

TRAINING = GeneratorTraining(epochs=4, batch_size=8, lr=1e-2, validation=0.0)
RAGGED = (19, 8, 30, 1)  # rows of four models: 3, 1, 4 and 1 batches of 8


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


RECIPE = Recipe((Turn(line_losses, ("progress", "loss")),), noise, line_losses)


def rows(count: int, seed: int = 0) -> dict[str, Tensor]:
    return {"values": torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))}


def jobs(counts: Sequence[int] = RAGGED, **values: object) -> list[Job]:
    return [Job(Line(n), rows(count, n), seed=n, split_seed=n, **values) for n, count in enumerate(counts)]  # type: ignore[arg-type]


def alone(many: list[Job], recipe: Recipe = RECIPE, training: GeneratorTraining = TRAINING) -> list:
    return [train([job], recipe, training)[0] for job in many]


def assert_same(some: list[Job], others: list[Job]) -> None:
    """Weights, step counts and moments agree up to rounding."""
    for one, other in zip(some, others, strict=True):
        torch.testing.assert_close(one.model.state_dict(), other.model.state_dict(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one.moments, other.moments, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("validation", [0.0, 0.3])
def test_many_models_learn_what_each_learns_alone(validation: float) -> None:
    training = replace(TRAINING, validation=validation)
    stacked, single = jobs(), jobs()
    losses = train(stacked, RECIPE, training)
    for some, others in zip(losses, alone(single, training=training), strict=True):
        assert [epoch.keys() for epoch in some] == [epoch.keys() for epoch in others]
        for one, other in zip(some, others, strict=True):
            assert one == pytest.approx(other, rel=1e-3)
    assert_same(stacked, single)


def test_a_model_without_a_batch_is_not_stepped() -> None:
    many = jobs()
    train(many, RECIPE, TRAINING)
    assert [job.moments["step.first"].item() for job in many] == [4 * batches for batches in (3, 1, 4, 1)]


def test_every_row_counts_once_in_the_mean_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no step taken, an epoch's loss is the mean over all rows, however the batches are cut."""
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
    still = Recipe((Turn(line_losses, ("progress", "loss")),), lambda count, generator: {})
    many = jobs()
    for job, losses in zip(many, train(many, still, TRAINING), strict=True):
        values = job.rows["values"]
        expected = (job.model(values) - values).square().mean().item()
        assert [epoch["loss"] for epoch in losses] == pytest.approx([expected] * 4, rel=1e-5)


def test_a_training_that_is_cut_into_calls_has_one_schedule(rates: list[float]) -> None:
    training = replace(TRAINING, epochs=6, warmup=0.2)
    [whole] = train(jobs([16]), RECIPE, training)
    job, pieces = jobs([16])[0], []
    for call in range(3):
        pieces += train([job], RECIPE, replace(training, epochs=2), Schedule(call, 3))[0]
    assert rates[:12] == pytest.approx(rates[12:])
    assert rates[0] < max(rates) == pytest.approx(TRAINING.lr)
    assert [epoch["progress"] for epoch in pieces] == pytest.approx([epoch["progress"] for epoch in whole])
    assert job.moments["step.first"] == 12


def test_clipping_looks_at_each_model_apart() -> None:
    """One model's huge gradients leave the others' steps as they are."""

    def losses(model: Line, batch: Batch) -> Tensor:
        return line_losses(model, batch) * batch.tables["scale"]

    recipe = Recipe((Turn(losses, ("progress", "loss")),), noise)
    training = replace(TRAINING, clip=0.01, weight_decay=0.0)
    found = []
    for scale in (1.0, 1e6):
        many = jobs([16, 16])
        many[0].tables, many[1].tables = {"scale": torch.tensor(1.0)}, {"scale": torch.tensor(scale)}
        train(many, recipe, training)
        found.append(many)
    for name in ("exp_avg.first", "exp_avg_sq.second"):
        torch.testing.assert_close(found[0][0].moments[name], found[1][0].moments[name])
    assert max(value.norm() for name, value in found[1][1].moments.items() if name.startswith("exp_avg.")) < 0.01


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the losses fail, as a full device would, with more rows than ``most``."""

    def fill(most: int) -> None:
        def full(model: Line, batch: Batch) -> Tensor:
            if batch.noise and len(batch.share) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return line_losses(model, batch)

        monkeypatch.setattr(f"{__name__}.RECIPE", Recipe((Turn(full, ("progress", "loss")),), noise, full))

    return fill


@pytest.mark.parametrize("counts", [RAGGED, (19,)], ids=["stacked", "alone"])
def test_out_of_memory_halves_the_batch_and_changes_nothing_else(
    counts: tuple[int, ...], memory: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    plenty, little, limit = jobs(counts), jobs(counts), BatchLimit()
    expected = train(plenty, RECIPE, TRAINING)
    memory(3)
    with caplog.at_level(logging.WARNING):
        losses = train(little, RECIPE, TRAINING, limit=limit)
    assert limit.rows == 2
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory with 8 rows in a batch: going on with 4",
        "out of memory with 4 rows in a batch: going on with 2",
    ]
    for some, others in zip(losses, expected, strict=True):
        assert [epoch["loss"] for epoch in some] == pytest.approx([epoch["loss"] for epoch in others], rel=1e-3)
    assert_same(plenty, little)


def test_a_device_that_holds_not_even_one_row_is_an_error(memory: Callable[[int], None]) -> None:
    memory(0)
    with pytest.raises(torch.OutOfMemoryError):
        train(jobs([4]), RECIPE, TRAINING)


def test_a_model_that_gets_no_better_stops_while_others_go_on() -> None:
    """One model starts where its validation loss can only rise; its weights and moments are those of the best epoch."""
    training = replace(TRAINING, epochs=30, validation=0.3, patience=3, lr=0.05)
    many = jobs([20, 20])
    for weights in (many[0].model.first, many[0].model.second):
        nn.init.eye_(weights)
    losses = train(many, RECIPE, training)
    scores = [[epoch["validation_loss"] for epoch in epochs] for epochs in losses]
    assert len(scores[0]) < 30
    for job, own in zip(many, scores, strict=True):
        best = own.index(min(own)) + 1
        assert job.moments["step.first"] == best * 2  # 14 rows: two batches
        assert len(own) in (best + 3, 30)


def test_held_out_rows_are_the_same_in_every_call() -> None:
    training = replace(TRAINING, validation=0.25)
    held = []
    for seed in (0, 1):
        marked = rows(20)
        job = Job(Line(), marked | {"number": torch.arange(20)}, seed, split_seed=7)
        seen: set[int] = set()

        def losses(model: Line, batch: Batch, seen: set[int]) -> Tensor:
            if batch.noise:
                seen |= set(batch.rows["number"].tolist())
            return line_losses(model, batch)

        own = partial(losses, seen=seen)
        train([job], Recipe((Turn(own, ("progress", "loss")),), noise, own), training)
        held.append(set(range(20)) - seen)
    assert len(held[0]) == 5
    assert held[0] == held[1]


def test_a_later_call_never_ends_worse_on_the_held_out_rows() -> None:
    """Its first mark is the loss that it starts with: a training that only does harm is undone, moments too."""
    training = replace(TRAINING, validation=0.25, epochs=20)
    job = jobs([20])[0]
    train([job], RECIPE, training)
    weights, moments = {name: value.clone() for name, value in job.model.state_dict().items()}, dict(job.moments)
    job.resumed = True
    [losses] = train([job], RECIPE, replace(training, lr=10.0, epochs=3))
    assert all(epoch["progress"] == 1 for epoch in losses)  # ramps are over
    torch.testing.assert_close(job.model.state_dict(), weights, atol=0, rtol=0)
    torch.testing.assert_close(job.moments, moments, atol=0, rtol=0)


def test_few_rows_are_all_trained_on() -> None:
    training = replace(TRAINING, validation=0.4)
    losses = train(jobs([1, 2, 3]), RECIPE, training)
    assert [len(epochs) for epochs in losses] == [4, 4, 4]
    assert ["validation_loss" in epochs[0] for epochs in losses] == [False, False, True]


def test_divergence_is_an_error_that_says_what_to_change() -> None:
    broken = Job(Line(), {"values": torch.tensor([[float("inf")] * 3])}, seed=0)
    with pytest.raises(DataError, match=r"diverged in epoch 0.*generator\.training\.lr=0\.01"):
        train([broken], RECIPE, TRAINING)


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


DUEL = Recipe((Turn(first_losses, ("fall",), "down"), Turn(second_losses, ("rise",), "up", rate=0.5)), noise)


def pairs() -> list[Job]:
    return [Job(Pair(n), rows(count, n), seed=n) for n, count in enumerate((19, 8))]


def test_networks_step_in_turn_each_with_its_own_optimiser_and_clipping(rates: list[float]) -> None:
    job = pairs()[0]
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    losses = train([job], DUEL, replace(TRAINING, epochs=1, clip=0.1))
    assert list(losses[0][0]) == ["fall", "rise"]
    assert rates[1::2] == pytest.approx([rate / 2 for rate in rates[::2]])
    assert {value.item() for name, value in job.moments.items() if name.startswith("step.")} == {3.0}
    norms = {name: value.norm() for name, value in job.moments.items() if name.startswith("exp_avg.")}
    assert all(0 < norm <= 0.1 for norm in norms.values())  # though the second's gradients are a thousand times larger
    assert all(not torch.equal(value, before[name]) for name, value in job.model.state_dict().items())
    assert all(parameter.requires_grad for parameter in job.model.parameters())


def test_a_turn_moves_its_own_part_alone() -> None:
    job = pairs()[0]
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    train([job], Recipe(DUEL.turns[:1], noise), TRAINING)
    for name, value in job.model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("up."), name


def test_pairs_learn_together_what_each_learns_alone() -> None:
    stacked, single = pairs(), pairs()
    train(stacked, DUEL, TRAINING)
    alone(single, DUEL)
    assert_same(stacked, single)

"""The training loop of every neural generator, with early stopping by rows that are held out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedgen.data.seeds import seeded
from fedgen.errors import DataError
from fedgen.models.memory import BatchLimit
from fedgen.models.settings import NeuralTraining, Schedule
from fedgen.models.states import join, load_optimizer_tensors, optimizer_tensors, part_of


class Batch(NamedTuple):
    """The input of the losses."""

    rows: dict[str, Tensor]  # of the batch, (b, ...) each
    tables: dict[str, Tensor]  # the same in every batch
    noise: dict[str, Tensor]  # drawn for each row (b, ...); empty in validation
    share: Tensor  # of each row in the mean over the batch (b,); over all parts of a batch it sums to 1
    progress: Tensor  # share of the configured training that is done (), from 0 to 1

    def window(self, first: int, last: int) -> Batch:
        """Return rows ``first`` to ``last`` (excluded)."""
        rows, noise = ({name: value[first:last] for name, value in part.items()} for part in (self.rows, self.noise))
        return self._replace(rows=rows, noise=noise, share=self.share[first:last])


Losses = Callable[[Any, Batch], Tensor]
"""From a model and a batch to its loss components ``(components,)``; the last is minimised. Each is a sum over rows
weighted by ``batch.share``; nothing is random but ``batch.noise``."""


@dataclass(frozen=True)
class OptimStep:
    """One step on every batch, with an AdamW and a gradient clipping of its own."""

    losses: Losses
    components: tuple[str, ...]  # names of the losses; no two steps share one
    part: str = ""  # submodule whose weights move; by default the whole model
    rate: float = 1.0  # factor on the learning rate


@dataclass(frozen=True)
class TrainingSpec:
    """How models of one kind learn."""

    steps: tuple[OptimStep, ...]  # taken on every batch, in this order: two for networks that learn against each other
    # from a number of rows and a generator to noise by name (rows, ...), on the generator's device: once an epoch
    noise: Callable[[int, torch.Generator], dict[str, Tensor]]
    # its last component decides which epoch was best; without it no row is held out and nothing stops early
    validation: Losses | None = None


@dataclass
class TrainState:
    """One model, its optimisers' moments, and the rows that it learns from."""

    model: nn.Module  # trained in place; moves to the device of the rows
    rows: dict[str, Tensor]  # (N, ...) each, on the device to train on
    seed: int  # of the order of rows and of the noise
    split_seed: int | None = None  # of the choice of rows that are held out; without it none are
    tables: dict[str, Tensor] = field(default_factory=dict)  # handed to every batch as they are
    moments: dict[str, Tensor] = field(default_factory=dict)  # of the optimisers; training leaves those of its weights
    resumed: bool = False  # whether ramps are over, and the loss at the start is the first that later epochs must beat

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(next(iter(self.rows.values())))

    @property
    def device(self) -> torch.device:
        """Device of the rows."""
        return next(iter(self.rows.values())).device

    def batch(self, numbers: Tensor, noise: dict[str, Tensor], progress: float) -> Batch:
        """Return the rows of these ``numbers`` ``(b,)``, each with the same share in the mean."""
        numbers = numbers.to(self.device)
        rows = {name: value[numbers] for name, value in self.rows.items()}
        share = torch.full((len(numbers),), 1 / max(1, len(numbers)), device=self.device)
        return Batch(rows, self.tables, noise, share, torch.tensor(progress, device=self.device))


def train(
    state: TrainState,
    spec: TrainingSpec,
    training: NeuralTraining,
    schedule: Schedule | None = None,
    limit: BatchLimit | None = None,
) -> list[dict[str, float]]:
    """Train the model of ``state`` and leave it with the weights and moments of its best epoch.

    ``schedule`` is the place of this call in a training of several calls; ``limit`` halves the batch when memory runs
    out. Returns the losses of each epoch by component, and ``validation_loss`` if rows were held out. Raises
    `DataError` if one is not finite.
    """
    schedule, limit, model = schedule or Schedule(), limit or BatchLimit(), state.model.to(state.device)
    share = training.validation if spec.validation and state.split_seed is not None else 0.0
    held, rows = hold_out(state.count, share, state.split_seed or 0)
    held_batch = state.batch(held, {}, 1.0)
    shuffle, draw = seeded(state.seed, "shuffle"), seeded(state.seed, "noise", device=state.device)
    optimizers = [_optimizer(state, step, training) for step in spec.steps]
    names = [name for step in spec.steps for name in step.components]
    batches = len(rows.split(training.batch_size))
    steps = training.epochs * batches
    best, best_loss, age = {}, math.inf, 0
    if state.resumed and len(held):
        best, best_loss = _snapshot(model, optimizers), _validate(spec, model, held_batch)
    history: list[dict[str, float]] = []
    for epoch in range(training.epochs):
        if age >= training.patience:
            break
        order = rows[torch.randperm(len(rows), generator=shuffle)]
        noise = {name: value.split(training.batch_size) for name, value in spec.noise(len(order), draw).items()}
        sums = []
        for number, chosen in enumerate(order.to(state.device).split(training.batch_size)):
            done = epoch * batches + number
            progress = 1.0 if state.resumed else schedule.progress(done, steps)
            batch = state.batch(chosen, {name: parts[number] for name, parts in noise.items()}, progress)
            rate = training.lr * schedule.rate(done, steps, training.warmup)
            found = []
            for step, optimizer in zip(spec.steps, optimizers, strict=True):
                optimizer.param_groups[0]["lr"] = rate * step.rate
                found.append(_descend(model, step, batch, optimizer, training.clip, limit))
            sums.append(torch.cat(found) * (len(chosen) / len(order)))
        losses = dict(zip(names, torch.stack(sums).sum(0).tolist(), strict=True))
        if len(held):
            losses["validation_loss"] = _validate(spec, model, held_batch)
        if not all(map(math.isfinite, losses.values())):
            raise DataError(
                f"training of a generator diverged in epoch {epoch}: {losses}; "
                f"lower generator.training.lr={training.lr}"
            )
        history.append(losses)
        if len(held):
            age += 1
            if losses["validation_loss"] < best_loss:
                best, best_loss, age = _snapshot(model, optimizers), losses["validation_loss"], 0
    final = best or _snapshot(model, optimizers)
    model.load_state_dict(part_of(final, "model"))
    model.requires_grad_(True)
    state.moments = {name: value.cpu() for name, value in part_of(final, "optimizer").items()}
    return history


def hold_out(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the numbers of the rows that are held out ``(H,)`` and of the others ``(R,)``, in an order of its own."""
    order = torch.randperm(count, generator=seeded(seed, "validation"))
    return order[: int(share * count)], order[int(share * count) :]


def _optimizer(state: TrainState, step: OptimStep, training: NeuralTraining) -> torch.optim.AdamW:
    parameters = state.model.get_submodule(step.part).parameters()
    optimizer = torch.optim.AdamW(parameters, lr=training.lr, weight_decay=training.weight_decay, fused=True)
    load_optimizer_tensors(state.model, optimizer, state.moments)
    return optimizer


def _descend(
    model: nn.Module, step: OptimStep, batch: Batch, optimizer: torch.optim.AdamW, clip: float, limit: BatchLimit
) -> Tensor:
    """Move the step's weights, and no others; return its losses ``(components,)``."""
    moving = model.get_submodule(step.part)
    model.requires_grad_(False)
    moving.requires_grad_(True)

    def losses(rows: Tensor) -> Tensor:  # (b,), neighbours
        return step.losses(model, batch.window(int(rows[0]), int(rows[-1]) + 1))

    found = limit.backward(torch.arange(len(batch.share)), losses, optimizer.zero_grad)
    nn.utils.clip_grad_norm_(moving.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad()
    return found


@torch.no_grad()
def _validate(spec: TrainingSpec, model: nn.Module, batch: Batch) -> float:
    """Return the deterministic loss of the held-out rows."""
    assert spec.validation is not None
    return spec.validation(model, batch)[-1].item()


def _snapshot(model: nn.Module, optimizers: list[torch.optim.AdamW]) -> dict[str, Tensor]:
    """Return copies of weights and moments."""
    parts = {"model": model.state_dict(), "optimizer": optimizer_tensors(model, *optimizers)}
    return {name: value.clone() for name, value in join(parts).items()}

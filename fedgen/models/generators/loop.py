"""How every neural generator is trained: its steps on every batch, with early stopping by rows that are held out."""

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
from fedgen.models.settings import NeuralTraining
from fedgen.models.states import join, live_tensors, load_optimizer_tensors, part_of
from fedgen.models.training import Schedule


class Batch(NamedTuple):
    """What the losses of a model are computed from."""

    rows: dict[str, Tensor]  # of the batch, (b, ...) each
    tables: dict[str, Tensor]  # what is the same in every batch
    noise: dict[str, Tensor]  # what the recipe draws for each row (b, ...); empty in validation
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
class Recipe:
    """How models of one kind learn.

    Parameters
    ----------
    steps : tuple[OptimStep, ...]
        Steps taken on every batch, in this order: two for networks that learn against each other.
    noise : Callable
        From a number of rows and a generator to noise by name ``(rows, ...)``, on the generator's device. Drawn once an
        epoch for all its rows.
    validation : Losses, optional
        Their last component decides which epoch was best. Without it no row is held out and nothing stops early.
    """

    steps: tuple[OptimStep, ...]
    noise: Callable[[int, torch.Generator], dict[str, Tensor]]
    validation: Losses | None = None


@dataclass
class Job:
    """One model and what it learns from."""

    model: nn.Module  # trained in place; moves to the device of the rows
    rows: dict[str, Tensor]  # what batches are taken from, (N, ...) each, on the device to train on
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

    def batch(self, numbers: Tensor, noise: dict[str, Tensor], progress: Tensor) -> Batch:
        """Return the rows of these ``numbers`` ``(b,)`` as a batch."""
        rows = {name: value[numbers] for name, value in self.rows.items()}
        share = torch.full((len(numbers),), 1 / max(1, len(numbers)), device=self.device)
        return Batch(rows, self.tables, noise, share, progress)


def train(
    job: Job,
    recipe: Recipe,
    training: NeuralTraining,
    schedule: Schedule | None = None,
    limit: BatchLimit | None = None,
) -> list[dict[str, float]]:
    """Train the model of ``job`` and leave it with the weights and moments of its best epoch.

    ``schedule`` is the place of this call in a training of several calls; ``limit`` halves the batch when memory runs
    out. Returns the losses of each epoch by component, and ``validation_loss`` if rows were held out. Raises
    `DataError` if one is not finite.
    """
    loop = _Loop(job, recipe, training, schedule or Schedule(), limit or BatchLimit())
    if job.resumed and len(loop.held):
        loop.judge(loop.validate().item())
    for epoch in range(training.epochs):
        if loop.age >= training.patience:
            break
        loop.epoch(epoch)
    loop.finish()
    return loop.losses


def hold_out(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the numbers of the rows that are held out ``(H,)`` and of the others ``(R,)``, in an order of its own."""
    order = torch.randperm(count, generator=seeded(seed, "validation"))
    return order[: int(share * count)], order[int(share * count) :]


class _Loop:
    """A training in progress: the losses of each epoch, and the best weights so far."""

    def __init__(
        self, job: Job, recipe: Recipe, training: NeuralTraining, schedule: Schedule, limit: BatchLimit
    ) -> None:
        self.job, self.recipe, self.training, self.schedule, self.limit = job, recipe, training, schedule, limit
        self.model = job.model.to(job.device)
        share = training.validation if recipe.validation and job.split_seed is not None else 0.0
        self.held, self.rows = hold_out(job.count, share, job.split_seed or 0)
        self.held_batch = job.batch(self.held, {}, torch.ones((), device=job.device))
        self.batches = len(self.rows.split(training.batch_size))
        self.shuffle, self.noise = seeded(job.seed, "shuffle"), seeded(job.seed, "noise", device=job.device)
        self.optimizers = [self._optimizer(step) for step in recipe.steps]
        self.losses: list[dict[str, float]] = []
        self.best, self.age = math.inf, 0
        self.kept: dict[str, Tensor] = {}  # weights and moments of the best epoch

    def _optimizer(self, step: OptimStep) -> torch.optim.AdamW:
        parameters, training = self.model.get_submodule(step.part).parameters(), self.training
        optimizer = torch.optim.AdamW(parameters, lr=training.lr, weight_decay=training.weight_decay, fused=True)
        load_optimizer_tensors(self.model, optimizer, self.job.moments)
        return optimizer

    def epoch(self, number: int) -> None:
        """Train on every row that is not held out once, note the losses, and judge the weights."""
        order, size = self.rows[torch.randperm(len(self.rows), generator=self.shuffle)], self.training.batch_size
        noise = {name: value.split(size) for name, value in self.recipe.noise(len(order), self.noise).items()}
        progress, sums = self._progress(number), []
        for batch, rows in enumerate(order.to(self.job.device).split(size)):
            own = {name: parts[batch] for name, parts in noise.items()}
            losses = self._step(number * self.batches + batch, self.job.batch(rows, own, progress[batch]))
            sums.append(losses * (len(rows) / len(order)))
        names, found = [name for step in self.recipe.steps for name in step.components], torch.stack(sums).sum(0)
        if len(self.held):
            names, found = [*names, "validation_loss"], torch.cat([found, self.validate()[None]])
        self._note(dict(zip(names, found.tolist(), strict=True)))

    def _progress(self, epoch: int) -> Tensor:
        """Return the share of training that is done before each batch of the epoch ``(batches,)``."""
        steps, first = self.training.epochs * self.batches, epoch * self.batches
        values = [self.schedule.progress(first + batch, steps) for batch in range(self.batches)]
        return torch.tensor([1.0] * self.batches if self.job.resumed else values, device=self.job.device)

    def _step(self, number: int, batch: Batch) -> Tensor:
        """Take each step of the recipe on the call's batch ``number``; return the batch's losses ``(components,)``."""
        rate = self.schedule.rate(number, self.training.epochs * self.batches, self.training.warmup)
        losses = []
        for step, optimizer in zip(self.recipe.steps, self.optimizers, strict=True):
            optimizer.param_groups[0]["lr"] = self.training.lr * step.rate * rate
            losses.append(self._descend(step, batch, optimizer))
            optimizer.step()
            optimizer.zero_grad()
        return torch.cat(losses)

    def _descend(self, step: OptimStep, batch: Batch, optimizer: torch.optim.AdamW) -> Tensor:
        """Give the step's weights their gradients, and no others; return its losses ``(components,)``."""
        moving = self.model.get_submodule(step.part)
        self.model.requires_grad_(False)
        moving.requires_grad_(True)

        def losses(rows: Tensor) -> Tensor:  # (b,), neighbours
            return step.losses(self.model, batch.window(int(rows[0]), int(rows[-1]) + 1))

        found = self.limit.backward(torch.arange(len(batch.share)), losses, optimizer.zero_grad)
        nn.utils.clip_grad_norm_(moving.parameters(), self.training.clip)
        return found

    def _note(self, losses: dict[str, float]) -> None:
        """Add the losses of an epoch, and judge the weights by those of the held-out rows."""
        if not all(map(math.isfinite, losses.values())):
            raise DataError(
                f"training of a generator diverged in epoch {len(self.losses)}: {losses}; "
                f"lower generator.training.lr={self.training.lr}"
            )
        self.losses.append(losses)
        if "validation_loss" in losses:
            self.age += 1
            self.judge(losses["validation_loss"])

    @torch.no_grad()
    def validate(self) -> Tensor:
        """Return the deterministic loss of the held-out rows ``()``."""
        assert self.recipe.validation is not None
        return self.recipe.validation(self.model, self.held_batch)[-1]

    def judge(self, loss: float) -> None:
        """Keep weights and moments if ``loss``, of the held-out rows, is the best so far."""
        if loss < self.best:
            self.best, self.age = loss, 0
            current = self._current()
            if self.kept.keys() == current.keys():
                torch._foreach_copy_(list(self.kept.values()), list(current.values()))  # new memory costs more
            else:
                self.kept = {name: value.clone() for name, value in current.items()}

    def finish(self) -> None:
        """Give the model its best weights back and the job their moments, on the CPU."""
        state = self.kept or self._current()
        self.model.load_state_dict(part_of(state, "model"))
        self.model.requires_grad_(True)
        moments = part_of(state, "optimizer")
        self.job.moments = {name: value.to("cpu", copy=True) for name, value in moments.items()}

    def _current(self) -> dict[str, Tensor]:
        """Return weights and moments as they are, not copied."""
        moments = live_tensors(self.model, *self.optimizers)
        return join({"model": self.model.state_dict(), "optimizer": moments})

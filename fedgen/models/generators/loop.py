"""The loop that trains every neural generator: one model, or many of the same shape at once.

Many models are trained as if each were alone, up to rounding: each has its own split, order of rows, noise, learning
rate, clipping, step count and early stopping. In every step, only models that still have a batch in their epoch move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fedgen.models.batches import BatchLimit
from fedgen.models.generators.jobs import Job, Run
from fedgen.models.generators.settings import GeneratorTraining
from fedgen.models.generators.stack import Batch, Losses, Team, open_team, pad_stack
from fedgen.models.optimizer import load_optimizer_tensors
from fedgen.models.schedule import Schedule


@dataclass(frozen=True)
class Turn:
    """One step on every batch, with an AdamW and a gradient clipping of its own.

    Parameters
    ----------
    losses : Losses
        The last component is minimised.
    components : tuple[str, ...]
        Their names; no two turns share one.
    part : str
        Submodule whose weights move, such as ``discriminator``; by default the whole model.
    rate : float
        Factor on the learning rate.
    """

    losses: Losses
    components: tuple[str, ...]
    part: str = ""
    rate: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """How models of one kind learn; the same for all that are trained together.

    Parameters
    ----------
    turns : tuple[Turn, ...]
        Steps taken on every batch, in this order: two for networks that learn against each other.
    noise : Callable
        From a number of rows and a generator to noise by name ``(rows, ...)``, on the generator's device. Drawn once an
        epoch for all its rows.
    validation : Losses, optional
        Their last component decides which epoch was best. Without it no row is held out and nothing stops early.
    """

    turns: tuple[Turn, ...]
    noise: Callable[[int, torch.Generator], dict[str, Tensor]]
    validation: Losses | None = None


def train(
    jobs: Sequence[Job],
    recipe: Recipe,
    training: GeneratorTraining,
    schedule: Schedule | None = None,
    limit: BatchLimit | None = None,
) -> list[list[dict[str, float]]]:
    """Train the models of ``jobs``, all at once, and keep for each the weights and moments of its best epoch.

    Losses are summed on the device and reach the host once an epoch.

    Parameters
    ----------
    jobs : Sequence[Job]
        Models of the same shape, with numbers of rows of their own, on one device.
    recipe : Recipe
    training : GeneratorTraining
        Epochs, batch size, rates, clipping, patience.
    schedule : Schedule, optional
        Place of this call in a training of several calls; alone by default.
    limit : BatchLimit, optional
        Halves the batch when memory runs out.

    Returns
    -------
    list[list[dict]]
        For each job the losses of each epoch by component, and ``validation_loss`` if rows were held out.

    Raises
    ------
    DataError
        A loss is not finite.
    """
    runs = [Run(job, training, validates=recipe.validation is not None) for job in jobs]
    loop = _Loop(runs, recipe, training, schedule or Schedule(), limit or BatchLimit())
    loop.enter()
    for epoch in range(training.epochs):
        loop.epoch(epoch)
    for run in runs:
        run.finish(loop.optimizers)
    return [run.losses for run in runs]


class _Loop:
    """Epochs of the runs that are not stale, most rows first: in any step, those that have a batch come first."""

    def __init__(
        self, runs: list[Run], recipe: Recipe, training: GeneratorTraining, schedule: Schedule, limit: BatchLimit
    ) -> None:
        self.recipe, self.training, self.schedule, self.limit = recipe, training, schedule, limit
        self.live = sorted(runs, key=lambda run: len(run.rows), reverse=True)
        self.group = {run: number for number, run in enumerate(self.live)}  # place in the optimisers
        self.device = self.live[0].job.device
        self.optimizers = [_optimizer(self.live, turn, training) for turn in recipe.turns]
        self._gather()

    def enter(self) -> None:
        """Let models that were trained before set the mark for their later epochs."""
        if any(run.job.resumed and len(run.held) for run in self.live):
            for run, score in zip(self.live, self._validate().tolist(), strict=True):
                if run.job.resumed and len(run.held):
                    run.judge(score, self.optimizers)

    def epoch(self, number: int) -> None:
        """Train every run that is not stale on all of its rows once."""
        if any(run.stale for run in self.live):
            self.live = [run for run in self.live if not run.stale]
            self._gather()
        if not self.live:
            return
        order = pad_stack([run.order() for run in self.live]).to(self.device)  # (M, R)
        drawn = [self.recipe.noise(len(run.rows), run.noise) for run in self.live]
        epoch = Batch(
            {name: value[self.models, order] for name, value in self.rows.items()},  # (M, R, ...) each
            self.tables,
            {name: pad_stack([each[name] for each in drawn]) for name in drawn[0]},  # (M, R, ...) each
            self.share,
            self._progress(number),
        )
        batches = torch.arange(order.shape[1]).split(self.training.batch_size)
        sums = [self._step(number, batch, places, epoch) for batch, places in enumerate(batches)]
        self._report(torch.stack(sums).sum(0))

    def _gather(self) -> None:
        """Stack what the live runs learn from; sizes of batches differ, rows that fill up have no share in the mean."""
        live, size = self.live, self.training.batch_size
        if not live:
            return
        self.teams: dict[tuple[int, int], Team] = {}  # by turn and number of models
        self.models = torch.arange(len(live), device=self.device)[:, None]
        self.rows = {name: pad_stack([run.job.rows[name] for run in live]) for name in live[0].job.rows}  # (M, N, ...)
        self.tables = {name: pad_stack([run.job.tables[name] for run in live]) for name in live[0].job.tables}
        sizes = pad_stack([torch.tensor(run.batches, dtype=torch.float32) for run in live])  # (M, batches)
        counts = sizes.sum(1, keepdim=True)  # (M, 1)
        places = torch.arange(int(counts.max()))
        means = sizes.reciprocal().repeat_interleave(size, dim=1)[:, : len(places)]
        self.share = torch.where(places < counts, means, 0.0).to(self.device)  # (M, R)
        self.portion = (sizes / counts).to(self.device)  # of a batch in its epoch (M, batches)
        self.held = self._held_out()

    def _held_out(self) -> Batch:
        """Return the held-out rows of all live runs as one batch, without noise."""
        indices = pad_stack([run.held for run in self.live]).to(self.device)  # (M, H)
        share = pad_stack([torch.ones(len(run.held)) / max(1, len(run.held)) for run in self.live]).to(self.device)
        rows = {name: value[self.models, indices] for name, value in self.rows.items()}
        return Batch(rows, self.tables, {}, share, torch.ones(len(self.live), device=self.device))

    def _progress(self, epoch: int) -> Tensor:
        """Return the share of training that is done before each batch of the epoch ``(M, batches)``."""
        values = [
            [self.schedule.progress(epoch * len(run.batches) + batch, run.steps) for batch in range(len(run.batches))]
            for run in self.live
        ]
        done = torch.tensor([[run.job.resumed] for run in self.live])
        return pad_stack([torch.tensor(row) for row in values]).masked_fill(done, 1.0).to(self.device)

    def _step(self, epoch: int, batch: int, places: Tensor, data: Batch) -> Tensor:
        """Let each turn step on one batch and return what that adds to the epoch's losses ``(M, components)``."""
        active = [run for run in self.live if len(run.batches) > batch]
        data = data._replace(progress=data.progress[:, batch])
        losses = []
        for number, (turn, optimizer) in enumerate(zip(self.recipe.turns, self.optimizers, strict=True)):
            for run in active:
                rate = self.schedule.rate(epoch * len(run.batches) + batch, run.steps, self.training.warmup)
                optimizer.param_groups[self.group[run]]["lr"] = self.training.lr * turn.rate * rate
            losses.append(self._descend(number, active, data, places))
            optimizer.step()
            optimizer.zero_grad()
        missing = len(self.live) - len(active)
        return functional.pad(torch.cat(losses, dim=1), (0, 0, 0, missing)) * self.portion[:, batch, None]

    def _descend(self, number: int, active: list[Run], data: Batch, places: Tensor) -> Tensor:
        """Give the active models the gradients of turn ``number`` and return its losses ``(A, components)``."""
        turn, count = self.recipe.turns[number], len(active)
        if (number, count) not in self.teams:
            self.teams[number, count] = open_team([run.job.model for run in active], turn.part)
        team = self.teams[number, count]
        team.begin()

        def losses(part: Tensor) -> Tensor:  # part: (b,), neighbours
            return team.losses(turn.losses, data.window(count, int(part[0]), int(part[-1]) + 1))

        found = self.limit.backward(places, losses, team.zero_grad)
        team.clip(self.training.clip)
        return found

    @torch.no_grad()
    def _validate(self) -> Tensor:
        """Return the deterministic loss of each live run's held-out rows ``(M,)``; 0 where there are none."""
        assert self.recipe.validation is not None
        team = open_team([run.job.model for run in self.live])
        team.begin()
        return team.losses(self.recipe.validation, self.held)[:, -1]

    def _report(self, sums: Tensor) -> None:
        """Note an epoch's losses ``(M, components)`` and judge the weights by the held-out rows."""
        names = [name for turn in self.recipe.turns for name in turn.components]
        validates = any(len(run.held) for run in self.live)
        values = torch.cat([sums, self._validate()[:, None]], dim=1) if validates else sums
        for run, row in zip(self.live, values.tolist(), strict=True):
            own = [*names, "validation_loss"] if len(run.held) else names
            run.note(dict(zip(own, row, strict=False)))
            if len(run.held):
                run.judge(row[-1], self.optimizers)


def _optimizer(runs: list[Run], turn: Turn, training: GeneratorTraining) -> torch.optim.AdamW:
    """Return the optimiser of one turn, a group for each run; models without gradients in a step stay as they are."""
    groups = [{"params": list(run.job.model.get_submodule(turn.part).parameters())} for run in runs]
    optimizer = torch.optim.AdamW(groups, lr=training.lr, weight_decay=training.weight_decay, fused=True)
    for run in runs:
        load_optimizer_tensors(run.job.model, optimizer, run.job.moments)
    return optimizer

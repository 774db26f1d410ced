"""One model on its way through training: its rows, its random streams, its losses, its best epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fedgen.errors import DataError
from fedgen.models.generators.settings import GeneratorTraining
from fedgen.models.optimizer import live_tensors
from fedgen.models.seeds import seeded
from fedgen.models.states import join, part_of


@dataclass
class Job:
    """One model and what it learns from.

    Parameters
    ----------
    model : nn.Module
        Trained in place; moves to the device of the rows.
    rows : dict[str, Tensor]
        What batches are taken from, ``(N, ...)`` each, on the device to train on.
    seed : int
        Seed of the order of rows and of the noise.
    split_seed : int, optional
        Seed of the choice of rows that are held out; without it none are.
    tables : dict[str, Tensor]
        Handed to every batch as they are.
    moments : dict[str, Tensor]
        The optimisers' state of an earlier call, or empty; training puts that of the weights it leaves here.
    resumed : bool
        Whether the model was trained before: its ramps are over, and its validation loss at the start is the first that
        later epochs have to beat.
    """

    model: nn.Module
    rows: dict[str, Tensor]
    seed: int
    split_seed: int | None = None
    tables: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, Tensor] = field(default_factory=dict)
    resumed: bool = False

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(next(iter(self.rows.values())))

    @property
    def device(self) -> torch.device:
        """Device of the rows."""
        return next(iter(self.rows.values())).device


class Run:
    """A job in progress.

    Attributes
    ----------
    rows, held : Tensor
        Numbers of the rows that are trained on ``(R,)`` and held out ``(H,)``, on the CPU.
    batches : list[int]
        Sizes of the batches of an epoch.
    losses : list[dict[str, float]]
        Of each epoch, by component.
    """

    def __init__(self, job: Job, training: GeneratorTraining, validates: bool) -> None:
        self.job, self.training = job, training
        job.model.to(job.device)
        share = training.validation if validates and job.split_seed is not None else 0.0
        self.held, self.rows = hold_out(job.count, share, job.split_seed or 0)
        self.batches = [len(rows) for rows in self.rows.split(training.batch_size)]
        self.steps = training.epochs * len(self.batches)
        self.shuffle, self.noise = seeded(job.seed, "shuffle"), seeded(job.seed, "noise", device=job.device)
        self.losses: list[dict[str, float]] = []
        self.best, self.age = math.inf, 0
        self.kept: dict[str, Tensor] = {}  # weights and moments of the best epoch

    @property
    def stale(self) -> bool:
        """Whether ``patience`` epochs have passed without a better one."""
        return self.age >= self.training.patience

    def order(self) -> Tensor:
        """Return the rows of an epoch ``(R,)`` in a new order, on the CPU."""
        return self.rows[torch.randperm(len(self.rows), generator=self.shuffle)]

    def note(self, losses: dict[str, float]) -> None:
        """Add the losses of an epoch.

        Raises
        ------
        DataError
            One of them is not finite.
        """
        if not all(map(math.isfinite, losses.values())):
            raise DataError(
                f"training of a generator diverged in epoch {len(self.losses)}: {losses}; "
                f"lower generator.training.lr={self.training.lr}"
            )
        self.losses.append(losses)
        self.age += 1 if len(self.held) else 0

    def judge(self, loss: float, optimizers: list[torch.optim.AdamW]) -> None:
        """Keep weights and moments if ``loss``, of the held-out rows, is the best so far."""
        if loss < self.best:
            self.best, self.age = loss, 0
            current = self._current(optimizers)
            if self.kept.keys() == current.keys():
                torch._foreach_copy_(list(self.kept.values()), list(current.values()))  # new memory costs more
            else:
                self.kept = {name: value.clone() for name, value in current.items()}

    def finish(self, optimizers: list[torch.optim.AdamW]) -> None:
        """Give the model its best weights back and the job their moments, on the CPU."""
        state = self.kept or self._current(optimizers)
        self.job.model.load_state_dict(part_of(state, "model"))
        self.job.model.requires_grad_(True)
        moments = part_of(state, "optimizer")
        self.job.moments = {name: value.to("cpu", copy=True) for name, value in moments.items()}

    def _current(self, optimizers: list[torch.optim.AdamW]) -> dict[str, Tensor]:
        """Return weights and moments as they are, not copied."""
        weights = self.job.model.state_dict()
        return join({"model": weights, "optimizer": live_tensors(self.job.model, *optimizers)})


def hold_out(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the numbers of the rows that are held out ``(H,)`` and of the others ``(R,)``, in an order of its own."""
    order = torch.randperm(count, generator=seeded(seed, "validation"))
    return order[: int(share * count)], order[int(share * count) :]

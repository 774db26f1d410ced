"""How generators learn: what a batch is, the steps that are taken on it, and what one model learns from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Batch(NamedTuple):
    """What the losses of a model are computed from.

    Attributes
    ----------
    rows : dict[str, Tensor]
        The rows of the batch, ``(b, ...)`` each.
    tables : dict[str, Tensor]
        What is the same in every batch.
    noise : dict[str, Tensor]
        What the recipe draws for each row ``(b, ...)``; empty in validation, where losses are deterministic.
    share : Tensor
        Share of each row in the mean over the batch ``(b,)``; a batch that is computed in parts sums to 1 over all.
    progress : Tensor
        Share of the configured training that is done ``()``, from 0 to 1.
    """

    rows: dict[str, Tensor]
    tables: dict[str, Tensor]
    noise: dict[str, Tensor]
    share: Tensor
    progress: Tensor

    def window(self, first: int, last: int) -> Batch:
        """Return rows ``first`` to ``last`` (excluded)."""
        rows, noise = ({name: value[first:last] for name, value in part.items()} for part in (self.rows, self.noise))
        return self._replace(rows=rows, noise=noise, share=self.share[first:last])


Losses = Callable[[Any, Batch], Tensor]
"""From a model and a batch to its loss components ``(components,)``; the last is minimised. Each is a sum over rows
weighted by ``batch.share``; nothing is random but ``batch.noise``."""


@dataclass(frozen=True)
class OptimStep:
    """One step on every batch, with an AdamW and a gradient clipping of its own.

    Parameters
    ----------
    losses : Losses
        The last component is minimised.
    components : tuple[str, ...]
        Their names; no two steps share one.
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

    def batch(self, numbers: Tensor, noise: dict[str, Tensor], progress: Tensor) -> Batch:
        """Return the rows of these ``numbers`` ``(b,)`` as a batch."""
        rows = {name: value[numbers] for name, value in self.rows.items()}
        share = torch.full((len(numbers),), 1 / max(1, len(numbers)), device=self.device)
        return Batch(rows, self.tables, noise, share, progress)

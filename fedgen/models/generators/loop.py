"""The training loop that neural generators share: schedule, clipping, validation, early stopping."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi

import torch
from torch import Tensor, nn

from fedgen.models.generators.base import GeneratorTraining
from fedgen.models.optimizer import load_optimizer_tensors, optimizer_tensors
from fedgen.models.seeds import seeded

Objective = Callable[[Tensor, float, torch.Generator | None], Tensor]
"""Loss components of a batch, the one to minimise last, from the rows ``(B,)``, the share of training that is done
(0 to 1) and the source of noise; without noise, the deterministic losses that validation compares."""


def train(
    model: nn.Module,
    objective: Objective,
    components: tuple[str, ...],
    count: int,
    training: GeneratorTraining,
    seed: int,
    moments: dict[str, Tensor],
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Train ``model`` on ``count`` rows with AdamW and keep the weights of the best epoch.

    Losses are summed on the model's device and reach the host once an epoch.

    Parameters
    ----------
    model : nn.Module
        Trained in place, on its device.
    objective : Objective
        Loss components of a batch.
    components : tuple[str, ...]
        Their names.
    count : int
        Rows to train and validate on; a share ``training.validation`` of them decides which epoch is best.
    training : GeneratorTraining
        Epochs, batch size, rates, clipping, patience.
    seed : int
        Seed of the split, the order of the rows and the noise.
    moments : dict[str, Tensor]
        The optimiser's moments of an earlier call, or empty.

    Returns
    -------
    tuple
        Losses of each epoch by component (``validation_loss`` too, if rows were held out), and the optimiser's moments
        at the best epoch, on the CPU.
    """
    device = next(model.parameters()).device
    order = torch.randperm(count, generator=seeded(seed, "validation"))
    held, rows = order.split([int(training.validation * count), count - int(training.validation * count)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.lr, weight_decay=training.weight_decay, fused=True)
    load_optimizer_tensors(model, optimizer, moments)
    shuffle, noise = seeded(seed, "shuffle"), seeded(seed, "noise", device=device)
    best = _Best(model, optimizer)
    losses: list[dict[str, float]] = []
    for epoch in range(training.epochs):
        batches = rows[torch.randperm(len(rows), generator=shuffle)].split(training.batch_size)
        sums = torch.zeros(len(components), device=device)
        for number, indices in enumerate(batches):
            progress = (epoch + number / len(batches)) / training.epochs
            sums += _step(model, optimizer, objective(indices.to(device), progress, noise), training, progress) * len(
                indices
            )
        names, values = list(components), sums / len(rows)
        if len(held):
            names.append("validation_loss")
            values = torch.cat([values, _validate(model, objective, held.to(device))])
        losses.append(dict(zip(names, values.tolist(), strict=True)))
        if len(held) and best.stale(losses[-1]["validation_loss"], training.patience):
            break
    moments = best.restore() if len(held) else optimizer_tensors(model, optimizer)
    return losses, {name: value.cpu() for name, value in moments.items()}


def _step(
    model: nn.Module, optimizer: torch.optim.AdamW, losses: Tensor, training: GeneratorTraining, progress: float
) -> Tensor:
    """Take one step down the last of ``losses`` and return them."""
    rise = min(1.0, progress / training.warmup + 1e-3) if training.warmup else 1.0
    fall = max(0.0, progress - training.warmup) / (1 - training.warmup)
    for group in optimizer.param_groups:
        group["lr"] = training.lr * rise * (1 + cos(pi * fall)) / 2
    optimizer.zero_grad()
    losses[-1].backward()
    nn.utils.clip_grad_norm_(model.parameters(), training.clip)
    optimizer.step()
    return losses.detach()


@torch.no_grad()
def _validate(model: nn.Module, objective: Objective, rows: Tensor) -> Tensor:
    """Return the full deterministic loss ``(1,)`` of the held-out ``rows``."""
    model.eval()
    loss = objective(rows, 1.0, None)[-1:]
    model.train()
    return loss


class _Best:
    """Weights and moments of the epoch with the lowest validation loss."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.AdamW) -> None:
        self.model, self.optimizer = model, optimizer
        self.loss, self.age = float("inf"), 0
        self.weights: dict[str, Tensor] = {}
        self.moments: dict[str, Tensor] = {}

    def stale(self, loss: float, patience: int) -> bool:
        """Note an epoch's validation loss; say whether ``patience`` epochs have passed without a better one."""
        self.age += 1
        if loss < self.loss or not self.weights:
            self.loss, self.age = loss, 0
            self.weights = {name: value.clone() for name, value in self.model.state_dict().items()}
            self.moments = optimizer_tensors(self.model, self.optimizer)
        return self.age >= patience

    def restore(self) -> dict[str, Tensor]:
        """Give the model its best weights back and return the moments of that epoch."""
        self.model.load_state_dict(self.weights)
        return self.moments

"""Who takes a training step: one model, or many of the same shape in one forward and backward pass.

References
----------
PyTorch documentation, "Model ensembling": stacked parameters, ``vmap`` over ``functional_call``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Batch(NamedTuple):
    """What the losses of one model are computed from; with one more dimension in front, of a stack of models.

    Attributes
    ----------
    rows : dict[str, Tensor]
        The rows of the batch, ``(b, ...)`` each.
    tables : dict[str, Tensor]
        What is the same in every batch.
    noise : dict[str, Tensor]
        What the recipe draws for each row ``(b, ...)``; empty in validation, where losses are deterministic.
    share : Tensor
        Share of each row in the mean over the batch ``(b,)``. Rows that fill up have 0; a batch that is computed in
        parts sums to 1 over all of them.
    progress : Tensor
        Share of the configured training that is done ``()``, from 0 to 1.
    """

    rows: dict[str, Tensor]
    tables: dict[str, Tensor]
    noise: dict[str, Tensor]
    share: Tensor
    progress: Tensor

    def window(self, models: int, first: int, last: int) -> Batch:
        """Return rows ``first`` to ``last`` (excluded) of the first ``models`` of a stack."""
        return Batch(
            {name: value[:models, first:last] for name, value in self.rows.items()},
            {name: value[:models] for name, value in self.tables.items()},
            {name: value[:models, first:last] for name, value in self.noise.items()},
            self.share[:models, first:last],
            self.progress[:models],
        )

    def only(self) -> Batch:
        """Return the batch of the first model of a stack."""
        rows, tables, noise = ({name: value[0] for name, value in part.items()} for part in self[:3])
        return Batch(rows, tables, noise, self.share[0], self.progress[0])


Losses = Callable[[Any, Batch], Tensor]
"""From a model and a batch to its loss components ``(components,)``; the last is minimised. Each is a sum over rows
weighted by ``batch.share``. Called inside `torch.vmap`: no branch on values, no randomness but ``batch.noise``."""


class Team(ABC):
    """Models that step together; only the weights below the submodule ``part`` move (all of them if it is empty)."""

    @abstractmethod
    def begin(self) -> None:
        """Take up the models' current weights, without gradients."""

    @abstractmethod
    def losses(self, function: Losses, batch: Batch) -> Tensor:
        """Return the loss components of every model ``(M, components)``."""

    @abstractmethod
    def zero_grad(self) -> None:
        """Forget the gradients."""

    @abstractmethod
    def clip(self, limit: float) -> None:
        """Scale each model's gradients to a norm of at most ``limit`` and leave them with its parameters."""


def open_team(models: Sequence[nn.Module], part: str = "") -> Team:
    """Return the models as a team: a single one is called as it is, more are stacked."""
    return _Solo(models[0], part) if len(models) == 1 else _Stack(models, part)


def pad_stack(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors of the same number of dimensions ``(M, ...)``; smaller ones are filled up with zeros."""
    if len({tensor.shape for tensor in tensors}) == 1:
        return torch.stack(list(tensors))
    sizes = [max(lengths) for lengths in zip(*(tensor.shape for tensor in tensors), strict=True)]
    stack = tensors[0].new_zeros(len(tensors), *sizes)
    for place, tensor in zip(stack, tensors, strict=True):
        place[tuple(slice(length) for length in tensor.shape)] = tensor
    return stack


class _Solo(Team):
    def __init__(self, model: nn.Module, part: str) -> None:
        self.model = model
        self.moving = list(model.get_submodule(part).parameters())
        moving = set(self.moving)
        self.resting = [parameter for parameter in model.parameters() if parameter not in moving]

    def begin(self) -> None:
        for parameter in self.resting:
            parameter.requires_grad_(False)
        for parameter in self.moving:
            parameter.requires_grad_(True)

    def losses(self, function: Losses, batch: Batch) -> Tensor:
        return function(self.model, batch.only())[None]

    def zero_grad(self) -> None:
        for parameter in self.moving:
            parameter.grad = None

    def clip(self, limit: float) -> None:
        nn.utils.clip_grad_norm_(self.moving, limit)


class _Stack(Team):
    def __init__(self, models: Sequence[nn.Module], part: str) -> None:
        self.own = [dict(model.named_parameters()) for model in models]
        prefix = f"{part}." if part else ""
        self.moving = [name for name in self.own[0] if name.startswith(prefix)]
        self.model = models[0]
        self.stack: dict[str, Tensor] = {}

    def begin(self) -> None:
        self.stack = {name: torch.stack([each[name].detach() for each in self.own]) for name in self.own[0]}
        for name in self.moving:
            self.stack[name].requires_grad_(True)

    def losses(self, function: Losses, batch: Batch) -> Tensor:
        bound = _Bound(self.model, function)

        def one(parameters: dict[str, Tensor], batch: Batch) -> Tensor:
            return torch.func.functional_call(bound, parameters, (batch,))

        return torch.vmap(one)({f"model.{name}": value for name, value in self.stack.items()}, batch)

    def zero_grad(self) -> None:
        for name in self.moving:
            self.stack[name].grad = None

    def clip(self, limit: float) -> None:
        gradients = {name: self.stack[name].grad for name in self.moving}
        found = {name: value for name, value in gradients.items() if value is not None}
        norms = torch.stack([value.flatten(1).norm(dim=1) for value in found.values()]).norm(dim=0)  # (M,)
        scales = (limit / (norms + 1e-6)).clamp(max=1)
        for name, value in found.items():
            value.mul_(scales.view(-1, *[1] * (value.dim() - 1)))
            for own, gradient in zip(self.own, value.unbind(), strict=True):
                own[name].grad = gradient


class _Bound(nn.Module):
    """A function of a model as a module, which is what `torch.func.functional_call` takes."""

    def __init__(self, model: nn.Module, function: Losses) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, batch: Batch) -> Tensor:
        return self.function(self.model, batch)

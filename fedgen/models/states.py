"""States as named tensors, AdamW's among them, so that they can be kept and sent without pickling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedgen.data.tensors import exact_digest as exact_digest
from fedgen.errors import DataError


def join(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of all parts as ``{part}.{name}``."""
    return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}


def part_of(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return the tensors of one part of a joined state."""
    return {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")}


def length_of(state: Mapping[str, Tensor], name: str) -> int:
    """Return the first size of a tensor of ``state``; 0 where it is missing or a single number."""
    return len(state[name]) if name in state and state[name].dim() else 0


def check_tensors(state: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]]) -> None:
    """Raise `DataError` unless ``state`` has exactly the tensors of ``expected``, of these shapes, all finite."""
    for name in sorted(set(expected) | set(state)):
        if name not in expected:
            raise DataError(f"{name} is unknown here")
        if name not in state or tuple(state[name].shape) != tuple(expected[name]):
            found = tuple(state[name].shape) if name in state else "missing"
            raise DataError(f"{name} is {found}, expected shape {tuple(expected[name])}")
        if not state[name].isfinite().all():
            raise DataError(f"{name} holds values that are not finite")


def average(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """Return the weighted mean of states of the same tensors; equal states give just that state.

    Sums are taken in float64: rounding back to float32 then gives the exact value where all states agree. Raises
    `DataError` for no state, a weight that is not positive, or states of different tensors.
    """
    if not states or len(states) != len(weights) or min(weights) <= 0:
        raise DataError(f"a mean needs a positive weight for each of {len(states)} states, got {list(weights)}")
    shapes = {name: tuple(value.shape) for name, value in states[0].items()}
    for state in states[1:]:
        check_tensors(state, shapes)
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    return {
        name: sum(
            (share * state[name].double() for share, state in zip(shares, states, strict=True)), torch.zeros(())
        ).to(value.dtype)
        for name, value in states[0].items()
    }


@dataclass(eq=False)
class ClassTensors:
    """Tensors of some classes, by name, on the CPU: whole numbers in int64, others in ``dtype``.

    Raises
    ------
    DataError
        The class ids do not ascend.
    """

    dtype: ClassVar[torch.dtype] = torch.float32

    classes: Tensor  # global class ids (C,), ascending

    def __post_init__(self) -> None:
        for name, value in self._named().items():
            setattr(self, name, value.to("cpu", self.dtype if value.is_floating_point() else torch.int64))
        if (self.classes.diff() <= 0).any():
            raise DataError(f"{type(self).__name__} of class ids {self.classes.tolist()}, which do not ascend")

    def row(self, label: int) -> int | None:
        """Return the row of class ``label``; None if it is not among them."""
        found = (self.classes == label).nonzero()
        return int(found[0]) if len(found) else None

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that there are, by name, in float32 and int64."""
        return {name: value.float() if value.is_floating_point() else value for name, value in self._named().items()}

    def _named(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def optimizer_tensors(model: nn.Module, *optimizers: torch.optim.AdamW) -> dict[str, Tensor]:
    """Return AdamW's moments of ``model``'s parameters as ``{moment}.{parameter}``: the next step changes them.

    A parameter that no optimiser has stepped has none. Optimisers may also hold parameters of other models.
    """
    tensors = {}
    for name, parameter in model.named_parameters():
        for optimizer in optimizers:
            for moment, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{moment}.{name}"] = value.detach()
    return tensors


def load_optimizer_tensors(model: nn.Module, optimizer: torch.optim.AdamW, tensors: dict[str, Tensor]) -> None:
    """Give ``optimizer`` the moments that `optimizer_tensors` returned, on the devices of the parameters."""
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter in held and f"step.{name}" in tensors:
            optimizer.state[parameter] = {
                moment: tensors[f"{moment}.{name}"].to(parameter.device, torch.float32, copy=True) for moment in MOMENTS
            }


def check_optimizer_tensors(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Raise `DataError` unless ``tensors`` are moments of parameters of ``model``, all three for each or none."""
    shapes: dict[str, torch.Size] = {}
    for name, parameter in model.named_parameters():
        if f"step.{name}" in tensors:
            shapes |= {f"optimizer.step.{name}": torch.Size([])}
            shapes |= {f"optimizer.{moment}.{name}": parameter.shape for moment in MOMENTS[1:]}
    check_tensors(join({"optimizer": tensors}), shapes)
    for name, value in tensors.items():
        if not name.startswith("exp_avg.") and (value < 0).any():
            raise DataError(f"optimizer.{name} is below 0")

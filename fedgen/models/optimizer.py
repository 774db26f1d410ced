"""AdamW's state as named tensors, so that it can be kept and sent without pickling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedgen.errors import DataError

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def optimizer_tensors(model: nn.Module, *optimizers: torch.optim.AdamW) -> dict[str, Tensor]:
    """Return copies of the moments of ``model``'s parameters as ``{moment}.{parameter}``, where they are.

    A parameter that no optimiser has stepped has none. Optimisers may also hold parameters of other models.
    """
    return {name: value.clone() for name, value in live_tensors(model, *optimizers).items()}


def live_tensors(model: nn.Module, *optimizers: torch.optim.AdamW) -> dict[str, Tensor]:
    """Return the same as `optimizer_tensors` without copying: the next step changes it."""
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
            shapes |= {f"step.{name}": torch.Size([])}
            shapes |= {f"{moment}.{name}": parameter.shape for moment in MOMENTS[1:]}
    for name in sorted(set(shapes) | set(tensors)):
        if name not in tensors or name not in shapes or tensors[name].shape != shapes[name]:
            found = tuple(tensors[name].shape) if name in tensors else "missing"
            expected = tuple(shapes[name]) if name in shapes else "nothing"
            raise DataError(f"optimizer.{name} is {found}, expected {expected}")
        if not name.startswith("exp_avg.") and (tensors[name] < 0).any():
            raise DataError(f"optimizer.{name} is below 0")

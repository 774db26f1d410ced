"""AdamW's state as named tensors, so that it can be kept and sent without pickling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedgen.errors import DataError

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """Return the optimiser's moments as ``{moment}.{parameter}``, where they are; empty before the first step."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{moment}.{name}"] = value.detach().clone()
    return tensors


def load_optimizer_tensors(model: nn.Module, optimizer: torch.optim.AdamW, tensors: dict[str, Tensor]) -> None:
    """Give ``optimizer`` the moments that `optimizer_tensors` returned, on the devices of the parameters."""
    state = {}
    for index, (name, _) in enumerate(model.named_parameters()):
        if f"step.{name}" in tensors:
            state[index] = {moment: tensors[f"{moment}.{name}"].clone() for moment in MOMENTS}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


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

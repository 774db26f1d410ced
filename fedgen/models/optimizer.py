"""AdamW's state as named tensors, so that it can be kept and sent without pickling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """Return the optimiser's moments as ``{moment}.{parameter}``, on the CPU; empty before the first step."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{moment}.{name}"] = value.detach().cpu().clone()
    return tensors


def load_optimizer_tensors(model: nn.Module, optimizer: torch.optim.AdamW, tensors: dict[str, Tensor]) -> None:
    """Give ``optimizer`` the moments that `optimizer_tensors` returned, on the devices of the parameters."""
    state = {}
    for index, (name, _) in enumerate(model.named_parameters()):
        if f"step.{name}" in tensors:
            state[index] = {moment: tensors[f"{moment}.{name}"].clone() for moment in MOMENTS}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

"""The installed versions, and the choices of the configuration."""

from __future__ import annotations

import platform
from importlib import metadata

import torch
from rich.table import Table

from fedgen.config.compose import choices
from fedgen.report.tables import PlainTable
from fedgen.runtimes.sweeps import launching

REQUIRED = ("fedgen", "flwr", "torch", "numpy", "hydra-core", "omegaconf", "safetensors", "scikit-learn")
EXTRAS = ("transformers", "diffusers", "dp-accounting", "tensorboard", "wandb")  # packages of the extras


def installed() -> Table:
    """Return versions of packages, the device that ``device=auto`` is, and configuration groups with their choices."""
    table = PlainTable("what", "found", title="installed, and configuration groups: fedgen run GROUP=CHOICE")
    table.add_row("python", platform.python_version())
    for name in (*REQUIRED, *EXTRAS):
        found = list(metadata.distributions(name=name))
        table.add_row(name, found[0].version if found else "not installed")
    table.add_row("device", torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu")
    table.add_row("cores of torch", str(torch.get_num_threads()))
    table.add_section()
    for group, names in (choices() | launching()).items():
        table.add_row(group, ", ".join(names))
    return table

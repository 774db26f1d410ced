"""What is installed here, and what there is to choose."""

from __future__ import annotations

import platform
from importlib import metadata

import torch
from rich.table import Table

from fedgen.config.compose import choices, load_config
from fedgen.report.tables import PlainTable
from fedgen.runtimes.sweeps import launching

PACKAGES = ("fedgen", "flwr", "torch", "numpy", "hydra-core", "omegaconf", "safetensors", "scikit-learn")
EXTRAS = {
    "transformers": "encoders",
    "diffusers": "render",
    "dp-accounting": "privacy",
    "hydra-joblib-launcher": "sweeps",
    "hydra-optuna-sweeper": "sweeps",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
}
"""The extra that brings a package."""


def versions() -> Table:
    """Return versions of Python, packages and extras, and the device that ``device=auto`` is."""
    table = PlainTable(title="installed")
    table.add_column("what")
    table.add_column("version")
    table.add_row("python", platform.python_version())
    for name in PACKAGES:
        table.add_row(name, metadata.version(name))
    table.add_section()
    for name, extra in EXTRAS.items():
        table.add_row(name, _version(name) or f"not here: pip install 'fedgen[{extra}]'")
    table.add_section()
    table.add_row("device", torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu")
    table.add_row("cores of torch", str(torch.get_num_threads()))
    return table


def groups() -> Table:
    """Return every configuration group with its choices, the default marked; of sweeps, those that are installed."""
    config = load_config([])
    table = PlainTable(title="configuration groups: fedgen run GROUP=CHOICE")
    table.add_column("group")
    table.add_column("choices; the default has a star", overflow="fold")
    for group, names in choices().items():
        chosen = getattr(config, group, None)
        default = chosen if isinstance(chosen, str) else getattr(chosen, "name", getattr(chosen, "kind", None))
        told = [f"{name}*" if name == default or (group == "adapter" and len(names) == 1) else name for name in names]
        table.add_row(group, ", ".join(told))
    table.add_section()
    for group, names in launching().items():
        table.add_row(group, ", ".join(f"{name}*" if name == "basic" else name for name in names))
    return table


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

"""The installed versions, the encoders that are ready, and the choices of the configuration."""

from __future__ import annotations

import platform
from importlib import metadata

import torch
from rich.table import Table

from fedgen.config.compose import choices, load_config
from fedgen.data.encoders import missing
from fedgen.data.settings import ENCODERS
from fedgen.report.tables import PlainTable
from fedgen.runtimes.sweeps import launching

PACKAGES = {  # the extra that brings a package; empty: fedgen itself needs it
    **dict.fromkeys(("fedgen", "flwr", "torch", "numpy", "hydra-core", "omegaconf", "safetensors", "scikit-learn"), ""),
    "transformers": "encoders",
    "diffusers": "render",
    "dp-accounting": "privacy",
    "hydra-joblib-launcher": "sweeps",
    "hydra-optuna-sweeper": "sweeps",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
}


def versions() -> Table:
    """Return versions of Python, packages and extras, and the device that ``device=auto`` is."""
    table = PlainTable("what", "version", title="installed")
    table.add_row("python", platform.python_version())
    for name, extra in PACKAGES.items():
        try:
            table.add_row(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            table.add_row(name, f"not here: pip install 'fedgen[{extra}]'" if extra else "not installed")
    table.add_section()
    for name in ENCODERS:
        table.add_row(f"encoder={name}", missing(name) or "ready")
    table.add_section()
    table.add_row("device", torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu")
    table.add_row("cores of torch", str(torch.get_num_threads()))
    return table


def groups() -> Table:
    """Return every configuration group with its choices, the default marked; of sweeps, the installed ones."""
    table = PlainTable(
        "group", "choices; the default has a star", title="configuration groups: fedgen run GROUP=CHOICE"
    )
    config = load_config([])
    defaults = {group: getattr(config, group, None) for group in choices()}
    for group, names in (choices() | launching()).items():
        chosen = defaults.get(group, "basic")
        default = chosen if isinstance(chosen, str) else getattr(chosen, "name", getattr(chosen, "kind", None))
        table.add_row(group, ", ".join(f"{name}*" if name == default else name for name in names))
    return table

"""fedgen: federated training of audio-to-text-conditioning adapters with synthetic token exchange."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["load_run", "run"]


def __getattr__(name: str) -> Any:
    """Import `run` and `load_run` on demand: Flower imports this package to look for apps, and torch takes time."""
    if name in __all__:
        return getattr(import_module("fedgen.runtimes.local"), name)
    raise AttributeError(f"module 'fedgen' has no attribute {name!r}")

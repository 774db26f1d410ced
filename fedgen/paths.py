"""The paths that a configuration sets: what another process, in another folder, must find again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

from fedgen.config import quoted
from fedgen.settings import Config


def paths_of(config: Config) -> dict[str, str]:
    """Return the paths that are set in a configuration, by key."""
    keys = ("run_dir", "data.root", "data.store", "checkpoint.load", "checkpoint.dir")
    models = {key: name for key in ("encoder.model", "target.model") if (name := attrgetter(key)(config))}
    folders = {key: name for key, name in models.items() if Path(name).is_dir()}  # others are names at Hugging Face
    return {key: path for key in keys if (path := attrgetter(key)(config))} | folders


def from_anywhere(config: Config, overrides: Sequence[str]) -> list[str]:
    """Return the overrides of ``config`` with absolute paths, and with a run folder of its own if it names none."""
    if config.resume:  # everything else is in the run's folder
        return [*(text for text in overrides if not text.startswith("resume=")), f"resume={quoted(config.resume)}"]
    paths = {"run_dir": time.strftime("runs/%Y-%m-%d/%H-%M-%S"), **paths_of(config)}
    return [*overrides, *(f"{key}={quoted(str(Path(path).absolute()))}" for key, path in paths.items())]

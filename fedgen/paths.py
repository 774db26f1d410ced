"""The paths that a configuration sets: what another process, in another folder, must find again."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path

from fedgen.settings import Config


def paths_of(config: Config) -> dict[str, str]:
    """Return the paths that are set in a configuration, by key."""
    keys = ("run_dir", "data.root", "data.store", "checkpoint.load", "checkpoint.dir")
    models = {key: name for key in ("encoder.model", "target.model") if (name := attrgetter(key)(config))}
    folders = {key: name for key, name in models.items() if Path(name).is_dir()}  # others are names at Hugging Face
    return {key: path for key in keys if (path := attrgetter(key)(config))} | folders

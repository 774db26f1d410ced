"""Which tracker a run has, and what its sweep is called."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from fedgen.errors import require
from fedgen.plain import read_text, read_yaml
from fedgen.tracking.base import GuardedTracker, Tracker
from fedgen.tracking.settings import TrackingSettings


def check_installed(settings: TrackingSettings) -> None:
    """Raise `ConfigError`, naming the extra, if the tracker's package is not installed."""
    missing = settings.name != "none" and find_spec(settings.name) is None
    require(not missing, f"tracking={settings.name} needs a package: pip install 'fedgen[{settings.name}]'")


def open_tracker(
    settings: TrackingSettings, folder: Path, config: Mapping[str, Any], finished: int | None
) -> GuardedTracker:
    """Return the tracker of a run; a run goes on without one that cannot be opened.

    Parameters
    ----------
    settings : TrackingSettings
    folder : Path
        Of the run.
    config : Mapping
        The resolved configuration as plain values.
    finished : int, optional
        Rounds that the run had finished when it was interrupted; None: it starts afresh.
    """
    folder = folder.absolute()

    def tensorboard() -> Tracker:
        from fedgen.tracking.tensorboard import TensorBoardTracker

        return TensorBoardTracker(folder, yaml.safe_dump(dict(config), sort_keys=False), finished)

    def wandb() -> Tracker:
        from fedgen.tracking.wandb import WandbTracker

        return WandbTracker(folder, settings, config, sweep_of(folder), finished)

    return GuardedTracker(settings.name, {"tensorboard": tensorboard, "wandb": wandb}.get(settings.name))


def sweep_of(folder: Path) -> str | None:
    """Return the folder of the sweep that a run belongs to, as it was given; None for a single run.

    Hydra notes it beside every run, with patterns for dates: so its parts are taken from the run's own folder.
    """
    file = folder / ".hydra" / "hydra.yaml"
    if not file.is_file():
        return None
    noted = read_yaml(read_text(file), str(file))["hydra"]
    if noted["mode"] != "MULTIRUN":
        return None
    sweep, own = Path(noted["sweep"]["dir"]), Path(noted["runtime"]["output_dir"])
    base = Path("/") if sweep.is_absolute() else Path(noted["runtime"]["cwd"])
    return str(Path(*own.relative_to(base).parts[: len(sweep.relative_to("/" if sweep.is_absolute() else ".").parts)]))

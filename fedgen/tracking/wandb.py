"""Weights & Biases, online or offline."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from fedgen.files import write_atomically
from fedgen.tracking.settings import TrackingSettings

ID = "wandb.json"


class WandbTracker:
    """Logs to one run of Weights & Biases, and to the same one again when a run is resumed.

    Neither code nor the terminal's text is sent; configuration, numbers and pictures are.

    Parameters
    ----------
    folder : Path
        Of the run; ``wandb/`` in it holds what is to be sent.
    settings : TrackingSettings
    config : dict
        The resolved configuration.
    group : str, optional
        Of a sweep.
    finished : int, optional
        Rounds that the run had finished when it was interrupted; None: it starts afresh.
    """

    def __init__(
        self,
        folder: Path,
        settings: TrackingSettings,
        config: Mapping[str, Any],
        group: str | None,
        finished: int | None,
    ) -> None:
        logging.getLogger("wandb").propagate = False  # it keeps a log of its own
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            group=settings.group or group,
            name=folder.name if group else "/".join(folder.parts[-2:]),
            id=_identity(folder / ID, finished is not None),
            resume="allow",
            dir=folder,
            mode="offline" if settings.offline else os.environ.get("WANDB_MODE"),  # type: ignore[arg-type]  # read just once
            config=dict(config),
            reinit="finish_previous",  # one that ended with an error, in a sweep
            settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True),
        )
        self._run.define_metric("*", step_metric="round")

    def log(self, values: Mapping[str, float], round_number: int) -> None:
        """Add a point to each chart."""
        self._run.log({**values, "round": round_number})

    def results(self, values: Mapping[str, float | str], pictures: Mapping[str, Path], round_number: int) -> None:
        """Set the run's summary, and add the pictures."""
        self._run.summary.update(dict(values))
        if pictures:
            self._run.log({name: wandb.Image(str(file)) for name, file in pictures.items()} | {"round": round_number})

    def close(self, finished: bool) -> None:
        """Send what is left."""
        self._run.finish(exit_code=0 if finished else 1)


def _identity(file: Path, resumed: bool) -> str:
    """Return the id of the run there: that of ``file`` if it is resumed, or a new one, which ``file`` then holds."""
    if resumed and file.is_file():
        return str(json.loads(file.read_text(encoding="utf-8"))["id"])
    identity = str(wandb.util.generate_id())
    write_atomically(file, json.dumps({"id": identity}).encode())
    return identity

"""What a run measures, sent to TensorBoard or Weights & Biases; the run goes on when the tracker fails."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from fedgen.config.settings import TrackingSettings
from fedgen.data.files import write_atomically
from fedgen.errors import require

logger = logging.getLogger(__name__)

LEFT_OUT = ("history", "confusion", "nodes", "phases", "lost", "refused", "classes")  # of final results


class TensorBoardTracker:
    """Writes event files into ``tensorboard/`` of the run folder; ``tensorboard --logdir`` of a sweep shows all runs.

    Parameters
    ----------
    folder : Path
        Of the run.
    config : Mapping
        The resolved configuration as plain values.
    finished : int, optional
        Rounds that the run had finished when it was interrupted; what was written after them is hidden. None: a run
        that starts afresh, whose folder may hold the events of an earlier one.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], finished: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = folder / "tensorboard"
        if finished is None:
            shutil.rmtree(path, ignore_errors=True)
        self._writer = SummaryWriter(str(path), purge_step=None if finished is None else finished + 1)
        text = yaml.safe_dump(dict(config), sort_keys=False)
        self._writer.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()))  # as code in Markdown

    def log(self, values: Mapping[str, float], round_number: int) -> None:
        """Add a point to each chart."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, round_number)
        self._writer.flush()

    def close(self, finished: bool) -> None:
        """Write what is left."""
        self._writer.close()


class WandbTracker:
    """Logs to one run of Weights & Biases, and to the same one again when a run is resumed.

    Neither code nor the terminal's text is sent; configuration and numbers are. ``wandb/`` in the run folder
    holds what is to be sent, ``wandb.json`` the id of the run there.

    Parameters
    ----------
    folder, config, finished
        As for `TensorBoardTracker`.
    settings : TrackingSettings
    """

    def __init__(
        self, folder: Path, config: Mapping[str, Any], finished: int | None, settings: TrackingSettings
    ) -> None:
        import wandb

        logging.getLogger("wandb").propagate = False  # it keeps a log of its own
        file = folder / "wandb.json"
        if finished is None or not file.is_file():
            write_atomically(file, json.dumps({"id": str(wandb.util.generate_id())}).encode())
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            group=settings.group,
            name="/".join(folder.parts[-2:]),
            id=json.loads(file.read_text(encoding="utf-8"))["id"],
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

    def close(self, finished: bool) -> None:
        """Send what is left."""
        self._run.finish(exit_code=0 if finished else 1)


class GuardedTracker:
    """A tracker that is given up with one warning when it fails.

    Parameters
    ----------
    name : str
        As ``tracking`` names it.
    start : Callable
        Starts the tracker; None: there is none.
    """

    def __init__(self, name: str, start: Callable[[], TensorBoardTracker | WandbTracker] | None = None) -> None:
        self.name = name
        self._tracker = None
        self._tracker = self._try(start) if start else None

    def log(self, line: Mapping[str, Any]) -> None:
        """Take the numbers of a line of ``metrics.jsonl``."""
        values = {name: float(value) for name, value in line.items() if "/" in name and _is_number(value)}
        if (tracker := self._tracker) is not None and values:
            self._try(lambda: tracker.log(values, int(line["round"])))

    def results(self, results: Mapping[str, Any], round_number: int) -> None:
        """Take the numbers of ``results.json``."""
        self.log({**summary(results), "round": round_number})

    def close(self, finished: bool) -> None:
        """End the tracking; ``finished`` is False for a run that stops with an error."""
        if (tracker := self._tracker) is not None:
            self._try(lambda: tracker.close(finished))
        self._tracker = None

    def _try(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # of a tracker's library or network
            self._tracker = None
            first = (str(error).splitlines() or [""])[0]
            logger.warning("tracking=%s failed and is given up: %s: %s", self.name, type(error).__name__, first)


def summary(results: Mapping[str, Any], prefix: str = "result") -> dict[str, float]:
    """Return numbers of ``results`` by path, such as ``result/heads/text/cosine``.

    Accuracy by class is among them, measures of samples by class and by node are not.
    """
    found: dict[str, float] = {}
    for name, value in results.items():
        path = f"{prefix}/{name}"
        if isinstance(value, Mapping):
            if name not in LEFT_OUT and not ("/evaluation/" in path and name in ("per_class", "nodes")):
                found |= summary(value, path)
        elif _is_number(value):
            found[path] = float(value)
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_installed(settings: TrackingSettings) -> None:
    """Raise `ConfigError`, naming the extra, if the tracker's package is not installed."""
    missing = settings.name != "none" and find_spec(settings.name) is None
    require(not missing, f"tracking={settings.name} needs a package: pip install 'fedgen[{settings.name}]'")


def open_tracker(
    settings: TrackingSettings, folder: Path, config: Mapping[str, Any], finished: int | None
) -> GuardedTracker:
    """Return the tracker that ``settings`` name; parameters as for `TensorBoardTracker`."""
    folder = folder.absolute()
    starts: dict[str, Callable[[], TensorBoardTracker | WandbTracker]] = {
        "tensorboard": lambda: TensorBoardTracker(folder, config, finished),
        "wandb": lambda: WandbTracker(folder, config, finished, settings),
    }
    return GuardedTracker(settings.name, starts.get(settings.name))

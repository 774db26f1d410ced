"""What every tracker does, and one around it that never stops a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

logger = logging.getLogger(__name__)

LEFT_OUT = ("history", "confusion", "nodes", "phases", "lost", "refused", "classes")  # of final results


class Tracker(Protocol):
    """Takes what a run measures; every method may raise anything."""

    def log(self, values: Mapping[str, float], round_number: int) -> None:
        """Take the numbers of a round, by the names that ``metrics.jsonl`` has."""

    def results(self, values: Mapping[str, float | str], pictures: Mapping[str, Path], round_number: int) -> None:
        """Take the final results, by dotted names, and PNG files."""

    def close(self, finished: bool) -> None:
        """Write what is left; ``finished`` is False for a run that stops with an error."""


class GuardedTracker:
    """A tracker that is given up with one warning when it fails.

    Parameters
    ----------
    name : str
        As ``tracking`` names it.
    start : Callable
        Starts the tracker; None: there is none.
    """

    def __init__(self, name: str, start: Callable[[], Tracker] | None = None) -> None:
        self.name = name
        self._tracker: Tracker | None = None
        if start is not None:
            self._try(lambda: setattr(self, "_tracker", start()))

    def log(self, line: Mapping[str, Any]) -> None:
        """Take the numbers of a line of ``metrics.jsonl``."""
        values = {name: float(value) for name, value in line.items() if "/" in name and _is_number(value)}
        if (tracker := self._tracker) is not None and values:
            self._try(lambda: tracker.log(values, int(line["round"])))

    def results(self, results: Mapping[str, Any], pictures: Mapping[str, Path], round_number: int) -> None:
        """Take the content of ``results.json``, and those of the ``pictures`` that there are."""
        there = {name: file for name, file in pictures.items() if file.is_file()}
        if (tracker := self._tracker) is not None:
            self._try(lambda: tracker.results(summary(results), there, round_number))

    def close(self, finished: bool) -> None:
        """End the tracking; nothing is taken after that."""
        if (tracker := self._tracker) is not None:
            self._try(lambda: tracker.close(finished))
        self._tracker = None

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # whatever a tracker's library or network comes up with
            self._tracker = None
            first = (str(error).splitlines() or [""])[0]
            logger.warning("tracking=%s failed and is given up: %s: %s", self.name, type(error).__name__, first)


def summary(results: Mapping[str, Any], prefix: str = "result") -> dict[str, float | str]:
    """Return numbers and words of ``results`` by path, such as ``result/heads/text/cosine``.

    Accuracy by class is among them, what is measured of the samples of each class and node is not.
    """
    found: dict[str, float | str] = {}
    for name, value in results.items():
        path = f"{prefix}/{name}"
        if isinstance(value, Mapping):
            if name not in LEFT_OUT and not ("/evaluation/" in path and name in ("per_class", "nodes")):
                found |= summary(value, path)
        elif _is_number(value):
            found[path] = float(value)
        elif isinstance(value, str):
            found[path] = value
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""What a labelled audio data set is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedgen.errors import choose


@dataclass(frozen=True)
class Clip:
    """One labelled clip.

    Attributes
    ----------
    name : str
        Unique within the data set.
    label : int
        Global class id: the index into the data set's classes.
    fold : int
        1-based; clips of one recording share a fold.
    recording : str
        What the clip was cut from.
    """

    name: str
    label: int
    fold: int
    recording: str


class Dataset(Protocol):
    """Labelled clips and their audio.

    Attributes
    ----------
    name : str
        The data set's name in the configuration.
    classes : list[str]
        Class names; a class's index is its global id.
    clips : list[Clip]
        Every clip, in a fixed order.
    groups : dict[str, list[str]]
        Named groups of classes; empty if the data set has none.
    """

    name: str
    classes: list[str]
    clips: list[Clip]
    groups: dict[str, list[str]]

    def load(self, clip: Clip) -> tuple[np.ndarray, int]:
        """Return the clip's mono waveform ``(samples,)``, float32, and its rate in Hz; `DataError` names the clip."""
        ...

    def identity(self) -> dict[str, str | int]:
        """Return what decides the content, independent of where it lies."""
        ...


def chosen(classes: list[str], wanted: list[str]) -> list[str]:
    """Return ``classes``, or those of them that ``data.classes`` wants, in the data set's order."""
    for name in wanted:
        choose(name, classes, "data.classes")
    return [name for name in classes if not wanted or name in wanted]


def digest(classes: list[str], clips: list[Clip], sizes: Sequence[int] = ()) -> dict[str, str | int]:
    """Return the number of clips and a digest of classes, clip names, labels, folds and file sizes."""
    rows = [[clip.name, clip.label, clip.fold] for clip in clips]
    text = json.dumps([classes, rows, list(sizes)])
    return {"clips": len(clips), "digest": hashlib.sha256(text.encode()).hexdigest()[:16]}

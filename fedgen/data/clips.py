"""What a labelled audio data set is, and the settings that choose one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fedgen.errors import choose, require

DATASETS = ["sounds", "esc50", "folder", "nodes"]


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


@dataclass(frozen=True)
class DataSettings:
    """Which audio is learned from, and which fold of it is held out.

    Attributes
    ----------
    name : str
        ``sounds`` (synthesised), ``esc50`` (``audio/`` and ``meta/esc50.csv``), ``folder`` (``class/clip.wav``), or
        ``nodes``: each node has a store of its own, and the server none.
    root : str, optional
        Where the audio lies; needed by ``esc50`` and ``folder``.
    test_fold : int
        The fold that is held out, from 1.
    folds : int
        How many folds ``sounds`` and ``folder`` are split into; ``esc50`` has its own.
    seed : int
        Decides the folds of ``folder``, and the folds and the audio of ``sounds``.
    clips_per_class : int
        Clips of each class that ``sounds`` synthesises.
    store : str, optional
        Folder of the embedding store; by default one below ``$FEDGEN_HOME``, named after data and encoder. With
        ``nodes``, the server's own clips to test on, if it has any.
    classes : list[str]
        Only these classes; empty means all. With ``nodes``, the ids of all classes; empty means those that nodes have.
    leave_out : list[int]
        Folds that are not read at all: settings that are chosen without them can be measured on them afterwards.
    """

    name: str = "sounds"
    root: str | None = None
    test_fold: int = 5
    folds: int = 5
    seed: int = 0
    clips_per_class: int = 20
    store: str | None = None
    classes: list[str] = field(default_factory=list)
    leave_out: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        choose(self.name, DATASETS, "data")
        require(self.name != "nodes" or self.root is None, f"data.root={self.root} means nothing with data=nodes")
        require(self.test_fold >= 1, f"data.test_fold={self.test_fold} is not at least 1")
        reason = f"holds data.test_fold={self.test_fold}, which would then have no clip"
        require(self.test_fold not in self.leave_out, f"data.leave_out={self.leave_out} {reason}")
        require(self.folds >= 2, f"data.folds={self.folds} is not at least 2")
        require(self.seed >= 0, f"data.seed={self.seed} is not at least 0")
        require(self.clips_per_class >= 2, f"data.clips_per_class={self.clips_per_class} is not at least 2")

    @property
    def on_nodes(self) -> bool:
        """Whether the clips that are trained on are the nodes' alone."""
        return self.name == "nodes"


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

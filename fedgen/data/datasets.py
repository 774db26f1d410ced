"""Labelled audio: the ESC-50 layout, folders of classes, and the synthesised default."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from fedgen.data.audio import read_audio
from fedgen.data.sounds import GROUPS, TAKES, synthesise
from fedgen.data.synthesis import RATE
from fedgen.errors import ConfigError, DataError, choose, require

DATASETS = ["sounds", "esc50", "folder"]
ESC50_COLUMNS = ["filename", "fold", "target", "category"]


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
        ``sounds`` (synthesised), ``esc50`` (``audio/`` and ``meta/esc50.csv``) or ``folder`` (``class/clip.wav``).
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
        Folder of the embedding store; by default one below ``$FEDGEN_HOME``, named after data and encoder.
    classes : list[str]
        Only these classes; empty means all.
    """

    name: str = "sounds"
    root: str | None = None
    test_fold: int = 5
    folds: int = 5
    seed: int = 0
    clips_per_class: int = 20
    store: str | None = None
    classes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        choose(self.name, DATASETS, "data")
        require(self.test_fold >= 1, f"data.test_fold={self.test_fold} is not at least 1")
        require(self.folds >= 2, f"data.folds={self.folds} is not at least 2")
        require(self.seed >= 0, f"data.seed={self.seed} is not at least 0")
        require(self.clips_per_class >= 2, f"data.clips_per_class={self.clips_per_class} is not at least 2")


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


@dataclass
class AudioFiles:
    """A data set whose clips are sound files."""

    name: str
    classes: list[str]
    clips: list[Clip]
    paths: dict[str, Path]  # by clip name
    groups: dict[str, list[str]] = field(default_factory=dict)

    def load(self, clip: Clip) -> tuple[np.ndarray, int]:
        """Return the clip's mono waveform ``(samples,)``, float32, and its rate in Hz; `DataError` names the file."""
        return read_audio(self.paths[clip.name])

    def identity(self) -> dict[str, str | int]:
        """Return name, number of clips and a digest of names, classes, folds and file sizes."""
        sizes = [self.paths[clip.name].stat().st_size for clip in self.clips]
        return {"name": self.name, **_digest(self.classes, self.clips, sizes)}


class SoundsDataset:
    """The synthesised default: `fedgen.data.sounds`, with recordings dealt to the folds in turn."""

    name = "sounds"

    def __init__(self, settings: DataSettings) -> None:
        self.seed = settings.seed
        self.classes = _chosen([name for names in GROUPS.values() for name in names], settings.classes)
        kept = {group: [name for name in names if name in self.classes] for group, names in GROUPS.items()}
        self.groups = {group: names for group, names in kept.items() if names}
        self.clips = [
            Clip(f"{name}/{i}", label, i // TAKES % settings.folds + 1, f"{name}/{i // TAKES}")
            for label, name in enumerate(self.classes)
            for i in range(settings.clips_per_class)
        ]

    def load(self, clip: Clip) -> tuple[np.ndarray, int]:
        """Return the clip, synthesised anew: mono, ``(samples,)``, float32, 16 kHz."""
        name, index = clip.name.split("/")
        return synthesise(name, int(index), self.seed), RATE

    def identity(self) -> dict[str, str | int]:
        """Return name, seed, number of clips, a digest of names and folds, and the version of the recipe."""
        return {"name": self.name, "seed": self.seed, "version": 1, **_digest(self.classes, self.clips)}


def open_dataset(settings: DataSettings) -> Dataset:
    """Return the data set that ``settings`` describe, checked to have training and test clips of every class.

    Raises
    ------
    ConfigError
        ``data.root`` is needed and missing, or ``data.classes`` or ``data.test_fold`` name what there is not.
    DataError
        A file, a column or a folder is missing, or a class has no clip to test or to train on.
    """
    openers: dict[str, Callable[[DataSettings], Dataset]] = {"sounds": SoundsDataset, "esc50": read_esc50}
    dataset = openers[settings.name](settings)
    _check_split(dataset, settings.test_fold)
    return dataset


def read_esc50(settings: DataSettings) -> AudioFiles:
    """Return the clips listed in ``meta/esc50.csv`` with their official folds; class ids go by ``target``.

    Source: Piczak, ESC: Dataset for Environmental Sound Classification, ACM MM 2015.
    """
    root = _root(settings, "audio/ and meta/esc50.csv")
    rows = _esc50_rows(root / "meta" / "esc50.csv")
    targets = {row["category"]: int(row["target"]) for row in rows}
    classes = _chosen(sorted(targets, key=lambda name: targets[name]), settings.classes)
    ids = {name: label for label, name in enumerate(classes)}
    kept = sorted((row for row in rows if row["category"] in ids), key=lambda row: row["filename"])
    clips = [Clip(r["filename"], ids[r["category"]], int(r["fold"]), r["filename"].split("-")[1]) for r in kept]
    return _existing(AudioFiles("esc50", classes, clips, {clip.name: root / "audio" / clip.name for clip in clips}))


def _esc50_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise DataError(f"{path} does not exist: data=esc50 expects meta/esc50.csv below data.root")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise DataError(f"{path} lists no clip")
    missing = [column for column in ESC50_COLUMNS if column not in rows[0]]
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(missing)} (needed: {', '.join(ESC50_COLUMNS)})")
    return rows


def _root(settings: DataSettings, expected: str) -> Path:
    if not settings.root:
        raise ConfigError(f"data={settings.name} needs data.root, the folder that holds {expected}")
    root = Path(settings.root).expanduser()
    if not root.is_dir():
        raise DataError(f"data.root={settings.root} is not a folder: data={settings.name} expects {expected} in it")
    return root


def _chosen(classes: list[str], wanted: list[str]) -> list[str]:
    """Return ``classes``, or those of them that ``data.classes`` wants, in the data set's order."""
    for name in wanted:
        choose(name, classes, "data.classes")
    return [name for name in classes if not wanted or name in wanted]


def _existing(dataset: AudioFiles) -> AudioFiles:
    lost = [str(path) for path in dataset.paths.values() if not path.is_file()]
    if lost:
        raise DataError(f"{len(lost)} of {len(dataset.paths)} clips of data={dataset.name} are missing: {lost[0]} ...")
    return dataset


def _digest(classes: list[str], clips: list[Clip], sizes: Sequence[int] = ()) -> dict[str, str | int]:
    rows = [[clip.name, clip.label, clip.fold] for clip in clips]
    text = json.dumps([classes, rows, list(sizes)])
    return {"clips": len(clips), "digest": hashlib.sha256(text.encode()).hexdigest()[:16]}


def _check_split(dataset: Dataset, test_fold: int) -> None:
    folds = sorted({clip.fold for clip in dataset.clips})
    require(test_fold in folds, f"data.test_fold={test_fold} is not one of the folds {folds} of data={dataset.name}")
    for held_out, purpose in ((True, "test on"), (False, "train on")):
        present = {clip.label for clip in dataset.clips if (clip.fold == test_fold) == held_out}
        lost = [name for label, name in enumerate(dataset.classes) if label not in present]
        if lost:
            raise DataError(f"no clip to {purpose} for {', '.join(lost)} with data.test_fold={test_fold}")

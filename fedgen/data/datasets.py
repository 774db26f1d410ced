"""The data sets by name: sound files, and the synthesised default."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from fedgen.data.audio import read_audio
from fedgen.data.plain import check_names
from fedgen.data.seeds import stream
from fedgen.data.settings import DataSettings
from fedgen.data.sounds import GROUPS, RATE, TAKES, synthesise
from fedgen.errors import ConfigError, DataError, choose, require


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


ESC50 = re.compile(r"\d+-(\d+)-[A-Z]-\d+")  # fold-recording-take-target
URBANSOUND = re.compile(r"(\d+)-\d+-\d+-\d+")  # recording-class-occurrence-slice
SEGMENT = re.compile(r"(.+?)[-_ ](?:segment|seg|part|chunk|slice|take)[-_ ]?\d+", re.IGNORECASE)
NUMBERED = re.compile(r"(.*\d.*)-\d+")


def recording_of(stem: str, folder: str) -> str:
    """Return the recording that a clip was cut from, as far as its file name tells.

    ========================================  ==================
    file name                                 recording
    ========================================  ==================
    ``1-100032-A-0`` (ESC-50)                 ``100032``
    ``100032-3-0-7`` (UrbanSound8K)           ``100032``
    ``farm_seg3``, ``farm-part2``             ``folder/farm``
    ``tape7-2`` (a name with a digit)         ``folder/tape7``
    anything else                             ``folder/stem``
    ========================================  ==================

    A plain counter such as ``rain-2`` says nothing about recordings, so such clips stand for themselves.
    """
    for pattern in (ESC50, URBANSOUND):
        if match := pattern.fullmatch(stem):
            return match[1]
    for pattern in (SEGMENT, NUMBERED):
        if match := pattern.fullmatch(stem):
            return f"{folder}/{match[1]}"
    return f"{folder}/{stem}"


def deal(labels: list[int], recordings: list[str], folds: int, seed: int) -> list[int]:
    """Return a fold, from 1, for each clip.

    The largest recordings go first, equal ones in seeded order; each goes to the fold that has the fewest clips of its
    classes so far, and among those to the one with the fewest clips.
    """
    members: dict[str, Counter[int]] = {}
    for label, recording in zip(labels, recordings, strict=True):
        members.setdefault(recording, Counter())[label] += 1
    rng = stream("folds", seed)
    names = [sorted(members)[i] for i in rng.permutation(len(members))]
    load = [Counter[int]() for _ in range(folds)]
    fold_of = {}
    for name in sorted(names, key=lambda name: -members[name].total()):
        wanted = members[name]

        def cost(fold: int, wanted: Counter[int] = wanted) -> tuple[int, int]:
            return sum(load[fold][label] * count for label, count in wanted.items()), load[fold].total()

        best = min(rng.permutation(folds).tolist(), key=cost)
        load[best].update(wanted)
        fold_of[name] = best + 1
    return [fold_of[recording] for recording in recordings]


def held_back(labels: Sequence[int], recordings: Sequence[str], share: float, seed: int) -> np.ndarray:
    """Return which clips are controls: of each class a random ``share`` of the recordings, rounded.

    They come from the same folds and recordings' places as the rest, so that what tells them from it is not where they
    come from, but that nobody trained on them.

    Parameters
    ----------
    labels, recordings : Sequence
        Class id and recording of each clip of a node, ``(N,)``.
    share : float
        From 0 to below 1. At least one recording of a class is left to train on.
    seed : int

    Returns
    -------
    np.ndarray
        ``(N,)``, bool.
    """
    chosen: set[str] = set()
    for label in sorted(set(labels)):
        own = sorted({name for name, other in zip(recordings, labels, strict=True) if other == label})
        order = stream("controls", seed, label).permutation(len(own))
        chosen |= {own[place] for place in order[: min(round(share * len(own)), len(own) - 1)]}
    return np.array([name in chosen for name in recordings], dtype=bool)


EXTENSIONS = [".wav", ".ogg", ".flac"]
ESC50_COLUMNS = ["filename", "fold", "target", "category"]


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
        return {"name": self.name, **digest(self.classes, self.clips, sizes)}


def read_esc50(settings: DataSettings) -> AudioFiles:
    """Return the clips listed in ``meta/esc50.csv`` with their official folds; class ids go by ``target``.

    Source: Piczak, ESC: Dataset for Environmental Sound Classification, ACM MM 2015.
    """
    root = _root(settings, "audio/ and meta/esc50.csv")
    rows = _esc50_rows(root / "meta" / "esc50.csv")
    targets = {row["category"]: int(row["target"]) for row in rows}
    classes = chosen(sorted(targets, key=lambda name: targets[name]), settings.classes)
    ids = {name: label for label, name in enumerate(classes)}
    kept = sorted((row for row in rows if row["category"] in ids), key=lambda row: row["filename"])
    clips = [
        Clip(row["filename"], ids[row["category"]], int(row["fold"]), recording_of(Path(row["filename"]).stem, ""))
        for row in kept
    ]
    return _existing(AudioFiles("esc50", classes, clips, {clip.name: root / "audio" / clip.name for clip in clips}))


def read_folder(settings: DataSettings) -> AudioFiles:
    """Return the clips of ``root/class/clip.{wav,ogg,flac}``, classes in alphabetical order.

    Folds are dealt by `fedgen.data.datasets.deal`: seeded, stratified by class, clips of one recording together.
    """
    root = _root(settings, "class/clip.{wav,ogg,flac}")
    found = {sub.name: _sound_files(sub) for sub in sorted(root.iterdir()) if sub.is_dir() and sub.name[0] != "."}
    if not found:
        raise DataError(f"data.root={settings.root} holds no folders: data=folder expects class/clip.{{wav,ogg,flac}}")
    classes = chosen(list(found), settings.classes)
    for name in classes:
        if not found[name]:
            raise DataError(f"class {name} has no clip: {root / name} holds no {', '.join(EXTENSIONS)} file")
    files = [(label, path) for label, name in enumerate(classes) for path in found[name]]
    recordings = [recording_of(path.stem, path.parent.name) for _, path in files]
    folds = deal([label for label, _ in files], recordings, settings.folds, settings.seed)
    clips = [
        Clip(f"{path.parent.name}/{path.name}", label, fold, recording)
        for (label, path), recording, fold in zip(files, recordings, folds, strict=True)
    ]
    paths = {clip.name: path for clip, (_, path) in zip(clips, files, strict=True)}
    return AudioFiles("folder", classes, clips, paths)


def _sound_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS and path.name[0] != ".")


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
    for line, row in enumerate(rows, start=2):
        for column in ("fold", "target"):
            if not (row[column] or "").isdigit():
                raise DataError(f"{path}, line {line}: {column}={row[column]!r} is not a whole number")
    return rows


def _root(settings: DataSettings, expected: str) -> Path:
    if not settings.root:
        raise ConfigError(f"data={settings.name} needs data.root, the folder that holds {expected}")
    root = Path(settings.root).expanduser()
    if not root.is_dir():
        raise DataError(f"data.root={settings.root} is not a folder: data={settings.name} expects {expected} in it")
    return root


def _existing(dataset: AudioFiles) -> AudioFiles:
    lost = [str(path) for path in dataset.paths.values() if not path.is_file()]
    if lost:
        raise DataError(f"{len(lost)} of {len(dataset.paths)} clips of data={dataset.name} are missing: {lost[0]} ...")
    return dataset


class SoundsDataset:
    """The synthesised default: `fedgen.data.sounds`, with recordings dealt to the folds in turn."""

    name = "sounds"

    def __init__(self, settings: DataSettings) -> None:
        self.seed = settings.seed
        self.classes = chosen([name for names in GROUPS.values() for name in names], settings.classes)
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
        return {"name": self.name, "seed": self.seed, "version": 2, **digest(self.classes, self.clips)}


READERS: dict[str, Callable[[DataSettings], Dataset]] = {
    "sounds": SoundsDataset,
    "esc50": read_esc50,
    "folder": read_folder,
}


def open_dataset(settings: DataSettings) -> Dataset:
    """Return the data set that ``settings`` describe, checked to have training and test clips of every class.

    Raises
    ------
    ConfigError
        ``data.root`` is needed and missing, or ``data.classes`` or ``data.test_fold`` name what there is not; or
        ``data=nodes``; a class has a name that is no line of visible text.
    DataError
        A file, a column or a folder is missing, or a class has no clip to test or to train on.
    """
    if settings.on_nodes:
        raise ConfigError("data=nodes names no audio: make a store on each node, with data=folder or data=esc50")
    dataset = READERS[settings.name](settings)
    check_names(dataset.classes, f"classes of data={dataset.name}")
    _check_split(dataset, settings.test_fold)
    return dataset


def _check_split(dataset: Dataset, test_fold: int) -> None:
    folds = sorted({clip.fold for clip in dataset.clips})
    require(test_fold in folds, f"data.test_fold={test_fold} is not one of the folds {folds} of data={dataset.name}")
    for held_out, purpose in ((True, "test on"), (False, "train on")):
        present = {clip.label for clip in dataset.clips if (clip.fold == test_fold) == held_out}
        lost = [name for label, name in enumerate(dataset.classes) if label not in present]
        if lost:
            raise DataError(
                f"no clip to {purpose} for class {', '.join(lost)} with data.test_fold={test_fold}: "
                "choose another fold, lower data.folds, or leave the class out with data.classes"
            )

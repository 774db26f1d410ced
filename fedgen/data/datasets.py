"""The data sets by name: sound files, and the synthesised default."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedgen.data.audio import read_audio
from fedgen.data.files import digest
from fedgen.data.plain import check_names
from fedgen.data.seeds import stream
from fedgen.data.settings import DataSettings
from fedgen.data.sounds import GROUPS, RATE, TAKES, synthesise
from fedgen.errors import ConfigError, DataError, choose, require


@dataclass(frozen=True)
class Clip:
    """One labelled clip."""

    name: str  # unique within the data set
    label: int  # global class id: the index into the data set's classes
    fold: int  # from 1; clips of one recording share a fold
    recording: str  # the recording that the clip was cut from


@dataclass
class Dataset:
    """Labelled clips and their audio."""

    name: str  # in the configuration
    classes: list[str]  # a class's index is its global id
    clips: list[Clip]  # in a fixed order
    load: Callable[[Clip], tuple[np.ndarray, int]]
    """Returns the mono waveform ``(samples,)``, float32, and its rate in Hz; `DataError` names the clip."""
    sizes: Sequence[int] = ()  # bytes of the clips' files, if they have files
    facts: Mapping[str, Any] = field(default_factory=dict)  # other settings that decide the audio; plain JSON
    groups: dict[str, list[str]] = field(default_factory=dict)  # named groups of classes, possibly none

    def identity(self) -> dict[str, Any]:
        """Return name, facts, number of clips, and a digest of classes, clips and file sizes; not their folder."""
        rows = [[clip.name, clip.label, clip.fold] for clip in self.clips]
        code = digest(json.dumps([self.classes, rows, list(self.sizes)]))[:16]
        return {"name": self.name, **self.facts, "clips": len(self.clips), "digest": code}


def chosen(classes: list[str], wanted: list[str]) -> list[str]:
    """Return ``classes``, or those of them that ``data.classes`` wants, in the data set's order."""
    for name in wanted:
        choose(name, classes, "data.classes")
    return [name for name in classes if not wanted or name in wanted]


PATTERNS = [  # of file names without their ending, and the name of the recording
    (re.compile(r"\d+-(\d+)-[A-Z]-\d+"), "{0}"),  # ESC-50: fold-recording-take-target
    (re.compile(r"(\d+)-\d+-\d+-\d+"), "{0}"),  # UrbanSound8K: recording-class-occurrence-slice
    (re.compile(r"(.+?)[-_ ](?:segment|seg|part|chunk|slice|take)[-_ ]?\d+", re.IGNORECASE), "{1}/{0}"),
    (re.compile(r"(.*\d.*)-\d+"), "{1}/{0}"),
]


def recording_of(name: str) -> str:
    """Return the recording that a clip was cut from, by its name ``folder/file``.

    ========================================  ==================
    file name                                 recording
    ========================================  ==================
    ``1-100032-A-0`` (ESC-50)                 ``100032``
    ``100032-3-0-7`` (UrbanSound8K)           ``100032``
    ``farm_seg3``, ``farm-part2``             ``folder/farm``
    ``tape7-2`` (a name with a digit)         ``folder/tape7``
    anything else                             ``folder/stem``
    ========================================  ==================

    A plain counter such as ``rain-2`` does not name a recording: each such clip is a recording of its own.
    """
    folder, stem = name.rpartition("/")[0], Path(name).stem
    for pattern, form in PATTERNS:
        if match := pattern.fullmatch(stem):
            return form.format(match[1], folder)
    return f"{folder}/{stem}"


def deal(labels: list[int], recordings: list[str], folds: int, seed: int) -> list[int]:
    """Return a fold, from 1, for each clip: stratified by class, clips of one recording together.

    The largest recordings go first, equal ones in seeded order; each goes to the fold with the fewest clips of its
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
    """Return which clips of a node are controls ``(N,)``, bool: of each class a random ``share`` of the recordings.

    Controls come from the same folds as the training clips, so that an attack can tell them apart only by the training.
    The share, from 0 to below 1, is rounded; at least one recording of a class is left to train on.
    """
    chosen: set[str] = set()
    for label in sorted(set(labels)):
        own = sorted({name for name, other in zip(recordings, labels, strict=True) if other == label})
        order = stream("controls", seed, label).permutation(len(own))
        chosen |= {own[place] for place in order[: min(round(share * len(own)), len(own) - 1)]}
    return np.array([name in chosen for name in recordings], dtype=bool)


EXTENSIONS = [".wav", ".ogg", ".flac"]
ESC50_COLUMNS = ["filename", "fold", "target", "category"]


def audio_files(name: str, classes: list[str], clips: list[Clip], paths: Mapping[str, Path]) -> Dataset:
    """Return the data set of the sound files ``paths``, by clip name; `DataError` if some are missing."""
    lost = [str(path) for path in paths.values() if not path.is_file()]
    if lost:
        raise DataError(f"{len(lost)} of {len(paths)} clips of data={name} are missing: {lost[0]} ...")
    sizes = [paths[clip.name].stat().st_size for clip in clips]
    return Dataset(name, classes, clips, lambda clip: read_audio(paths[clip.name]), sizes)


def read_esc50(settings: DataSettings) -> Dataset:
    """Return the clips listed in ``meta/esc50.csv`` with their official folds; class ids go by ``target``.

    Source: Piczak, ESC: Dataset for Environmental Sound Classification, ACM MM 2015.
    """
    root = _root(settings, "audio/ and meta/esc50.csv")
    rows = _esc50_rows(root / "meta" / "esc50.csv")
    targets = {row["category"]: int(row["target"]) for row in rows}
    classes = chosen(sorted(targets, key=lambda name: targets[name]), settings.classes)
    clips = [
        Clip(row["filename"], classes.index(row["category"]), int(row["fold"]), recording_of(row["filename"]))
        for row in sorted(rows, key=lambda row: row["filename"])
        if row["category"] in classes
    ]
    return audio_files("esc50", classes, clips, {clip.name: root / "audio" / clip.name for clip in clips})


def read_folder(settings: DataSettings) -> Dataset:
    """Return the clips of ``root/class/clip.{wav,ogg,flac}``, classes in alphabetical order, in folds by `deal`."""
    root = _root(settings, "class/clip.{wav,ogg,flac}")
    found: dict[str, list[str]] = {path.name: [] for path in sorted(root.glob("[!.]*")) if path.is_dir()}
    for name, names in found.items():
        names += sorted(path.name for path in (root / name).glob("[!.]*") if path.suffix.lower() in EXTENSIONS)
    if not found:
        raise DataError(f"data.root={settings.root} holds no folders: data=folder expects class/clip.{{wav,ogg,flac}}")
    classes = chosen(list(found), settings.classes)
    for name in classes:
        if not found[name]:
            raise DataError(f"class {name} has no clip: {root / name} holds no {', '.join(EXTENSIONS)} file")
    files = [(label, f"{name}/{file}") for label, name in enumerate(classes) for file in found[name]]
    labels, recordings = [label for label, _ in files], [recording_of(name) for _, name in files]
    folds = deal(labels, recordings, settings.folds, settings.seed)
    clips = [
        Clip(name, label, fold, recording)
        for (label, name), fold, recording in zip(files, folds, recordings, strict=True)
    ]
    return audio_files("folder", classes, clips, {clip.name: root / clip.name for clip in clips})


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


def synthesised(settings: DataSettings) -> Dataset:
    """Return the default data set, `fedgen.data.sounds`, with recordings dealt to the folds in turn."""
    classes = chosen([name for names in GROUPS.values() for name in names], settings.classes)
    kept = {group: [name for name in names if name in classes] for group, names in GROUPS.items()}
    clips = [
        Clip(f"{name}/{i}", label, i // TAKES % settings.folds + 1, f"{name}/{i // TAKES}")
        for label, name in enumerate(classes)
        for i in range(settings.clips_per_class)
    ]

    def load(clip: Clip) -> tuple[np.ndarray, int]:
        name, index = clip.name.split("/")
        return synthesise(name, int(index), settings.seed), RATE

    groups = {group: names for group, names in kept.items() if names}
    return Dataset("sounds", classes, clips, load, facts={"seed": settings.seed, "version": 2}, groups=groups)


READERS: dict[str, Callable[[DataSettings], Dataset]] = {
    "sounds": synthesised,
    "esc50": read_esc50,
    "folder": read_folder,
}


def open_dataset(settings: DataSettings) -> Dataset:
    """Return the data set that ``settings`` describe, checked to have training and test clips of every class.

    Raises
    ------
    ConfigError
        ``data.root`` is needed and missing, ``data.classes`` or ``data.test_fold`` is unknown there, a class name is
        not one line of visible text, or ``data=nodes``.
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

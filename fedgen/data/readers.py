"""Sound files as data sets: the ESC-50 layout and folders of classes."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedgen.data.audio import read_audio
from fedgen.data.clips import Clip, chosen, digest
from fedgen.data.folds import deal, recording_of
from fedgen.errors import ConfigError, DataError

if TYPE_CHECKING:
    from fedgen.data.datasets import DataSettings

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

    Folds are dealt by `fedgen.data.folds.deal`: seeded, stratified by class, clips of one recording together.
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

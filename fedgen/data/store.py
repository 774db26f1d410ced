"""Embeddings on disk: every clip is encoded once; training reads half-precision tokens memory-mapped.

A store is a folder with ``index.json`` (identity, classes, clips, shards with checksums) and safetensors shards of up
to 64 clips. Shards and index are written to a temporary name and moved into place, so an interrupted `prepare` leaves
a valid beginning that the next one continues.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedgen.data.audio import Encoder, resample
from fedgen.data.datasets import Dataset
from fedgen.data.files import digest, home, locked, save_json, write_atomically
from fedgen.data.plain import mismatches
from fedgen.data.pretrained import REVISION, USUAL_REVISION, content
from fedgen.data.progress import RoundsBar
from fedgen.data.settings import DataSettings
from fedgen.errors import DataError

FORMAT = 1
SHARD_CLIPS = 64
INDEX = "index.json"
PREPARE = "`fedgen prepare` with the same data and encoder"

log = logging.getLogger(__name__)


class Store:
    """A complete embedding store, read memory-mapped."""

    def __init__(self, path: Path, index: dict[str, Any]) -> None:
        self.path, self._index = path, index
        self.encoder: dict[str, Any] = index["identity"]["encoder"]  # with its revision, if known
        self.identity: dict[str, Any] = {**index["identity"], "encoder": content(self.encoder)}
        self.classes: list[str] = index["classes"]  # by global id
        self.groups: dict[str, list[str]] = index["groups"]
        self.names = [clip["name"] for clip in index["clips"]]
        self.recordings = [str(clip["recording"]) for clip in index["clips"]]
        self.labels = np.array([clip["label"] for clip in index["clips"]], dtype=np.int64)  # (N,)
        self.folds = np.array([clip["fold"] for clip in index["clips"]], dtype=np.int64)  # (N,), from 1
        self.shape = (int(index["shape"][0]), int(index["shape"][1]))  # (S, D) of a clip's tokens

    def __len__(self) -> int:
        return len(self.names)

    @property
    def unknown(self) -> list[str]:
        """Names of classes that have clips but no id: see `under`."""
        return sorted(self._index.get("unknown", []))

    def tokens(self, indices: np.ndarray | Tensor | list[int], dtype: torch.dtype = torch.float16) -> Tensor:
        """Return tokens ``(n, S, D)`` on the CPU of the clips ``indices`` ``(n,)``, in that order.

        Files are mapped only while they are read: afterwards their pages belong to the system's cache, which gives way
        when memory is needed, and not to this process.
        """
        wanted = torch.as_tensor(indices, dtype=torch.int64)
        out = torch.empty(len(wanted), *self.shape, dtype=dtype)
        shards = wanted // self._index["shard_clips"]
        for shard in shards.unique().tolist():
            rows = (shards == shard).nonzero().squeeze(1)
            out[rows] = self._shard(shard)[wanted[rows] % self._index["shard_clips"]].to(dtype)
        return out

    def train_indices(self, test_fold: int, leave_out: Sequence[int] = ()) -> np.ndarray:
        """Return the clips outside ``test_fold`` and the folds ``leave_out``, int64."""
        held_out = [self._known(test_fold), *(self._known(fold, "data.leave_out") for fold in leave_out)]
        return np.flatnonzero(~np.isin(self.folds, held_out) & (self.labels >= 0))

    def test_indices(self, test_fold: int) -> np.ndarray:
        """Return the clips of ``test_fold``, int64."""
        return np.flatnonzero((self.folds == self._known(test_fold)) & (self.labels >= 0))

    def under(self, classes: Sequence[str]) -> Store:
        """Return the same clips under the ids of ``classes``; clips of other classes get the label -1: unused."""
        ids = {name: label for label, name in enumerate(classes)}
        clips = [{**clip, "label": ids.get(self.classes[clip["label"]], -1)} for clip in self._index["clips"]]
        groups = {group: [name for name in names if name in ids] for group, names in self.groups.items()}
        unknown = sorted({self.classes[label] for label in self.labels.tolist()} - set(ids))
        named = {"classes": list(classes), "groups": groups, "clips": clips, "unknown": unknown}
        return Store(self.path, {**self._index, **named})

    def verify(self) -> None:
        """Raise `DataError` unless every shard's content has the checksum in the index."""
        for number, shard in enumerate(self._index["shards"]):
            if not _intact(self.path, shard):
                raise DataError(f"{self.path / shard['file']} is damaged (shard {number}); {PREPARE} writes it again")

    def _known(self, fold: int, key: str = "data.test_fold") -> int:
        if fold not in self.folds:
            choices = sorted(set(self.folds.tolist()))
            raise DataError(f"{key}={fold} is not one of the folds {choices} of the store {self.path}")
        return fold

    def _shard(self, number: int) -> Tensor:
        file = self.path / self._index["shards"][number]["file"]
        try:
            with safe_open(file, framework="pt") as reader:
                tokens: Tensor = reader.get_tensor("tokens")  # mapped while it lives; pages are read when touched
        except (SafetensorError, OSError) as error:
            raise DataError(f"{file} cannot be read ({error}); {PREPARE} writes it again") from error
        return tokens


def identity_of(dataset: Dataset, encoder: Encoder) -> dict[str, Any]:
    """Return the identity of a store of ``dataset`` under ``encoder``; plain JSON."""
    return {"data": dataset.identity(), "encoder": encoder.identity()}


def without_clips(classes: Sequence[str], encoder: Encoder) -> Store:
    """Return a store without clips: that of a server whose nodes alone have data."""
    named = {"classes": list(classes), "groups": {}, "clips": []}
    return Store(Path(), _new_index({"data": {"name": "nodes"}, "encoder": encoder.identity()}, encoder, **named))


def store_folder(settings: DataSettings, dataset: Dataset, encoder: Encoder) -> Path:
    """Return ``data.store`` if given, else ``$FEDGEN_HOME/stores/<data>-<encoder>-<hash>`` (``~/.cache/fedgen``)."""
    if settings.store:
        return Path(settings.store).expanduser()
    identity = identity_of(dataset, encoder)
    if identity["encoder"].get(REVISION) == USUAL_REVISION:
        identity["encoder"] = content(identity["encoder"])
    code = digest(json.dumps([FORMAT, identity], sort_keys=True))[:8]
    return home() / "stores" / f"{dataset.name}-{encoder.name}-{code}"


def open_store(folder: Path, expected: dict[str, Any] | None = None) -> Store:
    """Return the store in ``folder``, which must have the identity ``expected`` (see `identity_of`), if given.

    Raises
    ------
    DataError
        There is no store, it is not complete, its files do not fit its index, or other data or another encoder made it.
    """
    index = _read_index(folder)
    if index is None:
        raise DataError(f"{folder} holds no embedding store: make it with {PREPARE}")
    if expected is not None:
        _check_identity(folder, index["identity"], expected)
    missing = _shard_count(index) - len(index["shards"])
    if missing:
        raise DataError(f"the store {folder} is not complete, {missing} shards are missing: finish it with {PREPARE}")
    for shard in index["shards"]:
        if not _there(folder, shard):
            raise DataError(f"{folder / shard['file']} is missing or damaged; {PREPARE} writes it again")
    return Store(folder, index)


def prepare(dataset: Dataset, encoder: Encoder, folder: Path) -> Store:
    """Encode the clips of ``dataset`` that ``folder`` lacks, and return the store in ``folder``.

    Only one process at a time works on a folder; others wait for it. A terminal shows a bar; without one, the log gets
    a line per shard.

    Raises
    ------
    DataError
        A clip cannot be read, or ``folder`` holds a store of other data or another encoder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        identity, index = identity_of(dataset, encoder), _read_index(folder)
        if index is None:
            clips = [vars(clip) for clip in dataset.clips]
            index = _new_index(identity, encoder, classes=dataset.classes, groups=dataset.groups, clips=clips)
        _check_identity(folder, index["identity"], identity)
        shards = index["shards"]
        damaged = [number for number, shard in enumerate(shards) if not _intact(folder, shard)]
        for number in damaged:
            log.warning("%s is missing or damaged: it is written again", folder / shards[number]["file"])
        todo = damaged + list(range(len(shards), _shard_count(index)))
        if todo:
            _encode(dataset, encoder, folder, index, todo)
        else:
            log.info("store %s is complete (%d clips): nothing to do", folder, len(index["clips"]))
    return open_store(folder)


def _encode(dataset: Dataset, encoder: Encoder, folder: Path, index: dict[str, Any], todo: list[int]) -> None:
    """Write the shards ``todo``, and the index after each of them."""
    size = index["shard_clips"]
    shards = {number: dataset.clips[number * size : (number + 1) * size] for number in todo}
    total = sum(map(len, shards.values()))
    step = min(size, getattr(encoder, "batch_size", size))  # clips between two moves of the bar
    log.info("encoding %d clips into %s", total, folder)
    done = 0
    with RoundsBar(total, "clips") as bar:
        for number, clips in shards.items():
            parts = []
            for start in range(0, len(clips), step):
                loaded = [dataset.load(clip) for clip in clips[start : start + step]]
                parts.append(encoder([resample(*sound, encoder.sample_rate) for sound in loaded]))
                done += len(loaded)
                bar.show(done)
            index["shards"][number : number + 1] = [_write_shard(folder, number, torch.cat(parts))]
            save_json(folder / INDEX, index)
            log.info("encoded shard %d of %d", number + 1, _shard_count(index))


def _write_shard(folder: Path, number: int, tokens: Tensor) -> dict[str, Any]:
    """Write tokens ``(n, S, D)`` as shard ``number`` and return its entry in the index."""
    name, written = f"shard_{number:05d}.safetensors", save({"tokens": tokens.contiguous()})
    write_atomically(folder / name, written)
    return {"file": name, "bytes": len(written), "sha256": digest(written)}


def _new_index(identity: dict[str, Any], encoder: Encoder, **named: Any) -> dict[str, Any]:
    """Return an index without shards; ``named`` are classes, groups and clips."""
    known = {"format": FORMAT, "identity": identity, "shape": list(encoder.shape), "shard_clips": SHARD_CLIPS}
    return {**known, **named, "shards": []}


def _read_index(folder: Path) -> dict[str, Any] | None:
    """Return the index in ``folder``, or None if there is none; `DataError` if it is damaged."""
    file = folder / INDEX
    if not file.is_file():
        return None
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is damaged ({error}): delete the folder and make it again with {PREPARE}") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise DataError(f"{file} is not an index of format {FORMAT}: delete the folder and use {PREPARE}")
    return index


def _shard_count(index: dict[str, Any]) -> int:
    """Return the number of shards of a complete store."""
    return -(-len(index["clips"]) // int(index["shard_clips"]))


def _intact(folder: Path, shard: dict[str, Any]) -> bool:
    """Return whether the shard's file is there and has its checksum."""
    return _there(folder, shard) and digest(folder / shard["file"]) == shard["sha256"]


def _there(folder: Path, shard: dict[str, Any]) -> bool:
    """Return whether the shard's file is there and has its size."""
    file = folder / shard["file"]
    return file.is_file() and bool(file.stat().st_size == shard["bytes"])


def _check_identity(folder: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise `DataError`, naming each difference, unless the store was made by the expected data and encoder."""
    differ = []
    for part in ("encoder", "data"):
        there, here = found.get(part, {}), expected.get(part, {})
        if REVISION not in there or REVISION not in here:
            there, here = content(there), content(here)
        differ += [f"{part}.{words}" for words in mismatches(there, {**dict.fromkeys(there), **here})]
    if differ:
        raise DataError(
            f"the store {folder} was made by other data or another encoder: {', '.join(differ)}. "
            "Choose another data.store, or delete the folder"
        )

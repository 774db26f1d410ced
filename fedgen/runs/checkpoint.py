"""Checkpoints of generators, saved and loaded as a whole.

Each is a folder with one file for each generator and a manifest; ``docs/checkpoints.md`` describes the format.
It is written beside its place, and one rename puts it there: whenever a process dies, the latest checkpoint is the old
or the new one.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from glob import escape
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from fedgen.data.files import digest, locked, readable, sync_folder, write_synced
from fedgen.data.plain import mismatches, read_json
from fedgen.data.tensors import parse, serialise
from fedgen.errors import CheckpointError, FedgenError, choose
from fedgen.models.generators.bank import Bank, slots

FORMAT = 4  # 3 was one folder for all checkpoints, 2 held a codec that was fitted to clips
MANIFEST = "manifest.json"
SUFFIX = ".safetensors"
MAX_KEY_CHARS = 120  # of a key in a file name; the whole name must stay below 256
SLOT = {"unified": "", "per_class": "_class_{key}", "per_group": "_group_{key}"}
STATISTICS = ("mean", "deviation")  # tensors by which a generator standardises its inputs
CHECKS = ("strict", "warn")
WARNINGS = ("encoder", "target", "dataset", "split")  # metadata that may differ with ``check=warn``

logger = logging.getLogger(__name__)


def checkpoint_name(base_name: str, node: int) -> str:
    """Return the name of a node's checkpoints; that of a round has ``_round_{n}`` after it."""
    return f"{base_name}_node{node}"


def generator_file(base_name: str, node: int, granularity: str, key: str) -> str:
    """Return the file name of the generator ``key``, quoted as in a URL; a digest stands for the end of a long key."""
    quoted = quote(key, safe=" ")
    if len(quoted) > MAX_KEY_CHARS:
        quoted = f"{quoted[: MAX_KEY_CHARS - 17]}-{digest(key)[:16]}"
    return checkpoint_name(base_name, node) + SLOT[granularity].format(key=quoted) + SUFFIX


@dataclass(frozen=True)
class CheckpointFile:
    """A file of a checkpoint, which holds a generator.

    Attributes
    ----------
    key : str
        ``unified``, its class or its group.
    classes : list[str]
        Classes that the generator was fitted to.
    parameters : int
        Numbers in the file without the optimiser's.
    standardisation : list[str]
        Tensors that hold the statistics of standardised inputs.
    bytes, sha256
        Size and checksum of the file.
    """

    key: str
    classes: list[str]
    parameters: int
    standardisation: list[str]
    bytes: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """The manifest: the generators of a node after a round; ``docs/checkpoints.md`` explains every field."""

    base_name: str
    node: int
    time: str
    kept: bool
    kind: str
    granularity: str
    class_ids: dict[str, int]
    sizes: dict[str, Any]
    lengths: dict[str, Any]
    metadata: dict[str, Any]
    files: dict[str, CheckpointFile]

    @classmethod
    def empty(cls, base_name: str, node: int, bank: Bank, metadata: Mapping[str, Any], kept: bool) -> Checkpoint:
        """Return the checkpoint of ``bank`` without its files."""
        lengths = bank.settings.lengths
        return cls(
            base_name=base_name,
            node=node,
            time=datetime.now(UTC).isoformat(timespec="microseconds"),
            kept=kept,
            kind=bank.settings.kind,
            granularity=bank.granularity.name,
            class_ids={name: bank.class_names.index(name) for names in bank.classes.values() for name in sorted(names)},
            sizes={"components": bank.codec.size, **_sizes(bank)},
            lengths={"tokens": list(bank.codec.shape), "training": lengths.training}
            | {"output": lengths.output, "upsampling": lengths.upsampling},
            metadata=dict(metadata),
            files={},
        )

    @property
    def round(self) -> int:
        """Rounds that were finished when it was saved."""
        return int(self.metadata["round"])

    @property
    def classes(self) -> dict[str, list[str]]:
        """Classes of each generator, by its key."""
        return {file.key: file.classes for file in self.files.values()}


def checkpoints(folder: Path, name: str | None = None) -> dict[Path, Checkpoint]:
    """Return the checkpoints in ``folder`` by their own folders, the one that was saved last at the end.

    Parameters
    ----------
    folder : Path
    name : str, optional
        `checkpoint_name` of a node; all nodes by default.

    Raises
    ------
    CheckpointError
        A manifest is damaged or of another format.
    """
    if (folder / MANIFEST).is_file():
        _read_manifest(folder / MANIFEST)  # of an earlier format
    pattern = "[!.]*" if name is None else f"{escape(name)}_round_*"
    found = {file.parent: _read_manifest(file) for file in folder.glob(f"{pattern}/{MANIFEST}")}
    return dict(sorted(found.items(), key=lambda item: item[1].time))


def holds_checkpoints(folder: Path) -> bool:
    """Return whether there are checkpoints in ``folder``, also of an earlier format."""
    return (folder / MANIFEST).is_file() or any(folder.glob(f"[!.]*/{MANIFEST}"))


def _read_manifest(path: Path) -> Checkpoint:
    try:
        content = path.read_bytes()
        values = read_json(content)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not JSON, or cannot be read: {error}") from error
    if not isinstance(values, dict) or "format" not in values:
        raise CheckpointError(f"{path} is not a manifest: it has no format")
    if values["format"] != FORMAT:
        raise CheckpointError(
            f"{path} is of format {values['format']!r}, this version of fedgen reads format {FORMAT}, a folder for "
            "each checkpoint (formats 1 and 2 hold a codec that was fitted to a node's clips and gives them away). "
            "Train the generators again"
        )
    try:
        checkpoint = TypeAdapter(Checkpoint).validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if type(checkpoint.metadata.get("round")) is not int:
        raise CheckpointError(f"{path}: metadata has no round, a whole number")
    for file in checkpoint.files:
        if Path(file).name != file or not file.endswith(SUFFIX):
            raise CheckpointError(f"{path} names {file!r}, which is not a {SUFFIX} file of the folder")
    return checkpoint


def save_bank(
    folder: Path,
    base_name: str,
    node: int,
    bank: Bank,
    metadata: Mapping[str, Any],
    frequency: int = 0,
    keep_last: int | None = None,
) -> None:
    """Save every generator of ``node`` as one checkpoint, replacing the node's earlier one.

    Parameters
    ----------
    folder : Path
        Folder of the checkpoints; several nodes may share it, also at the same time.
    base_name : str
        First part of every file name.
    node : int
        Number of the node.
    bank : Bank
        A fitted bank.
    metadata : Mapping
        JSON values: ``round`` (finished rounds; required), ``encoder`` (identity), ``target`` (name), ``dataset``
        (identity), ``split``, ``tokens`` (shape of a clip's tokens), ``counts`` (clips by class name), ``seed``,
        ``mode``, ``metrics`` (last losses).
    frequency : int
        The checkpoints of every so many rounds are kept; 0: only the latest one is.
    keep_last : int, optional
        How many of the kept ones stay, the last saved ones; all by default.

    Raises
    ------
    CheckpointError
        The bank is not fitted, or the files cannot be written: then the last whole checkpoint stays.
    """
    if not bank.generators:
        raise CheckpointError(f"node {node} has no fitted generators to save")
    if type(round := metadata.get("round")) is not int:
        raise CheckpointError(f"metadata of node {node} has no round, a whole number: {round!r}")
    kept = frequency > 0 and round % frequency == 0
    name = checkpoint_name(base_name, node)
    new = folder / f".{name}_round_{round}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            earlier = checkpoints(folder, name)
            for abandoned in folder.glob(f".{escape(name)}_round_*"):  # by a process that died
                shutil.rmtree(abandoned)
            try:
                _write(new, Checkpoint.empty(base_name, node, bank, metadata, kept), bank)
                place = next(p for n in count() if not (p := folder / f"{name}_round_{round}{'+' * n}").exists())
                os.replace(new, place)
                sync_folder(folder)
            finally:
                shutil.rmtree(new, ignore_errors=True)
            copies = [path for path, other in earlier.items() if other.kept and other.round != round]
            copies += [place] if kept else []
            for path in earlier.keys() - copies[-(keep_last or len(copies)) :]:
                os.replace(path, new)  # so that no half of it has the name of a checkpoint
                shutil.rmtree(new)
            os.replace(place, folder / f"{name}_round_{round}")  # a no-op unless the round was saved before
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {name} cannot be saved in {folder}: {error.strerror or error} "
            f"({error.filename or 'while writing'}); the last whole one stays"
        ) from error


def _write(folder: Path, empty: Checkpoint, bank: Bank) -> None:
    """Write all files of a checkpoint to a new folder, one at a time, and wait until the disk has them."""
    folder.mkdir()
    files = {}
    for key in bank.generators:
        state = bank.generators[key].state()
        numbers = sum(value.numel() for name, value in state.items() if not name.startswith("optimizer."))
        file = CheckpointFile(key, list(bank.classes[key]), numbers, [name for name in STATISTICS if name in state])
        content = serialise(state, {})
        name = generator_file(empty.base_name, empty.node, empty.granularity, key)
        write_synced(folder / name, content)
        files[name] = replace(file, bytes=len(content), sha256=digest(content))
    manifest = {"format": FORMAT, **asdict(replace(empty, files=files))}
    write_synced(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode())
    sync_folder(folder)


def _sizes(bank: Bank) -> dict[str, Any]:
    conditions = {name: list(shape) for name, shape in bank.condition_sizes.items()}
    return {"width": bank.settings.width, "latents": bank.settings.latents, "conditions": conditions}


def has_bank(folder: Path, base_name: str, node: int, round: int | None = None) -> bool:
    """Return whether ``folder`` has a checkpoint of ``node`` (of ``round``, if given).

    Raises
    ------
    CheckpointError
        A manifest is damaged or of another format.
    """
    with readable(folder):
        found = checkpoints(folder, checkpoint_name(base_name, node)).values()
    return any(round in (None, checkpoint.round) for checkpoint in found)


def load_bank(
    folder: Path,
    name: str,
    bank: Bank,
    classes: list[str],
    expected: Mapping[str, Any],
    round: int | None = None,
    check: str = "strict",
) -> dict[str, Any]:
    """Fill ``bank`` with the checkpoint ``name``, all of it or nothing.

    Parameters
    ----------
    folder : Path
        As given to `save_bank`.
    name : str
        Its base name and node, such as ``vae_node0``: see `checkpoint_name`.
    bank : Bank
        Bank of the run's settings; takes over the generators.
    classes : list[str]
        Classes of which the node has clips; the checkpoint must serve these, with the bank's granularity.
    expected : Mapping
        Metadata that the checkpoint must carry, such as ``{"encoder": identity, "target": "sd"}``.
    round : int, optional
        The round of the checkpoint; the latest by default.
    check : str
        ``strict``: nothing may differ. ``warn``: a warning names a difference in encoder, target, data set or split,
        and classes beyond those needed.

    Returns
    -------
    dict
        The metadata given to `save_bank`.

    Raises
    ------
    CheckpointError
        Lists every problem found: a file missing (and the command that makes it), damaged, or of another kind,
        granularity, class, size, encoder or target. The bank is then as it was before.
    """
    choose(check, CHECKS, "checkpoint.check")
    with readable(folder):
        place, checkpoint = _find(folder, name, bank, classes, round)
        problems, warnings = _differences(checkpoint, bank, classes, expected)
        if check == "strict":
            problems, warnings = problems + warnings, []
        states = dict(_read_files(place, checkpoint, problems))
    loaded, faults = {}, []
    for file, state in states.items() if checkpoint.kind == bank.settings.kind else ():
        try:
            loaded[checkpoint.files[file].key] = bank.of_state(state)
        except FedgenError as error:
            faults.append(f"{file}: {error}")
    if faults:  # first the settings that a user can change, then the tensors that do not fit
        sizes = _sizes(bank)
        names = ("width", "latents")
        here = {f"generator.{name}": sizes[name] for name in names}
        problems += mismatches({f"generator.{name}": checkpoint.sizes.get(name) for name in names}, here)
    problems += faults
    named = f"checkpoint {name}{'' if round is None else f'_round_{round}'} in {folder}"
    if problems:
        raise CheckpointError(f"{named}: {'; '.join(problems)}")
    for warning in warnings:
        logger.warning("%s: %s", named, warning)
    bank.generators = loaded
    bank.classes = checkpoint.classes
    return checkpoint.metadata


def _find(folder: Path, name: str, bank: Bank, classes: list[str], round: int | None) -> tuple[Path, Checkpoint]:
    """Return the latest checkpoint (of ``round``) of the node that ``name`` names."""
    found = checkpoints(folder, name)
    if chosen := [item for item in found.items() if round in (None, item[1].round)]:
        return chosen[-1]
    if found:
        rounds = ", ".join(map(str, sorted({checkpoint.round for checkpoint in found.values()})))
        raise CheckpointError(
            f"no checkpoint {name}_round_{round} in {folder}: checkpoint.round={round} is not one of the rounds there "
            f"are: {rounds}"
        )
    kind, granularity = bank.settings.kind, bank.granularity.name
    base_name, _, node = name.rpartition("_node")
    files = [generator_file(base_name, int(node), granularity, key) for key in slots(bank.granularity, classes)]
    known = ", ".join(sorted(path.name for path in checkpoints(folder))) or "none"
    raise CheckpointError(
        f"no checkpoint {name} in {folder}, which should hold {', '.join(files)} (found: {known}); make it with "
        f"`fedgen run mode=train_generators generator={kind} granularity={granularity}`"
    )


def _read_files(folder: Path, checkpoint: Checkpoint, problems: list[str]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the tensors of each file that is whole, adding to ``problems`` what is wrong with the others."""
    for file in checkpoint.files:
        try:
            yield file, _read_file(folder / file, checkpoint)
        except CheckpointError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{file} cannot be read: {error.strerror}")


def _read_file(path: Path, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the tensors of a file after checking checksum and values; nothing is ever unpickled."""
    if not path.is_file():
        raise CheckpointError(f"{path.name} is missing")
    content = path.read_bytes()
    tensors, _ = parse(content, Path(path.name))
    if digest(content) != checkpoint.files[path.name].sha256:
        raise CheckpointError(f"{path.name} is damaged or another file: another checksum than the manifest's")
    for name, value in tensors.items():
        if not value.sum(dtype=torch.float64).isfinite():  # one pass; no float32 is large enough to overflow it
            raise CheckpointError(f"{path.name} holds values that are not finite, in {name}")
    return tensors


def _differences(
    checkpoint: Checkpoint, bank: Bank, classes: list[str], expected: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """Return the differences that forbid to load ``checkpoint`` into ``bank``, and those that only deserve a warning.

    Only encoder, target, data set, split and surplus classes deserve a warning.
    """
    granularity = bank.granularity
    found = {
        **checkpoint.metadata,
        "kind": checkpoint.kind,
        "granularity": checkpoint.granularity,
        "size of conditions": checkpoint.sizes.get("conditions"),
        "generator.training_length": checkpoint.lengths.get("training"),
    }
    here = {
        "kind": bank.settings.kind,
        "granularity": granularity.name,
        "size of conditions": _sizes(bank)["conditions"],
        "generator.training_length": bank.settings.training_length,
        **json.loads(json.dumps(dict(expected))),  # as JSON gives it back: lists for tuples
    }
    fatal = mismatches(found, {name: value for name, value in here.items() if name not in WARNINGS})
    mild = mismatches(found, {name: value for name, value in here.items() if name in WARNINGS})
    if checkpoint.granularity != granularity.name:
        return fatal, mild
    served, needed = checkpoint.classes, slots(granularity, classes)
    told = f"classes is {served}, this run has {needed}"
    missing = [(name, key) for key, names in needed.items() for name in names if name not in served.get(key, [])]
    if missing:
        fatal.append(f"{told}: not served are {', '.join(f'{name} (generator {key})' for name, key in missing)}")
    for name in classes:
        one, other = checkpoint.class_ids.get(name), bank.class_names.index(name)
        if one not in (None, other):
            fatal.append(f"id of class {name} is {one}, this run has {other}: its classes are in another order")
    if surplus := [name for names in served.values() for name in names if name not in classes]:
        mild.append(f"{told}: {', '.join(surplus)} not needed")
    return fatal, mild

"""Checkpoints: safetensors and JSON, written atomically, checked whole before anything is used.

A bank is one file for each generator, one for the codec, and an entry in the folder's ``manifest.json``::

    {base}_node{id}.safetensors                    granularity=unified
    {base}_node{id}_class_{class}.safetensors      granularity=per_class
    {base}_node{id}_group_{group}.safetensors      granularity=per_group
    {base}_node{id}_codec.safetensors
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from torch import Tensor

from fedgen.errors import CheckpointError, DataError, FedgenError
from fedgen.exchange.files import load_tensors, parse, save_tensors, serialise
from fedgen.files import locked, write_atomically
from fedgen.models.codec import Codec
from fedgen.models.generators import Generator
from fedgen.training.bank import Bank, slots

__all__ = ["generator_file", "has_bank", "load_bank", "load_tensors", "save_bank", "save_tensors", "write_atomically"]

FORMAT = 1
MANIFEST = "manifest.json"
STAGED = ".new"  # suffix of a file that the manifest may already name, not yet renamed
ENTRY = {
    "kind": str,
    "granularity": str,
    "sizes": dict,
    "codec": str,
    "generators": dict,
    "sha256": dict,
    "metadata": dict,
}  # what the manifest holds about a node's checkpoint
SLOT_SUFFIX = {"unified": "", "per_class": "_class_{key}", "per_group": "_group_{key}"}


def generator_file(base_name: str, node: int, granularity: str, key: str) -> str:
    """Return the file name of the generator ``key`` of ``node``; characters no file system likes are quoted."""
    suffix = SLOT_SUFFIX[granularity].format(key=quote(key, safe=" "))
    return f"{base_name}_node{node}{suffix}.safetensors"


def has_bank(folder: Path, base_name: str, node: int, round: int | None = None) -> bool:
    """Return whether the manifest of ``folder`` names a checkpoint of ``node``."""
    manifest = _read_manifest(folder)
    return manifest is not None and f"{base_name}_node{node}" in manifest["checkpoints"]


def save_bank(
    folder: Path,
    base_name: str,
    node: int,
    bank: Bank,
    metadata: Mapping[str, Any],
    frequency: int = 0,
    keep_last: int | None = None,
) -> None:
    """Save the codec and every generator of ``node`` as one checkpoint, replacing the node's earlier one.

    The files are written beside the old ones, then the manifest names them, then they take their places: whenever the
    process dies, the manifest and the files it names belong together.

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
        JSON values to keep beside it, such as ``encoder`` (identity), ``target``, ``round``, ``seed``, ``mode``.

    Raises
    ------
    CheckpointError
        The bank is not fitted.
    """
    if bank.codec is None:
        raise CheckpointError(f"node {node} has no fitted generators to save")
    name = f"{base_name}_node{node}"
    contents = {f"{name}_codec.safetensors": serialise(bank.codec.state(), {"part": "codec"})}
    files: dict[str, Any] = {}
    for key, generator in bank.generators.items():
        file = generator_file(base_name, node, bank.granularity.name, key)
        contents[file] = serialise(generator.state(), {"part": "generator", "key": key})
        files[file] = {"key": key, "classes": bank.classes[key]}
    entry = {
        "node": node,
        "kind": bank.settings.kind,
        "granularity": bank.granularity.name,
        "sizes": _sizes(bank, bank.codec),
        "codec": f"{name}_codec.safetensors",
        "generators": files,
        "sha256": {file: _digest(content) for file, content in contents.items()},
        "metadata": dict(metadata),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        manifest = _read_manifest(folder) or {"format": FORMAT, "checkpoints": {}}
        _settle(folder, manifest["checkpoints"].get(name))
        for file, content in contents.items():
            write_atomically(folder / (file + STAGED), content)
        manifest["checkpoints"][name] = entry
        write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
        _settle(folder, entry)


def load_bank(
    folder: Path,
    base_name: str,
    node: int,
    bank: Bank,
    classes: list[str],
    expected: Mapping[str, Any],
    round: int | None = None,
    check: str = "strict",
) -> dict[str, Any]:
    """Fill ``bank`` with the checkpoint of ``node``, all of it or nothing.

    Parameters
    ----------
    folder, base_name, node
        As given to `save_bank`.
    bank : Bank
        Bank of the run's settings; takes over codec and generators.
    classes : list[str]
        Classes of which the node has clips; the checkpoint must serve exactly these, with the bank's granularity.
    expected : Mapping
        Metadata that the checkpoint must carry, such as ``{"encoder": identity, "target": "sd"}``.

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
    entry = _entry(folder, f"{base_name}_node{node}", bank)
    problems = _mismatches(entry, bank, classes, expected)
    codec: Codec | None = None
    generators: dict[str, Generator] = {}
    try:
        codec = Codec.from_state(_read_part(folder, entry, entry["codec"]))
    except FedgenError as error:
        problems.append(str(error))
    for file, part in entry["generators"].items():
        try:
            generators[part["key"]] = _restore(folder, entry, file, bank)
        except FedgenError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError(f"checkpoint {base_name}_node{node} in {folder}: " + "; ".join(problems))
    bank.codec, bank.generators = codec, generators
    bank.classes = {part["key"]: part["classes"] for part in entry["generators"].values()}
    return entry["metadata"]


def _sizes(bank: Bank, codec: Codec) -> dict[str, Any]:
    return {"tokens": list(codec.shape), "components": codec.size, "conditions": _conditions(bank)}


def _conditions(bank: Bank) -> dict[str, list[int]]:
    return {name: list(shape) for name, shape in bank.condition_sizes.items()}


def _entry(folder: Path, name: str, bank: Bank) -> dict[str, Any]:
    manifest = _read_manifest(folder)
    if manifest is None or name not in manifest["checkpoints"]:
        known = ", ".join(sorted(manifest["checkpoints"])) if manifest else "no manifest"
        command = f"fedgen run mode=train_generators generator={bank.settings.kind} granularity={bank.granularity.name}"
        raise CheckpointError(f"no checkpoint {name} in {folder} (found: {known}); make it with `{command}`")
    entry = manifest["checkpoints"][name]
    for field, kind in ENTRY.items():
        if not isinstance(entry.get(field), kind):
            raise CheckpointError(f"{folder / MANIFEST}: {name} has no valid {field!r}")
    for file in (entry["codec"], *entry["generators"]):
        if Path(file).name != file:
            raise CheckpointError(f"{folder / MANIFEST}: {name} names {file!r}, which is not a file of the folder")
    return entry


def _mismatches(entry: Mapping[str, Any], bank: Bank, classes: list[str], expected: Mapping[str, Any]) -> list[str]:
    """Return what of the checkpoint differs from the run."""
    served = {part["key"]: sorted(part["classes"]) for part in entry["generators"].values()}
    wanted = {key: sorted(names) for key, names in slots(bank.granularity, classes).items()}
    pairs = {
        "kind": (entry["kind"], bank.settings.kind),
        "granularity": (entry["granularity"], bank.granularity.name),
        "classes": (served, wanted),
        "size of conditions": (entry["sizes"].get("conditions"), _conditions(bank)),
    }
    plain = json.loads(json.dumps(dict(expected)))  # as JSON gives it back: lists for tuples
    pairs |= {name: (entry["metadata"].get(name), value) for name, value in plain.items()}
    return [f"{name} is {found}, this run has {here}" for name, (found, here) in pairs.items() if found != here]


def _restore(folder: Path, entry: Mapping[str, Any], file: str, bank: Bank) -> Generator:
    state = _read_part(folder, entry, file)
    generator = bank.new_generator(entry["sizes"]["components"])
    try:
        generator.load_state(state)
    except DataError as error:
        raise CheckpointError(f"{file}: {error}") from error
    return generator


def _read_part(folder: Path, entry: Mapping[str, Any], file: str) -> dict[str, Tensor]:
    """Return the tensors of ``file``, from wherever its content is the one that the manifest names."""
    paths = [path for path in (folder / file, folder / (file + STAGED)) if path.is_file()]
    if not paths:
        raise CheckpointError(f"{file} is missing")
    for path in paths:
        content = path.read_bytes()
        if _digest(content) == entry["sha256"].get(file):
            return parse(content, path)[0]
    raise CheckpointError(f"{file} is damaged: its checksum is not the manifest's")


def _settle(folder: Path, entry: Mapping[str, Any] | None) -> None:
    """Move staged files that the manifest names to their places."""
    for file, digest in entry["sha256"].items() if entry else ():
        staged = folder / (file + STAGED)
        if staged.is_file() and _digest(staged.read_bytes()) == digest:
            os.replace(staged, folder / file)


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or "checkpoints" not in manifest:
        raise CheckpointError(f"{path} is not a manifest of format {FORMAT}")
    return manifest


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

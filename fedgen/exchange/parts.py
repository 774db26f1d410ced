"""Single files of checkpoints: staged beside the old ones, put in place, read back and checked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedgen.errors import CheckpointError
from fedgen.exchange.files import header_of, not_tensors, parse
from fedgen.exchange.manifest import Checkpoint, Manifest, Part
from fedgen.exchange.names import SUFFIX
from fedgen.files import sync_folder, write_synced

STAGED = ".new"  # suffix of a file that the manifest may already name, not yet in its place


def stage(folder: Path, file: str, content: bytes) -> None:
    """Write ``content`` beside ``file``; it counts as soon as the manifest has its checksum."""
    write_synced(folder / (file + STAGED), content)


def tidy(folder: Path, manifest: Manifest, named: Collection[str] = ()) -> None:
    """Make the files of ``folder`` what ``manifest`` says, whatever died before: needs the folder's lock.

    Staged files that the manifest names take their places, other staged files go, and so do those it lists as removed.
    That the manifest means a staged file, and not one of an earlier save, its checksum tells; for those in ``named``,
    which the caller has just written, that is known.
    """
    parts = manifest.parts()
    for staged in list(folder.glob(f"*{SUFFIX}{STAGED}")):
        place = staged.with_name(staged.name.removesuffix(STAGED))
        part = parts.get(place.name)
        if place.name in named or (part is not None and _content(staged, part) is not None):
            os.replace(staged, place)
        else:
            staged.unlink()
    for file in manifest.removed:
        (folder / file).unlink(missing_ok=True)
    sync_folder(folder)


def read_part(folder: Path, checkpoint: Checkpoint, file: str) -> dict[str, Tensor]:
    """Return the tensors of one file of ``checkpoint``.

    Raises
    ------
    CheckpointError
        The file is missing, is not the one that was saved (and what it is instead), or holds NaN or infinite values.
    """
    part = checkpoint.files[file]
    paths = [path for path in (folder / file, folder / (file + STAGED)) if path.is_file()]
    if not paths:
        raise CheckpointError(f"{file} is missing")
    try:
        contents = [content for path in paths if (content := _content(path, part)) is not None]
        if not contents:
            raise CheckpointError(f"{file} {_fault(paths[0], part, checkpoint.header(part))}")
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    tensors, header = parse(contents[0], Path(file))
    _check(file, tensors, _differences(header, checkpoint.header(part)))
    return tensors


def digest(content: bytes) -> str:
    """Return the checksum of a file's content."""
    return hashlib.sha256(content).hexdigest()


def _check(file: str, tensors: Mapping[str, Tensor], differences: list[str]) -> None:
    if differences:
        raise CheckpointError(f"{file} is another file than the manifest says: {', '.join(differences)}")
    for name, value in tensors.items():
        if not value.sum(dtype=torch.float64).isfinite():  # one pass; no float32 is large enough to overflow it
            raise CheckpointError(f"{file} holds values that are not finite, in {name}")


def _content(path: Path, part: Part) -> bytes | None:
    """Return the content of a file if it has the size and the checksum that the manifest gives it."""
    if path.stat().st_size != part.bytes:
        return None
    content = path.read_bytes()
    return content if digest(content) == part.sha256 else None


def _fault(path: Path, part: Part, header: Mapping[str, Any]) -> str:
    """Say what is wrong with a file that has not its checksum; nothing but its header is read, nothing is unpickled."""
    size = path.stat().st_size
    told = (
        "its checksum is not the manifest's" if size == part.bytes else f"{size} bytes, the manifest says {part.bytes}"
    )
    try:
        with safe_open(path, framework="pt") as reader:
            differences = _differences(header_of(reader.metadata() or {}), header)
    except (SafetensorError, ValueError) as error:
        with path.open("rb") as file:
            return f"is damaged: {told}, {not_tensors(file.read(8), error)}"
    if differences:
        return f"is damaged or another file ({told}): {', '.join(differences)}"
    return f"is damaged: {told}"


def _differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Return how the header of a file differs from what the manifest says."""
    there, here = _flat(found), _flat(expected)
    return [
        f"{name} is {there.get(name)!r} instead of {here.get(name)!r}"
        for name in {**here, **there}
        if there.get(name) != here.get(name)
    ]


def _flat(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return a header with the entries of its metadata beside the others, so that each can be named."""
    inner = header.get("metadata")
    rest = {name: value for name, value in header.items() if name != "metadata"}
    return rest | ({f"metadata.{name}": value for name, value in inner.items()} if isinstance(inner, dict) else {})

"""The files of an embedding store: safetensors shards and a JSON index with their checksums."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from fedgen.data.pretrained import differing
from fedgen.errors import DataError
from fedgen.files import write_atomically

FORMAT = 1
PREPARE = "`fedgen prepare` with the same data and encoder"


def write_shard(folder: Path, number: int, tokens: Tensor) -> dict[str, Any]:
    """Write tokens ``(n, S, D)`` as shard ``number`` and return its entry in the index."""
    file = folder / f"shard_{number:05d}.safetensors"
    temporary = file.with_suffix(".tmp")
    save_file({"tokens": tokens.contiguous()}, temporary)
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    entry = {"file": file.name, "bytes": temporary.stat().st_size, "sha256": _checksum(temporary)}
    os.replace(temporary, file)
    return entry


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """Put the index into place."""
    write_atomically(folder / "index.json", json.dumps(index, indent=1).encode())


def read_index(folder: Path) -> dict[str, Any] | None:
    """Return the index in ``folder``, or None if there is none; `DataError` if it is damaged."""
    file = folder / "index.json"
    if not file.is_file():
        return None
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is damaged ({error}): delete the folder and make it again with {PREPARE}") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise DataError(f"{file} is not an index of format {FORMAT}: delete the folder and use {PREPARE}")
    return index


def shard_count(index: dict[str, Any]) -> int:
    """Return how many shards a complete store has."""
    return -(-len(index["clips"]) // int(index["shard_clips"]))


def intact(folder: Path, shard: dict[str, Any]) -> bool:
    """Return whether the shard's file is there and has its checksum."""
    file = folder / shard["file"]
    return file.is_file() and file.stat().st_size == shard["bytes"] and _checksum(file) == shard["sha256"]


def _checksum(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def check_identity(folder: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise `DataError`, naming each difference, unless the store was made by the expected data and encoder."""
    for part in ("encoder", "data"):
        there, here = found.get(part, {}), expected.get(part, {})
        if keys := differing(there, here, {**there, **here}):
            differ = ", ".join(f"{part}.{key} is {there.get(key)!r}, not {here.get(key)!r}" for key in keys)
            raise DataError(
                f"the store {folder} was made by other data or another encoder: {differ}. "
                "Choose another data.store, or delete the folder"
            )

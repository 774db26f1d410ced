"""Tensor files: safetensors with JSON metadata, written atomically, never unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedgen.data.files import write_atomically
from fedgen.errors import CheckpointError

HEADER = "fedgen"  # the entry of the safetensors header that holds our metadata
PICKLES = (b"PK\x03\x04", b"\x80")  # how files of `torch.save` begin


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write ``tensors`` and JSON ``metadata`` to one safetensors file by `write_atomically`."""
    write_atomically(path, serialise(tensors, metadata))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors (on the CPU) and the metadata of a file that `save_tensors` wrote.

    Raises
    ------
    CheckpointError
        The file is missing, truncated or of another kind.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} is missing")
    return parse(path.read_bytes(), path)


def serialise(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """Return ``tensors`` and JSON ``metadata`` in the safetensors format."""
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return save(plain, {HEADER: json.dumps(dict(metadata))})


def parse(content: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and metadata of ``content``, read from ``path``; errors as `load_tensors`."""
    try:
        tensors = load(content)
        length = int.from_bytes(content[:8], "little")  # the format: header length, JSON header, values
        return tensors, header_of(json.loads(content[8 : 8 + length]).get("__metadata__", {}))
    except (SafetensorError, ValueError, KeyError) as error:  # KeyError: a type of numbers that torch does not have
        raise CheckpointError(f"{path} is {not_tensors(content, error)}") from error


def exact_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and values: exact to the last bit."""
    whole = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        whole.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        whole.update(value.detach().cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()


def not_tensors(beginning: bytes, error: Exception) -> str:
    """Describe a file that safetensors cannot read, by its first bytes ``beginning`` and the ``error``."""
    reason = "it looks like a pickle, which is never opened" if beginning.startswith(PICKLES) else str(error)
    return f"not a whole safetensors file: {reason}"


def header_of(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return our metadata out of the text entries of a safetensors header.

    Raises
    ------
    ValueError
        It is not a JSON object.
    """
    try:
        values = json.loads(metadata.get(HEADER, "{}"))
    except RecursionError as error:
        raise ValueError(f"its {HEADER!r} entry is nested too deeply") from error
    if not isinstance(values, dict):
        raise ValueError(f"its {HEADER!r} entry is not a JSON object")
    return values

"""Tensor files that are written atomically and read without ever unpickling."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedgen.errors import CheckpointError
from fedgen.files import write_atomically


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write ``tensors`` and JSON ``metadata`` to one safetensors file: the old file or the new one, never half."""
    write_atomically(path, serialise(tensors, metadata))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors (on the CPU) and the metadata of a file that `save_tensors` wrote.

    Raises
    ------
    CheckpointError
        The file is missing, truncated or of another kind; nothing in it is ever unpickled.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} is missing")
    return parse(path.read_bytes(), path)


def serialise(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """Return ``tensors`` and JSON ``metadata`` in the safetensors format."""
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return save(plain, {"fedgen": json.dumps(dict(metadata))})


def parse(content: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and metadata of ``content``, which was read from ``path``."""
    try:
        tensors = load(content)
        length = int.from_bytes(content[:8], "little")  # the format: header length, JSON header, values
        header = json.loads(content[8 : 8 + length])
        return tensors, json.loads(header.get("__metadata__", {}).get("fedgen", "{}"))
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error

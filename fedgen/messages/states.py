"""Shared generators in a message: a record ``state.{key}`` has a generator's weights and optimiser state."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from torch import Tensor

from fedgen.errors import PayloadError
from fedgen.messages.samples import read_values

States = dict[str, dict[str, Tensor]]
"""Tensors by the generator's key and by name."""

PREFIX = "state."
TYPES = {np.dtype(np.float32), np.dtype(np.int64)}


def states_to_records(states: Mapping[str, Mapping[str, Tensor]]) -> RecordDict:
    """Return the states of generators by key as records of a message."""
    return RecordDict(
        {
            PREFIX + key: ArrayRecord({name: Array(v.detach().cpu().contiguous().numpy()) for name, v in state.items()})
            for key, state in states.items()
        }
    )


def states_from_records(content: RecordDict, allowed: Collection[str] | None = None) -> States:
    """Return the states of generators by key; shapes are left to the generators.

    Raises
    ------
    PayloadError
        The keys are not those that are ``allowed``, no more and no less; a tensor is of a wrong type or not finite.
    """
    records = {key.removeprefix(PREFIX): r for key, r in content.array_records.items() if key.startswith(PREFIX)}
    if allowed is not None and sorted(records) != sorted(allowed):
        raise PayloadError(f"generators {sorted(records)} came, expected {sorted(allowed)}")
    return {
        key: {name: _tensor(array, f"generator {key!r}: {name}") for name, array in record.items()}
        for key, record in records.items()
    }


def _tensor(array: Array, name: str) -> Tensor:
    values = read_values(array, name)
    if values.dtype not in TYPES:
        raise PayloadError(f"{name} is {values.dtype}, expected float32 or int64")
    return torch.from_numpy(values)

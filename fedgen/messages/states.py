"""Shared generators on the wire: weights and optimiser state by generator.

=======================  ==============  ===========================================================================
record                   kind            content
=======================  ==============  ===========================================================================
``state.{i}``            ArrayRecord     tensors of the i-th generator, float32 or int64
``keys``                 ConfigRecord    ``keys``: JSON list of the generators' keys, in order
=======================  ==============  ===========================================================================
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedgen.errors import PayloadError
from fedgen.messages.samples import read_values

States = dict[str, dict[str, Tensor]]
TYPES = {np.dtype(np.float32), np.dtype(np.int64)}


def states_to_records(states: Mapping[str, Mapping[str, Tensor]]) -> RecordDict:
    """Return the states of generators by key as records of a message."""
    content = RecordDict({"keys": ConfigRecord({"keys": json.dumps(list(states))})})
    for number, state in enumerate(states.values()):
        content[f"state.{number}"] = _record(state)
    return content


def states_from_records(content: RecordDict, allowed: Collection[str] | None = None) -> States:
    """Return the states of generators by key; values are checked, shapes are left to the generators.

    Parameters
    ----------
    content : RecordDict
        What `states_to_records` made.
    allowed : Collection[str], optional
        The keys that must be there, no more and no less.

    Raises
    ------
    PayloadError
        Names what is missing, unknown, of a wrong type or not finite.
    """
    keys = _keys(content)
    if allowed is not None and sorted(keys) != sorted(allowed):
        raise PayloadError(f"generators {sorted(keys)} came, expected {sorted(allowed)}")
    states: States = {}
    for number, key in enumerate(keys):
        record = content.array_records.get(f"state.{number}")
        if record is None:
            raise PayloadError(f"generator {key!r} has no state")
        states[key] = {name: _tensor(array, f"generator {key!r}: {name}") for name, array in record.items()}
    return states


def _keys(content: RecordDict) -> list[str]:
    try:
        keys = json.loads(str(content.config_records["keys"]["keys"]))
    except (KeyError, ValueError, RecursionError) as error:
        raise PayloadError(f"the keys of the generators cannot be read: {error!r}") from error
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
        raise PayloadError(f"the keys of the generators are no list of different names: {str(keys)[:100]}")
    return keys


def _record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    return ArrayRecord({name: Array(value.detach().cpu().contiguous().numpy()) for name, value in tensors.items()})


def _tensor(array: Array, name: str) -> Tensor:
    values = read_values(array, name)
    if values.dtype not in TYPES:
        raise PayloadError(f"{name} is {values.dtype}, expected float32 or int64")
    return torch.from_numpy(values)

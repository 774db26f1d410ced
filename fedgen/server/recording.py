"""Every message of a run, written as it leaves and as it arrives: what an attacker on the server has."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedgen.data.tensors import save_tensors
from fedgen.errors import ConfigError, PayloadError
from fedgen.messages.samples import read_values
from fedgen.server.grid import RoundGrid


class RecordingGrid(RoundGrid):
    """A grid that writes each message to a file of ``folder``, in the order in which they pass, under a `RoundGrid`.

    Parameters
    ----------
    grid : Grid
    folder : Path
        Empty, or not there.

    Raises
    ------
    ConfigError
        ``folder`` has files.
    """

    def __init__(self, grid: Grid, folder: Path) -> None:
        super().__init__(grid)
        if folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(f"record={folder} holds files already: name an empty folder, or one that is not there")
        self.folder, self.count = folder, 0

    def get_node_ids(self) -> list[int]:
        """Return the ids of all nodes."""
        return list(self.grid.get_node_ids())

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Write messages down and push them."""
        return super().push_messages([self._written(message, False) for message in messages])

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull replies and write them down."""
        return [self._written(message, True) for message in super().pull_messages(message_ids)]

    def _written(self, message: Message, reply: bool) -> Message:
        about = message.metadata
        node = about.src_node_id if reply else about.dst_node_id
        values: dict[str, Any] = {}
        tensors: dict[str, Tensor] = {}
        if message.has_error():
            values["error"] = {"code": message.error.code, "reason": message.error.reason}
        else:
            values, tensors = _content(message.content)
        name = f"{self.count:06d}_{about.message_type}_{'from' if reply else 'to'}_{node}.safetensors"
        facts = {"kind": about.message_type, "reply": reply, "node": node, "values": values}
        save_tensors(self.folder / name, tensors, facts)
        self.count += 1
        return message


def _content(content: RecordDict) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the values and the tensors of a message; what cannot be read as an array is named among the values."""
    values: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for key, words in content.config_records.items():
        values[key] = {name: json.loads(json.dumps(value, default=repr)) for name, value in words.items()}
    for key, numbers in content.metric_records.items():
        values[key] = dict(numbers.items())
    for key, arrays in content.array_records.items():
        for name, array in arrays.items():
            try:
                tensors[f"{key}/{name}"] = torch.from_numpy(read_values(array, name))
            except PayloadError as error:
                values.setdefault(key, {})[name] = f"not an array: {error}"
    return values, tensors

"""A grid that writes every message of a run to a file: what an attacker on the server has."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from flwr.app import Message
from flwr.serverapp import Grid

from fedgen.data.tensors import save_tensors
from fedgen.errors import ConfigError, PayloadError
from fedgen.messages.samples import read_values
from fedgen.server.grid import RoundGrid


class RecordingGrid(RoundGrid):
    """A grid that writes each message to a file of ``folder``, in the order in which they pass, under a `RoundGrid`.

    Raises
    ------
    ConfigError
        ``folder`` holds files already.
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
        about, values, tensors = message.metadata, dict[str, Any](), dict[str, torch.Tensor]()
        node = about.src_node_id if reply else about.dst_node_id
        if message.has_error():
            values["error"] = {"code": message.error.code, "reason": message.error.reason}
        else:
            for key, record in message.content.items():
                if key not in message.content.array_records:
                    values[key] = json.loads(json.dumps(dict(record), default=repr))
            for key, arrays in message.content.array_records.items():
                for name, array in arrays.items():
                    try:
                        tensors[f"{key}/{name}"] = torch.from_numpy(read_values(array, name))
                    except PayloadError as error:
                        values.setdefault(key, {})[name] = f"not an array: {error}"
        file = self.folder / f"{self.count:06d}_{about.message_type}_{'from' if reply else 'to'}_{node}.safetensors"
        save_tensors(file, tensors, {"kind": about.message_type, "reply": reply, "node": node, "values": values})
        self.count += 1
        return message

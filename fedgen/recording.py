"""Every message of a run, written as it leaves and as it arrives: what an attacker on the server has."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedgen.errors import ConfigError, PayloadError
from fedgen.exchange.files import load_tensors, save_tensors
from fedgen.exchange.payload import read_values
from fedgen.round_grid import RoundGrid
from fedgen.run_audit import Sent


@dataclass(frozen=True)
class Recorded:
    """One message.

    Attributes
    ----------
    kind : str
        Flower's message type, such as ``query.synthesize``.
    reply : bool
        Whether it came from the node, or went to it.
    node : int
        Flower's id of the node.
    values : dict
        Everything that is no array, by record and name; ``error`` of a reply that is one.
    tensors : dict[str, Tensor]
        Arrays by ``record/name``.
    """

    kind: str
    reply: bool
    node: int
    values: dict[str, Any]
    tensors: dict[str, Tensor]


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


def read_recorded(folder: Path) -> Iterator[Recorded]:
    """Yield the messages that a `RecordingGrid` wrote, in their order.

    Raises
    ------
    ConfigError
        ``folder`` holds none.
    CheckpointError
        A file is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{folder} holds no recorded messages: `fedgen run record={folder}` writes them")
    for file in files:
        tensors, facts = load_tensors(file)
        yield Recorded(facts["kind"], facts["reply"], facts["node"], facts["values"], tensors)


def sent_in(messages: Iterable[Recorded]) -> dict[int, Sent]:
    """Return what each node sent in all messages of a run, by the node's number in the partition."""
    numbers: dict[int, int] = {}
    asked: dict[int, dict[str, Tensor]] = {}  # adapters that each node was last sent
    found: dict[int, dict[str, list[Any]]] = {}
    arrays: dict[int, dict[str, Tensor]] = {}
    for message in messages:
        own = found.setdefault(message.node, {"latents": [], "labels": [], "adapters": []})
        weights = {n.removeprefix("arrays/"): v for n, v in message.tensors.items() if n.startswith("arrays/")}
        if message.kind == "train" and not message.reply:
            asked[message.node] = weights
        elif message.kind == "train" and set(weights) == set(asked.get(message.node, ())):
            own["adapters"] += [(asked[message.node], weights)] if weights else []
        elif message.kind == "query.describe" and "facts" in message.values:
            numbers[message.node] = int(json.loads(message.values["facts"]["json"])["number"])
        elif message.kind == "query.synthesize" and message.reply and "samples/latents" in message.tensors:
            parts = {name.removeprefix("samples/"): value for name, value in message.tensors.items()}
            own["latents"].append(parts["latents"] * parts["latent-scale"])
            own["labels"].append(parts["classes"].long().repeat_interleave(parts["counts"].long()))
        elif message.reply:
            arrays.setdefault(message.node, {}).update(message.tensors)
    return {
        number: Sent(
            torch.cat(found[node]["latents"]) if found[node]["latents"] else torch.zeros(0, 1),
            torch.cat(found[node]["labels"]) if found[node]["labels"] else torch.zeros(0, dtype=torch.long),
            found[node]["adapters"],
            arrays.get(node, {}),
        )
        for node, number in numbers.items()
    }


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

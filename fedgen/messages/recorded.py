"""Messages of a run, read from the files of `record=FOLDER`: what an attacker on the server has."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedgen.data.tensors import load_tensors
from fedgen.errors import ConfigError
from fedgen.evaluation.audit import Sent


@dataclass(frozen=True)
class Recorded:
    """One message."""

    kind: str  # Flower's message type, such as query.synthesize
    reply: bool  # whether it came from the node, or went to it
    node: int  # Flower's id of the node
    values: dict[str, Any]  # everything that is no array, by record and name; error of a reply that is one
    tensors: dict[str, Tensor]  # arrays by record/name


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
            numbers[message.node] = int(json.loads(message.values["facts"]["json"])["partition_id"])
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

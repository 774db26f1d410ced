"""The server's border: nothing that a node sends is believed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord

from fedgen.errors import DataError, PayloadError
from fedgen.exchange.payload import read_array
from fedgen.training.losses import History

LONGEST = 4_000_000  # characters of JSON that a node may send


@dataclass(frozen=True)
class Member:
    """What the server knows of a node.

    Attributes
    ----------
    number : int
        The node's place in the partition.
    counts : dict[int, int]
        Its clips of each global class id.
    granularity : str
        How its classes share generators.
    slots : dict[str, list[str]]
        Which of its classes each of its generators serves, if it trains any.
    """

    number: int
    counts: dict[int, int]
    granularity: str = "unified"
    slots: dict[str, list[str]] = field(default_factory=dict)


def read_member(reply: Message, classes: list[str], shape: tuple[int, int]) -> Member:
    """Return what a node says of itself.

    Raises
    ------
    DataError
        It cannot be read, or the node disagrees with the server about the classes or the shape of tokens.
    """
    try:
        said = json.loads(str(reply.content.config_records["facts"]["json"]))
        counts = {int(label): int(count) for label, count in said["counts"]}
        slots = {str(key): [str(name) for name in names] for key, names in said["slots"].items()}
        member = Member(int(said["number"]), counts, str(said["granularity"]), slots)
        theirs, width = list(said["classes"]), tuple(said["shape"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        node_id = reply.metadata.src_node_id
        raise DataError(f"Flower node {node_id} describes itself in a way that cannot be read: {error!r}") from error
    if theirs != classes or width != shape:
        raise DataError(
            f"node {member.number} has tokens {width} of classes {theirs}; the server has {shape} of {classes}"
        )
    return member


def check_training(member: Member, reply: Message, wanted: ArrayRecord) -> None:
    """Refuse adapters of other names, shapes or types than ``wanted``, values that are not finite, odd metrics.

    Raises
    ------
    PayloadError
    """
    records, metrics = list(reply.content.array_records.values()), list(reply.content.metric_records.values())
    if len(records) != 1 or len(metrics) != 1:
        raise PayloadError("a training reply needs one ArrayRecord and one MetricRecord")
    if set(records[0]) != set(wanted):
        raise PayloadError(f"adapters have other arrays than were sent: {sorted(set(records[0]) ^ set(wanted))}")
    for name, array in records[0].items():
        read_array(array, name, np.dtype(wanted[name].dtype), tuple(wanted[name].shape))
    _check_metrics(member, metrics[0])
    read_losses(reply)
    read_spent(reply)


def _check_metrics(member: Member, metrics: MetricRecord) -> None:
    """Refuse a weight in the average that the node's clips do not justify, and metrics that are not numbers."""
    clips, most = metrics.get("num-examples"), sum(member.counts.values())
    if not isinstance(clips, int) or not 1 <= clips <= most:
        raise PayloadError(f"num-examples is {clips}, expected a whole number from 1 to the node's {most} clips")
    for name, value in metrics.items():
        if not isinstance(value, int | float):
            raise PayloadError(f"metric {name} is {value}, expected a number")


def read_losses(reply: Message) -> History:
    """Return the losses of the node's generators.

    Raises
    ------
    PayloadError
        They are not a JSON list of mappings.
    """
    history = _json(reply, "generators", "the losses of generators") or []
    if not isinstance(history, list) or not all(isinstance(epoch, dict) for epoch in history):
        raise PayloadError(f"the losses of generators are not a list of mappings: {str(history)[:100]}")
    return history


def read_spent(reply: Message) -> dict[str, Any]:
    """Return what a node says that it has spent of its privacy budget; empty without one.

    Raises
    ------
    PayloadError
        It is no mapping.
    """
    spent = _json(reply, "privacy", "what was spent of privacy") or {}
    if not isinstance(spent, dict):
        raise PayloadError(f"what was spent of privacy is no mapping: {str(spent)[:100]}")
    return spent


def read_statistics(reply: Message) -> dict[str, float]:
    """Return the statistics of the samples that a node sends: numbers by name.

    Raises
    ------
    PayloadError
        They are something else.
    """
    found = _json(reply, "statistics", "the statistics of samples") or {}
    if not isinstance(found, dict):
        raise PayloadError(f"the statistics of samples are no mapping: {str(found)[:100]}")
    numbers: dict[str, Any] = {name: value for name, value in found.items() if name != "counts"}
    for name, value in numbers.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise PayloadError(f"the statistics of samples have no number as {name!r}: {str(value)[:100]}")
    return numbers


def _json(reply: Message, key: str, what: str) -> Any:
    texts = [str(record[key]) for record in reply.content.config_records.values() if key in record]
    if sum(map(len, texts)) > LONGEST:
        raise PayloadError(f"{what} are {sum(map(len, texts))} characters long, expected at most {LONGEST}")
    try:
        return json.loads(texts[0]) if texts else None
    except (ValueError, RecursionError) as error:
        raise PayloadError(f"{what} are no JSON: {error}") from error


def keep_shared_metrics(replies: Iterable[Message]) -> None:
    """Drop metrics that not every reply has: Flower's strategies end the run over them."""
    records = [next(iter(reply.content.metric_records.values())) for reply in replies]
    shared = set.intersection(*(set(record) for record in records))
    for record in records:
        for name in set(record) - shared:
            del record[name]


def message_bytes(message: Message) -> int:
    """Return the bytes of a message's records."""
    records = message.content
    arrays = sum(record.count_bytes() for record in records.array_records.values())
    metrics = sum(record.count_bytes() for record in records.metric_records.values())
    words = [part for record in records.config_records.values() for item in record.items() for part in item]
    return arrays + metrics + sum(len(str(word)) for word in words)

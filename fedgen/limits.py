"""Limits on what one node may send: bytes, records, and how far it moves the adapters."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import numpy as np
from flwr.app import ArrayRecord, Message

from fedgen.border import message_bytes
from fedgen.errors import PayloadError

MAJORITY = 3  # replies of which one cannot move the median


def check_size(reply: Message, most: float) -> None:
    """Refuse a reply of more than ``most`` megabytes (of 10^6 bytes).

    Flower has read it by then: the limit bounds what the server keeps and works on, not what it downloads.

    Raises
    ------
    PayloadError
    """
    size = message_bytes(reply) / 1e6
    if size > most:
        raise PayloadError(f"a payload of {size:.1f} MB, expected at most strategy.max_payload_mb={most:g}")


def check_records(reply: Message, arrays: int, metrics: int) -> None:
    """Refuse a reply that has not just so many records of arrays and of metrics, and at most one of other facts.

    Raises
    ------
    PayloadError
    """
    content = reply.content
    found = len(content.array_records), len(content.metric_records), len(content.config_records)
    if found[:2] != (arrays, metrics) or found[2] > 1:
        raise PayloadError(
            f"{found[0]} ArrayRecords, {found[1]} MetricRecords and {found[2]} ConfigRecords, "
            f"expected {arrays}, {metrics} and at most 1"
        )


def change(reply: Message, sent: ArrayRecord) -> float:
    """Return how far the adapters of a checked training reply are from those that were sent: the Euclidean norm."""
    (record,) = reply.content.array_records.values()
    return norm({name: array.numpy() - sent[name].numpy().astype(float) for name, array in record.items()})


def norm(values: Mapping[str, np.ndarray]) -> float:
    """Return the Euclidean norm of all values together."""
    return float(np.sqrt(sum(np.square(value, dtype=float).sum() for value in values.values())))


def excessive(changes: Mapping[int, float], sent: ArrayRecord, factor: float) -> dict[int, str]:
    """Return which nodes have moved the adapters too far, and why.

    With three replies or more, the bound is ``factor`` times the median change, which a minority of nodes cannot move;
    but a change that is shorter than the adapters themselves passes: a node with far more clips than most takes far
    more steps. Two replies have no majority to tell which is the odd one; there, and with one, the bound is ``factor``
    times the norm of the adapters, which stops those that are blown up, and little else. Neither depends on the scale
    of the weights.

    Parameters
    ----------
    changes : Mapping[int, float]
        Norm of each node's change by its number.
    sent : ArrayRecord
        What they started from.
    factor : float
        ``strategy.max_change``.

    References
    ----------
    Bounding the norm of updates: Sun et al., "Can you really backdoor federated learning?", 2019, arXiv:1911.07963.
    """
    size = norm({name: array.numpy() for name, array in sent.items()})
    median = statistics.median(changes.values()) if changes else 0.0
    few = len(changes) < MAJORITY
    bound = factor * size if few else max(factor * median, size)
    than = f"the adapters' own norm is {size:.4g}" if few else f"the median of the round is {median:.4g}"
    return {
        number: f"a change of the adapters by {moved:.4g} is too long: {than}, strategy.max_change={factor:g}"
        for number, moved in changes.items()
        if moved > bound > 0
    }

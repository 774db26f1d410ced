"""Work in batches that are halved when the device runs out of memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Items = TypeVar("Items", Tensor, list[Any])
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


def in_batches(items: Items, rows: int, compute: Callable[[Items], Result]) -> list[Result]:
    """Return ``compute`` of each batch of ``items``, in order; at most ``rows`` of the first dimension in a batch.

    When the device runs out of memory, this batch and the remaining ones are halved: see `halving`.
    """
    results: list[Result] = []
    start = 0

    def batch(size: int) -> Result:
        return compute(items[start : start + size])

    while start < len(items):
        result, rows = halving(min(rows, len(items) - start), "items", batch)
        results.append(result)
        start += rows
    return results


def halving(rows: int, noun: str, compute: Callable[[int], Result]) -> tuple[Result, int]:
    """Return ``compute(rows)`` and the ``rows`` that fit: half as many after each time that memory runs out.

    A warning counts the rows by their ``noun``.

    Raises
    ------
    torch.OutOfMemoryError
        Not even one row fits.
    """
    while True:
        try:
            return compute(rows), rows
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
        # outside the handler: there, the traceback would keep the results alive
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning("out of memory with %d %s in a batch: going on with %d", rows, noun, rows // 2)
        rows //= 2

"""Passes over many items in batches that fit into memory, where nothing is learnt: encoding, evaluation."""

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
    """Return what ``compute`` makes of each batch of ``items``, in order.

    When the device runs out of memory the batch is halved, for the rest too, and repeated, and a line says so.

    Parameters
    ----------
    items : Tensor or list
        Taken along its first dimension.
    rows : int
        Items of a batch to start with.
    compute : Callable
        From a slice of ``items`` to anything.

    Raises
    ------
    torch.OutOfMemoryError
        Not even one item fits.
    """
    results: list[Result] = []
    start = 0
    while start < len(items):
        rows = min(rows, len(items) - start)
        try:
            results.append(compute(items[start : start + rows]))
            start += rows
            continue
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
        # outside the handler: there, the traceback would keep what was computed alive
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning("out of memory with %d items in a batch: going on with %d", rows, rows // 2)
        rows //= 2
    return results

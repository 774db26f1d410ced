"""Batches that fit into memory: split into parts whose gradients add up, into smaller ones when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, reduce

import psutil
import torch
from torch import Tensor

from fedgen.data.batching import halving

SHARE = 0.6  # of what is free: the most that auto plans to take

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemoryPlan:
    """Consequences of ``memory``; the defaults are those of ``high``."""

    level: str = "high"  # high or low
    mapped: bool = False  # tokens are read from the store's files batch by batch (MappedTokens), not held
    rows: int | None = None  # samples in one backward pass of adapters; None: the whole batch
    generator_rows: int | None = None  # the same of a generator
    clips: int | None = None  # read at once by codecs and in evaluation; None: as many as they ask for

    def release(self) -> None:
        """Empty torch's cache of GPU memory, if memory is short; for the end of a node's work."""
        if self.level == "low" and torch.cuda.is_initialized():
            torch.cuda.empty_cache()


LOW = MemoryPlan("low", mapped=True, rows=8, generator_rows=32, clips=8)


@cache
def plan_memory(memory: str, device: torch.device, needed: int) -> MemoryPlan:
    """Return the plan for ``memory``, always the same one in a process.

    ``auto`` is ``low`` if all tokens need more bytes than `SHARE` of the free memory of ``device``.
    """
    if memory != "auto":
        return LOW if memory == "low" else MemoryPlan()
    free = free_bytes(device)
    scarce = needed > SHARE * free
    reason = f"all tokens need {needed / 2**30:.1f} GiB where {device.type} has {free / 2**30:.1f} GiB free"
    logger.log(logging.INFO if scarce else logging.DEBUG, "memory=%s: %s", "low" if scarce else "high", reason)
    return LOW if scarce else MemoryPlan()


def free_bytes(device: torch.device) -> int:
    """Return the free memory of ``device``, including torch's cache there.

    Of a CPU's memory this is that of the system; the limit of a container is not seen.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return int(psutil.virtual_memory().available)


@dataclass
class BatchLimit:
    """The most rows that one backward pass takes.

    A step on a batch of more rows is made of several passes, so that the result is that of the whole batch up to
    rounding. When the device runs out of memory the limit is halved for good, the step is repeated, and a line says so.
    """

    rows: int | None = None  # the limit; none by default

    def backward(self, indices: Tensor, losses: Callable[[Tensor], Tensor], zero_grad: Callable[[], None]) -> Tensor:
        """Fill the gradients of one step and return its losses.

        Parameters
        ----------
        indices : Tensor
            What the batch is made of ``(B,)``.
        losses : Callable
            From indices ``(b,)`` to the part's *contributions* to the losses ``(components,)``, which add up to the
            batch's: a mean over rows counts ``b / B``. The last component is minimised.
        zero_grad : Callable
            Forgets all gradients.

        Returns
        -------
        Tensor
            Losses of the batch ``(components,)``, detached.

        Raises
        ------
        torch.OutOfMemoryError
            Not even one row fits.
        """
        asked = min(self.rows or len(indices), len(indices))

        def one(part: Tensor) -> Tensor:
            contribution = losses(part)
            contribution[-1].backward()
            return contribution.detach()

        def step(rows: int) -> Tensor:
            zero_grad()
            return reduce(torch.add, map(one, indices.split(rows)))

        found, rows = halving(asked, "rows", step)
        self.rows = rows if rows < asked else self.rows
        return found

"""How much memory a run takes: one plan for each process, made from ``memory`` and from what the device has free.

``low`` trades time for memory, and only where results stay the same up to rounding: seeds, the order of batches and
what is computed from them are those of ``high``, so processes of one run may have different plans. In detail:

- Tokens are read from the store's files batch by batch, in the half precision that they have there, and become float32
  on the device: the same values.
- Batches of adapter training go through in parts whose gradients add up (dropout then draws other masks).
- Nothing is held in less precision than in ``high``. On a GPU activations of adapters are bfloat16 in both; a CPU
  without instructions for it computes in it several times slower. Sums of second moments, latents (half a kilobyte a
  clip, where tokens are 1.8 megabytes) and generators stay as they are: there is nothing to win.
- Optimisers' states lie on disk between rounds in both, and an encoder exists only while it encodes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache

import psutil
import torch

from fedgen.models.batches import BatchLimit

SHARE = 0.6  # of what is free: the most that auto plans to take
READ = 64  # clips that a loop reads at once where memory allows it

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemoryPlan:
    """What follows from ``memory``; the defaults are those of ``high``.

    Attributes
    ----------
    level : str
        ``high`` or ``low``.
    mapped : bool
        Whether tokens are read from the store's files batch by batch (`MappedTokens`) or held (`TensorTokens`).
    rows : int, optional
        Samples in one backward pass of adapters; None: the whole batch.
    generator_rows : int, optional
        Rows in one backward pass of a generator; None: the whole batch.
    clips : int, optional
        Clips read at once by codecs and in evaluation; None: as many as they ask for.
    """

    level: str = "high"
    mapped: bool = False
    rows: int | None = None
    generator_rows: int | None = None
    clips: int | None = None

    def batch_limit(self) -> BatchLimit:
        """Return a fresh limit for one training of adapters."""
        return BatchLimit(self.rows)

    def generator_limit(self) -> BatchLimit:
        """Return a fresh limit for one training of generators."""
        return BatchLimit(self.generator_rows)

    def release(self) -> None:
        """Give back the GPU memory that torch keeps for later, if memory is short; for the end of a node's work."""
        if self.level == "low" and torch.cuda.is_initialized():
            torch.cuda.empty_cache()


LOW = MemoryPlan("low", mapped=True, rows=8, generator_rows=32, clips=8)


@cache
def plan_memory(memory: str, device: torch.device, token_bytes: int, batch_bytes: int) -> MemoryPlan:
    """Return the plan for ``memory``; asked again, a process gets the same one.

    Parameters
    ----------
    memory : str
        ``low``, ``high``, or ``auto``: ``low`` if the run needs more than `SHARE` of what ``device`` has free now.
    device : torch.device
    token_bytes : int
        What all tokens take if they are held.
    batch_bytes : int
        What the largest batch takes besides, see `batch_bytes`.
    """
    if memory != "auto":
        return LOW if memory == "low" else MemoryPlan()
    needed, free = token_bytes + batch_bytes, free_bytes(device)
    scarce = needed > SHARE * free
    reason = f"the run needs about {needed / 2**30:.1f} GiB where {device.type} has {free / 2**30:.1f} GiB free"
    logger.log(logging.INFO if scarce else logging.DEBUG, "memory=%s: %s", "low" if scarce else "high", reason)
    return LOW if scarce else MemoryPlan()


def batch_bytes(shape: tuple[int, int], batch_size: int, width: int, maps: int) -> int:
    """Estimate what the largest batch takes: one in adapter training, or two of `READ` clips in a codec.

    Parameters
    ----------
    shape : tuple[int, int]
        ``(S, D)`` of a clip's tokens.
    batch_size : int
        Clips in a batch of adapter training.
    width : int
        Channels that adapters narrow a token to; training keeps 8 copies of them.
    maps : int
        Attention maps of all heads; training keeps 4 copies of them.
    """
    length, channels = shape
    training = batch_size * length * (channels + 8 * width + 4 * maps)
    return 4 * max(training, 2 * READ * length * channels)


def free_bytes(device: torch.device) -> int:
    """Return what ``device`` has free now, what torch keeps there for later included.

    Of a CPU's memory this is what the system has; the limit of a container is not seen.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return int(psutil.virtual_memory().available)

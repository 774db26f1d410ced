"""Batches that fit into memory: split into parts whose gradients add up, into smaller ones when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


class BatchLimit:
    """The most rows that one backward pass takes.

    A step on a batch of more rows is made of several passes, so that the result is that of the whole batch up to
    rounding. When the device runs out of memory the limit is halved for good, the step is repeated, and a line says so.

    Parameters
    ----------
    rows : int, optional
        The limit to start with; none by default.
    """

    def __init__(self, rows: int | None = None) -> None:
        self.rows = rows

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
        while True:
            size = min(self.rows or len(indices), len(indices))
            zero_grad()
            try:
                total = None
                for part in indices.split(size):
                    contribution = losses(part)
                    contribution[-1].backward()
                    total = contribution.detach() if total is None else total + contribution.detach()
                assert total is not None
                return total
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                self.rows = size // 2
            zero_grad()  # outside the handler: there, the traceback would keep the activations alive
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            logger.warning("out of memory with %d rows in a batch: going on with %d", size, self.rows)

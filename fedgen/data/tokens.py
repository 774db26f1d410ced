"""Labelled token sequences as training reads them: on the device, batch by batch."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class TokenSource(Protocol):
    """Labelled token sequences, real or synthetic, read in batches.

    Attributes
    ----------
    labels : Tensor
        Global class ids, shape ``(N,)``, int64, on the CPU.
    shape : tuple[int, int]
        ``(S, D)``: tokens of a sequence and width of a token.
    """

    labels: Tensor
    shape: tuple[int, int]

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Tensor:
        """Return tokens ``(B, S, D)``, float32, on the source's device, for ``indices`` ``(B,)`` (int64, CPU)."""
        ...


class TensorTokens:
    """Token sequences held in one tensor, in half precision, on the device that trains on them."""

    def __init__(self, tokens: Tensor, labels: Tensor, device: torch.device | str = "cpu") -> None:
        self.tokens = tokens.to(device)  # (N, S, D)
        self.labels = labels.long().cpu()  # (N,)
        self.shape = (int(tokens.shape[1]), int(tokens.shape[2]))

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        return self.tokens[indices.to(self.tokens.device)].float()

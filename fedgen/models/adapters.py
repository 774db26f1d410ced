"""Adapters: from the summary of a clip's tokens to the text-conditioning space of a diffusion model.

Every target has one head. What a clip's tokens say is summarised before anything is learnt (`summarise`), so that a
step costs the same for any length of sequence, and a clip is read once; the output may be as wide as ``(17, 4096)``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedgen.data.tokens import summarise, summary_size
from fedgen.models.settings import AdapterSettings


class TargetHead(nn.Module):
    """Two-layer perceptron, shared by the target's tokens, each of which has a bias of its own in the first layer."""

    def __init__(self, shape: tuple[int, ...], settings: AdapterSettings) -> None:
        super().__init__()
        self.shape = shape  # (d,) or (T, d)
        tokens = shape[0] if len(shape) == 2 else 1
        self.inner = nn.Linear(settings.width, settings.hidden)
        self.query_bias = nn.Parameter(torch.zeros(tokens, settings.hidden))
        self.outer = nn.Linear(settings.hidden, shape[-1])
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, narrow: Tensor) -> Tensor:
        """Map narrow summaries ``(B, w)`` to the target's ``(B, d)`` or ``(B, T, d)``."""
        inner = self.inner(narrow)[:, None] + self.query_bias  # (B, T, hidden)
        return self.outer(self.dropout(F.gelu(inner))).reshape(len(narrow), *self.shape)


class Adapters(nn.Module):
    """One head for each target over a shared narrow view of the summary.

    Parameters
    ----------
    width : int
        ``D``: width of a token.
    targets : dict[str, tuple[int, ...]]
        Shape of each target without the batch: ``(d,)`` or ``(T, d)``.
    settings : AdapterSettings
    bands : int
        Bands of frequency in the encoder's map: see `summarise`.
    """

    def __init__(self, width: int, targets: dict[str, tuple[int, ...]], settings: AdapterSettings, bands: int) -> None:
        super().__init__()
        self.bands = bands
        self.narrow = nn.Linear(summary_size(width, bands), settings.width)
        self.dropout = nn.Dropout(settings.dropout)
        self.heads = nn.ModuleDict({name: TargetHead(tuple(shape), settings) for name, shape in targets.items()})

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        """Map tokens ``(B, S, D)``, of any length, or their summaries ``(B, F)``, to ``{head: (B, *target shape)}``."""
        summaries = summarise(clips, self.bands) if clips.dim() == 3 else clips
        narrow = self.narrow(self.dropout(summaries))
        return {name: head(narrow) for name, head in self.heads.items()}


def build_adapters(
    width: int, targets: dict[str, tuple[int, ...]], settings: AdapterSettings, seed: int, bands: int = 1
) -> Adapters:
    """Build freshly initialised adapters: the same for the same seed, whatever torch's global generator is at."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Adapters(width, targets, settings, bands)

"""Adapters: from a token sequence to the text-conditioning space of a diffusion model.

Where the encoder's map has bands of frequency, every head also reads the clip's summary (`summarise`).

Every target has one head. A head pools the sequence with as many attention queries as its target has tokens *before*
its wide layers, and the token-wise work (one narrow projection and the attention scores) is shared or narrow, so the
cost of a long sequence stays small while the output may be as wide as ``(17, 4096)``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedgen.data.tokens import FactoredTokens, summarise
from fedgen.models.settings import AdapterSettings

WIDE = 1024  # channels


class TokenProjection(nn.Module):
    """Narrow every token and add an embedding of its position.

    Sequences of another length than the one trained on get linearly interpolated position embeddings.
    """

    def __init__(self, length: int, token_width: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(token_width, width)
        self.norm = nn.LayerNorm(width)
        self.position = nn.Parameter(cosine_basis(length, width))  # (S, w)

    def forward(self, tokens: Tensor | FactoredTokens) -> Tensor:
        """Map ``(B, S, D)`` to ``(B, S, w)``."""
        if isinstance(tokens, FactoredTokens):
            narrow = tokens.project(self.project.weight) + self.project.bias
        else:
            narrow = self.project(tokens)
        position: Tensor = self.position
        if narrow.shape[1] != len(position):
            position = F.interpolate(position.T[None], size=narrow.shape[1], mode="linear")[0].T
        return F.gelu(self.norm(narrow) + position)


def cosine_basis(length: int, width: int) -> Tensor:
    """Return ``width`` cosines of rising frequency over ``length`` positions, ``(length, width)``.

    Near positions start out alike, far ones apart, at every scale; adapters then learn where a sound is (in a row of
    patches: its frequency) from few clips.
    """
    place = (torch.arange(length) + 0.5) / length  # (S,)
    return torch.cos(torch.pi * place[:, None] * torch.arange(width))


class TargetHead(nn.Module):
    """Attention pooling to the target's tokens, then a two-layer perceptron shared by them."""

    def __init__(self, shape: tuple[int, ...], settings: AdapterSettings, summary: int = 0) -> None:
        super().__init__()
        self.shape = shape  # (d,) or (T, d)
        self.queries = shape[0] if len(shape) == 2 else 1
        self.heads = settings.heads
        self.score = nn.Linear(settings.width, self.queries * settings.heads)
        self.norm = nn.LayerNorm(settings.heads * settings.width)
        hidden = min(settings.hidden, settings.wide_hidden) if shape[-1] > WIDE else settings.hidden
        self.inner = nn.Linear(settings.heads * settings.width, hidden)
        self.inner_summary = nn.Linear(summary, hidden, bias=False) if summary else None
        self.query_bias = nn.Parameter(torch.zeros(self.queries, hidden))
        self.outer = nn.Linear(hidden, shape[-1])
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, narrow: Tensor, summary: Tensor | None = None) -> Tensor:
        """Map narrow tokens ``(B, S, w)``, and summaries ``(B, D)``, to the target's ``(B, d)`` or ``(B, T, d)``."""
        attention = self.score(narrow).softmax(dim=1)  # (B, S, T * h)
        pooled = attention.transpose(1, 2) @ narrow  # (B, T * h, w)
        pooled = self.dropout(self.norm(pooled.reshape(len(narrow), self.queries, -1)))  # (B, T, h * w)
        inner = self.inner(pooled) + self.query_bias  # (B, T, hidden)
        if self.inner_summary is not None and summary is not None:
            inner = inner + self.inner_summary(self.dropout(summary))[:, None]
        hidden = self.dropout(F.gelu(inner))
        return self.outer(hidden).reshape(len(narrow), *self.shape)


class Adapters(nn.Module):
    """One head for each target over a shared narrow view of the tokens.

    Parameters
    ----------
    tokens : tuple[int, int]
        ``(S, D)``: length and width of the token sequences.
    targets : dict[str, tuple[int, ...]]
        Shape of each target without the batch: ``(d,)`` or ``(T, d)``.
    settings : AdapterSettings
    bands : int
        Bands of the summary; 0: none.
    """

    def __init__(
        self,
        tokens: tuple[int, int],
        targets: dict[str, tuple[int, ...]],
        settings: AdapterSettings,
        bands: int = 0,
    ) -> None:
        super().__init__()
        self.tokens, self.bands, summary = TokenProjection(*tokens, settings.width), bands, tokens[1] if bands else 0
        self.heads = nn.ModuleDict(
            {name: TargetHead(tuple(shape), settings, summary) for name, shape in targets.items()}
        )
        self.norm = nn.LayerNorm(summary) if bands else None

    def forward(self, tokens: Tensor | FactoredTokens) -> dict[str, Tensor]:
        """Map ``(B, S, D)`` to ``{head: (B, *target shape)}``."""
        narrow = self.tokens(tokens)
        summary = None if self.norm is None else self.norm(self._summary(tokens))
        return {name: head(narrow, summary) for name, head in self.heads.items()}

    def _summary(self, tokens: Tensor | FactoredTokens) -> Tensor:
        if isinstance(tokens, FactoredTokens):
            return summarise(tokens.dense(), self.bands) if tokens.summary is None else tokens.summary
        return summarise(tokens, self.bands)


def build_adapters(
    tokens: tuple[int, int],
    targets: dict[str, tuple[int, ...]],
    settings: AdapterSettings,
    seed: int,
    bands: int = 0,
) -> Adapters:
    """Build freshly initialised adapters: the same for the same seed, whatever torch's global generator is at."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Adapters(tokens, targets, settings, bands)

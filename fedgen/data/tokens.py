"""Labelled token sequences, and their summaries, as training reads them: on the device, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedgen.data.seeds import stream
from fedgen.data.store import Store

SUMMARY_VERSION = 1  # of what a summary is: another one makes another codec
NARROW = 16  # directions in which a summary tells what is in which band
FLOAT_LIMIT = 4 * 2**30  # bytes up to which the CPU keeps tokens in float32: converting costs more than a training step


class TokenSource(Protocol):
    """Labelled token sequences, real or synthetic, read in batches."""

    labels: Tensor  # global class ids (N,), int64, on the CPU
    shape: tuple[int, int]  # (S, D): tokens of a sequence and width of a token

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Tensor:
        """Return tokens ``(B, S, D)``, float32, on the source's device, for ``indices`` ``(B,)`` (int64, CPU)."""
        ...


class SummarySource(Protocol):
    """Labelled summaries of clips, real or synthetic, read in batches: what adapters train on."""

    labels: Tensor  # global class ids (N,), int64, on the CPU

    def __len__(self) -> int: ...

    def summaries(self, indices: Tensor) -> Tensor:
        """Return summaries ``(B, F)``, float32, on the source's device, for ``indices`` ``(B,)`` (int64, CPU)."""
        ...


@dataclass(eq=False)
class Summaries:
    """The summaries of clips, held in one tensor on the device that trains on them."""

    values: Tensor  # (N, F), float32
    labels: Tensor  # global class ids (N,), int64, on the CPU

    @classmethod
    def of(cls, source: TokenSource, bands: int, rows: int = 64) -> Summaries:
        """Summarise every clip of ``source``, reading ``rows`` at once."""
        return cls(torch.cat([summarise(tokens, bands) for tokens in batches(source, rows)]), source.labels)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return self.values.nbytes

    def summaries(self, indices: Tensor) -> Tensor:
        """Return the summaries at ``indices`` ``(B,)``: ``(B, F)``."""
        return self.values[indices.to(self.values.device)]


def summarise(tokens: Tensor, bands: int) -> Tensor:
    """Return the summary of clips ``(B, F)``, float32: all that adapters read of them.

    ``tokens`` ``(B, S, D)`` are the rows of a map, a row a band of frequency, behind tokens that stand for the clip
    (the rest of S over ``bands``). A summary has five parts: mean and maximum over all tokens, and the maximum over
    time of the mean over bands (Kong et al., 2020, 1912.10211), ``(B, D)`` each; then mean and maximum over time in
    each band of `NARROW` fixed random directions of the tokens. Each part is brought to mean 0 and deviation 1 within
    the clip, so that a loud clip has the summary of a quiet one.
    """
    rows = tokens[:, tokens.shape[1] % bands :].unflatten(1, (bands, -1))  # (B, R, T, D)
    narrow = rows @ directions(tokens.shape[2]).to(tokens)  # (B, R, T, NARROW)
    means = rows.mean(dim=1)  # (B, T, D)
    parts = [means.mean(dim=1), rows.amax(dim=(1, 2)), means.amax(dim=1)]
    parts += [narrow.mean(dim=2).flatten(1), narrow.amax(dim=2).flatten(1)]
    return torch.cat([functional.layer_norm(part.float(), part.shape[1:], eps=1e-8) for part in parts], dim=1)


def summary_size(width: int, bands: int) -> int:
    """Return the numbers ``F`` of a summary of tokens of ``width`` D."""
    return 3 * width + 2 * bands * min(NARROW, width)


@cache
def directions(width: int) -> Tensor:
    """Return at most `NARROW` fixed random orthonormal directions of tokens ``(D, NARROW)``, float32."""
    drawn = stream("directions of summaries", width).standard_normal((width, min(NARROW, width)))
    return torch.from_numpy(np.linalg.qr(drawn)[0]).float()


class TensorTokens:
    """Token sequences held in one tensor on the device that trains on them, in the precision of `held_as`."""

    def __init__(self, tokens: Tensor, labels: Tensor, device: torch.device | str = "cpu") -> None:
        self.tokens = tokens.to(device)  # (N, S, D)
        if held_as(tokens.numel(), self.tokens.device) == torch.float32:
            self.tokens = self.tokens.float()
        self.labels = labels.long().cpu()  # (N,)
        self.shape = (int(tokens.shape[1]), int(tokens.shape[2]))

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        """Return the sequences at ``indices`` ``(B,)``: ``(B, S, D)``, float32."""
        return self.tokens[indices.to(self.tokens.device)].float()


def held_as(values: int, device: torch.device) -> torch.dtype:
    """Return the precision in which `TensorTokens` holds ``values`` numbers: half, or float32 if few and on the CPU."""
    return torch.float32 if device.type == "cpu" and 4 * values <= FLOAT_LIMIT else torch.float16


class MappedTokens:
    """The clips ``indices`` ``(N,)`` of an embedding store, read from its files batch by batch and held nowhere.

    Batches go to ``device`` in half precision and become float32 there. `batches` reads at most ``rows`` at once.
    """

    def __init__(
        self, store: Store, indices: np.ndarray, device: torch.device | str = "cpu", rows: int | None = None
    ) -> None:
        self.store, self.indices = store, torch.as_tensor(indices, dtype=torch.int64)
        self.device, self.rows = torch.device(device), rows
        self.labels = torch.from_numpy(store.labels[indices])  # (N,)
        self.shape = store.shape

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        """Return the sequences at ``indices`` ``(B,)``: ``(B, S, D)``, float32."""
        return self.store.tokens(self.indices[indices]).to(self.device).float()


class LazyTokens:
    """A source of known ``labels`` ``(N,)`` and ``shape`` ``(S, D)`` that ``open`` returns for the first batch."""

    def __init__(self, labels: Tensor, shape: tuple[int, int], open: Callable[[], TokenSource]) -> None:
        self.labels, self.shape, self._open = labels.long().cpu(), shape, open

    @cached_property
    def opened(self) -> TokenSource:
        """The source itself."""
        return self._open()

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        """Return the sequences at ``indices`` ``(B,)``: ``(B, S, D)``, float32."""
        return self.opened.batch(indices)


def rows_at_once(source: TokenSource, rows: int) -> int:
    """Return how many sequences a loop over ``source`` reads at once: ``rows``, or fewer where memory is short."""
    source = source.opened if isinstance(source, LazyTokens) else source
    return min(rows, source.rows or rows) if isinstance(source, MappedTokens) else rows


def batches(source: TokenSource, rows: int) -> Iterator[Tensor]:
    """Yield the tokens of ``source`` in order, at most ``rows`` at once, ``(B, S, D)`` each."""
    for indices in torch.arange(len(source)).split(rows_at_once(source, rows)):
        yield source.batch(indices)

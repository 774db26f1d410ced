"""Labelled token sequences as training reads them: on the device, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from fedgen.data.store import Store

FLOAT_LIMIT = 4 * 2**30  # bytes up to which the CPU keeps tokens in float32: converting costs more than a training step


class TokenSource(Protocol):
    """Labelled token sequences, real or synthetic, read in batches."""

    labels: Tensor  # global class ids (N,), int64, on the CPU
    shape: tuple[int, int]  # (S, D): tokens of a sequence and width of a token

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Tensor:
        """Return tokens ``(B, S, D)``, float32, on the source's device, for ``indices`` ``(B,)`` (int64, CPU)."""
        ...


@dataclass(frozen=True)
class FactoredTokens:
    """A batch of token sequences of low rank, ``positions @ core @ channels.T``, never multiplied out.

    A linear map of the tokens (`project`) costs a small share of the map of dense ones.
    """

    positions: Tensor  # (P, S, A): a basis of the sequence for each of P origins
    channels: Tensor  # (P, D, C): a basis of the token width for each origin
    cores: Tensor  # (B, A, C)
    origins: Tensor  # (B,), int64: the origin of each sequence
    summary: Tensor | None = None  # (B, D), of the clips themselves: see `summarise`

    @classmethod
    def alike(cls, positions: Tensor, channels: Tensor, cores: Tensor, summary: Tensor | None = None) -> FactoredTokens:
        """Return sequences ``cores`` ``(B, A, C)`` of one origin, with bases ``(S, A)`` and ``(D, C)``."""
        origins = torch.zeros(len(cores), dtype=torch.long, device=cores.device)
        return cls(positions[None], channels[None], cores, origins, summary)

    def project(self, weight: Tensor) -> Tensor:
        """Return the tokens mapped by ``weight`` ``(w, D)``: ``(B, S, w)``."""
        narrow = (weight @ self.channels).transpose(1, 2)  # (P, C, w)
        if len(self.positions) == 1:
            return self.positions[0] @ (self.cores @ narrow[0])
        return self.positions[self.origins] @ (self.cores @ narrow[self.origins])

    def dense(self) -> Tensor:
        """Return the tokens ``(B, S, D)``."""
        return self.positions[self.origins] @ (self.cores @ self.channels[self.origins].transpose(1, 2))


def summarise(tokens: Tensor, bands: int) -> Tensor:
    """Return the summary of clips ``(B, D)``: the mean over bands of frequency, then the maximum over time.

    ``tokens`` ``(B, S, D)`` are the rows of a map, a row a band, behind tokens that stand for the clip (the rest of S
    over ``bands``). Networks for sounds pool their last map so (Kong et al., 2020, 1912.10211). Without bands there is
    none: ``(B, 0)``.
    """
    if not bands:
        return tokens[:, 0, :0]
    rows = tokens[:, tokens.shape[1] % bands :].unflatten(1, (bands, -1))
    return rows.mean(dim=1).amax(dim=1)


@runtime_checkable
class FactoredSource(Protocol):
    """A token source that can also be read as factors."""

    def factors(self, indices: Tensor) -> FactoredTokens:
        """Return the sequences at ``indices`` ``(B,)`` as factors."""
        ...


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

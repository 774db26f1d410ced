"""Clips by what they are in a low-rank basis of their own: a thousand numbers each instead of a million."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedgen.data.tokens import FactoredTokens, TokenSource, batches
from fedgen.errors import require
from fedgen.models.bases import Bases, CodecSettings
from fedgen.models.lengths import Lengths
from fedgen.models.moments import Moments


@dataclass(frozen=True)
class ProjectionSettings:
    """Size of the bases that clips are projected on before adapters train on them.

    Parameters
    ----------
    positions, channels : int
        Basis vectors of the sequence and of a token, limited by what the clips have; 0: adapters train on the tokens.
    """

    positions: int = 96
    channels: int = 48

    def __post_init__(self) -> None:
        for name in ("positions", "channels"):
            value = getattr(self, name)
            require(value >= 0, f"adapter.projection.{name}={value} must be at least 0")

    @property
    def used(self) -> bool:
        """Whether clips are projected at all."""
        return self.positions > 0 and self.channels > 0


class ProjectedTokens:
    """A `TokenSource` of real clips, projected on the bases of a codec.

    Nothing is drawn and nothing is left out but what the bases do not hold. A linear layer on such tokens costs a small
    share of what it costs on the tokens themselves (see `FactoredTokens`), and all clips of a node fit into memory.

    Parameters
    ----------
    bases : Bases
        As long as the clips.
    cores : Tensor
        ``(N, A, C)``, on the bases' device.
    labels : Tensor
        Global class ids ``(N,)``.
    """

    def __init__(self, bases: Bases, cores: Tensor, labels: Tensor) -> None:
        self.positions, self.channels = bases.positions, bases.channels
        self.cores, self.labels = cores, labels.long().cpu()
        self.shape = (len(self.positions), len(self.channels))

    @classmethod
    def of(cls, source: TokenSource, settings: ProjectionSettings, batch_size: int = 64) -> ProjectedTokens:
        """Project every clip of ``source`` on the leading eigenvectors of their second moments, in two passes."""
        sizes = CodecSettings(positions=settings.positions, channels=settings.channels)
        bases = Bases.from_moments(Moments.measure(source, batch_size), sizes, Lengths())
        size = bases.positions.shape[1], bases.channels.shape[1]
        cores = torch.cat([bases.project(tokens) for tokens in batches(source, batch_size)])
        return cls(bases, cores.reshape(-1, *size), source.labels)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """Bytes of the cores."""
        return self.cores.nbytes

    def batch(self, indices: Tensor) -> Tensor:
        """Return tokens ``(B, S, D)`` at ``indices`` ``(B,)``."""
        return self.factors(indices).dense()

    def factors(self, indices: Tensor) -> FactoredTokens:
        """Return the clips at ``indices`` ``(B,)`` as factors."""
        return FactoredTokens.alike(self.positions, self.channels, self.cores[indices.to(self.cores.device)])

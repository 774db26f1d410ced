"""The bases that token sequences are projected on, and what decides them: settings, lengths and second moments."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedgen.errors import require
from fedgen.models.lengths import Lengths
from fedgen.models.moments import Moments


@dataclass(frozen=True)
class CodecSettings:
    """Sizes of the codec, each limited by what the public sounds have, and which sounds these are.

    Parameters
    ----------
    channels, positions, components : int
        Basis vectors of a token and of the sequence, and coefficients of a latent vector.
    noise : bool
        Whether samples get the noise that the components leave out.
    public : str, optional
        Folder of audio that anybody may know, one folder a class; synthesised sounds by default.
    """

    channels: int = 24
    positions: int = 48
    components: int = 128
    noise: bool = True
    public: str | None = None

    def __post_init__(self) -> None:
        for name in ("channels", "positions", "components"):
            value = getattr(self, name)
            require(value >= 1, f"codec.{name}={value} must be at least 1")


class Bases:
    """What a codec projects sequences on, and what it makes them of again.

    Parameters
    ----------
    positions : Tensor
        ``(O, A)``: what the sequences that are made consist of.
    channels : Tensor
        Orthonormal ``(D, B)``.
    analysis : Tensor, optional
        ``(S, A)``: what sequences of the encoder are projected on; ``positions`` by default.
    """

    def __init__(self, positions: Tensor, channels: Tensor, analysis: Tensor | None = None) -> None:
        self.positions, self.channels = positions, channels
        self.analysis = positions if analysis is None else analysis

    @classmethod
    def from_moments(cls, moments: Moments, settings: CodecSettings, lengths: Lengths) -> Bases:
        """Return the leading eigenvectors of ``moments``.

        Raises
        ------
        ConfigError
            The modelled length is above the encoder's.
        """
        length, device = len(moments.positions), moments.positions.device
        channels = _leading(moments.channels, settings.channels)
        if lengths.resolve(length) == (length, length):
            return cls(_leading(moments.positions, settings.positions), channels)
        down, up = lengths.down(length), lengths.up(moments.positions)  # (L, S), (O, L)
        kept = _leading(down @ moments.positions.cpu() @ down.T, settings.positions).double()  # (L, A)
        return cls((up @ kept).float().to(device), channels, (down.T @ kept).float().to(device))

    def project(self, tokens: Tensor) -> Tensor:
        """Return the cores ``(B, n)`` of ``tokens`` ``(B, S, D)``."""
        return (self.analysis.T @ (tokens @ self.channels)).flatten(1)

    def state(self) -> dict[str, Tensor]:
        """Return the bases by name; ``analysis`` only where it is not ``positions``."""
        both = {"channels": self.channels, "positions": self.positions}
        return both if self.analysis is self.positions else both | {"analysis": self.analysis}


def signed(vectors: Tensor) -> Tensor:
    """Return the columns of ``vectors`` ``(n, k)`` with the sign that makes the largest value of each positive."""
    peaks = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    return vectors * torch.where(peaks < 0, -1.0, 1.0)


def _leading(moments: Tensor, count: int) -> Tensor:
    """Return the ``count`` leading eigenvectors ``(n, count)`` of symmetric ``moments`` ``(n, n)``, in float32."""
    vectors = torch.linalg.eigh(moments.cpu()).eigenvectors.flip(1)  # (n, n), leading first
    return signed(vectors[:, :count]).float().contiguous().to(moments.device)

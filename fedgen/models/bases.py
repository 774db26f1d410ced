"""The bases that token sequences are projected on, and what decides them: settings, lengths and second moments."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedgen.errors import choose, require
from fedgen.models.lengths import Lengths
from fedgen.models.moments import Moments

CODECS = ("tucker", "flat")
LONGEST_FLAT = 64  # tokens; at 1214 a network on flat values would have 1.9 billion parameters


@dataclass(frozen=True)
class CodecSettings:
    """Kind and sizes of the codec; each size is limited by what the data has.

    Parameters
    ----------
    channels, positions, components : int
        Basis vectors of a token and of the sequence, and coefficients of a latent vector.
    noise : bool
        Whether samples get the noise that the components leave out.
    name : str
        ``tucker``, or ``flat``: latents are the values of a short sequence themselves, and the sizes say nothing.
    """

    channels: int = 24
    positions: int = 48
    components: int = 128
    noise: bool = True
    name: str = "tucker"

    def __post_init__(self) -> None:
        choose(self.name, CODECS, "generator.codec.name")
        for name in ("channels", "positions", "components"):
            value = getattr(self, name)
            require(value >= 1, f"generator.codec.{name}={value} must be at least 1")

    def check(self, lengths: Lengths) -> None:
        """Raise `ConfigError` where ``lengths`` are more than this codec can do."""
        require(
            self.name != "flat" or 1 <= (lengths.training or 0) <= LONGEST_FLAT,
            f"generator.codec.name=flat needs a generator.training_length of at most {LONGEST_FLAT}, "
            f"not {lengths.training or 'the whole sequence'}: its generators grow with every token, "
            "to 1.9 billion parameters at 1214; generator.codec.name=tucker takes any length",
        )


class Bases:
    """What a codec projects sequences on, and what it makes them of again.

    Parameters
    ----------
    positions : Tensor
        ``(O, A)``: what the sequences that are made consist of.
    channels : Tensor, optional
        Orthonormal ``(D, B)``; None: tokens stay as they are.
    analysis : Tensor, optional
        ``(S, A)``: what sequences of the encoder are projected on; None where that is ``positions``.
    """

    NAMES = ("positions", "channels", "analysis")

    def __init__(self, positions: Tensor, channels: Tensor | None = None, analysis: Tensor | None = None) -> None:
        self.positions, self.channels, self.analysis = positions, channels, analysis

    @classmethod
    def from_moments(cls, moments: Moments, settings: CodecSettings, lengths: Lengths) -> Bases:
        """Return the leading eigenvectors of ``moments``; for ``flat`` what shortens and lengthens sequences.

        Raises
        ------
        ConfigError
            The lengths are more than the encoder gives or than the codec can do.
        """
        settings.check(lengths)
        length, device = len(moments.positions), moments.positions.device
        channels = None if settings.name == "flat" else _leading(moments.channels, settings.channels)
        if lengths.resolve(length) == (length, length):
            return cls(_kept(moments.positions, settings), channels)
        down, up = lengths.down(length), lengths.up(moments.positions)  # (L, S), (O, L)
        kept = _kept(down @ moments.positions.cpu() @ down.T, settings).double()  # (L, A)
        return cls((up @ kept).float().to(device), channels, (down.T @ kept).float().to(device))

    def project(self, tokens: Tensor) -> Tensor:
        """Return the cores ``(B, n)`` of ``tokens`` ``(B, S, D)``."""
        narrow = tokens if self.channels is None else tokens @ self.channels
        return ((self.positions if self.analysis is None else self.analysis).T @ narrow).flatten(1)

    def to(self, device: torch.device | str) -> Bases:
        """Return the bases on ``device``."""
        return Bases(**{name: value.to(device) for name, value in self.state().items()})

    def state(self) -> dict[str, Tensor]:
        """Return the bases that there are, by name: ``Bases(**state)`` are the same again."""
        return {name: getattr(self, name) for name in self.NAMES if getattr(self, name) is not None}


def _kept(moments: Tensor, settings: CodecSettings) -> Tensor:
    """Return the basis ``(L, A)`` of modelled sequences with position ``moments`` ``(L, L)``."""
    if settings.name == "flat":
        return torch.eye(len(moments), device=moments.device)
    return _leading(moments, settings.positions)


def _leading(moments: Tensor, count: int) -> Tensor:
    """Return the ``count`` leading eigenvectors ``(n, count)`` of symmetric ``moments`` ``(n, n)``, in float32."""
    vectors = torch.linalg.eigh(moments.cpu()).eigenvectors.flip(1)  # (n, n), leading first
    return vectors[:, :count].float().contiguous().to(moments.device)

"""The bases that token sequences are projected on, and what decides them: settings, lengths and second moments."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fedgen.errors import choose, require
from fedgen.models.moments import Moments

log = logging.getLogger(__name__)

UPSAMPLING = ("linear", "nearest", "cubic", "learned")
LARGEST_FACTOR = 16  # above this a sample is little more than a few repeated tokens
RIDGE = 1e-6  # share of the mean energy below which a direction says nothing about how to up-sample
MODES = {"linear": "bilinear", "nearest": "nearest", "cubic": "bicubic"}  # torch's names for images


@dataclass(frozen=True)
class Lengths:
    """Tokens of the sequences that are modelled and made; None: as many as the encoder gives.

    A sequence gets shorter by averaging neighbouring tokens, and longer by ``upsampling``.

    Parameters
    ----------
    training, output : int, optional
        Tokens of a sequence that the generator models, and tokens of a sample.
    upsampling : str
        ``linear``, ``nearest``, ``cubic`` (as `torch.nn.functional.interpolate` does them) or ``learned``.
    """

    training: int | None = None
    output: int | None = None
    upsampling: str = "linear"

    def __post_init__(self) -> None:
        for name in ("training", "output"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"generator.{name}_length={value} must be at least 1")
        choose(self.upsampling, UPSAMPLING, "generator.upsampling")

    def resolve(self, length: int) -> tuple[int, int]:
        """Return the tokens modelled ``L`` and made ``O`` where the encoder gives ``length`` ``S``.

        Raises
        ------
        ConfigError
            ``generator.training_length`` is longer than the encoder's sequence.
        """
        training = self.training or length
        require(
            training <= length,
            f"generator.training_length={training} is longer than the encoder's sequence of {length} tokens",
        )
        return training, self.output or length

    def down(self, length: int) -> Tensor:
        """Return the matrix ``(L, S)``, float64, that shortens a sequence of ``length`` ``S`` to what is modelled."""
        return resampling(length, self.resolve(length)[0], "linear")

    def up(self, moments: Tensor) -> Tensor:
        """Return the matrix ``(O, L)``, float64, that makes samples of what is modelled.

        ``learned`` is fitted together with the codec, to the same public clips: of all matrices it is the one whose
        samples are nearest to the clips' own sequences, in the sense of least squares. No steps of training are
        needed, as the optimum follows from the clips' second moments.

        Parameters
        ----------
        moments : Tensor
            Uncentred second moments of the positions ``(S, S)``.
        """
        length = len(moments)
        training, output = self.resolve(length)
        if output > LARGEST_FACTOR * training:
            log.warning(
                "generator.output_length=%d is %.4g times generator.training_length=%d: "
                "above %d times, samples have little that changes from token to token",
                output, output / training, training, LARGEST_FACTOR,
            )  # fmt: skip
        if self.upsampling == "learned":
            return learned(moments, training, output)
        return resampling(training, output, self.upsampling)


def resampling(source: int, target: int, kind: str) -> Tensor:
    """Return the matrix ``(target, source)``, float64, that gives a sequence of ``source`` tokens ``target`` of them.

    Fewer tokens are means of neighbours (adaptive average pooling), more are interpolated between the centres of the
    old ones (``align_corners=False``). Equal lengths give the unit matrix.
    """
    image = torch.eye(source, dtype=torch.float64)[None, None]  # (1, 1, source, source): each column a unit sequence
    if target <= source:
        return functional.adaptive_avg_pool2d(image, (target, source))[0, 0]
    return functional.interpolate(image, (target, source), mode=MODES[kind])[0, 0]


def learned(moments: Tensor, training: int, output: int) -> Tensor:
    """Return the matrix ``(O, L)``, float64, that up-samples shortened clips with the least squared error.

    With the clips' moments ``M``, averaging ``P`` and the wanted ``R X`` (the clips themselves, or, where ``O`` is not
    ``S``, resampled to that length) it is ``R M P' (P M P')^-1``. A ridge pulls it towards linear interpolation where
    the clips say next to nothing, so that it exists for few and for equal clips too.

    Parameters
    ----------
    moments : Tensor
        ``(S, S)``.
    training, output : int
        ``L`` and ``O``.
    """
    moments = moments.cpu().double()
    down, plain = resampling(len(moments), training, "linear"), resampling(training, output, "linear")
    wanted = resampling(len(moments), output, "linear")
    short = down @ moments @ down.T  # (L, L)
    ridge = (RIDGE * short.diagonal().mean()).clamp(min=torch.finfo(torch.float64).tiny)
    missed = wanted @ moments @ down.T - plain @ short  # (O, L): what linear interpolation leaves unexplained
    return plain + torch.linalg.solve(short + ridge * torch.eye(training, dtype=torch.float64), missed, left=False)


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

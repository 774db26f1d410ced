"""Sequence lengths: what a generator models, what a sample has, and how one becomes the other.

Both ways are matrices on the position axis, so that the codec takes them into its bases: neither costs anything when
samples are drawn.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fedgen.errors import choose, require

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

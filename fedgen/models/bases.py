"""The bases that token sequences are projected on, and the matrices that change the length of a sequence."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.nn import functional

from fedgen.data.tokens import summarise
from fedgen.models.moments import Moments
from fedgen.models.settings import CodecSettings, Lengths

log = logging.getLogger(__name__)

LARGEST_FACTOR = 16  # above this a sample is little more than a few repeated tokens
RIDGE = 1e-6  # share of the mean energy below which a direction says nothing about how to up-sample
SUMMARY = 9.0  # energy of the summary in a codec over that of the cores
MODES = {"linear": "bilinear", "nearest": "nearest", "cubic": "bicubic"}  # torch's names for images


def resampling(source: int, target: int, kind: str = "linear") -> Tensor:
    """Return the matrix ``(target, source)``, float64, that changes the length of a sequence.

    Fewer tokens are means of neighbours (adaptive average pooling), more are interpolated between the centres of the
    old ones (``align_corners=False``). Equal lengths give the unit matrix.
    """
    image = torch.eye(source, dtype=torch.float64)[None, None]  # (1, 1, source, source): each column a unit sequence
    if target <= source:
        return functional.adaptive_avg_pool2d(image, (target, source))[0, 0]
    return functional.interpolate(image, (target, source), mode=MODES[kind])[0, 0]


def upsampling(lengths: Lengths, moments: Tensor) -> Tensor:
    """Return the matrix ``(O, L)``, float64, that makes samples of the modelled sequences.

    ``moments`` ``(S, S)`` are uncentred second moments of the positions of public clips, to which ``learned`` is
    fitted.
    """
    training, output = lengths.resolve(len(moments))
    if output > LARGEST_FACTOR * training:
        log.warning(
            "generator.output_length=%d is %.4g times generator.training_length=%d: "
            "above %d times, samples have little that changes from token to token",
            output, output / training, training, LARGEST_FACTOR,
        )  # fmt: skip
    if lengths.upsampling == "learned":
        return learned(moments, training, output)
    return resampling(training, output, lengths.upsampling)


def learned(moments: Tensor, training: int, output: int) -> Tensor:
    """Return the matrix ``(O, L)``, float64, that up-samples shortened clips with the least squared error.

    With the clips' moments ``M`` ``(S, S)``, averaging ``P`` and the wanted ``R X`` (the clips, resampled to ``O``
    tokens) it is ``R M P' (P M P')^-1``. A ridge pulls it towards linear interpolation where the clips say next to
    nothing, so that it exists for few and for equal clips too.
    """
    moments = moments.cpu().double()
    down, plain = resampling(len(moments), training), resampling(training, output)
    wanted = resampling(len(moments), output)
    short = down @ moments @ down.T  # (L, L)
    ridge = (RIDGE * short.diagonal().mean()).clamp(min=torch.finfo(torch.float64).tiny)
    missed = wanted @ moments @ down.T - plain @ short  # (O, L): what linear interpolation leaves unexplained
    return plain + torch.linalg.solve(short + ridge * torch.eye(training, dtype=torch.float64), missed, left=False)


class Bases:
    """Bases that a codec projects sequences on and decodes them with."""

    def __init__(
        self,
        positions: Tensor,
        channels: Tensor,
        analysis: Tensor | None = None,
        bands: Tensor | None = None,
        spread: Tensor | None = None,
    ) -> None:
        self.positions, self.channels = positions, channels  # (O, A), to decode with, and orthonormal (D, B)
        self.analysis = positions if analysis is None else analysis  # (S, A), to project the encoder's sequences on
        # of clips with a summary: its bands (1,), and what its values are divided by (F,)
        self.bands, self.spread = bands, spread
        self.rows = 0 if bands is None else int(bands.flatten()[0])  # read once: on a GPU it is a host synchronisation

    @property
    def core(self) -> tuple[int, int]:
        """``(A, B)`` of a core."""
        return self.positions.shape[1], self.channels.shape[1]

    @property
    def summary_size(self) -> int:
        """Numbers of a clip's summary behind its core: ``F``, or 0."""
        return 0 if self.spread is None else len(self.spread)

    @classmethod
    def from_moments(cls, moments: Moments, settings: CodecSettings, lengths: Lengths) -> Bases:
        """Return the leading eigenvectors of ``moments``; `ConfigError` if the modelled length is above the clips'."""
        length, device = len(moments.positions), moments.positions.device
        channels = _leading(moments.channels, settings.channels)
        training, output = lengths.resolve(length)
        if training == output == length:
            return cls(_leading(moments.positions, settings.positions), channels)
        down, up = resampling(length, training), upsampling(lengths, moments.positions)  # (L, S), (O, L)
        kept = _leading(down @ moments.positions.cpu() @ down.T, settings.positions).double()  # (L, A)
        return cls((up @ kept).float().to(device), channels, (down.T @ kept).float().to(device))

    def project(self, tokens: Tensor) -> Tensor:
        """Return the features ``(B, n)`` of ``tokens`` ``(B, S, D)``: their cores, then what there is of a summary."""
        cores = (self.analysis.T @ (tokens @ self.channels)).flatten(1)
        return cores if self.spread is None else self.joined(cores, summarise(tokens, self.rows))

    def summaries(self, features: Tensor) -> Tensor:
        """Return the summaries ``(B, F)`` in the features ``(B, n)`` of bases that have one."""
        assert self.spread is not None
        return features[:, -len(self.spread) :] * self.spread

    def joined(self, cores: Tensor, summaries: Tensor) -> Tensor:
        """Return features ``(B, n)`` of ``cores`` ``(B, A * B')`` and summaries ``(B, F)``, where there are any."""
        return cores if self.spread is None else torch.cat([cores, summaries / self.spread], dim=1)

    def with_summary(self, bands: int, cores: Tensor, summaries: Tensor) -> Bases:
        """Return the bases with a summary; its values get `SUMMARY` times the energy of the cores.

        ``cores`` ``(N, n)`` and ``summaries`` ``(N, F)`` of the clips decide by what the values are divided.
        """
        least = torch.finfo(torch.float32).tiny
        energy = cores.double().var(dim=0, correction=0).sum().clamp(min=least)
        deviation = summaries.double().std(dim=0, correction=0)
        deviation = deviation + (RIDGE * deviation.mean()).clamp(min=least)
        spread = deviation * (len(deviation) / (SUMMARY * energy)).sqrt()
        count = torch.tensor([float(bands)], device=cores.device)  # as when it is loaded
        return Bases(self.positions, self.channels, self._analysis, count, spread.float())

    @property
    def _analysis(self) -> Tensor | None:
        return None if self.analysis is self.positions else self.analysis

    def state(self) -> dict[str, Tensor]:
        """Return the bases by name; ``analysis`` only where it is not ``positions``."""
        parts = {"channels": self.channels, "positions": self.positions}
        others = {"analysis": self._analysis, "bands": self.bands, "spread": self.spread}
        return parts | {name: value for name, value in others.items() if value is not None}


def signed(vectors: Tensor) -> Tensor:
    """Return the columns of ``vectors`` ``(n, k)`` with the sign that makes the largest value of each positive."""
    peaks = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    return vectors * torch.where(peaks < 0, -1.0, 1.0)


def _leading(moments: Tensor, count: int) -> Tensor:
    """Return the ``count`` leading eigenvectors ``(n, count)`` of symmetric ``moments`` ``(n, n)``, in float32."""
    vectors = torch.linalg.eigh(moments.cpu()).eigenvectors.flip(1)  # (n, n), leading first
    return signed(vectors[:, :count]).float().contiguous().to(moments.device)

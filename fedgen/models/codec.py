"""Linear token codec: a token sequence of any length as a short vector of scaled coefficients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgen.data.streams import stream
from fedgen.data.tokens import TokenSource
from fedgen.errors import DataError, choose, require

CODECS = ("tucker", "flat")
MOMENT_TOKENS = 256  # tokens of a clip that its channel moments read: neighbours overlap, all of them tell no more
SKETCH = 64  # random directions in which position moments see the channels


@dataclass(frozen=True)
class CodecSettings:
    """Sizes of the codec; each is limited by what the data has."""

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


@dataclass
class Moments:
    """Uncentred second moments of tokens as sums, so that those of several nodes can be added.

    Attributes
    ----------
    channels : Tensor
        Sum over tokens of the outer product of their values, ``(D, D)``, float64.
    positions : Tensor
        Sum over channels of the outer product over positions, ``(S, S)``, float64.
    count : int
        Number of clips summed.
    """

    channels: Tensor
    positions: Tensor
    count: int

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.channels + other.channels, self.positions + other.positions, self.count + other.count)

    @classmethod
    def measure(cls, source: TokenSource, batch_size: int = 64) -> Moments:
        """Sum the moments of ``source`` in one pass, on its device.

        Channel moments read every n-th token and position moments a fixed random sketch of the channels: on patch
        tokens both keep the energy of the exact moments to three digits at a tenth of the cost.
        """
        length, width = source.shape
        stride = max(1, length // MOMENT_TOKENS)
        channels = positions = torch.zeros(())
        for index, tokens in enumerate(batches(source, batch_size)):
            rows = tokens[:, index % stride :: stride].reshape(-1, width)  # (B * S / stride, D)
            columns = (tokens @ _sketch(width).to(tokens.device)).transpose(0, 1).reshape(length, -1)  # (S, B * SKETCH)
            channels = channels.to(tokens.device) + (rows.T @ rows).double()
            positions = positions.to(tokens.device) + (columns @ columns.T).double()
        return cls(channels, positions, len(source))


class Codec:
    """Tucker-2 decomposition, principal components of its core, and a scale for each coefficient.

    A sequence ``X`` ``(S, D)`` has the core ``positions' X channels``; its latents are the core's leading principal
    components, each divided by the square root of its deviation over the training clips, so that their mean variance
    is 1 and the leading ones stay larger. (Divided by the whole deviation, latents of few clips are white: nothing that
    a network could learn from some clips would hold for others.) Decoding inverts this and, given a random generator,
    adds what the components leave of the core as noise of the stored deviation.

    Parameters
    ----------
    channels, positions : Tensor
        Orthonormal bases ``(D, B)`` and ``(S, A)``.
    mean : Tensor
        Mean core ``(A * B,)``.
    components : Tensor
        Orthonormal principal components of the core ``(k, A * B)``.
    scale : Tensor
        What each coefficient is divided by ``(k,)``.
    residual : Tensor
        Deviation of each core value that the components do not explain ``(A * B,)``.

    References
    ----------
    Tucker, "Some mathematical notes on three-mode factor analysis", Psychometrika 1966 (Tucker-2: two modes reduced).
    """

    NAMES = ("channels", "positions", "mean", "components", "scale", "residual")

    def __init__(
        self, channels: Tensor, positions: Tensor, mean: Tensor, components: Tensor, scale: Tensor, residual: Tensor
    ) -> None:
        self.channels, self.positions = channels, positions
        self.mean, self.components, self.scale, self.residual = mean, components, scale, residual
        self.shape = (len(positions), len(channels))  # (S, D)
        self.size = len(scale)  # k
        self._check()

    @classmethod
    def fit(
        cls, source: TokenSource, settings: CodecSettings, batch_size: int = 64, moments: Moments | None = None
    ) -> Codec:
        """Fit to the clips of ``source``, streaming over them twice (bases, then cores).

        Parameters
        ----------
        source : TokenSource
            Clips to fit; at least one.
        settings : CodecSettings
            Sizes; limited by the sequence's, by the rank of the cores and by the number of clips less one.
        batch_size : int
            Clips on the device at a time.
        moments : Moments, optional
            Moments to take the bases from in place of the source's own, such as the sum over several nodes.

        Raises
        ------
        DataError
            The source is empty.
        """
        if len(source) == 0:
            raise DataError("a codec needs at least 1 clip, got none")
        moments = moments or Moments.measure(source, batch_size)
        channels = _leading(moments.channels, settings.channels)  # (D, B)
        positions = _leading(moments.positions, settings.positions)  # (S, A)
        cores = torch.cat([_cores(tokens, channels, positions) for tokens in batches(source, batch_size)])  # (N, A * B)
        mean = cores.mean(dim=0)
        components, deviation = _principal(cores - mean, settings.components)
        scale = (deviation * deviation.mean()).sqrt()
        latents = (cores - mean) @ components.T
        residual = (cores - mean - latents @ components).std(dim=0, correction=0)
        return cls(channels, positions, mean, components, scale, residual if settings.noise else residual * 0)

    def encode(self, tokens: Tensor) -> Tensor:
        """Return latents ``(B, k)`` of ``tokens`` ``(B, S, D)``."""
        cores = _cores(tokens, self.channels, self.positions)  # (B, A * B')
        return (cores - self.mean) @ self.components.T / self.scale

    def encode_all(self, source: TokenSource, batch_size: int = 64) -> Tensor:
        """Return latents ``(N, k)`` of every clip of ``source``, on the source's device."""
        codec, latents = self, []
        for tokens in batches(source, batch_size):
            codec = codec if codec.mean.device == tokens.device else codec.to(tokens.device)
            latents.append(codec.encode(tokens))
        return torch.cat(latents)

    def cores(self, latents: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """Return cores ``(B, A, B')`` of ``latents`` ``(B, k)``: the tokens are ``positions @ core @ channels.T``."""
        cores = torch.addmm(self.mean, latents * self.scale, self.components)  # (B, A * B')
        if noise is not None:
            cores = cores + torch.randn(cores.shape, generator=noise, device=cores.device) * self.residual
        return cores.view(len(latents), self.positions.shape[1], self.channels.shape[1])

    def decode(self, latents: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """Return tokens ``(B, S, D)``, float32, of ``latents`` ``(B, k)``.

        Parameters
        ----------
        latents : Tensor
            Scaled coefficients on the codec's device.
        noise : torch.Generator, optional
            Source of the residual noise, on the codec's device; without it decoding is deterministic.
        """
        return self.positions @ (self.cores(latents, noise) @ self.channels.T)

    def to(self, device: torch.device | str) -> Codec:
        """Return the codec on ``device``."""
        return Codec.from_state({name: value.to(device) for name, value in self.state().items()})

    def state(self) -> dict[str, Tensor]:
        """Return everything that defines the codec, by name: some 200,000 numbers, none of them a clip's."""
        return {name: getattr(self, name) for name in self.NAMES}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Codec:
        """Rebuild a codec from `state`, in float32.

        Raises
        ------
        DataError
            Names the tensor that is missing, unknown or of another shape than the rest.
        """
        if set(state) != set(cls.NAMES):
            raise DataError(
                f"a codec's state holds {', '.join(cls.NAMES)}, got {', '.join(sorted(state)) or 'nothing'}"
            )
        return cls(*(state[name].float() for name in cls.NAMES))

    def _check(self) -> None:
        for name in self.NAMES:
            dimensions = 2 if name in ("channels", "positions", "components") else 1
            if getattr(self, name).dim() != dimensions:
                raise DataError(
                    f"codec.{name} has shape {tuple(getattr(self, name).shape)}, not {dimensions} dimensions"
                )
        core = self.positions.shape[1] * self.channels.shape[1]
        expected = {"mean": (core,), "components": (self.size, core), "residual": (core,)}
        for name, shape in expected.items():
            if tuple(getattr(self, name).shape) != shape:
                raise DataError(f"codec.{name} has shape {tuple(getattr(self, name).shape)}, expected {shape}")


def batches(source: TokenSource, batch_size: int) -> Iterator[Tensor]:
    """Yield the tokens of ``source`` in order, ``(B, S, D)`` each."""
    for indices in torch.arange(len(source)).split(batch_size):
        yield source.batch(indices)


def _sketch(width: int) -> Tensor:
    """Return the random directions ``(D, SKETCH)`` that every node uses alike; the channels themselves if few."""
    if width <= SKETCH:
        return torch.eye(width)
    return torch.from_numpy(stream("sketch", width).standard_normal((width, SKETCH)) / SKETCH**0.5).float()


def _leading(moments: Tensor, count: int) -> Tensor:
    """Return the ``count`` leading eigenvectors ``(n, count)`` of symmetric ``moments`` ``(n, n)``, in float32."""
    vectors = torch.linalg.eigh(moments.cpu()).eigenvectors.flip(1)  # (n, n), leading first
    return vectors[:, :count].float().contiguous().to(moments.device)


def _cores(tokens: Tensor, channels: Tensor, positions: Tensor) -> Tensor:
    """Return the cores ``(B, A * B')`` of ``tokens`` ``(B, S, D)``."""
    return (positions.T @ (tokens @ channels)).flatten(1)


def _principal(centred: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return at most ``count`` principal components ``(k, n)`` of ``centred`` ``(N, n)`` and their deviations ``(k,)``.

    Works on the smaller of the two Gram matrices; keeps at least one component, of unit scale if nothing varies.
    """
    rows = centred.cpu().double()
    number, size = rows.shape
    wide = number < size
    values, vectors = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    rank = int((values > 1e-9 * values[0]).sum())
    kept = max(1, min(count, rank, number - 1, size))
    basis = (rows.T @ vectors[:, :kept]).T if wide else vectors[:, :kept].T  # (k, n)
    basis = basis / basis.norm(dim=1, keepdim=True).clamp(min=1e-12)
    deviation = (values[:kept] / number).sqrt()
    deviation = torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))
    return basis.float().to(centred.device), deviation.float().to(centred.device)

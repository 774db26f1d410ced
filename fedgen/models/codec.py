"""Linear token codec: a token sequence of any length as a short vector of scaled coefficients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedgen.data.tokens import TokenSource, batches, summarise, summary_size
from fedgen.errors import DataError
from fedgen.models.bases import Bases, signed
from fedgen.models.moments import Moments
from fedgen.models.settings import CodecSettings, Lengths
from fedgen.models.states import check_tensors, join

NATIVE = Lengths()  # the encoder's own length, whatever it is
SMALLEST = 1e-6  # deviation below which a value does not vary


@dataclass(eq=False)
class Codec:
    """Tucker-2 decomposition, principal components of its core, and a scale for each coefficient.

    A sequence ``X`` ``(S, D)`` has the core ``positions' X channels``; its latents are the core's leading principal
    components, each divided by the square root of its deviation over the clips that the codec was fitted to, so that
    their mean variance is 1 and the leading ones stay larger. Decoding inverts this and, given a random generator,
    adds the rest of the core as noise of the stored deviation.

    A codec of ``bands`` appends a clip's summary (`fedgen.data.tokens.summarise`) to its core, so that samples have
    one, too: no core of low rank holds maxima.

    Where lengths differ (see `Lengths`), sequences are projected on ``analysis`` and made of ``positions``, which hold
    the shortening ``P`` and the up-sampling ``U``: ``analysis = P' V`` and ``positions = U V``, ``V`` being the basis
    of the shortened sequences ``P X``. Latents do not depend on ``U``.

    References
    ----------
    Tucker, "Some mathematical notes on three-mode factor analysis", Psychometrika 1966 (Tucker-2: two modes reduced).
    """

    NAMES: ClassVar = ("channels", "positions", "mean", "components", "scale", "residual")
    OPTIONAL: ClassVar = ("analysis", "bands", "spread")  # of the bases

    bases: Bases  # orthonormal channels (D, B), positions (O, A) and, where they differ, analysis (S, A)
    mean: Tensor  # mean core (A * B,)
    scale: Tensor  # divisor of each coefficient (k,)
    components: Tensor  # orthonormal principal components of the core (k, A * B)
    residual: Tensor  # deviation of each core value that the components do not explain (A * B,)

    def __post_init__(self) -> None:
        self.size = len(self.scale)  # coefficients k of a latent vector
        self._check()
        self.positions, self.channels = self.bases.positions, self.bases.channels
        self.shape = (len(self.positions), len(self.channels))  # (O, D) of the sequences that it decodes to

    @classmethod
    def fit(
        cls,
        source: TokenSource,
        settings: CodecSettings,
        lengths: Lengths = NATIVE,
        batch_size: int = 64,
        bands: int = 0,
    ) -> tuple[Codec, Tensor]:
        """Fit to the clips of ``source``, streaming over them twice (bases, then cores); return their latents too.

        The loss of a codec on a clip tells whether it was fitted to that clip: fit it to public clips alone. Sizes of
        ``settings`` are limited by the sequence's, by the rank of the cores and by the number of clips less one. Raises
        `DataError` if the source is empty, `ConfigError` if the modelled length is above the encoder's.
        """
        if len(source) == 0:
            raise DataError("a codec needs at least 1 clip, got none")
        bases = Bases.from_moments(Moments.measure(source, batch_size), settings, lengths)
        kept = (lambda tokens: summarise(tokens, bands)) if bands else (lambda tokens: tokens[:, 0, :0])
        parts = [(bases.project(tokens), kept(tokens)) for tokens in batches(source, batch_size)]
        cores, summaries = (torch.cat(part) for part in zip(*parts, strict=True))  # (N, A * B), (N, F or 0)
        bases = bases.with_summary(bands, cores, summaries) if bands else bases
        cores = bases.joined(cores, summaries)
        mean = cores.mean(dim=0)
        components, deviation, residual = principal(cores - mean, settings.components)
        scale = (deviation * deviation.mean()).sqrt()
        codec = cls(bases, mean, scale, components, residual if settings.noise else residual * 0)
        return codec, codec.of_features(cores)

    def truncated(self, components: int, noise: bool = True) -> Codec:
        """Return the codec of the leading ``components`` alone: as if it had been fitted with so many."""
        deviation = self.scale.square() / self.scale.square().mean().sqrt()  # scale² = deviation · mean deviation
        kept, dropped = deviation[:components], self.components[components:] * deviation[components:, None]
        residual = (self.residual.square() + dropped.square().sum(dim=0)).sqrt() * noise
        return Codec(self.bases, self.mean, (kept * kept.mean()).sqrt(), self.components[:components], residual)

    def encode(self, tokens: Tensor) -> Tensor:
        """Return latents ``(B, k)`` of ``tokens`` ``(B, S, D)``; `DataError` if their shape is not the encoder's."""
        expected = (len(self.bases.analysis), self.shape[1])
        if tuple(tokens.shape[1:]) != expected:
            raise DataError(f"the codec encodes sequences {expected}, got {tuple(tokens.shape[1:])}")
        return self.of_features(self.bases.project(tokens))

    def of_features(self, features: Tensor) -> Tensor:
        """Return latents ``(B, k)`` of ``features`` ``(B, n)``: the inverse of `features`."""
        return (features - self.mean) @ self.components.T / self.scale

    def encode_all(self, source: TokenSource, batch_size: int = 64) -> Tensor:
        """Return latents ``(N, k)`` of every clip of ``source``, on the source's device."""
        codec, latents = self, []
        for tokens in batches(source, batch_size):
            codec = codec if codec.mean.device == tokens.device else codec.to(tokens.device)
            latents.append(codec.encode(tokens))
        return torch.cat(latents)

    def features(self, latents: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """Return the features ``(B, n)`` of ``latents`` ``(B, k)``: `Bases.project` of their tokens."""
        found = torch.addmm(self.mean, latents * self.scale, self.components)
        if noise is not None:
            found = found + torch.randn(found.shape, generator=noise, device=found.device) * self.residual
        return found

    def cores(self, latents: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """Return cores ``(B, A, B')`` of ``latents`` ``(B, k)``: the tokens are ``positions @ core @ channels.T``."""
        rank = self.bases.core
        return self.features(latents, noise)[:, : rank[0] * rank[1]].unflatten(1, rank)

    def summaries(self, latents: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """Return summaries ``(B, F)`` of ``latents`` ``(B, k)``, of a codec of bands."""
        return self.bases.summaries(self.features(latents, noise))

    def decode(self, latents: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """Return tokens ``(B, O, D)``, float32, of ``latents`` ``(B, k)`` on the codec's device.

        Without ``noise``, the source of the residual noise on the codec's device, decoding is deterministic.
        """
        return self.positions @ (self.cores(latents, noise) @ self.channels.T)

    def to(self, device: torch.device | str) -> Codec:
        """Return the codec on ``device``; itself where it is there."""
        if self.mean.device == torch.device(device):
            return self
        return Codec.from_state({name: value.to(device) for name, value in self.state().items()})

    def state(self) -> dict[str, Tensor]:
        """Return everything that defines the codec, by name."""
        own = {"mean": self.mean, "components": self.components, "scale": self.scale, "residual": self.residual}
        return self.bases.state() | own

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Codec:
        """Rebuild a codec from `state`, in float32; `DataError` names a missing, unknown or misshapen tensor."""
        if set(state) - set(cls.OPTIONAL) != set(cls.NAMES) or ("bands" in state) != ("spread" in state):
            raise DataError(
                f"a codec's state holds {', '.join(cls.NAMES)}, got {', '.join(sorted(state)) or 'nothing'}"
            )
        parts = {name: value.float() for name, value in state.items()}
        bases = Bases(parts["positions"], parts["channels"], *(parts.get(name) for name in cls.OPTIONAL))
        return cls(bases, parts["mean"], parts["scale"], parts["components"], parts["residual"])

    def _check(self) -> None:
        bases = self.bases.state()
        for name, value in bases.items():
            if value.dim() != (1 if name in ("bands", "spread") else 2):
                raise DataError(f"codec.{name} has shape {tuple(value.shape)}, which is not its number of dimensions")
        (length, rank), (width, channels) = bases["positions"].shape, bases["channels"].shape
        core, analysis = rank * channels + self.bases.summary_size, (len(self.bases.analysis), rank)
        shapes = {"positions": (length, rank), "channels": (width, channels), "analysis": analysis, "mean": (core,)}
        shapes |= {"bands": (1,), "spread": (summary_size(width, self.bases.rows),)}
        shapes |= {"residual": (core,), "scale": (self.size,), "components": (self.size, core)}
        parts = self.state()
        check_tensors(join({"codec": parts}), {f"codec.{name}": shapes[name] for name in parts})


def principal(centred: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return at most ``count`` principal components of ``centred`` cores ``(N, n)``.

    Works on the smaller of the two Gram matrices; keeps at least one component, of unit deviation if nothing varies.
    The largest value of a component is positive: its sign is the same on every machine.

    Returns
    -------
    components, deviation, residual : Tensor
        Orthonormal ``(k, n)``, the deviation of their coefficients ``(k,)``, and the deviation of each core value that
        the components do not explain ``(n,)``.
    """
    rows = centred.cpu().double()
    number, size = rows.shape
    wide = number < size
    values, vectors = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    kept = max(1, min(count, size, int((values > 1e-9 * values[0]).sum()), number - 1))
    basis = rows.T @ vectors[:, :kept] if wide else vectors[:, :kept]  # (n, k)
    basis = signed(basis / basis.norm(dim=0).clamp(min=1e-12)).T
    components = basis.float().to(centred.device).contiguous()  # as when it is loaded: layouts round differently
    deviation = (values[:kept] / number).sqrt()
    deviation = torch.where(deviation > SMALLEST, deviation, torch.ones_like(deviation)).float().to(centred.device)
    residual = (centred - centred @ components.T @ components).std(dim=0, correction=0)
    return components, deviation, residual

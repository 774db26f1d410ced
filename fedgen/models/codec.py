"""Linear token codec: a token sequence of any length as a short vector of scaled coefficients."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from fedgen.data.tokens import TokenSource, batches
from fedgen.errors import DataError
from fedgen.models.bases import Bases, CodecSettings
from fedgen.models.cores import CoreMoments, principal
from fedgen.models.lengths import Lengths
from fedgen.models.moments import Moments

NATIVE = Lengths()  # the encoder's own length, whatever it is


class Codec:
    """Tucker-2 decomposition, principal components of its core, and a scale for each coefficient.

    A sequence ``X`` ``(S, D)`` has the core ``positions' X channels``; its latents are the core's leading principal
    components, each divided by the square root of its deviation over the training clips, so that their mean variance
    is 1 and the leading ones stay larger. (Divided by the whole deviation, latents of few clips are white: nothing that
    a network could learn from some clips would hold for others.) Decoding inverts this and, given a random generator,
    adds what the components leave of the core as noise of the stored deviation.

    Where lengths differ (see `Lengths`), sequences are projected on ``analysis`` and made of ``positions``, which hold
    the shortening and the up-sampling: ``analysis = P' V`` and ``positions = U V``, ``V`` being the basis of the
    shortened sequences ``P X``.

    A ``flat`` codec leaves out what reduces: no channels (the unit matrix), no components, no residual. Its latents are
    the values of the shortened sequence, each divided by its whole deviation: the usual standardisation.

    Parameters
    ----------
    bases : Bases
        Orthonormal ``channels`` ``(D, B)``, ``positions`` ``(O, A)`` and, where they differ, ``analysis`` ``(S, A)``.
    mean : Tensor
        Mean core ``(A * B,)``.
    scale : Tensor
        What each coefficient is divided by ``(k,)``.
    components : Tensor, optional
        Orthonormal principal components of the core ``(k, A * B)``.
    residual : Tensor, optional
        Deviation of each core value that the components do not explain ``(A * B,)``.

    Attributes
    ----------
    shape : tuple[int, int]
        ``(O, D)`` of the sequences that it decodes to.
    size : int
        Coefficients ``k`` of a latent vector.

    References
    ----------
    Tucker, "Some mathematical notes on three-mode factor analysis", Psychometrika 1966 (Tucker-2: two modes reduced).
    """

    NAMES = ("channels", "positions", "mean", "components", "scale", "residual")
    FLAT = ("positions", "mean", "scale")
    MATRICES = ("channels", "positions", "components", "analysis")

    def __init__(
        self,
        bases: Bases,
        mean: Tensor,
        scale: Tensor,
        components: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> None:
        self.bases, self.mean, self.scale, self.components, self.residual = bases, mean, scale, components, residual
        self.size = len(scale)  # k
        self._check()
        self.positions = bases.positions
        width = len(mean) // bases.positions.shape[1]
        self.channels = torch.eye(width, device=mean.device) if bases.channels is None else bases.channels
        self.shape = (len(self.positions), len(self.channels))  # (O, D)

    @classmethod
    def fit(
        cls, source: TokenSource, settings: CodecSettings, lengths: Lengths = NATIVE, batch_size: int = 64
    ) -> Codec:
        """Fit to the clips of ``source``, streaming over them twice (bases, then cores).

        Parameters
        ----------
        source : TokenSource
            Clips to fit; at least one.
        settings : CodecSettings
            Sizes; limited by the sequence's, by the rank of the cores and by the number of clips less one.
        lengths : Lengths
            Tokens of the sequences modelled and made; the encoder's by default.
        batch_size : int
            Clips on the device at a time.

        Raises
        ------
        DataError
            The source is empty.
        ConfigError
            The lengths are more than the encoder gives or than the codec can do.
        """
        if len(source) == 0:
            raise DataError("a codec needs at least 1 clip, got none")
        settings.check(lengths)
        bases = Bases.from_moments(Moments.measure(source, batch_size), settings, lengths)
        cores = torch.cat([bases.project(tokens) for tokens in batches(source, batch_size)])  # (N, A * B)
        mean = cores.mean(dim=0)
        if bases.channels is None:
            return cls(bases, mean, CoreMoments.of(cores, full=False).deviation)
        return cls._scaled(bases, mean, *principal(cores - mean, settings.components), settings.noise)

    @classmethod
    def from_moments(cls, bases: Bases, moments: CoreMoments, settings: CodecSettings) -> Codec:
        """Return the codec of all clips that ``moments`` were summed over, no clip at hand.

        Nodes that share a codec have one latent space: their latents can be pooled and their generators averaged.

        Parameters
        ----------
        bases : Bases
            The bases in which every node measured, from the summed `Moments` of all nodes.
        moments : CoreMoments
            Summed over all nodes.
        settings : CodecSettings
            As for `fit`, and the same for every node.
        """
        device = bases.positions.device
        mean = moments.mean.float().to(device)
        if bases.channels is None:
            return cls(bases, mean, moments.deviation.to(device))
        components, deviation, residual = (part.to(device) for part in moments.principal(settings.components))
        return cls._scaled(bases, mean, components, deviation, residual, settings.noise)

    @classmethod
    def _scaled(
        cls, bases: Bases, mean: Tensor, components: Tensor, deviation: Tensor, residual: Tensor, noise: bool
    ) -> Codec:
        scale = (deviation * deviation.mean()).sqrt()
        return cls(bases, mean, scale, components, residual if noise else residual * 0)

    def encode(self, tokens: Tensor) -> Tensor:
        """Return latents ``(B, k)`` of ``tokens`` ``(B, S, D)``.

        Raises
        ------
        DataError
            The tokens are not as the encoder gave them in fitting, or the codec came in a message and only decodes.
        """
        if tuple(tokens.shape[1:]) != self._encodes:
            raise DataError(f"the codec encodes sequences {self._encodes}, got {tuple(tokens.shape[1:])}")
        return self.of_cores(self.bases.project(tokens))

    def of_cores(self, cores: Tensor) -> Tensor:
        """Return latents ``(B, k)`` of ``cores`` ``(B, A, B')``: `cores` the other way round."""
        centred = cores.flatten(1) - self.mean  # (B, A * B')
        return (centred if self.components is None else centred @ self.components.T) / self.scale

    def encode_all(self, source: TokenSource, batch_size: int = 64) -> Tensor:
        """Return latents ``(N, k)`` of every clip of ``source``, on the source's device."""
        codec, latents = self, []
        for tokens in batches(source, batch_size):
            codec = codec if codec.mean.device == tokens.device else codec.to(tokens.device)
            latents.append(codec.encode(tokens))
        return torch.cat(latents)

    def cores(self, latents: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """Return cores ``(B, A, B')`` of ``latents`` ``(B, k)``: the tokens are ``positions @ core @ channels.T``."""
        scaled = latents * self.scale
        cores = self.mean + scaled if self.components is None else torch.addmm(self.mean, scaled, self.components)
        if noise is not None and self.residual is not None:
            cores = cores + torch.randn(cores.shape, generator=noise, device=cores.device) * self.residual
        return cores.view(len(latents), self.positions.shape[1], self.channels.shape[1])

    def decode(self, latents: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """Return tokens ``(B, O, D)``, float32, of ``latents`` ``(B, k)``.

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
        own = {"mean": self.mean, "components": self.components, "scale": self.scale, "residual": self.residual}
        parts = {**self.bases.state(), **{name: value for name, value in own.items() if value is not None}}
        return {name: parts[name] for name in (*self.NAMES, "analysis") if name in parts}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Codec:
        """Rebuild a codec from `state`, in float32.

        Raises
        ------
        DataError
            Names the tensor that is missing, unknown or of another shape than the rest.
        """
        if set(state) - {"analysis"} not in (set(cls.NAMES), set(cls.FLAT)):
            raise DataError(
                f"a codec's state holds {', '.join(cls.NAMES)}, got {', '.join(sorted(state)) or 'nothing'}"
            )
        parts = {name: value.float() for name, value in state.items()}
        bases = Bases(parts["positions"], parts.get("channels"), parts.get("analysis"))
        return cls(bases, parts["mean"], parts["scale"], parts.get("components"), parts.get("residual"))

    @cached_property
    def _encodes(self) -> tuple[int, int]:
        """``(S, D)`` of the sequences that it encodes; positions serve in place of an analysis if orthonormal."""
        analysis = self.bases.analysis
        if analysis is None:
            analysis = self.positions
            gram = analysis.T @ analysis
            if (gram - torch.eye(len(gram), device=gram.device)).abs().max() > 0.1:
                raise DataError("the codec came without its analysis basis: it decodes, but cannot encode")
        return len(analysis), self.shape[1]

    def _check(self) -> None:
        parts = self.state()
        for name, value in parts.items():
            dimensions = 2 if name in self.MATRICES else 1
            if value.dim() != dimensions:
                raise DataError(f"codec.{name} has shape {tuple(value.shape)}, not {dimensions} dimensions")
        rank = parts["positions"].shape[1]
        if rank == 0:
            raise DataError(f"codec.positions has shape {tuple(parts['positions'].shape)}, and so no basis vector")
        width = parts["channels"].shape[1] if "channels" in parts else max(1, self.size // rank)
        core = (rank * width,)
        expected: dict[str, tuple[int | None, ...]] = {}
        expected |= {"mean": core, "residual": core, "components": (self.size, *core), "analysis": (None, rank)}
        expected["scale"] = (self.size,) if "components" in parts else core
        for name, shape in expected.items():
            found = tuple(parts[name].shape) if name in parts else shape
            if any(wanted not in (None, size) for size, wanted in zip(found, shape, strict=True)):
                raise DataError(f"codec.{name} has shape {found}, expected {shape}")

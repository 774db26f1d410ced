"""What is known of audio before any clip of a node is read: a codec of public sounds, and what is usual in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedgen.data.streams import stream
from fedgen.data.tokens import TokenSource
from fedgen.errors import DataError
from fedgen.models.codec import NATIVE, Codec, CodecSettings
from fedgen.models.lengths import Lengths
from fedgen.models.states import check_tensors, join, length_of, part_of

TOLERANCE = 0.05  # between two sketches; processors round differently, other sounds give another codec
PROBES = 4  # token sequences that a sketch encodes
LEAST = 0.05  # of the usual variance within classes: no direction has less
SIZES = 4  # numbers at its start: shapes of the bases


@dataclass(frozen=True)
class PublicSpace:
    """The codec of a federation, and public clips in it; nothing of it is any node's.

    Attributes
    ----------
    codec : Codec
    latents : Tensor
        Of the public clips, ``(N, k)``.
    labels : Tensor
        Their classes, ``(N,)``.
    """

    codec: Codec
    latents: Tensor
    labels: Tensor

    @classmethod
    def of(cls, public: TokenSource, settings: CodecSettings, lengths: Lengths = NATIVE) -> PublicSpace:
        """Fit a codec to ``public`` sounds."""
        codec, latents = Codec.fit_with_latents(public, settings, lengths)
        return cls(codec, latents.cpu(), public.labels)

    def truncated(self, components: int, noise: bool = True) -> PublicSpace:
        """Return the space of the leading ``components`` alone."""
        codec = self.codec.truncated(components, noise)
        latents = self.latents[:, :components] * self.codec.scale[:components] / codec.scale
        return PublicSpace(codec, latents, self.labels)

    @cached_property
    def deviations(self) -> Tensor:
        """What the public clips deviate from the mean of their class, ``(N, k)``, float64."""
        classes, rows = self.labels.unique(return_inverse=True)
        values = self.latents.double()
        sums = torch.zeros(len(classes), values.shape[1], dtype=torch.float64).index_add_(0, rows, values)
        return values - (sums / rows.bincount()[:, None])[rows]

    @cached_property
    def within(self) -> Tensor:
        """Covariance within classes ``(k, k)``, float64; of all public clips where no class has two.

        Where few sounds leave a direction without variance, it gets `LEAST` of what is usual.
        """
        freedom = len(self.labels) - len(self.labels.unique())
        found = self.deviations.T @ self.deviations / freedom if freedom else self.latents.double().T.cov()
        values, axes = torch.linalg.eigh(found.reshape(self.codec.size, self.codec.size))
        return (axes * values.clamp(min=LEAST * float(values.mean()))) @ axes.T

    def sketch(self) -> list[float]:
        """Return numbers that tell this codec from another: sizes, then the latents of fixed random sequences."""
        analysis, channels = self.codec.bases.analysis, self.codec.channels
        shape = PROBES, len(analysis), len(channels)
        probes = torch.from_numpy(stream("codec sketch", *shape[1:]).standard_normal(shape)).float()
        return [*map(float, (*analysis.shape, *channels.shape)), *self.codec.encode(probes).flatten().tolist()]

    def require_same(self, sketch: Sequence[float]) -> None:
        """Raise `DataError` unless ``sketch`` is that of this codec, but for what processors round differently."""
        own, other = torch.tensor(self.sketch()), torch.tensor(sketch, dtype=torch.float32)
        same = own.shape == other.shape and own[:SIZES].equal(other[:SIZES])
        apart = float((own - other).norm() / own[SIZES:].norm()) if same else float("inf")
        if not apart <= TOLERANCE:
            raise DataError(
                f"the run's codec is not the one that this node computes of the same public sounds: their sketches "
                f"are {apart:.2g} apart, {TOLERANCE} at most come of rounding"
            )

    def state(self) -> dict[str, Tensor]:
        """Return everything, by name."""
        return join({"codec": self.codec.state()}) | {"latents": self.latents, "labels": self.labels}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> PublicSpace:
        """Rebuild a space from `state`; `DataError` names the tensor that is missing, unknown or of another shape."""
        codec = Codec.from_state(part_of(state, "codec"))
        rest = {name: value for name, value in state.items() if not name.startswith("codec.")}
        count = length_of(state, "labels")
        check_tensors(rest, {"latents": (count, codec.size), "labels": (count,)})
        return cls(codec, rest["latents"], rest["labels"])

"""The public codec of a run: computed once on a machine, and kept below ``$FEDGEN_HOME/codecs``."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from fedgen.data.encoders import open_encoder
from fedgen.data.files import digest, home, locked
from fedgen.data.pretrained import content
from fedgen.data.public import open_public, public_identity
from fedgen.data.seeds import stream
from fedgen.data.settings import EncoderSettings
from fedgen.data.tensors import load_tensors, save_tensors
from fedgen.data.tokens import SUMMARY_VERSION, TokenSource
from fedgen.errors import CheckpointError, DataError
from fedgen.models.codec import NATIVE, Codec
from fedgen.models.moments import class_means
from fedgen.models.settings import CodecSettings, Lengths
from fedgen.models.states import check_tensors, exact_digest, join, length_of, part_of

TOLERANCE = 0.05  # between two sketches; processors round differently, other sounds give another codec
PROBES = 4  # token sequences that a sketch encodes
LEAST = 0.05  # of the usual variance within classes: no direction has less
SIZES = 4  # numbers at its start: shapes of the bases


@dataclass(frozen=True)
class PublicSpace:
    """The codec of a federation, and the latents ``(N, k)`` and classes ``(N,)`` of the public clips in it."""

    codec: Codec
    latents: Tensor
    labels: Tensor

    @classmethod
    def of(cls, public: TokenSource, settings: CodecSettings, lengths: Lengths = NATIVE, bands: int = 0) -> PublicSpace:
        """Fit a codec to ``public`` sounds."""
        codec, latents = Codec.fit(public, settings, lengths, bands=bands)
        return cls(codec, latents.cpu(), public.labels)

    def truncated(self, components: int, noise: bool = True) -> PublicSpace:
        """Return the space of the leading ``components`` alone."""
        codec = self.codec.truncated(components, noise)
        latents = self.latents[:, :components] * self.codec.scale[:components] / codec.scale
        return PublicSpace(codec, latents, self.labels)

    @cached_property
    def within(self) -> Tensor:
        """Covariance within classes ``(k, k)``, float64; of all public clips where no class has two.

        Directions with little variance get `LEAST` of the mean one.
        """
        values, (classes, rows) = self.latents.double(), self.labels.unique(return_inverse=True)
        apart, freedom = values - class_means(values, rows)[rows], len(rows) - len(classes)
        found = apart.T @ apart / freedom if freedom else values.T.cov()
        values, axes = torch.linalg.eigh(found.reshape(self.codec.size, self.codec.size))
        return (axes * values.clamp(min=LEAST * float(values.mean()))) @ axes.T

    def sketch(self) -> list[float]:
        """Return numbers that identify this codec: sizes, then the latents of fixed random sequences."""
        analysis, channels = self.codec.bases.analysis, self.codec.channels
        shape = PROBES, len(analysis), len(channels)
        probes = torch.from_numpy(stream("codec sketch", *shape[1:]).standard_normal(shape)).float()
        return [*map(float, (*analysis.shape, *channels.shape)), *self.codec.encode(probes).flatten().tolist()]

    def require_same(self, sketch: Sequence[float]) -> None:
        """Raise `DataError` unless ``sketch`` is that of this codec, up to rounding."""
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


logger = logging.getLogger(__name__)


def codec_identity(encoder: dict[str, Any], settings: CodecSettings, lengths: Lengths) -> dict[str, Any]:
    """Return the inputs of a codec's latents; the number of tokens that it decodes to is not one of them.

    ``encoder`` is the encoder's identity.
    """
    sizes = {name: getattr(settings, name) for name in ("channels", "positions", "components", "noise")}
    public = public_identity(settings.public)
    identity = {"encoder": encoder, "public": public, **sizes, "training_length": lengths.training}
    return identity | {"summary": SUMMARY_VERSION}


@lru_cache(maxsize=4)  # the nodes of one process share it
def public_space(
    encoder: EncoderSettings, settings: CodecSettings, lengths: Lengths, identity_text: str | None = None
) -> PublicSpace:
    """Return the codec of public sounds under an encoder, the same on every node: half a minute, the first time.

    The sounds are encoded on the CPU, whatever the device: there, machines differ least. The file keeps all components;
    fewer are taken of it. ``identity_text`` is the encoder's identity as JSON, such as a store's: with it, a kept codec
    is found without the model.

    Raises
    ------
    DataError
        ``codec.public`` is no folder of clips; no clip can be read.
    ConfigError
        ``generator.training_length`` is above the encoder's length.
    """
    chosen = open_encoder(encoder)
    lengths.resolve(chosen.shape[0])
    known = content(chosen.identity()) if identity_text is None else json.loads(identity_text)
    identity = codec_identity(known, settings, lengths)
    wanted, noise = identity.pop("components"), identity.pop("noise")
    identity |= {"output_length": lengths.output, "upsampling": lengths.upsampling}
    text = json.dumps(identity, sort_keys=True)
    file = home() / "codecs" / f"{digest(text)[:32]}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file.parent):
        try:
            tensors, about = load_tensors(file)
            if about == identity | {"sha256": exact_digest(dict(sorted(tensors.items())))}:
                return PublicSpace.from_state(tensors).truncated(wanted, noise)
            logger.warning("%s is made anew: it is not what was saved", file)
        except (CheckpointError, DataError) as error:
            if file.is_file():
                logger.warning("%s is made anew: %s", file, error)
        logger.info("fitting the codec to public sounds (%s): once on this machine", identity["public"])
        most = replace(settings, components=settings.channels * settings.positions, noise=True)
        space = PublicSpace.of(open_public(chosen, settings.public), most, lengths, encoder.bands(chosen.shape[0]))
        state = dict(sorted(space.state().items()))
        save_tensors(file, state, identity | {"sha256": exact_digest(state)})
    return space.truncated(wanted, noise)

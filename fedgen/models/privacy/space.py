"""What is known of audio before any clip of a node is read: a codec of public sounds, and what is usual in it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from torch import Tensor

from fedgen.data.encoders import EncoderSettings, open_encoder
from fedgen.data.public import PublicTokens
from fedgen.data.tokens import TokenSource
from fedgen.models.bases import CodecSettings
from fedgen.models.codec import Codec
from fedgen.models.lengths import Lengths
from fedgen.models.privacy.mechanisms import class_sums


@dataclass(frozen=True)
class PublicSpace:
    """A codec, and what is usual in it, of public sounds; nothing of it is any node's.

    Attributes
    ----------
    codec : Codec
    within : Tensor
        Covariance within classes ``(k, k)``, float64.
    norm, spread : float
        Medians of the norms of latents, and of their distances to the mean of their class.
    """

    codec: Codec
    within: Tensor
    norm: float
    spread: float

    @classmethod
    def of(cls, public: TokenSource, settings: CodecSettings, lengths: Lengths) -> PublicSpace:
        """Fit a codec to ``public`` sounds."""
        codec = Codec.fit(public, settings, lengths)
        latents = codec.encode_all(public).cpu().double()
        classes, rows = public.labels.unique(return_inverse=True)
        within = latents - (class_sums(latents, rows, len(classes)) / rows.bincount()[:, None])[rows]
        covariance = within.T @ within / (len(rows) - len(classes))
        return cls(codec, covariance, float(latents.norm(dim=1).median()), float(within.norm(dim=1).median()))


@lru_cache(maxsize=2)  # nodes of one process share it
def public_space(encoder: EncoderSettings, settings: CodecSettings, lengths: Lengths, components: int) -> PublicSpace:
    """Return what synthesised sounds under a node's encoder tell: some ten seconds' work, the same on every node.

    Parameters
    ----------
    encoder : EncoderSettings
        The nodes'.
    settings, lengths
        As `Codec.fit` takes them.
    components : int
        Coefficients of a latent vector, in place of those in ``settings``.
    """
    return PublicSpace.of(PublicTokens(open_encoder(encoder)), replace(settings, components=components), lengths)

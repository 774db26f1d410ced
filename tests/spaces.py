"""Codecs of toy sounds that anybody may know: other tokens than those of any node."""

import torch

from fedgen.data.tokens import TensorTokens
from fedgen.models.codec import NATIVE
from fedgen.models.public import PublicSpace
from fedgen.models.settings import CodecSettings, Lengths

SMALL = CodecSettings(channels=4, positions=4, components=6)


def toy_tokens(shape: tuple[int, int], count: int = 60, seed: int = 99) -> TensorTokens:
    """Return public clips of three classes, whose means are apart."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    return TensorTokens(torch.randn(count, *shape, generator=generator) + labels[:, None, None], labels)


def toy_space(shape: tuple[int, int] = (7, 5), codec: CodecSettings = SMALL, lengths: Lengths = NATIVE) -> PublicSpace:
    """Return the public codec of an encoder that gives sequences of ``shape`` ``(S, D)``."""
    return PublicSpace.of(toy_tokens(shape), codec, lengths)

"""Frozen audio encoders: waveforms to token sequences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fedgen.data.frozen import TOKENS, AstEncoder, ClapEncoder, FrozenEncoder
from fedgen.data.patches import PATCH, PatchEncoder
from fedgen.data.pretrained import differing
from fedgen.errors import choose, require

MODELS: dict[str, type[FrozenEncoder]] = {"ast": AstEncoder, "clap": ClapEncoder}  # pretrained
COMPUTED: dict[str, Callable[[EncoderSettings, torch.device | str], Encoder]] = {
    "patches": lambda settings, device: PatchEncoder(settings.stride, settings.batch_size, device),
}
ENCODERS = [*COMPUTED, *MODELS]
STRIDE = 10


@dataclass(frozen=True)
class EncoderSettings:
    """Which encoder turns audio into tokens.

    Attributes
    ----------
    name : str
        ``patches``: AST's front end without weights; ``ast`` and ``clap``: pretrained models (extra ``encoders``).
    stride : int
        ``patches``: step between patches in mel bins and in frames, 1 to 16; 10 gives 1214 tokens, 16 gives 514.
    batch_size : int
        Clips encoded at once; fewer when memory runs out.
    model : str, optional
        Of a pretrained encoder: a folder, or a name at Hugging Face; by default the encoder's usual model.
    revision : str, optional
        Branch, tag or commit at Hugging Face; ``main`` by default.
    tokens : str
        Of a pretrained encoder: ``all`` of the last hidden state, or one that stands for the clip (``cls``).
    """

    name: str = "patches"
    stride: int = STRIDE
    batch_size: int = 32
    model: str | None = None
    revision: str | None = None
    tokens: str = "all"

    def __post_init__(self) -> None:
        choose(self.name, ENCODERS, "encoder")
        choose(self.tokens, TOKENS, "encoder.tokens")
        require(1 <= self.stride <= PATCH, f"encoder.stride={self.stride} is not between 1 and {PATCH}")
        require(self.batch_size >= 1, f"encoder.batch_size={self.batch_size} is not at least 1")
        require(
            self.name == "patches" or self.stride == STRIDE,
            f"encoder.stride={self.stride} is for encoder=patches: {self.name} has its own",
        )
        if self.name not in MODELS:
            model = self.model or self.revision
            require(
                model is None, f"encoder={self.name} has no model: encoder.model and .revision={model} mean nothing"
            )
            require(self.tokens == "all", f"encoder.tokens={self.tokens} needs encoder={' or '.join(MODELS)}")


class Encoder(Protocol):
    """A frozen map from waveforms to token sequences of one shape.

    Attributes
    ----------
    name : str
        The encoder's name in the configuration.
    shape : tuple[int, int]
        ``(S, D)`` of a clip's token sequence.
    sample_rate : int
        The rate in Hz that waveforms must have.
    """

    name: str

    @property
    def shape(self) -> tuple[int, int]: ...  # noqa: D102

    @property
    def sample_rate(self) -> int: ...  # noqa: D102

    def __call__(self, waveforms: list[np.ndarray]) -> Tensor:
        """Return tokens ``(B, S, D)``, float16, on the CPU, for mono waveforms of any length."""
        ...

    def identity(self) -> dict[str, str | int]:
        """Return what decides the tokens, so that a store can tell whether it was made by this encoder."""
        ...


def open_encoder(settings: EncoderSettings, device: torch.device | str = "cpu") -> Encoder:
    """Return the encoder that ``settings.name`` names, computing on ``device``.

    Neither files are looked for nor a model loaded before they are needed.
    """
    if settings.name in MODELS:
        chosen = settings.model, settings.revision, settings.tokens
        return MODELS[settings.name](*chosen, settings.batch_size, device)
    choose(settings.name, ENCODERS, "encoder")
    return COMPUTED[settings.name](settings, device)


def differences(settings: EncoderSettings, identity: dict[str, Any]) -> dict[str, Any]:
    """Return what ``settings`` ask for and an encoder of ``identity`` is not; empty if it suits them.

    What only a model's files tell, their digest, is not compared: who reads a store does not need them. Nor is a
    revision that the store does not say.
    """
    encoder = open_encoder(settings)
    asked = encoder.asked() if isinstance(encoder, FrozenEncoder) else encoder.identity()
    return {key: asked[key] for key in differing(asked, identity, asked)}

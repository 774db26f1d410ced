"""Frozen audio encoders: waveforms to token sequences."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fedgen.data import sfx
from fedgen.data.audio import Encoder
from fedgen.data.batching import in_batches
from fedgen.data.patches import PatchEncoder
from fedgen.data.pretrained import (
    REVISION,
    USUAL_REVISION,
    WEIGHTS,
    at_hub,
    cached,
    content,
    digest_of,
    find,
    load_model,
    load_part,
)
from fedgen.data.settings import EncoderSettings, name_of
from fedgen.data.sfx import SfxEncoder
from fedgen.errors import DataError

FILES = ("config.json", "preprocessor_config.json", WEIGHTS)
KEY = "encoder.model"
FRAME = 400  # samples of the first frame of AST's extractor


class FrozenEncoder(ABC):
    """A pretrained model and its feature extractor, both from one folder.

    Files are looked for when the identity is asked for; weights are loaded with the first clip and freed with the
    encoder. On CUDA the model computes in half precision, elsewhere in single; tokens are kept in half anyway.
    """

    name: str
    default: ClassVar[str]  # the usual model
    family: ClassVar[str]  # beginning of the names of its classes in transformers

    def __init__(self, settings: EncoderSettings, device: torch.device | str = "cpu") -> None:
        self.model, self.revision, self.tokens = settings.model or self.default, settings.revision, settings.tokens
        self.batch_size, self.device = settings.batch_size, torch.device(device)
        self.dtype = torch.float16 if self.device.type == "cuda" else torch.float32

    @torch.no_grad()
    def __call__(self, waveforms: list[np.ndarray]) -> Tensor:
        """Return tokens ``(B, S, D)`` as `Encoder` does; `DataError` if one is not finite in half precision."""
        tokens = torch.cat(in_batches(waveforms, self.batch_size, lambda some: self._encode(some).half().cpu()))
        if not torch.isfinite(tokens).all():
            raise DataError(f"{KEY}={self.model} gives tokens that are not finite in half precision")
        return tokens

    @abstractmethod
    def _encode(self, waveforms: list[np.ndarray]) -> Tensor:
        """Return the tokens of waveforms ``(B, S, D)``, on the model's device."""

    @abstractmethod
    def _all_tokens(self) -> tuple[int, int]:
        """Return ``(S, D)`` of all tokens, by the model's configuration."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(S, D)`` of a clip's token sequence."""
        length, width = self._all_tokens()
        return (1 if self.tokens == "cls" else length), width

    @property
    def sample_rate(self) -> int:
        """The rate in Hz of the feature extractor."""
        return int(self._extractor.sampling_rate)

    def asked(self) -> dict[str, str | int | float]:
        """Return the part of the identity that follows from the settings; a model in a folder has no revision."""
        revision = self.revision or (USUAL_REVISION if at_hub(self.model) else None)
        known = {REVISION: revision} if revision else {}
        return {"name": self.name, "model": name_of(self.model), "tokens": self.tokens, **known}

    def identity(self) -> dict[str, str | int | float]:
        """Return the model's name, revision and digest, the source of the features, and which tokens are kept."""
        files = [file for pattern in FILES for file in self.folder.glob(pattern)]
        # AST's extractor takes torchaudio where it is installed; numpy's features differ in the last digits
        features = "torchaudio" if self.name == "ast" and find_spec("torchaudio") else "numpy"
        return {**self.asked(), "digest": digest_of(files), "features": features}

    @cached_property
    def folder(self) -> Path:
        """Folder of the model's files; they are fetched if need be."""
        return find(self.model, self.revision, KEY, FILES)

    @cached_property
    def _config(self) -> Any:
        return load_part(f"{self.family}Config", self.folder, KEY)

    @cached_property
    def _extractor(self) -> Any:
        return load_part(f"{self.family}FeatureExtractor", self.folder, KEY)

    @cached_property
    def _model(self) -> Any:
        return load_model(f"{self.family}Model", self.folder, self.dtype, self.device, KEY)

    def _features(self, waveforms: list[np.ndarray], name: str) -> Tensor:
        given = self._extractor(waveforms, sampling_rate=self.sample_rate, return_tensors="pt")
        return given[name].to(self.device, self.dtype)


class AstEncoder(FrozenEncoder):
    """AST's last hidden state: class token, distillation token, then a token a patch, frequency first.

    A clip longer than the model's frames (10 s) is cut off; a shorter one is padded by the extractor, and a clip of
    less than one frame with silence to one frame.

    Source: Gong et al., AST: Audio Spectrogram Transformer, Interspeech 2021 (2104.01778).
    """

    name, default, family = "ast", "MIT/ast-finetuned-audioset-10-10-0.4593", "AST"

    def _encode(self, waveforms: list[np.ndarray]) -> Tensor:
        padded = [np.pad(waveform, (0, max(0, FRAME - len(waveform)))) for waveform in waveforms]
        hidden: Tensor = self._model(self._features(padded, "input_values")).last_hidden_state  # (B, S, D)
        return hidden[:, :1] if self.tokens == "cls" else hidden

    def _all_tokens(self) -> tuple[int, int]:
        config, extractor = self._config, self._extractor
        ours, theirs = (extractor.num_mel_bins, extractor.max_length), (config.num_mel_bins, config.max_length)
        if ours != theirs:
            raise DataError(f"{KEY}={self.model}: its extractor gives {ours} mel bins and frames, not {theirs}")
        rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        columns = (config.max_length - config.patch_size) // config.time_stride + 1
        return 2 + rows * columns, config.hidden_size


class ClapEncoder(FrozenEncoder):
    """CLAP's last feature map as tokens, time last and fastest; or its pooled vector (``cls``).

    The extractor takes a random part of a long clip, and models that fuse several parts mark a random clip as long.
    So clips are cut to the model's length (10 s) and none is marked: the same clip gives the same tokens.

    Source: Wu et al., Large-Scale Contrastive Language-Audio Pretraining, ICASSP 2023 (2211.06687).
    """

    name, default, family = "clap", "laion/clap-htsat-unfused", "Clap"

    def _encode(self, waveforms: list[np.ndarray]) -> Tensor:
        cut = [waveform[: self._extractor.nb_max_samples] for waveform in waveforms]
        features = self._features(cut, "input_features")
        long = torch.zeros(len(waveforms), 1, dtype=torch.bool, device=self.device)
        found = self._model.audio_model(features, is_longer=long)
        if self.tokens == "cls":
            return found.pooler_output[:, None]
        return found.last_hidden_state.flatten(2).transpose(1, 2)

    def _all_tokens(self) -> tuple[int, int]:
        audio = self._config.audio_config
        side = audio.spec_size // audio.patch_stride[0] // 2 ** (len(audio.depths) - 1)
        return side * side, audio.patch_embeds_hidden_size * 2 ** (len(audio.depths) - 1)


ENCODER_CLASSES: dict[str, Callable[[EncoderSettings, torch.device | str], Encoder]] = {
    "patches": PatchEncoder,
    "sfx": SfxEncoder,
    "ast": AstEncoder,
    "clap": ClapEncoder,
}


def open_encoder(settings: EncoderSettings, device: torch.device | str = "cpu") -> Encoder:
    """Return the encoder that ``settings`` name, computing on ``device``; files are read when they are needed."""
    return ENCODER_CLASSES[settings.name](settings, device)


def missing(name: str) -> str:
    """Return what the encoder ``name`` needs before it works on this machine; empty if nothing. Fetches nothing."""
    kind = ENCODER_CLASSES[name]
    if kind is SfxEncoder:
        return "" if (sfx.own_folder() / sfx.WEIGHTS).is_file() else "fetch it with: fedgen get sfx"
    if not (isinstance(kind, type) and issubclass(kind, FrozenEncoder)):
        return ""
    if not find_spec("transformers"):
        return "needs: pip install 'fedgen[encoders]'"
    return "" if cached(kind.default, FILES) else f"{kind.default} is fetched from Hugging Face at first use"


def differences(settings: EncoderSettings, identity: dict[str, Any]) -> dict[str, Any]:
    """Return the part of ``settings`` that an encoder of ``identity`` does not have; empty if it suits them.

    Neither the digest of a model's files nor a revision that ``identity`` lacks is compared.
    """
    asked = open_encoder(settings).asked()
    known = asked if REVISION in identity else content(asked)
    return {key: value for key, value in known.items() if identity.get(key) != value}

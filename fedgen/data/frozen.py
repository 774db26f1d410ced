"""Encoders that are pretrained models: frozen, in batches, in half precision on a GPU."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fedgen.data.batching import in_batches
from fedgen.data.identity import REVISION, USUAL_REVISION
from fedgen.data.pretrained import WEIGHTS, at_hub, digest, find, load_model, load_part, name_of, weights
from fedgen.errors import DataError

TOKENS = ("all", "cls")
SETTINGS = ("config.json", "preprocessor_config.json")
KEY = "encoder.model"


class FrozenEncoder(ABC):
    """A model of ``transformers`` and its feature extractor, both from one folder.

    Files are looked for when the identity is asked for, weights are loaded with the first clip, and freed with the
    encoder. On CUDA the model computes in half precision, elsewhere in single; tokens are kept in half anyway.

    Parameters
    ----------
    model : str, optional
        A folder, or a name at Hugging Face; `default` by default.
    revision : str, optional
        Branch, tag or commit there.
    tokens : str
        ``all``, or ``cls``: one token that stands for the clip.
    batch_size : int
        Clips at once.
    device : torch.device or str
    """

    name: str
    default: ClassVar[str]
    model_class: ClassVar[str]
    config_class: ClassVar[str]
    extractor_class: ClassVar[str]

    def __init__(
        self,
        model: str | None = None,
        revision: str | None = None,
        tokens: str = "all",
        batch_size: int = 8,
        device: torch.device | str = "cpu",
    ) -> None:
        self.model, self.revision, self.tokens = model or self.default, revision, tokens
        self.batch_size, self.device = batch_size, torch.device(device)
        self.dtype = torch.float16 if self.device.type == "cuda" else torch.float32

    @torch.no_grad()
    def __call__(self, waveforms: list[np.ndarray]) -> Tensor:
        """Return tokens ``(B, S, D)``, float16, on the CPU, for mono waveforms in -1..1 of any length.

        Raises
        ------
        DataError
            A token is not finite in half precision.
        """
        tokens = torch.cat(in_batches(waveforms, self.batch_size, self._encode))
        if not torch.isfinite(tokens).all():
            raise DataError(f"{KEY}={self.model} gives tokens that are not finite in half precision")
        return tokens

    def _encode(self, waveforms: list[np.ndarray]) -> Tensor:
        return self.outputs(self._model, waveforms).half().cpu()

    @abstractmethod
    def outputs(self, model: Any, waveforms: list[np.ndarray]) -> Tensor:
        """Return what ``model`` makes of waveforms as tokens ``(B, S, D)``, on its device."""

    @abstractmethod
    def _token_shape(self, config: Any) -> tuple[int, int]:
        """Return ``(S, D)`` of all tokens."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(S, D)`` of a clip's token sequence, as the model's configuration has it."""
        length, width = self._token_shape(self.config)
        return (1 if self.tokens == "cls" else length), width

    @property
    def sample_rate(self) -> int:
        """The rate in Hz that the feature extractor wants."""
        return int(self.extractor.sampling_rate)

    def asked(self) -> dict[str, str | int]:
        """Return what of the identity the settings alone say; a model in a folder has no revision."""
        revision = self.revision or (USUAL_REVISION if at_hub(self.model) else None)
        said = {REVISION: revision} if revision else {}
        return {"name": self.name, "model": name_of(self.model), "tokens": self.tokens, **said}

    def identity(self) -> dict[str, str | int]:
        """Return the model's name, revision and digest, what computes the features, and which tokens are kept."""
        files = [*(self.folder / name for name in SETTINGS), *weights(self.folder)]
        return {**self.asked(), "digest": digest(files), "features": self.backend()}

    def backend(self) -> str:
        """Return the library that computes features; others differ in the last digits."""
        return "numpy"

    @cached_property
    def folder(self) -> Path:
        """Where the model's files are; they are fetched if need be."""
        return find(self.model, self.revision, KEY, (*SETTINGS, "model*.safetensors"), (*SETTINGS, *WEIGHTS))

    @cached_property
    def config(self) -> Any:
        """The model's configuration."""
        return load_part(self.config_class, self.folder, KEY)

    @cached_property
    def extractor(self) -> Any:
        """The feature extractor."""
        return load_part(self.extractor_class, self.folder, KEY)

    @cached_property
    def _model(self) -> Any:
        return load_model(self.model_class, self.folder, self.dtype, self.device, KEY)

"""The encoder ``ast``: the Audio Spectrogram Transformer."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
from torch import Tensor

from fedgen.data.frozen import KEY, FrozenEncoder
from fedgen.errors import DataError

FRAME = 400  # samples of the extractor's first frame


class AstEncoder(FrozenEncoder):
    """AST's last hidden state: class token, distillation token, then a token a patch, frequency first.

    Source: Gong et al., AST: Audio Spectrogram Transformer, Interspeech 2021 (2104.01778).
    """

    name = "ast"
    default = "MIT/ast-finetuned-audioset-10-10-0.4593"
    model_class, config_class, extractor_class = "ASTModel", "ASTConfig", "ASTFeatureExtractor"

    def outputs(self, model: Any, waveforms: list[np.ndarray]) -> Tensor:
        """Return the last hidden state ``(B, S, D)``, or its class token ``(B, 1, D)``.

        What is longer than the model's frames (10 s) is cut off; what is shorter is padded by the extractor, and less
        than one frame with silence to one frame.
        """
        padded = [np.pad(waveform, (0, max(0, FRAME - len(waveform)))) for waveform in waveforms]
        features = self.extractor(padded, sampling_rate=self.sample_rate, return_tensors="pt")["input_values"]
        hidden: Tensor = model(features.to(self.device, self.dtype)).last_hidden_state  # (B, S, D)
        return hidden[:, :1] if self.tokens == "cls" else hidden

    def _token_shape(self, config: Any) -> tuple[int, int]:
        ours = (self.extractor.num_mel_bins, self.extractor.max_length)
        if ours != (config.num_mel_bins, config.max_length):
            theirs = (config.num_mel_bins, config.max_length)
            raise DataError(
                f"{KEY}={self.model}: the extractor gives {ours} mel bins and frames, the model has {theirs}"
            )
        rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        columns = (config.max_length - config.patch_size) // config.time_stride + 1
        return 2 + rows * columns, config.hidden_size

    def backend(self) -> str:
        """Return ``torchaudio`` where it is installed, as the extractor takes it then; else ``numpy``."""
        return "torchaudio" if find_spec("torchaudio") else "numpy"

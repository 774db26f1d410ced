"""The encoder ``clap``: the audio side of CLAP."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgen.data.frozen import FrozenEncoder


class ClapEncoder(FrozenEncoder):
    """CLAP's last feature map as tokens, time last and fastest; or its pooled vector (``cls``).

    The extractor takes a random part of what is too long, and the models that fuse several parts mark a random clip as
    long; so clips are cut to the model's length (10 s) and none is marked: the same clip gives the same tokens.

    Source: Wu et al., Large-Scale Contrastive Language-Audio Pretraining, ICASSP 2023 (2211.06687).
    """

    name = "clap"
    default = "laion/clap-htsat-unfused"
    model_class, config_class, extractor_class = "ClapModel", "ClapConfig", "ClapFeatureExtractor"

    def outputs(self, model: Any, waveforms: list[np.ndarray]) -> Tensor:
        """Return the last feature map ``(B, S, D)``, or the pooled vector ``(B, 1, D)``."""
        cut = [waveform[: self.extractor.nb_max_samples] for waveform in waveforms]
        given = self.extractor(cut, sampling_rate=self.sample_rate, return_tensors="pt")
        features = given["input_features"].to(self.device, self.dtype)
        found = model.audio_model(features, is_longer=torch.zeros(len(cut), 1, dtype=torch.bool, device=self.device))
        if self.tokens == "cls":
            return found.pooler_output[:, None]
        return found.last_hidden_state.flatten(2).transpose(1, 2)

    def _token_shape(self, config: Any) -> tuple[int, int]:
        audio = config.audio_config
        side = audio.spec_size // audio.patch_stride[0] // 2 ** (len(audio.depths) - 1)
        return side * side, audio.patch_embeds_hidden_size * 2 ** (len(audio.depths) - 1)

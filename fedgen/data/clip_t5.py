"""The target source ``clip_t5``: prompts through a pipeline's own text encoders, as the pipeline itself takes them.

As in ``diffusers``, every prompt is padded to the full length, and the encoders see the padding, since no attention
mask is given (except for a CLIP whose configuration has ``use_attention_mask``).

- FLUX (``pipelines/flux/pipeline_flux.py``: ``_get_clip_prompt_embeds``, ``_get_t5_prompt_embeds``): CLIP's
  ``pooler_output``; T5's last hidden state, ``max_sequence_length`` tokens, here ``target.t5_tokens``.
- Stable Diffusion 1 (``pipelines/stable_diffusion/pipeline_stable_diffusion.py``: ``encode_prompt`` without
  ``clip_skip``): CLIP's last hidden state after its final layer norm.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedgen.data.batching import in_batches
from fedgen.data.pretrained import WEIGHTS, digest_of, find, load_model, load_part
from fedgen.data.progress import RoundsBar
from fedgen.data.settings import TargetSettings
from fedgen.errors import DataError

KEY = "target.model"
PROMPTS_AT_ONCE = 16

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextEncoderSpec:
    """A text encoder of a pipeline: its classes in ``transformers``, its folders, and the output that is taken."""

    head: str
    family: str  # beginning of the names of its classes
    model_class: str
    tokenizer_class: str
    folder: str
    tokenizer: str
    output: str

    @property
    def files(self) -> list[str]:
        """Patterns of the files that are read in the pipeline's folder."""
        return [f"{self.folder}/config.json", f"{self.folder}/{WEIGHTS}", f"{self.tokenizer}/*"]


_CLIP = partial(TextEncoderSpec, "clip", "CLIPText", "CLIPTextModel", "CLIPTokenizer", "text_encoder", "tokenizer")
_T5 = partial(TextEncoderSpec, "t5", "T5", "T5EncoderModel", "T5TokenizerFast", "text_encoder_2", "tokenizer_2")
TEXT_ENCODERS = {"sd": [_CLIP("last_hidden_state")], "flux": [_CLIP("pooler_output"), _T5("last_hidden_state")]}
"""The text encoders of each target."""


@dataclass(frozen=True)
class TextEncoders:
    """Encodes prompts on ``device``; each text encoder is loaded once, for all of them, and freed before the next."""

    settings: TargetSettings  # of target.source=clip_t5
    device: torch.device | str = "cpu"

    @property
    def specs(self) -> list[TextEncoderSpec]:
        """The text encoders of the target."""
        return TEXT_ENCODERS[self.settings.name]

    @cached_property
    def folder(self) -> Path:
        """Folder of the pipeline; the files of its text encoders are fetched if need be."""
        files = [name for spec in self.specs for name in spec.files]
        return find(self.settings.pipeline, self.settings.revision, KEY, files)

    def check(self, prompts: list[str]) -> None:
        """Find all files, which are fetched if need be; `DataError` if some are missing or a prompt is too long."""
        for spec in self.specs:
            self._tokenizer(spec, prompts)

    def digests(self) -> dict[str, str]:
        """Return a digest of the files of each text encoder and its tokenizer, by head."""
        found = {spec.head: [file for name in spec.files for file in self.folder.glob(name)] for spec in self.specs}
        return {head: digest_of([file for file in files if file.suffix != ".model"]) for head, files in found.items()}

    def encode(self, prompts: list[str]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield each prompt with its embeddings by head, ``(width,)`` or ``(tokens, width)``, float32, on the CPU.

        Outputs of all encoders but the last are held until the last has its own. Errors are those of `check`, and
        `DataError` if a model is damaged.
        """
        *first, last = self.specs
        held = {}
        for spec in first:
            held[spec.head] = dict(self._encoded(spec, prompts))
            _free()
        for prompt, value in self._encoded(last, prompts):
            yield prompt, {**{head: values[prompt] for head, values in held.items()}, last.head: value}
        _free()

    @torch.no_grad()
    def _encoded(self, spec: TextEncoderSpec, prompts: list[str]) -> Iterator[tuple[str, Tensor]]:
        tokenizer, config, length = self._tokenizer(spec, prompts)
        dtype: torch.dtype = getattr(torch, self.settings.precision)
        model = load_model(spec.model_class, self.folder / spec.folder, dtype, self.device, KEY)
        masked = bool(getattr(config, "use_attention_mask", False))

        def compute(batch: list[str]) -> Tensor:
            given = tokenizer(batch, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            mask = given.attention_mask.to(self.device) if masked else None
            found: Tensor = model(given.input_ids.to(self.device), attention_mask=mask)[spec.output]
            return found.float().cpu()

        with RoundsBar(len(prompts), f"prompts ({spec.head})") as bar:
            for start in range(0, len(prompts), PROMPTS_AT_ONCE):
                batch = prompts[start : start + PROMPTS_AT_ONCE]
                yield from zip(batch, torch.cat(in_batches(batch, len(batch), compute)), strict=True)
                bar.show(start + len(batch))
                log.info("encoded %d prompts for %s", len(batch), spec.head)

    def _tokenizer(self, spec: TextEncoderSpec, prompts: list[str]) -> tuple[Any, Any, int]:
        """Return the tokenizer, the encoder's configuration, and the length in tokens, which no prompt exceeds."""
        tokenizer = load_part(spec.tokenizer_class, self.folder / spec.tokenizer, KEY)
        config = load_part(f"{spec.family}Config", self.folder / spec.folder, KEY)
        length, key = self.settings.t5_tokens, "target.t5_tokens"
        if spec.head == "clip":
            length = min(int(tokenizer.model_max_length), int(config.max_position_embeddings))
            key = "the text encoder's length"
        for prompt in prompts:
            count = len(tokenizer(prompt).input_ids)
            if count > length:
                raise DataError(f"the prompt {prompt!r} has {count} {spec.head} tokens, {key} is {length}")
        return tokenizer, config, length


def _free() -> None:
    """Free the memory of a model that is no longer referenced."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

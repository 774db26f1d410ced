"""The target source ``clip_t5``: prompts through a pipeline's own text encoders, as the pipeline itself takes them.

What ``diffusers`` does, and so what is done here: every prompt is padded to the full length, and the encoders see the
padding, since no attention mask is given (but to a CLIP whose configuration has ``use_attention_mask``).

- FLUX (``pipelines/flux/pipeline_flux.py``: ``_get_clip_prompt_embeds``, ``_get_t5_prompt_embeds``): CLIP's
  ``pooler_output``; T5's last hidden state, ``max_sequence_length`` tokens, here ``target.t5_tokens``.
- Stable Diffusion 1 (``pipelines/stable_diffusion/pipeline_stable_diffusion.py``: ``encode_prompt`` without
  ``clip_skip``): CLIP's last hidden state after its final layer norm.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedgen.data.batching import in_batches
from fedgen.data.pretrained import WEIGHTS, digest, find, load_model, load_part
from fedgen.errors import DataError

KEY = "target.model"
PROMPTS_AT_ONCE = 16

Done = Callable[[str, int], None]
"""Called with a head's name and the number of prompts just encoded for it."""


@dataclass(frozen=True)
class Part:
    """A text encoder of a pipeline, and which of its outputs the pipeline takes."""

    head: str
    model_class: str
    tokenizer_class: str
    folder: str
    tokenizer: str
    output: str

    @property
    def files(self) -> list[str]:
        """Patterns of what is read in the pipeline's folder."""
        return [f"{self.folder}/config.json", f"{self.folder}/{WEIGHTS}", f"{self.tokenizer}/*"]


_CLIP = partial(Part, "clip", "CLIPTextModel", "CLIPTokenizer", "text_encoder", "tokenizer")
PARTS = {
    "sd": [_CLIP("last_hidden_state")],
    "flux": [
        _CLIP("pooler_output"),
        Part("t5", "T5EncoderModel", "T5TokenizerFast", "text_encoder_2", "tokenizer_2", "last_hidden_state"),
    ],
}
"""The text encoders of each target."""


@dataclass(frozen=True)
class Prompts:
    """Encodes prompts; each text encoder is loaded once, for all of them, and freed before the next.

    Attributes
    ----------
    target : str
        ``sd`` or ``flux``.
    t5_tokens : int
    model : str
        The pipeline, with its text encoders and tokenizers in folders of their own.
    revision : str, optional
    precision : str
    device : torch.device or str
    """

    target: str
    t5_tokens: int
    model: str
    revision: str | None = None
    precision: str = "float32"
    device: torch.device | str = "cpu"

    @cached_property
    def folder(self) -> Path:
        """Where the pipeline's files are; those of the text encoders are fetched if need be."""
        return find(self.model, self.revision, KEY, [name for part in PARTS[self.target] for name in part.files])

    def check(self, prompts: list[str]) -> None:
        """Look for all files, which are fetched if need be, and see that prompts fit; no weights are loaded.

        Raises
        ------
        DataError
            Files are missing, or a prompt is longer than its encoder takes.
        """
        for part in PARTS[self.target]:
            self._tokenizer(part, prompts)

    def digests(self) -> dict[str, str]:
        """Return a digest of the files of each text encoder and its tokenizer, by head."""
        found = {part.head: [f for name in part.files for f in self.folder.glob(name)] for part in PARTS[self.target]}
        return {head: digest([file for file in files if file.suffix != ".model"]) for head, files in found.items()}

    def encode(self, prompts: list[str], done: Done) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield each prompt with what it is by head, ``(width,)`` or ``(tokens, width)``, float32, on the CPU.

        Results of all encoders but the last are held until the last has its own.

        Raises
        ------
        DataError
            Files are missing or damaged, or a prompt is longer than its encoder takes.
        """
        *first, last = PARTS[self.target]
        held = {}
        for part in first:
            held[part.head] = dict(self._encoded(part, prompts, done))
            _free()
        for prompt, value in self._encoded(last, prompts, done):
            yield prompt, {**{head: values[prompt] for head, values in held.items()}, last.head: value}
        _free()

    @torch.no_grad()
    def _encoded(self, part: Part, prompts: list[str], done: Done) -> Iterator[tuple[str, Tensor]]:
        tokenizer, config, length = self._tokenizer(part, prompts)
        dtype: torch.dtype = getattr(torch, self.precision)
        model = load_model(part.model_class, self.folder / part.folder, dtype, self.device, KEY)
        masked = bool(getattr(config, "use_attention_mask", False))

        def compute(batch: list[str]) -> Tensor:
            given = tokenizer(batch, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            mask = given.attention_mask.to(self.device) if masked else None
            found: Tensor = model(given.input_ids.to(self.device), attention_mask=mask)[part.output]
            return found.float().cpu()

        for start in range(0, len(prompts), PROMPTS_AT_ONCE):
            batch = prompts[start : start + PROMPTS_AT_ONCE]
            yield from zip(batch, torch.cat(in_batches(batch, len(batch), compute)), strict=True)
            done(part.head, len(batch))

    def _tokenizer(self, part: Part, prompts: list[str]) -> tuple[Any, Any, int]:
        """Return the tokenizer, the encoder's configuration, and the length in tokens, which no prompt exceeds."""
        tokenizer = load_part(part.tokenizer_class, self.folder / part.tokenizer, KEY)
        config = load_part("CLIPTextConfig" if part.head == "clip" else "T5Config", self.folder / part.folder, KEY)
        length = self._length(part, tokenizer, config)
        for prompt in prompts:
            count = len(tokenizer(prompt).input_ids)
            if count > length:
                key = "target.t5_tokens" if part.head == "t5" else "the text encoder's length"
                raise DataError(f"the prompt {prompt!r} has {count} {part.head} tokens, {key} is {length}")
        return tokenizer, config, length

    def _length(self, part: Part, tokenizer: Any, config: Any) -> int:
        if part.head == "t5":
            return self.t5_tokens
        return min(int(tokenizer.model_max_length), int(config.max_position_embeddings))


def _free() -> None:
    """Give back the memory of a model that nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

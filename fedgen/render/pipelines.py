"""The pipelines of ``diffusers``: which of their arguments each head is, where their files are, and what fits.

Sources: ``pipelines/flux/pipeline_flux.py`` and ``pipelines/stable_diffusion/pipeline_stable_diffusion.py`` of
diffusers (``__call__``, ``encode_prompt``). FLUX takes T5's tokens as ``prompt_embeds`` and CLIP's pooled vector as
``pooled_prompt_embeds``; Stable Diffusion takes CLIP's tokens as ``prompt_embeds``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedgen.data.clip_t5 import TOKENIZER, Prompts
from fedgen.data.pretrained import DIFFUSION_WEIGHTS, WEIGHTS, find, first_line
from fedgen.errors import DataError, require

KEY = "--pipeline"
MEBIBYTE = 1 << 20
TEXT = ["text_encoder/config.json", "text_encoder/model*.safetensors", "tokenizer/*.json"]
TEXT_FETCHED = [*(f"text_encoder/{name}" for name in ("config.json", *WEIGHTS)), *(f"tokenizer/{n}" for n in TOKENIZER)]


@dataclass(frozen=True)
class Kind:
    """What a target's pipeline consists of.

    Attributes
    ----------
    pipeline, denoiser : str
        Classes of ``diffusers``.
    part : str
        Folder of the denoiser.
    arguments : Mapping
        By argument of the pipeline: the head that it is, and the key of the denoiser's configuration with its width.
    without : tuple of str
        Parts that are not loaded.
    precision : str
        What it computes in on CUDA.
    """

    pipeline: str
    denoiser: str
    part: str
    arguments: Mapping[str, tuple[str, str]]
    without: tuple[str, ...]
    precision: str


KINDS = {
    "flux": Kind(
        "FluxPipeline",
        "FluxTransformer2DModel",
        "transformer",
        {"prompt_embeds": ("t5", "joint_attention_dim"), "pooled_prompt_embeds": ("clip", "pooled_projection_dim")},
        ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "image_encoder", "feature_extractor"),
        "bfloat16",
    ),
    "sd": Kind(
        "StableDiffusionPipeline",
        "UNet2DConditionModel",
        "unet",
        {"prompt_embeds": ("clip", "cross_attention_dim")},
        ("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder"),
        "float16",
    ),
}
"""The pipeline of each target."""


@dataclass(frozen=True)
class PipelineFiles:
    """A pipeline that lies on this machine, or will.

    Attributes
    ----------
    target : str
        ``flux`` or ``sd``.
    model : str
        A folder, or a name at Hugging Face.
    revision : str, optional
    """

    target: str
    model: str
    revision: str | None = None

    @property
    def kind(self) -> Kind:
        """What it consists of."""
        return KINDS[self.target]

    @property
    def place(self) -> str:
        """Its name at Hugging Face, or its folder's whole path."""
        folder = Path(self.model).expanduser()
        return str(folder.absolute()) if folder.is_dir() else self.model

    @cached_property
    def folder(self) -> Path:
        """The folder with all that is loaded, which is fetched if need be."""
        needed, fetched = [*self._configs, *self._weights], [*self._configs, *self._fetched]
        return find(self.model, self.revision, KEY, needed, fetched, self._advised)

    @property
    def _configs(self) -> list[str]:
        parts = (f"{self.kind.part}/config.json", "vae/config.json", "scheduler/scheduler_config.json")
        return ["model_index.json", *parts]

    @property
    def _weights(self) -> list[str]:
        return [f"{part}/diffusion_pytorch_model*.safetensors" for part in (self.kind.part, "vae")]

    @property
    def _fetched(self) -> list[str]:
        return [f"{part}/{name}" for part in (self.kind.part, "vae") for name in DIFFUSION_WEIGHTS]

    @property
    def _advised(self) -> list[str]:
        """What to fetch on another machine, for any setting."""
        return [*self._configs, *self._fetched, *(TEXT_FETCHED if self.target == "sd" else [])]

    @cached_property
    def index(self) -> dict[str, Any]:
        """What says which pipeline it is; fetched, if need be, before anything else is."""
        return self._read(["model_index.json"], "model_index.json")

    def config(self, part: str) -> dict[str, Any]:
        """Return the configuration of a part; if need be, those of all are fetched, and no weights yet."""
        return self._read(self._configs, f"{part}/config.json")

    def _read(self, needed: list[str], name: str) -> dict[str, Any]:
        folder = find(self.model, self.revision, KEY, needed, needed, self._advised)
        try:
            return dict(json.loads((folder / name).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{KEY}={self.model}: {folder / name} cannot be read ({first_line(error)})") from error

    def refuse_unless_it_fits(self, heads: Mapping[str, Tensor]) -> None:
        """Raise `ConfigError` unless the pipeline is of the target's kind, and takes heads of these shapes.

        Parameters
        ----------
        heads : Mapping
            ``{head: (C, width) or (C, tokens, width)}``.
        """
        found = self.index.get("_class_name")
        wanted = self.kind.pipeline
        require(found == wanted, f"{KEY}={self.model} is a {found}: pictures of target={self.target} need a {wanted}")
        config = self.config(self.kind.part)
        for argument, (head, key) in self.kind.arguments.items():
            width, taken = heads[head].shape[-1], config.get(key)
            require(
                width == taken,
                f"{KEY}={self.model} takes {argument} of width {taken} ({key}), the run's {head} has {width}: choose "
                "the pipeline whose text encoders made the run's targets (target.model)",
            )
        if self.target == "flux":
            most = 512 if self.guided else 256  # `FluxPipeline.check_inputs`; schnell was trained with half
            count = heads["t5"].shape[1]
            require(count <= most, f"{KEY}={self.model} takes at most {most} t5 tokens, target.t5_tokens was {count}")

    @property
    def guided(self) -> bool:
        """Whether it has a guidance scale; FLUX.1-schnell has none."""
        return self.target == "sd" or bool(self.config(self.kind.part).get("guidance_embeds", False))

    @property
    def usual(self) -> tuple[int, float]:
        """The usual steps and guidance scale: of Stable Diffusion 1, FLUX.1-dev or FLUX.1-schnell."""
        if self.target == "sd":
            return 50, 7.5
        return (28, 3.5) if self.guided else (4, 0.0)

    @property
    def step(self) -> int:
        """What height and width are multiples of, in pixels."""
        return 2 * self._latent if self.target == "flux" else math.lcm(self._latent, 8)  # `check_inputs` of each

    @property
    def usual_size(self) -> tuple[int, int]:
        """Height and width of a picture, in pixels."""
        sample = 128 if self.target == "flux" else self.config("unet").get("sample_size") or 64
        height, width = (sample, sample) if isinstance(sample, int) else sample
        return height * self._latent, width * self._latent

    @property
    def _latent(self) -> int:
        """Pixels a side of the autoencoder's latents."""
        return int(2 ** (len(self.config("vae")["block_out_channels"]) - 1))

    def digest(self) -> str:
        """Return what its files amount to, 16 hexadecimal digits: of weights their sizes, first and last MiB."""
        whole = hashlib.sha256()
        weights = {file for pattern in self._weights for file in self.folder.glob(pattern)}
        for file in sorted([*(self.folder / name for name in self._configs), *weights]):
            size = file.stat().st_size
            with file.open("rb") as content:
                whole.update(f"{file.parent.name}/{file.name} {size}\n".encode() + content.read(MEBIBYTE))
                content.seek(max(0, size - MEBIBYTE))
                whole.update(content.read())
        return whole.hexdigest()[:16]

    def empty_prompt(self, device: torch.device | str) -> Tensor:
        """Return what the pipeline's own text encoder makes of no words, ``(tokens, width)``: what guidance leads from.

        Raises
        ------
        DataError
            There is no text encoder, and none can be fetched.
        """
        try:
            folder = find(self.model, self.revision, KEY, TEXT, TEXT_FETCHED, self._advised)
        except DataError as error:
            raise DataError(
                f"--guidance above 1 needs the pipeline's own text encoder, for the empty prompt ({error}); or set "
                "--guidance=1, without guidance"
            ) from error
        prompts = Prompts(self.target, 1, str(folder), device=device)
        return dict(prompts.encode([""], lambda head, count: None))[""]["clip"]

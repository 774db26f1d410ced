"""The pipelines of ``diffusers``: which of their arguments each head is, where their files are, and their pictures.

Sources: ``pipelines/flux/pipeline_flux.py`` and ``pipelines/stable_diffusion/pipeline_stable_diffusion.py`` of
diffusers (``__call__``, ``encode_prompt``). FLUX takes T5's tokens as ``prompt_embeds`` and CLIP's pooled vector as
``pooled_prompt_embeds``; Stable Diffusion takes CLIP's tokens as ``prompt_embeds``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fedgen.data.clip_t5 import TEXT_ENCODERS
from fedgen.data.pretrained import WEIGHTS, find, library, load_model
from fedgen.errors import ConfigError, DataError, require, said
from fedgen.render.settings import RenderSettings

KEY = "--pipeline"
DIFFUSION_WEIGHTS = f"diffusion_pytorch_{WEIGHTS}"
CONFIGS = ["model_index.json", "*/config.json"]
TEXT = TEXT_ENCODERS["sd"][0].files


def diffusion() -> Any:
    """Return ``diffusers``; `ConfigError` where it is not installed."""
    library()  # its pipelines import transformers
    try:
        import diffusers
    except ImportError as error:
        raise ConfigError(f"pictures need diffusers ({error}): pip install 'fedgen[render]'") from error
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    return diffusers


@dataclass(frozen=True)
class Kind:
    """What a target's pipeline consists of: classes of ``diffusers``, and the folder of the denoiser.

    By argument of the pipeline, ``arguments`` says which head it is, and which key of the denoiser's configuration has
    its width. On CUDA the pipeline computes in ``precision``.
    """

    pipeline: str
    denoiser: str
    part: str
    arguments: Mapping[str, tuple[str, str]]
    precision: str


KINDS = {
    "flux": Kind(
        "FluxPipeline",
        "FluxTransformer2DModel",
        "transformer",
        {"prompt_embeds": ("t5", "joint_attention_dim"), "pooled_prompt_embeds": ("clip", "pooled_projection_dim")},
        "bfloat16",
    ),
    "sd": Kind(
        "StableDiffusionPipeline",
        "UNet2DConditionModel",
        "unet",
        {"prompt_embeds": ("clip", "cross_attention_dim")},
        "float16",
    ),
}
"""The pipeline of each target."""


@dataclass(frozen=True)
class PipelineFiles:
    """A pipeline that lies on this machine, or will: a folder, or a name at Hugging Face, for ``flux`` or ``sd``."""

    target: str
    model: str
    revision: str | None = None

    @property
    def kind(self) -> Kind:
        """What it consists of."""
        return KINDS[self.target]

    @property
    def _files(self) -> list[str]:
        models = [f"{part}/{name}" for part in (self.kind.part, "vae") for name in ("config.json", DIFFUSION_WEIGHTS)]
        return ["model_index.json", "scheduler/scheduler_config.json", *models]

    def _found(self, files: list[str]) -> Path:
        advised = [*CONFIGS, *self._files, *(TEXT if self.target == "sd" else [])]
        return find(self.model, self.revision, KEY, files, advised)

    def folder(self, text: bool = False) -> Path:
        """Return the folder with all that is loaded, which is fetched if need be; ``text``: CLIP's encoder as well."""
        return self._found([*self._files, *(TEXT if text else [])])

    def config(self, file: str) -> dict[str, Any]:
        """Return a configuration; all are fetched, if need be, before any weights."""
        path = self._found(CONFIGS) / file
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{KEY}={self.model}: {path} cannot be read ({said(error)})") from error

    @cached_property
    def denoiser(self) -> dict[str, Any]:
        """The denoiser's configuration."""
        return self.config(f"{self.kind.part}/config.json")

    def refuse_unless_it_fits(self, heads: Mapping[str, Tensor]) -> None:
        """Raise `ConfigError` unless the pipeline is of the target's kind, and takes heads of these widths."""
        found, wanted = self.config("model_index.json").get("_class_name"), self.kind.pipeline
        require(found == wanted, f"{KEY}={self.model} is a {found}: pictures of target={self.target} need a {wanted}")
        for argument, (head, key) in self.kind.arguments.items():
            width, taken = heads[head].shape[-1], self.denoiser.get(key)
            require(
                width == taken,
                f"{KEY}={self.model} takes {argument} of width {taken} ({key}), the run's {head} has {width}: choose "
                "the pipeline whose text encoders made the run's targets (target.model)",
            )

    @property
    def guided(self) -> bool:
        """Whether it has a guidance scale; FLUX.1-schnell has none."""
        return self.target == "sd" or bool(self.denoiser.get("guidance_embeds", False))

    def completed(self, settings: RenderSettings, device: torch.device) -> RenderSettings:
        """Return ``settings`` with the pipeline's usual values for None; `ConfigError` for what it cannot do."""
        steps, guidance = self.usual
        guidance = guidance if settings.guidance is None else settings.guidance
        precision = self.kind.precision if device.type == "cuda" else "float32"
        precision = precision if settings.precision == "auto" else settings.precision
        good = self.guided or not guidance
        require(good, f"--guidance={guidance:g}: {self.model} was trained without (guidance_embeds), leave it at 0")
        require(not settings.offload or device.type == "cuda", f"--offload needs a CUDA device, this is {device}")
        return replace(settings, steps=settings.steps or steps, guidance=guidance, precision=precision)

    @property
    def usual(self) -> tuple[int, float]:
        """The usual steps and guidance scale: of Stable Diffusion 1, FLUX.1-dev or FLUX.1-schnell."""
        if self.target == "sd":
            return 50, 7.5
        return (28, 3.5) if self.guided else (4, 0.0)


class ImagePipeline:
    """A loaded pipeline, without text encoders unless Stable Diffusion's guidance needs one for the empty prompt.

    Parameters
    ----------
    files : PipelineFiles
    settings : RenderSettings
        Completed by `PipelineFiles.completed`.
    device : torch.device

    Raises
    ------
    DataError
        Files are missing or damaged, or of other models. Nothing is unpickled.
    ConfigError
        It does not fit on the device.
    """

    def __init__(self, files: PipelineFiles, settings: RenderSettings, device: torch.device) -> None:
        module, kind = diffusion(), files.kind
        self.files, self.settings, self.device = files, settings, device
        self.precision: torch.dtype = getattr(torch, settings.precision)
        models = {kind.part: getattr(module, kind.denoiser), "vae": module.AutoencoderKL}
        guided = files.target == "sd" and (settings.guidance or 0) > 1
        if guided:  # leads away from the empty prompt, which the pipeline encodes itself
            models["text_encoder"] = "CLIPTextModel"
        folder, loaded = files.folder(guided), {*models, "scheduler", *(["tokenizer"] if guided else [])}
        place = "cpu" if settings.offload else device
        parts = {name: load_model(found, folder / name, self.precision, place, KEY) for name, found in models.items()}
        listed = files.config("model_index.json").items()
        parts |= {name: None for name, value in listed if isinstance(value, list) and name not in loaded}
        if files.target == "sd":
            parts["requires_safety_checker"] = False
        try:
            self.pipeline = getattr(module, kind.pipeline).from_pretrained(
                folder, use_safetensors=True, local_files_only=True, **parts
            )
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{KEY}={files.model}: no {kind.pipeline} can be made of it ({said(error)})") from error
        self.pipeline.set_progress_bar_config(disable=True)
        if settings.offload:
            self.pipeline.enable_model_cpu_offload(device=device)

    def generate(self, heads: Mapping[str, Tensor], generator: torch.Generator) -> Image.Image:
        """Return the picture of one output of the adapters, ``{head: (width,) or (tokens, width)}``.

        Noise is of ``generator``, which is on the CPU, so that it is the same on every device.

        Raises
        ------
        ConfigError
            Memory does not suffice, or the picture has values that are not finite.
        """
        settings = self.settings
        given = {argument: heads[head][None] for argument, (head, _) in self.files.kind.arguments.items()}
        height, width = settings.size or (None, None)
        try:
            pixels = self.pipeline(
                **{name: value.to(self.device, self.precision) for name, value in given.items()},
                height=height,
                width=width,
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance,
                generator=generator,
                output_type="pt",
            ).images
        except torch.OutOfMemoryError as error:
            raise ConfigError("the picture does not fit into the GPU's memory: try --offload or --size") from error
        finite = bool(torch.isfinite(pixels).all())
        require(finite, f"the picture is not finite in --precision={settings.precision}: try --precision=float32")
        picture: Image.Image = self.pipeline.numpy_to_pil(pixels.float().cpu().permute(0, 2, 3, 1).numpy())[0]
        return picture

"""A pipeline of ``diffusers`` at work: an output of the adapters in place of a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fedgen.data.pretrained import first_line, library, load_weights
from fedgen.errors import ConfigError, DataError, require
from fedgen.render.pipelines import KEY, PipelineFiles


def diffusion() -> ModuleType:
    """Return ``diffusers``; `ConfigError` where it is not installed."""
    library()  # its pipelines import transformers
    try:
        import diffusers
    except ImportError as error:
        raise ConfigError(f"pictures need diffusers ({error}): pip install 'fedgen[render]'") from error
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    module: ModuleType = diffusers
    return module


@dataclass(frozen=True)
class Manner:
    """How pictures are made.

    Attributes
    ----------
    steps, guidance : int, float
        Denoising steps, and the guidance scale.
    size : tuple of int
        Height and width in pixels.
    precision : str
        A floating type of torch.
    device : torch.device
    offload : bool
        Whether the GPU holds only the model that is at work.
    """

    steps: int
    guidance: float
    size: tuple[int, int]
    precision: str
    device: torch.device
    offload: bool = False


class Painter:
    """A loaded pipeline.

    Parameters
    ----------
    files : PipelineFiles
    manner : Manner
    negative : Tensor, optional
        ``(tokens, width)``: what Stable Diffusion's guidance leads away from.

    Raises
    ------
    DataError
        Files are missing or damaged, or of other models. Nothing is unpickled.
    ConfigError
        It does not fit on the device.
    """

    def __init__(self, files: PipelineFiles, manner: Manner, negative: Tensor | None = None) -> None:
        module, kind, folder = diffusion(), files.kind, files.folder
        self.files, self.manner, self.negative = files, manner, negative
        self.precision: torch.dtype = getattr(torch, manner.precision)
        parts: dict[str, Any] = {
            name: load_weights(getattr(module, class_name), folder / name, KEY, dtype=self.precision)
            for name, class_name in ((kind.part, kind.denoiser), ("vae", "AutoencoderKL"))
        }
        parts |= dict.fromkeys(kind.without)
        if files.target == "sd":
            parts["requires_safety_checker"] = False
        try:
            self.pipeline = getattr(module, kind.pipeline).from_pretrained(
                folder, use_safetensors=True, local_files_only=True, **parts
            )
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{KEY}={files.model}: {kind.pipeline} cannot be made of {folder} ({first_line(error)})"
            ) from error
        self.pipeline.set_progress_bar_config(disable=True)
        try:
            if manner.offload:
                self.pipeline.enable_model_cpu_offload(device=manner.device)
            else:
                self.pipeline.to(manner.device)
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"{KEY}={files.model} does not fit on {manner.device}: try --offload, or --device=cpu"
            ) from error

    def draw(self, heads: Mapping[str, Tensor], generator: torch.Generator) -> Image.Image:
        """Return the picture of one output of the adapters.

        Parameters
        ----------
        heads : Mapping
            ``{head: (width,) or (tokens, width)}``.
        generator : torch.Generator
            On the CPU, so that noise is the same on every device.

        Raises
        ------
        ConfigError
            Memory does not suffice, or the picture has values that are not finite.
        """
        manner = self.manner
        given = {argument: heads[head] for argument, (head, _) in self.files.kind.arguments.items()}
        if self.negative is not None:
            given["negative_prompt_embeds"] = self.negative
        try:
            pixels = self.pipeline(
                **{name: value[None].to(manner.device, self.precision) for name, value in given.items()},
                height=manner.size[0],
                width=manner.size[1],
                num_inference_steps=manner.steps,
                guidance_scale=manner.guidance,
                generator=generator,
                output_type="pt",
            ).images
        except torch.OutOfMemoryError as error:
            raise ConfigError("the picture does not fit into the GPU's memory: try --offload or --size") from error
        require(
            bool(torch.isfinite(pixels).all()),
            f"the picture is not finite in --precision={manner.precision}: try --precision=float32",
        )
        picture: Image.Image = self.pipeline.numpy_to_pil(pixels.float().cpu().permute(0, 2, 3, 1).numpy())[0]
        return picture

"""Tiny pipelines of the real classes of diffusers, saved as their authors save them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from tiny_models import WIDTH, tiny_pipeline, transformers

LATENTS = 2


def diffusers() -> Any:
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    return diffusers


def tiny_flux(folder: Path, guided: bool = False, seed: int = 0, widths: tuple[int, int] = (2 * WIDTH, WIDTH)) -> Path:
    """FLUX whose pictures are multiples of 4 pixels; ``guided`` as FLUX.1-dev is and FLUX.1-schnell is not."""
    library, models = diffusers(), transformers()
    texts = tiny_pipeline(folder.with_name(f"{folder.name}-texts"), "flux")
    torch.manual_seed(seed)
    transformer = library.FluxTransformer2DModel(
        in_channels=4 * LATENTS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=widths[0],
        pooled_projection_dim=widths[1],
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guided,
    )
    library.FluxPipeline(
        scheduler=library.FlowMatchEulerDiscreteScheduler(shift=1.0 if not guided else 3.0),
        vae=_autoencoder(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1),
        text_encoder=models.CLIPTextModel.from_pretrained(texts / "text_encoder"),
        tokenizer=models.CLIPTokenizer.from_pretrained(texts / "tokenizer"),
        text_encoder_2=models.T5EncoderModel.from_pretrained(texts / "text_encoder_2"),
        tokenizer_2=models.T5TokenizerFast.from_pretrained(texts / "tokenizer_2"),
        transformer=transformer,
    ).save_pretrained(folder)
    shutil.rmtree(texts)
    return folder


def tiny_sd(folder: Path) -> Path:
    """Stable Diffusion whose pictures are multiples of 2 pixels, 16 by 16 by default."""
    library, models = diffusers(), transformers()
    texts = tiny_pipeline(folder.with_name(f"{folder.name}-texts"), "sd")
    torch.manual_seed(0)
    unet = library.UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENTS,
        out_channels=LATENTS,
        block_out_channels=(4, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=2,
    )
    library.StableDiffusionPipeline(
        vae=_autoencoder(),
        text_encoder=models.CLIPTextModel.from_pretrained(texts / "text_encoder"),
        tokenizer=models.CLIPTokenizer.from_pretrained(texts / "tokenizer"),
        unet=unet,
        scheduler=library.PNDMScheduler(skip_prk_steps=True, steps_offset=1, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    shutil.rmtree(texts)
    return folder


def _autoencoder(**more: Any) -> Any:
    sizes = {"block_out_channels": (4, 8), "layers_per_block": 1, "norm_num_groups": 2, "latent_channels": LATENTS}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers().AutoencoderKL(**sizes, **blocks, **more)

"""Tiny models of the real classes, written to disk as their authors write them; the real loading code reads them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import filter_repo_objects
from tokenizers.pre_tokenizers import ByteLevel

WIDTH = 12  # of every model here, so that nothing can rely on the usual widths
CLIP_LENGTH = 24


def transformers() -> Any:
    import transformers

    transformers.logging.disable_progress_bar()
    return transformers


def tiny_ast(folder: Path, seed: int = 0, width: int = WIDTH) -> Path:
    """AST with its classification head, as the usual model is: 3 x 5 patches."""
    library = transformers()
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = library.ASTConfig(hidden_size=width, max_length=64, num_mel_bins=40, **sizes)
    torch.manual_seed(seed)
    library.ASTForAudioClassification(config).save_pretrained(folder)
    library.ASTFeatureExtractor(num_mel_bins=40, max_length=64).save_pretrained(folder)
    return folder


def tiny_clap(folder: Path) -> Path:
    """CLAP with both sides, of the kind that fuses parts of long clips."""
    library = transformers()
    audio = {
        "num_mel_bins": 16,
        "spec_size": 64,
        "window_size": 4,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "patch_embeds_hidden_size": 8,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "enable_fusion": True,
        "projection_dim": 8,
    }
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
    torch.manual_seed(0)
    config = library.ClapConfig(audio_config=audio, text_config={**text, "projection_dim": 8}, projection_dim=8)
    library.ClapModel(config).save_pretrained(folder)
    extractor = library.ClapFeatureExtractor(feature_size=16, sampling_rate=16000, hop_length=160, max_length_s=1)
    extractor.save_pretrained(folder)
    return folder


def tiny_pipeline(folder: Path, target: str, seed: int = 0) -> Path:
    """Save the text encoders and tokenizers of a pipeline, each in the folder that ``diffusers`` gives it."""
    library = transformers()
    torch.manual_seed(seed)
    tokens = clip_tokenizer(folder / "tokenizer")
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "projection_dim": WIDTH}
    config = library.CLIPTextConfig(
        vocab_size=tokens, hidden_size=WIDTH, max_position_embeddings=CLIP_LENGTH, eos_token_id=tokens - 1, **sizes
    )
    library.CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    if target == "flux":
        tokens = t5_tokenizer(folder / "tokenizer_2")
        sizes = {"d_model": 2 * WIDTH, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
        config = library.T5Config(vocab_size=tokens, feed_forward_proj="gated-gelu", **sizes)
        library.T5EncoderModel(config).save_pretrained(folder / "text_encoder_2", max_shard_size="3KB")
    return folder


def clip_tokenizer(folder: Path) -> int:
    """Write CLIP's vocabulary of single letters, and two merges; return its size."""
    letters = sorted(ByteLevel.alphabet())
    merges = ["t h", "th e</w>"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "th", "the</w>", "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CLIP_LENGTH}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(words)


def t5_tokenizer(folder: Path) -> int:
    """Write a T5 tokenizer of single letters; return its size."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = [("▁", -2.0), ("▁the", -1.0), *((letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz")]
    tokenizer = transformers().T5TokenizerFast(vocab=[*special, *pieces], extra_ids=0)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def offline(*arguments: object, **options: object) -> str:
    """In place of what fetches from Hugging Face."""
    raise ConnectionError("no network\nmore words")


def downloaded(source: Path, message: str, folder: Path) -> Path:
    """Copy to ``folder`` what the ``hf download`` of an error takes of ``source``, by Hugging Face's own rules."""
    files = [str(file.relative_to(source)) for file in source.rglob("*") if file.is_file()]
    for name in filter_repo_objects(files, allow_patterns=re.findall(r"--include '([^']+)'", message)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, folder / name)
    return folder

"""The target source ``words``: embeddings that a prompt's words alone decide, without any weights."""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fedgen.data.streams import stream

TEMPLATE_WEIGHT = 0.25  # of a word of the template; a word of the class weighs 1
POSITION_WEIGHT = 0.3  # of what a token position adds to every prompt


def word_targets(classes: list[str], name: str, template: str, t5_tokens: int) -> dict[str, Tensor]:
    """Return the targets of ``classes`` by head, ``(C, width)`` or ``(C, tokens, width)``, each vector of unit norm."""
    shapes = head_shapes(name, t5_tokens)
    heads = {head: torch.stack([embed(label, template, *shapes[head]) for label in classes]) for head in shapes}
    return {head: heads[head] if shapes[head][0] else heads[head][:, 0] for head in shapes}


def head_shapes(name: str, t5_tokens: int) -> dict[str, tuple[int, int]]:
    """Return ``(tokens, width)`` by head; no tokens means one pooled vector."""
    if name == "sd":
        return {"clip": (77, 768)}
    if name == "flux":
        return {"clip": (0, 768), "t5": (t5_tokens, 4096)}
    return {"text": (0, 384)}


def embed(label: str, template: str, tokens: int, width: int) -> Tensor:
    """Return a prompt's embedding ``(max(tokens, 1), width)``, unit norm per token.

    A prompt is the weighted sum of one random direction per word, so prompts that share words are near. Each token
    position sees the sum through its own gains and adds a direction of its own, as positions of a text encoder do.
    """
    weighted = [(word, TEMPLATE_WEIGHT) for word in words(template)] + [(word, 1.0) for word in words(label)]
    prompt = np.sum([weight * _direction(word, width) for word, weight in weighted], axis=0)  # (width,)
    if not tokens:
        return _unit(prompt[None])
    gains = np.stack([_gains(t, width) for t in range(tokens)])
    own = np.stack([_direction(f"position {t}", width) for t in range(tokens)])
    return _unit(gains * prompt + POSITION_WEIGHT * own)


def _unit(vectors: np.ndarray) -> Tensor:
    return torch.from_numpy(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).float()


@lru_cache(maxsize=1024)
def _gains(position: int, width: int) -> np.ndarray:
    """Return the gains of a token position ``(width,)``, float64."""
    return stream("gain", position, width).uniform(0.5, 1.5, width)


@lru_cache(maxsize=1024)
def _direction(word: str, width: int) -> np.ndarray:
    """Return the word's random direction ``(width,)`` of about unit norm, float64."""
    return stream("word", word, width).standard_normal(width) / np.sqrt(width)


def words(text: str) -> list[str]:
    """Return the words of ``text`` in small letters, underscores left out."""
    return re.findall(r"[^\W_]+", text.lower())

"""Text-conditioning targets: what an adapter has to give for a clip of a class."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fedgen.data.conditions import Conditions
from fedgen.data.streams import stream
from fedgen.errors import DataError, choose, require

TARGETS = ["sd", "flux", "small"]
SOURCES = ["words"]
TEMPLATE_WEIGHT = 0.25  # of a word of the template; a word of the class weighs 1
POSITION_WEIGHT = 0.3  # of what a token position adds to every prompt


@dataclass(frozen=True)
class TargetSettings:
    """Which text-conditioning targets the adapters learn.

    Attributes
    ----------
    name : str
        ``sd`` (Stable Diffusion 1.5: ``clip`` 77 x 768), ``flux`` (``clip`` 768 and ``t5`` tokens x 4096) or ``small``
        (``text`` 384).
    source : str
        ``words``: deterministic embeddings of the prompt's words; needs no weights.
    template : str
        The class prompt; ``{}`` is replaced by the class name.
    t5_tokens : int
        Tokens of the ``t5`` target.
    """

    name: str = "small"
    source: str = "words"
    template: str = "the sound of {}"
    t5_tokens: int = 17

    def __post_init__(self) -> None:
        choose(self.name, TARGETS, "target")
        choose(self.source, SOURCES, "target.source")
        require(self.template.count("{}") == 1, f"target.template={self.template!r} has not exactly one {{}}")
        require(self.t5_tokens >= 1, f"target.t5_tokens={self.t5_tokens} is not at least 1")


@dataclass(frozen=True)
class Targets:
    """One target per class and head.

    Attributes
    ----------
    classes : list[str]
        Class names, by global id.
    heads : dict[str, Tensor]
        By head name: ``(C, width)``, or ``(C, tokens, width)``, float32, each vector of unit norm.
    """

    classes: list[str]
    heads: dict[str, Tensor]

    def fingerprint(self) -> list[list[float]]:
        """Return the first values of every class's target by head, ``(C, heads * 8)``: other targets have others."""
        return torch.cat([value.flatten(1)[:, :8] for _, value in sorted(self.heads.items())], dim=1).tolist()

    def conditions(self) -> Conditions:
        """Return what generators may be conditioned on: every head's target of every class."""
        return Conditions(self.heads)


def open_targets(classes: list[str], settings: TargetSettings) -> Targets:
    """Return the targets of ``classes``.

    Raises
    ------
    DataError
        A class name holds no word, or two classes consist of the same words and would have the same target.
    """
    _check_words(classes)
    shapes = _head_shapes(settings)
    heads = {
        name: torch.stack([_embed(label, settings.template, *shapes[name]) for label in classes]) for name in shapes
    }
    return Targets(list(classes), {name: heads[name] if shapes[name][0] else heads[name][:, 0] for name in shapes})


def _head_shapes(settings: TargetSettings) -> dict[str, tuple[int, int]]:
    """Return ``(tokens, width)`` by head; no tokens means one pooled vector."""
    if settings.name == "sd":
        return {"clip": (77, 768)}
    if settings.name == "flux":
        return {"clip": (0, 768), "t5": (settings.t5_tokens, 4096)}
    return {"text": (0, 384)}


def _embed(label: str, template: str, tokens: int, width: int) -> Tensor:
    """Return a prompt's embedding ``(max(tokens, 1), width)``, unit norm per token.

    A prompt is the weighted sum of one random direction per word, so prompts that share words are near. Each token
    position sees the sum through its own gains and adds a direction of its own, as positions of a text encoder do.
    """
    words = [(word, TEMPLATE_WEIGHT) for word in _words(template)] + [(word, 1.0) for word in _words(label)]
    prompt = np.sum([weight * _direction(word, width) for word, weight in words], axis=0)  # (width,)
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


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _check_words(classes: list[str]) -> None:
    seen: dict[tuple[str, ...], str] = {}
    for name in classes:
        words = tuple(sorted(_words(name)))
        if not words:
            raise DataError(f"class {name!r} holds no word to make a target of")
        if words in seen:
            raise DataError(
                f"classes {seen[words]!r} and {name!r} consist of the same words: their targets are the same"
            )
        seen[words] = name

"""Text-conditioning targets: the outputs that an adapter learns for the clips of each class."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedgen.data.clip_t5 import TextEncoders
from fedgen.data.files import digest, home, locked
from fedgen.data.seeds import stream
from fedgen.data.settings import TargetSettings, name_of
from fedgen.data.tensors import exact_digest, load_tensors, save_tensors
from fedgen.errors import CheckpointError, ConfigError, DataError, suggestion

log = logging.getLogger(__name__)

CACHE_FORMAT = 2
PREPARE = "`fedgen prepare` with the same target"
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
    position multiplies the sum by gains of its own and adds a direction of its own, as in a text encoder.
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


@dataclass(frozen=True)
class Conditions:
    """The text embeddings of every class, by name (``clip``, ``t5``, ``text``)."""

    values: Mapping[str, Tensor]  # by global class id: vectors (C, width) or token sequences (C, tokens, width)

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Shape of a class's embedding by name: ``(width,)`` or ``(tokens, width)``."""
        return {name: tuple(value.shape[1:]) for name, value in self.values.items()}

    def __len__(self) -> int:
        return min((len(value) for value in self.values.values()), default=0)

    def select(self, names: Sequence[str]) -> Conditions:
        """Return the embeddings ``names`` in that order, all if it is empty; `ConfigError` if one is unknown."""
        for name in names:
            if name not in self.values:
                known = f"{', '.join(self.values) or 'none'}.{suggestion(name, self.values)}"
                raise ConfigError(f"generator.conditions names {name!r}, the target has {known}")
        return Conditions({name: self.values[name] for name in names or self.values})

    def pooled(self) -> Tensor:
        """Return one vector per class ``(C, c)``: each embedding's mean over tokens, of unit norm, side by side."""
        means = [value if value.dim() == 2 else value.mean(1) for value in self.values.values()]  # (C, width) each
        return torch.cat([functional.normalize(mean, dim=1) for mean in means], dim=1)


@dataclass(frozen=True)
class Targets:
    """One target per class and head; vectors of ``words`` have unit norm, those of ``clip_t5`` the pipeline's."""

    classes: list[str]  # names by global id
    heads: dict[str, Tensor]  # by name: (C, width) or (C, tokens, width), float32

    def fingerprint(self) -> list[list[float]]:
        """Return 8 values of every class's target by head, ``(C, heads * 8)``, which tell targets apart.

        They are the first values of the last token, at unit norm: CLIP's first token is the same for all prompts.
        """
        last = [value if value.dim() == 2 else value[:, -1] for _, value in sorted(self.heads.items())]  # (C, width)
        return torch.cat([functional.normalize(value, dim=1)[:, :8] for value in last], dim=1).tolist()

    def conditions(self) -> Conditions:
        """Return the conditions of generators: every head's target of every class."""
        return Conditions(self.heads)


class TargetCache:
    """Targets of prompts by one choice of text encoders: they run once; nodes, servers and sweeps read their outputs.

    The folder, below ``$FEDGEN_HOME/targets``, has one safetensors file a prompt. Each file holds its origin: the
    settings, and digests of the text encoders' files. It can be copied to machines that have no text encoders.
    """

    def __init__(self, settings: TargetSettings) -> None:
        self.facts = {
            "format": CACHE_FORMAT,
            "source": settings.source,
            "target": settings.name,
            "model": name_of(settings.pipeline),
            "revision": settings.revision,
            "t5_tokens": settings.t5_tokens if settings.name == "flux" else None,
            "precision": settings.precision,
        }
        code = digest(json.dumps(self.facts, sort_keys=True))[:8]
        self.folder = home() / "targets" / f"{settings.name}-{self.facts['model']}-{code}"

    def read(self, prompts: list[str]) -> dict[str, Tensor]:
        """Return the targets of ``prompts`` by head, ``(N, width)`` or ``(N, tokens, width)``, float32.

        `DataError`: some are missing or damaged, or not all are of the same text encoders.
        """
        missing = [prompt for prompt in prompts if not self._file(prompt).is_file()]
        if missing:
            shown = ", ".join(map(repr, missing[:3])) + (", ..." if len(missing) > 3 else "")
            raise DataError(
                f"{self.folder} lacks the targets of {shown} ({len(missing)} of {len(prompts)}): make them with "
                f"{PREPARE}, on this machine, or copy the folder from one that has them"
            )
        found = [self._load(prompt) for prompt in prompts]
        if any(maker != found[0][0] for maker, _ in found):
            raise DataError(f"{self.folder} holds targets of several text encoders: delete it and use {PREPARE}")
        return {head: torch.stack([tensors[head] for _, tensors in found]) for head in sorted(found[0][1])}

    def missing(self, prompts: list[str], encoders: TextEncoders) -> tuple[list[str], dict[str, Any]]:
        """Return the prompts whose targets are missing or damaged, and the maker of their targets.

        `DataError`: the other targets are of other text encoders, or as `TextEncoders.check`.
        """
        makers, missing = [], []
        for prompt in prompts:
            try:
                makers.append(self._load(prompt)[0])
            except DataError:
                missing.append(prompt)
        if not missing:
            return [], {}
        encoders.check(missing)
        maker = {**self.facts, "digests": encoders.digests()}
        if any(other != maker for other in makers):
            raise DataError(
                f"{self.folder} holds targets of other text encoders than {encoders.folder}: delete it, or give "
                "the model's folder another name and set target.model"
            )
        return missing, maker

    def fill(self, prompts: list[str], encoders: TextEncoders) -> None:
        """Encode the targets that `missing` returns; the next call continues an interrupted one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder):
            todo, maker = self.missing(prompts, encoders)
            if not todo:  # another process has made them meanwhile
                return
            for file in filter(Path.exists, map(self._file, todo)):
                log.warning("%s is damaged, or of other targets: it is written again", file)
            log.info("encoding %d prompts into %s", len(todo), self.folder)
            for prompt, tensors in encoders.encode(todo):
                facts = {"maker": maker, "prompt": prompt, "sha256": exact_digest(tensors)}
                save_tensors(self._file(prompt), tensors, facts)

    def _file(self, prompt: str) -> Path:
        return self.folder / f"{digest(prompt)[:16]}.safetensors"

    def _load(self, prompt: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the maker of a prompt's targets, and these by head."""
        file = self._file(prompt)
        try:
            tensors, facts = load_tensors(file)
        except CheckpointError as error:
            raise DataError(f"{file} cannot be read ({error}); {PREPARE} writes it again") from error
        maker = facts.get("maker")
        whole = facts.get("prompt") == prompt and facts.get("sha256") == exact_digest(tensors)
        if not whole or not isinstance(maker, dict) or maker | self.facts != maker:
            raise DataError(f"{file} is damaged, or belongs to other targets; {PREPARE} writes it again")
        return maker, tensors


def open_targets(classes: list[str], settings: TargetSettings) -> Targets:
    """Return the targets of ``classes``; those of ``clip_t5`` are read from the cache that `prepare_targets` fills.

    Raises
    ------
    DataError
        A class name holds no word; two classes consist of the same words and would have the same target; or targets
        are not on this machine yet.
    """
    _check_words(classes)
    if settings.source == "words":
        return Targets(list(classes), word_targets(classes, settings.name, settings.template, settings.t5_tokens))
    return Targets(list(classes), TargetCache(settings).read(settings.prompts(classes)))


def check_targets(classes: list[str], settings: TargetSettings) -> None:
    """Raise the errors of `prepare_targets` before the hours of encoding clips; files are fetched if need be."""
    _check_words(classes)
    if settings.source != "words":
        TargetCache(settings).missing(settings.prompts(classes), TextEncoders(settings))


def prepare_targets(classes: list[str], settings: TargetSettings, device: torch.device | str = "cpu") -> Targets:
    """Encode the missing prompts on ``device`` and return the targets of ``classes``.

    Raises
    ------
    DataError
        As `open_targets` and `TextEncoders.check`.
    """
    _check_words(classes)
    try:
        return open_targets(classes, settings)
    except DataError:  # missing or damaged
        TargetCache(settings).fill(settings.prompts(classes), TextEncoders(settings, device))
        return open_targets(classes, settings)


def cache_folder(settings: TargetSettings) -> Path | None:
    """Return the folder of the cached targets; None if they are made anew each time."""
    return None if settings.source == "words" else TargetCache(settings).folder


def _check_words(classes: list[str]) -> None:
    seen: dict[tuple[str, ...], str] = {}
    for name in classes:
        own = tuple(sorted(words(name)))
        if not own:
            raise DataError(f"class {name!r} holds no word to make a target of")
        if own in seen:
            raise DataError(f"classes {seen[own]!r} and {name!r} consist of the same words: their targets are the same")
        seen[own] = name

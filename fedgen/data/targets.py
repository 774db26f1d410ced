"""Text-conditioning targets: what an adapter has to give for a clip of a class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from fedgen.data.clip_t5 import PARTS, PRECISIONS, Prompts
from fedgen.data.conditions import Conditions
from fedgen.data.pretrained import name_of
from fedgen.data.target_cache import TargetCache
from fedgen.data.words import word_targets, words
from fedgen.errors import DataError, choose, require

TARGETS = ["sd", "flux", "small"]
SOURCES = ["words", "clip_t5"]
PIPELINES = {"flux": "black-forest-labs/FLUX.1-schnell", "sd": "stable-diffusion-v1-5/stable-diffusion-v1-5"}


@dataclass(frozen=True)
class TargetSettings:
    """Which text-conditioning targets the adapters learn.

    Attributes
    ----------
    name : str
        ``sd`` (Stable Diffusion 1.5: ``clip`` 77 x 768), ``flux`` (``clip`` 768 and ``t5`` tokens x 4096) or ``small``
        (``text`` 384).
    source : str
        ``words``: deterministic embeddings of the prompt's words; needs no weights. ``clip_t5``: the text encoders of
        the pipeline (extra ``encoders``), with the shapes that they have.
    template : str
        The class prompt; ``{}`` is replaced by the class name.
    t5_tokens : int
        Tokens of the ``t5`` target.
    model : str, optional
        ``clip_t5``: the pipeline, a folder or a name at Hugging Face in the layout of ``diffusers``; by default the
        usual one of the target.
    revision : str, optional
        Branch, tag or commit at Hugging Face; ``main`` by default.
    precision : str
        ``clip_t5``: what text encoders compute in, ``float32`` or ``bfloat16``, which takes half the memory.
    """

    name: str = "small"
    source: str = "words"
    template: str = "the sound of {}"
    t5_tokens: int = 17
    model: str | None = None
    revision: str | None = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        choose(self.name, TARGETS, "target")
        choose(self.source, SOURCES, "target.source")
        choose(self.precision, PRECISIONS, "target.precision")
        require(self.template.count("{}") == 1, f"target.template={self.template!r} has not exactly one {{}}")
        require(self.t5_tokens >= 1, f"target.t5_tokens={self.t5_tokens} is not at least 1")
        if self.source == "words":
            for key in ("model", "revision"):
                value = getattr(self, key)
                require(value is None, f"target.{key}={value} needs target.source=clip_t5: words have no model")
        else:
            known = " or ".join(PARTS)
            require(self.name in PARTS, f"target={self.name} has no target.source={self.source}: choose target={known}")

    @property
    def pipeline(self) -> str:
        """The pipeline whose text encoders make the targets: ``model``, or the usual one; not of ``target=small``."""
        return self.model or PIPELINES[self.name]

    @property
    def label(self) -> str:
        """What a checkpoint must agree on: the target, and where it is from unless that is ``words``."""
        return self.name if self.source == "words" else f"{self.name} of {name_of(self.pipeline)}"

    @property
    def cache(self) -> TargetCache:
        """Where the targets of ``clip_t5`` are kept."""
        tokens = self.t5_tokens if self.name == "flux" else None
        facts = (self.source, self.name, name_of(self.pipeline), self.revision, tokens, self.precision)
        names = ("source", "target", "model", "revision", "t5_tokens", "precision")
        return TargetCache(dict(zip(names, facts, strict=True)))

    def text_encoders(self, device: torch.device | str = "cpu") -> Prompts:
        """Return what makes the targets of ``clip_t5``; no files are looked for yet."""
        return Prompts(self.name, self.t5_tokens, self.pipeline, self.revision, self.precision, device)

    def prompts(self, classes: list[str]) -> list[str]:
        """Return what the text encoders are given for each class, with spaces for underscores."""
        return [self.template.replace("{}", name.replace("_", " ")) for name in classes]


@dataclass(frozen=True)
class Targets:
    """One target per class and head.

    Attributes
    ----------
    classes : list[str]
        Class names, by global id.
    heads : dict[str, Tensor]
        By head name: ``(C, width)``, or ``(C, tokens, width)``, float32. Vectors of ``words`` have unit norm, those of
        ``clip_t5`` are as the pipelines take them.
    """

    classes: list[str]
    heads: dict[str, Tensor]

    def fingerprint(self) -> list[list[float]]:
        """Return values of every class's target by head, ``(C, heads * 8)``: other targets have others.

        They are the first of the last token, at unit norm: CLIP's first token is the same for all prompts.
        """
        last = [value if value.dim() == 2 else value[:, -1] for _, value in sorted(self.heads.items())]  # (C, width)
        return torch.cat([functional.normalize(value, dim=1)[:, :8] for value in last], dim=1).tolist()

    def conditions(self) -> Conditions:
        """Return what generators may be conditioned on: every head's target of every class."""
        return Conditions(self.heads)


def open_targets(classes: list[str], settings: TargetSettings) -> Targets:
    """Return the targets of ``classes``; those of ``clip_t5`` are read from where `prepare_targets` put them.

    Raises
    ------
    DataError
        A class name holds no word, or two classes consist of the same words and would have the same target; or targets
        are not on this machine yet.
    """
    _check_words(classes)
    if settings.source == "words":
        return Targets(list(classes), word_targets(classes, settings.name, settings.template, settings.t5_tokens))
    return Targets(list(classes), settings.cache.read(settings.prompts(classes)))


def check_targets(classes: list[str], settings: TargetSettings) -> None:
    """See that `prepare_targets` can encode what is missing: soon, where clips are encoded first, which takes hours.

    Files of text encoders are fetched if need be.

    Raises
    ------
    DataError
        As `prepare_targets`.
    """
    _check_words(classes)
    if settings.source != "words":
        settings.cache.check(settings.prompts(classes), settings.text_encoders())


def prepare_targets(
    classes: list[str], settings: TargetSettings, device: torch.device | str = "cpu", progress: bool = True
) -> Targets:
    """Encode the prompts that are missing on this machine, one text encoder after the other, and return the targets.

    Parameters
    ----------
    classes : list[str]
    settings : TargetSettings
    device : torch.device or str
        Where text encoders compute.
    progress : bool
        Whether a terminal shows a progress bar; without a terminal the log gets a line for each text encoder.

    Raises
    ------
    DataError
        As `open_targets`; files of the text encoders are missing; or a prompt is longer than they take.
    """
    _check_words(classes)
    try:
        return open_targets(classes, settings)
    except DataError:  # not there, or damaged: filling the cache makes it or says why it cannot
        settings.cache.fill(settings.prompts(classes), settings.text_encoders(device), progress)
        return open_targets(classes, settings)


def cache_folder(settings: TargetSettings) -> Path | None:
    """Return the folder of the cached targets; None if they are made anew each time."""
    return None if settings.source == "words" else settings.cache.folder


def _check_words(classes: list[str]) -> None:
    seen: dict[tuple[str, ...], str] = {}
    for name in classes:
        own = tuple(sorted(words(name)))
        if not own:
            raise DataError(f"class {name!r} holds no word to make a target of")
        if own in seen:
            raise DataError(f"classes {seen[own]!r} and {name!r} consist of the same words: their targets are the same")
        seen[own] = name

"""Targets on disk: text encoders run once, and nodes, servers and sweeps read their outputs.

A cache is a folder below ``$FEDGEN_HOME/targets`` with one safetensors file a prompt. Each file holds its origin: the
settings, and digests of the text encoders' files. It can be copied to machines that have no text encoders.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedgen.data.clip_t5 import TextEncoders
from fedgen.data.files import digest, home, locked
from fedgen.data.settings import TargetSettings, name_of
from fedgen.data.tensors import exact_digest, load_tensors, save_tensors
from fedgen.errors import CheckpointError, DataError

FORMAT = 2
PREPARE = "`fedgen prepare` with the same target"

log = logging.getLogger(__name__)


class TargetCache:
    """The targets of prompts under one choice of text encoders.

    Attributes
    ----------
    facts : dict
        The choice, plain JSON.
    folder : Path
        Folder of the files.
    """

    def __init__(self, settings: TargetSettings) -> None:
        self.facts = {
            "format": FORMAT,
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

        Raises
        ------
        DataError
            Some are missing or damaged, or not all are of the same text encoders.
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
        return {head: torch.stack([tensors[head] for _, tensors in found]) for head in found[0][1]}

    def missing(self, prompts: list[str], encoders: TextEncoders) -> tuple[list[str], dict[str, Any]]:
        """Return the prompts whose targets are missing or damaged, and the maker of their targets.

        Raises
        ------
        DataError
            The targets that are there are of other text encoders, or as `TextEncoders.check`.
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
        """Encode those of ``prompts`` that are missing or damaged; an interrupted call is continued by the next.

        Raises
        ------
        DataError
            As `missing` and `TextEncoders.encode`.
        """
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

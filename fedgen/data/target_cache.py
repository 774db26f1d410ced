"""Targets on disk: text encoders run once, and nodes, servers and sweeps read what they gave.

A cache is a folder below ``$FEDGEN_HOME/targets`` with one safetensors file a prompt. Each file says what made it: the
settings, and a digest of the text encoders' files. It can be copied to machines that have no text encoders.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedgen.data.clip_t5 import PARTS, Prompts
from fedgen.data.files import home, locked, write_atomically
from fedgen.errors import DataError

FORMAT = 1
PREPARE = "`fedgen prepare` with the same target"

log = logging.getLogger(__name__)


class TargetCache:
    """The targets of prompts under one choice of text encoders.

    Attributes
    ----------
    facts : dict
        The choice, plain JSON.
    folder : Path
        Where they are.
    """

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = {"format": FORMAT, **facts}
        code = hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:8]
        self.folder = home() / "targets" / f"{facts['target']}-{facts['model']}-{code}"

    def read(self, prompts: list[str]) -> dict[str, Tensor]:
        """Return the targets of ``prompts`` by head, ``(N, width)`` or ``(N, tokens, width)``, float32.

        Raises
        ------
        DataError
            Some are missing or damaged, or other text encoders made some than others.
        """
        missing = [prompt for prompt in prompts if not self._file(prompt).is_file()]
        if missing:
            shown = ", ".join(map(repr, missing[:3])) + (", ..." if len(missing) > 3 else "")
            raise DataError(
                f"{self.folder} lacks the targets of {shown} ({len(missing)} of {len(prompts)}): make them with "
                f"{PREPARE}, on this machine, or copy the folder from one that has them"
            )
        found = [self._load(prompt) for prompt in prompts]
        makers = {json.dumps(maker, sort_keys=True) for maker, _ in found}
        if len(makers) > 1:
            raise DataError(f"{self.folder} holds targets of several text encoders: delete it and use {PREPARE}")
        heads = found[0][1]
        return {head: torch.stack([tensors[head] for _, tensors in found]) for head in heads}

    def check(self, prompts: list[str], encoders: Prompts) -> None:
        """Raise what `fill` would before it encodes: soon, and not after all that comes before."""
        makers, missing = self._found(prompts)
        if missing:
            encoders.check(missing)
        if missing and makers:
            self._maker(makers, encoders)

    def fill(self, prompts: list[str], encoders: Prompts, progress: bool = True) -> None:
        """Encode those of ``prompts`` that are missing or damaged; interrupted, it goes on where it was.

        Raises
        ------
        DataError
            Other text encoders made what is there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder):
            makers, todo = self._found(prompts)
            if not todo:  # another process has made them meanwhile
                return
            for prompt in todo:
                if self._file(prompt).exists():
                    log.warning("%s is damaged, or of other targets: it is written again", self._file(prompt))
            self._encode(todo, encoders, self._maker(makers, encoders), progress and sys.stderr.isatty())

    def _found(self, prompts: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
        """Return what made those that are there, and the prompts that are missing or damaged."""
        makers, missing = [], []
        for prompt in prompts:
            try:
                makers.append(self._load(prompt)[0])
            except DataError:
                missing.append(prompt)
        return makers, missing

    def _maker(self, makers: list[dict[str, Any]], encoders: Prompts) -> dict[str, Any]:
        """Return what will have made the rest; `DataError` unless it is what made those that are there."""
        maker = {**self.facts, "digests": encoders.digests()}
        if any(other != maker for other in makers):
            raise DataError(
                f"{self.folder} holds targets of other text encoders than {encoders.folder}: delete it, or give "
                "the model's folder another name and set target.model"
            )
        return maker

    def _encode(self, prompts: list[str], encoders: Prompts, maker: dict[str, Any], bar: bool) -> None:
        log.info("encoding %d prompts into %s", len(prompts), self.folder)
        with Progress(disable=not bar) as shown:
            tasks = {
                part.head: shown.add_task(f"encoding prompts ({part.head})", total=len(prompts))
                for part in PARTS[encoders.target]
            }

            def done(head: str, count: int) -> None:
                shown.advance(tasks[head], count)
                if not bar:
                    log.info("encoded %d prompts for %s", count, head)

            for prompt, tensors in encoders.encode(prompts, done):
                facts = {"maker": json.dumps(maker, sort_keys=True), "prompt": prompt, "sha256": _checksum(tensors)}
                whole = {head: value.contiguous() for head, value in tensors.items()}
                write_atomically(self._file(prompt), save(whole, facts))

    def _file(self, prompt: str) -> Path:
        return self.folder / f"{hashlib.sha256(prompt.encode()).hexdigest()[:16]}.safetensors"

    def _load(self, prompt: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what made a prompt's targets, and these by head."""
        file = self._file(prompt)
        try:
            with safe_open(file, framework="pt") as reader:
                facts = reader.metadata()
                tensors = {head: reader.get_tensor(head) for head in reader.keys()}  # noqa: SIM118
            maker = json.loads(facts["maker"])
            whole = facts["prompt"] == prompt and facts["sha256"] == _checksum(tensors)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{file} cannot be read ({error}); {PREPARE} writes it again") from error
        if not whole or {key: maker.get(key) for key in self.facts} != self.facts:
            raise DataError(f"{file} is damaged, or belongs to other targets; {PREPARE} writes it again")
        return maker, tensors


def _checksum(tensors: dict[str, Tensor]) -> str:
    whole = hashlib.sha256()
    for head, value in sorted(tensors.items()):
        whole.update(f"{head} {tuple(value.shape)}".encode())
        whole.update(value.contiguous().numpy().tobytes())
    return whole.hexdigest()

"""What a node remembers between messages, on its disk and by round, so that an interrupted round can be repeated."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fedgen.data.tensors import load_tensors, save_tensors
from fedgen.models.codec import Codec
from fedgen.models.samples import SyntheticTokens
from fedgen.models.states import join, part_of
from fedgen.runs.checkpoint import holds_checkpoints

KEPT = 2  # rounds of each part: the one that was finished last, and one that may have been interrupted
PARTS = ("optimizer", "generators")  # what another run goes on from
RELEASE = "release.safetensors"


@dataclass(frozen=True)
class NodeState:
    """A node's optimiser state and generators after each round; the latest two rounds are kept.

    ==================================  ===================================================
    ``optimizer/round_{n}.safetensors`` moments of the adapters' optimiser after round n
    ``adapters/round_{n}.safetensors``  the adapters that came in round n, and what training made of them
    ``sums/round_{n}.safetensors``      sums over the node's clips, of mode=analytic
    ``generators/round_{n}/``           a checkpoint of the generators after round n
    ``others.safetensors``              samples of other nodes that the latest round trains on
    ``release.safetensors``             the private release of the node's clips, under ``privacy=dp``
    ==================================  ===================================================

    """

    folder: Path  # the node's own; it need not exist

    def clear(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def save(self, part: str, round_number: int, tensors: dict[str, Tensor]) -> None:
        """Keep the ``optimizer``, the ``adapters`` or the ``sums`` after ``round_number``."""
        save_tensors(self._path(part, round_number), tensors, {"round": round_number})
        self.prune(part, round_number)

    def load(self, part: str, before: int | None = None) -> dict[str, Tensor]:
        """Return what `save` kept last of a round before ``before`` (None: of any round); empty if there is nothing."""
        path = self.latest(part, before)
        return load_tensors(path)[0] if path else {}

    def adapters(self) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Return the adapters of the latest round, before and after training; empty if none were trained."""
        kept = self.load("adapters")
        return [(part_of(kept, "before"), part_of(kept, "after"))] if kept else []

    def save_release(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Keep what was released of the node's clips, and what it cost."""
        save_tensors(self.folder / RELEASE, tensors, facts)

    def release(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return what was released of the node's clips, and what it cost; None if nothing was."""
        return load_tensors(self.folder / RELEASE) if (self.folder / RELEASE).is_file() else None

    def save_others(self, samples: Mapping[int, SyntheticTokens], round_number: int) -> None:
        """Keep samples of other nodes, by their numbers, for the training of ``round_number``, and no earlier ones."""
        tensors = join({str(number): own.state() for number, own in samples.items()})
        seeds = {str(number): own.seed for number, own in samples.items()}
        save_tensors(self.folder / "others.safetensors", tensors, {"round": round_number, "seeds": seeds})

    def others(self, codec: Codec) -> tuple[dict[int, SyntheticTokens], int | None]:
        """Return the samples of other nodes, and the round that they are for; none and None if there are none."""
        path = self.folder / "others.safetensors"
        if not path.is_file():
            return {}, None
        tensors, metadata = load_tensors(path)
        seeds = metadata["seeds"].items()
        samples = {int(n): SyntheticTokens.from_state(part_of(tensors, n), codec, seed) for n, seed in seeds}
        return samples, metadata["round"]

    def generators(self, round_number: int) -> Path:
        """Return the folder for the generators after ``round_number``."""
        return self._path("generators", round_number)

    def latest(self, part: str, before: int | None = None) -> Path | None:
        """Return the latest whole state of ``part`` from a round before ``before`` (None: of any round)."""
        rounds = [number for number in self._rounds(part) if before is None or number < before]
        return self._path(part, rounds[-1]) if rounds else None

    def inherit(self, earlier: NodeState, finished: int) -> None:
        """Copy the latest state of another run as that of round ``finished``, and its private release."""
        if (kept := earlier.release()) is not None:
            self.save_release(*kept)
        for part in PARTS:
            source = earlier.latest(part)
            if source is not None:
                target = self._path(part, finished)
                target.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)

    def prune(self, part: str, newest: int) -> None:
        """Remove what is older than the last `KEPT` rounds up to ``newest``."""
        for number in [number for number in self._rounds(part) if number <= newest][:-KEPT]:
            path = self._path(part, number)
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _rounds(self, part: str) -> list[int]:
        """Return the rounds of whole states in ascending order; generators are whole once their manifest is there."""
        paths = (self.folder / part).glob("round_*")
        found = [(path, re.match(r"round_(\d+)(\.safetensors)?$", path.name)) for path in paths]
        whole = [(path, match) for path, match in found if not path.is_dir() or holds_checkpoints(path)]
        return sorted(int(match.group(1)) for _, match in whole if match)

    def _path(self, part: str, round_number: int) -> Path:
        return self.folder / part / f"round_{round_number}{'' if part == 'generators' else '.safetensors'}"

"""The state of a run after each finished round, from which an interrupted run goes on as if it had never stopped."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fedgen.errors import CheckpointError
from fedgen.exchange.files import load_tensors, save_tensors
from fedgen.files import write_atomically
from fedgen.plain import read_json

FORMAT = 1


@dataclass
class RunState:
    """What a run needs to go on after a round.

    Attributes
    ----------
    round : int
        The last finished round, counted over the whole run.
    tensors : dict[str, dict[str, Tensor]]
        By purpose: global adapters, the strategy's moments, samples of each node, shared generators.
    facts : dict
        The same for JSON values: what the recorder knows, seeds of samples, classes that generators have seen.
    """

    round: int
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class RunStates:
    """A run's states on disk, ``round_{n}/`` each; only the latest is kept.

    A state is written beside the earlier one and gets its name once it is whole, so that a process that dies at any
    moment leaves a whole one.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, state: RunState) -> None:
        """Keep ``state`` in place of the earlier one."""
        target = self.folder / f"round_{state.round}"
        shutil.rmtree(target, ignore_errors=True)
        new = self.folder / f"round_{state.round}.new"
        shutil.rmtree(new, ignore_errors=True)
        for name, tensors in state.tensors.items():
            save_tensors(new / f"{name}.safetensors", tensors, {"round": state.round})
        content = {"format": FORMAT, "round": state.round, "tensors": sorted(state.tensors), "facts": state.facts}
        write_atomically(new / "state.json", json.dumps(content).encode())
        os.replace(new, target)
        for path in self.folder.iterdir():
            if path != target:
                shutil.rmtree(path)

    def latest(self) -> RunState | None:
        """Return the latest whole state; None if no round was finished.

        Raises
        ------
        CheckpointError
            A file of it is damaged.
        """
        found = (re.fullmatch(r"round_(\d+)", path.name) for path in self.folder.glob("round_*"))
        rounds = sorted(int(match.group(1)) for match in found if match)
        if not rounds:
            return None
        folder = self.folder / f"round_{rounds[-1]}"
        content = _read(folder / "state.json")
        tensors = {name: load_tensors(folder / f"{name}.safetensors")[0] for name in content["tensors"]}
        return RunState(rounds[-1], tensors, content["facts"])


def _read(file: Path) -> Mapping[str, Any]:
    try:
        content = read_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{file} is not a run's state of format {FORMAT}")
    return content

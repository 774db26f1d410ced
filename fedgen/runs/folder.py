"""The folder of a run, and its state after each finished round, from which an interrupted run resumes."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fedgen.config.compose import read_config, to_yaml
from fedgen.config.settings import Config
from fedgen.data.files import save_json, write_atomically, writing
from fedgen.data.plain import mismatches, read_json
from fedgen.data.tensors import load_tensors, save_tensors
from fedgen.errors import CheckpointError, ConfigError, StorageError, said
from fedgen.models.codec import Codec
from fedgen.models.samples import SyntheticTokens

logger = logging.getLogger(__name__)

ADAPTERS = "adapters.safetensors"
FAILURE = "failure.json"
FORMAT = 1  # of states
MADE = ("metrics.jsonl", "results.json", "partition.json", "evaluation.json", "audit.json", "audit.png", "samples.png")


@dataclass
class RunState:
    """The state of a run after a round.

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


class RunFolder:
    """Where a run writes; ``docs/file-formats.md`` describes every file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoints(self) -> Path:
        """Folder of adapters and generators."""
        return self.path / "checkpoints"

    @property
    def states(self) -> Path:
        """Folder of the run's state after its last finished round, ``round_{n}/``."""
        return self.path / "state" / "server"

    @classmethod
    def create(cls, config: Config) -> RunFolder:
        """Start the folder ``run_dir`` afresh: what an earlier run left there is removed.

        Raises
        ------
        ConfigError
            If the run would erase the very run that ``checkpoint.load`` names.
        """
        folder = cls(Path(str(config.run_dir)))
        if config.checkpoint.load and Path(config.checkpoint.load).resolve() == folder.path.resolve():
            raise ConfigError(f"checkpoint.load={config.checkpoint.load} is this run's own folder; set hydra.run.dir")
        folder.path.mkdir(parents=True, exist_ok=True)
        for part in (folder.checkpoints, folder.path / "state"):
            shutil.rmtree(part, ignore_errors=True)
        for name in (*MADE, FAILURE):
            (folder.path / name).unlink(missing_ok=True)
        write_atomically(folder.path / "config.yaml", to_yaml(config).encode())
        return folder

    @classmethod
    def begin(cls, config: Config) -> tuple[RunFolder, RunState | None]:
        """Start the folder ``run_dir`` afresh, or where the run that ``resume`` names was interrupted.

        Returns
        -------
        folder, state
            The state after the last finished round; None for a run that starts at its beginning.
        """
        folder = cls(Path(str(config.run_dir)))
        state = folder.state() if config.resume else None
        if state is None:
            return cls.create(replace(config, resume=None)), None
        lines = [line for line in folder.metrics() if line["round"] <= state.round]
        write_atomically(folder.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
        (folder.path / FAILURE).unlink(missing_ok=True)
        logger.info("%s goes on after round %d", folder.path, state.round)
        return folder, state

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of ``metrics.jsonl`` without half a line, which a process leaves that dies."""
        file, found = self.path / "metrics.jsonl", []
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
            with suppress(ValueError):
                found.append(dict(read_json(line)))
        return found

    def config(self) -> Config:
        """Return the resolved configuration of the run.

        Raises
        ------
        ConfigError
            If the folder is not one of a run, or its configuration is no plain, whole one.
        """
        file = self.path / "config.yaml"
        if not file.is_file():
            reason = self.failure()
            why = f"; the run failed: {reason}" if reason else ""
            raise ConfigError(f"{self.path} is no run folder: it has no config.yaml{why}")
        return read_config(file)

    def results(self) -> dict[str, Any]:
        """Return ``results.json``.

        Raises
        ------
        ConfigError
            If the run has not finished, or the folder is not one of a run; or the file is damaged.
        """
        values = self.load_json("results.json")
        if values is None:
            reason = self.failure()
            why = f"the run failed: {reason}" if reason else "not a run folder, or a run that has not finished"
            raise ConfigError(f"{self.path} has no results.json: {why}")
        return values

    def load_json(self, name: str) -> dict[str, Any] | None:
        """Return the content of a JSON file; None if there is none, `ConfigError` if it is damaged."""
        file = self.path / name
        try:
            return dict(read_json(file.read_bytes())) if file.is_file() else None
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{file} cannot be read: {said(error)}") from error

    def classes(self) -> list[str]:
        """Return the names of the run's classes, by id.

        Raises
        ------
        ConfigError
            No round has finished.
        """
        state = self.state()
        if state is not None and "classes" in state.facts:
            return [str(name) for name in state.facts["classes"]]
        return [str(name) for name in self.results()["classes"]]

    def fail(self, reason: str) -> None:
        """Keep the reason why the run fails, unless the disk is full."""
        with suppress(StorageError):
            self.save_json(FAILURE, {"reason": reason})

    def failure(self) -> str | None:
        """Return why the run failed, if that is known."""
        found = self.load_json(FAILURE)
        return None if found is None else said(found.get("reason"))

    def log_metrics(self, line: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``."""
        file_path = self.path / "metrics.jsonl"
        with writing(file_path), file_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def save_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        save_json(self.path / name, content)

    def save_state(self, state: RunState) -> None:
        """Keep ``state`` in place of the earlier one.

        It gets its name once it is whole, so that a process that dies at any moment leaves a whole one.
        """
        target, new = self.states / f"round_{state.round}", self.states / f"round_{state.round}.new"
        shutil.rmtree(new, ignore_errors=True)
        for name, tensors in state.tensors.items():
            save_tensors(new / f"{name}.safetensors", tensors, {"round": state.round})
        content = {"format": FORMAT, "round": state.round, "tensors": sorted(state.tensors), "facts": state.facts}
        write_atomically(new / "state.json", json.dumps(content).encode())
        shutil.rmtree(target, ignore_errors=True)
        os.replace(new, target)
        for path in self.states.iterdir():
            if path != target:
                shutil.rmtree(path)

    def state(self) -> RunState | None:
        """Return the latest whole state; None if no round was finished.

        Raises
        ------
        CheckpointError, ConfigError
            A file of it is damaged.
        """
        found = (re.fullmatch(r"round_(\d+)", path.name) for path in self.states.glob("round_*"))
        last = max((int(match[1]) for match in found if match), default=None)
        if last is None:
            return None
        folder = self.states / f"round_{last}"
        content = self.load_json(f"{folder.relative_to(self.path)}/state.json") or {}
        if content.get("format") != FORMAT:
            raise CheckpointError(f"{folder / 'state.json'} is not a run's state of format {FORMAT}")
        tensors = {name: load_tensors(folder / f"{name}.safetensors")[0] for name in content["tensors"]}
        return RunState(last, tensors, content["facts"])

    def save_adapters(self, weights: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Save the global adapters; ``metadata`` has at least the number of finished rounds as ``round``."""
        save_tensors(self.checkpoints / ADAPTERS, weights, metadata)

    def load_adapters(self, expected: Mapping[str, Any], check: str = "strict") -> tuple[dict[str, Tensor], int]:
        """Return the global adapters and the number of finished rounds.

        Parameters
        ----------
        expected : Mapping
            Metadata that must agree, such as the encoder's identity and the target.
        check : str
            ``strict``, or ``warn`` to say what differs and go on.

        Raises
        ------
        CheckpointError
            The file is missing, damaged, or its metadata differs.
        """
        file = self.checkpoints / ADAPTERS
        if not file.is_file():
            raise CheckpointError(
                f"{file} is missing: checkpoint.load must name the folder of a run, such as `fedgen run "
                "mode=train_generators hydra.run.dir=...` makes"
            )
        weights, metadata = load_tensors(file)
        differ = mismatches(metadata, expected)
        if differ and check == "strict":
            raise CheckpointError(f"{file}: {'; '.join(differ)}")
        for difference in differ:
            logger.warning("%s: %s", file, difference)
        return weights, int(metadata["round"])


def run_folders(paths: Sequence[Path], finished: bool = False) -> list[RunFolder]:
    """Return the run folders among ``paths``; a warning names those that are left out, and why.

    Files that lie in the folder of a sweep, such as ``multirun.yaml``, are passed over.

    Parameters
    ----------
    paths : Sequence[Path]
    finished : bool
        Whether runs without results are left out.

    Raises
    ------
    ConfigError
        There is none.
    """
    found, left_out = [], []
    for path in paths:
        folder = RunFolder(path)
        try:
            if not path.is_file():
                folder.config()
                if finished:
                    folder.results()
                found.append(folder)
        except ConfigError as error:
            left_out.append(str(error))
    if not found:
        raise ConfigError("; ".join(left_out) or f"no run folder among {', '.join(map(str, paths))}")
    for reason in left_out:
        logger.warning("left out: %s", reason)
    return found


def pool_from_state(state: RunState, codec: Codec | None) -> dict[int, SyntheticTokens]:
    """Return the samples of each node that were saved with a run's state; none in a run without a codec."""
    if codec is None:
        return {}
    return {
        int(node): SyntheticTokens.from_state(state.tensors[f"samples_node{node}"], codec, int(seed))
        for node, seed in state.facts["seeds"].items()
    }

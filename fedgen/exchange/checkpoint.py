"""Checkpoints of generators: saved whole whatever dies meanwhile, loaded whole or not at all.

A checkpoint is one file for each generator, and an entry in the folder's ``manifest.json``; ``_round_{n}`` follows in
the names of those that are kept of single rounds::

    {base}_node{id}.safetensors                    granularity=unified
    {base}_node{id}_class_{class}.safetensors      granularity=per_class
    {base}_node{id}_group_{group}.safetensors      granularity=per_group

``docs/checkpoints.md`` describes the formats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from fedgen.errors import CheckpointError
from fedgen.exchange.agreement import model_sizes, sequence_lengths
from fedgen.exchange.files import load_tensors, save_tensors, serialise
from fedgen.exchange.loading import has_bank, load_bank
from fedgen.exchange.manifest import Checkpoint, Manifest, Part
from fedgen.exchange.names import checkpoint_name, generator_file
from fedgen.exchange.parts import digest, stage, tidy
from fedgen.files import locked, sync_folder, write_atomically
from fedgen.training.bank import Bank

__all__ = ["generator_file", "has_bank", "load_bank", "load_tensors", "save_bank", "save_tensors", "write_atomically"]

STATISTICS = ("mean", "deviation")  # tensors of a generator by which it standardises its inputs


def save_bank(
    folder: Path,
    base_name: str,
    node: int,
    bank: Bank,
    metadata: Mapping[str, Any],
    frequency: int = 0,
    keep_last: int | None = None,
) -> None:
    """Save every generator of ``node`` as one checkpoint, replacing the node's earlier one.

    The files are written beside the old ones, then the manifest names them, then they take their places: whenever the
    process dies, the manifest and the files it names belong together.

    Parameters
    ----------
    folder : Path
        Folder of the checkpoints; several nodes may share it, also at the same time.
    base_name : str
        First part of every file name.
    node : int
        Number of the node.
    bank : Bank
        A fitted bank.
    metadata : Mapping
        JSON values: ``round`` (finished rounds; required), ``encoder`` (identity), ``target`` (name), ``dataset``
        (identity), ``split``, ``tokens`` (shape of a clip's tokens), ``counts`` (clips by class name), ``seed``,
        ``mode``, ``metrics`` (last losses).
    frequency : int
        Every so many rounds, the checkpoint is also kept under names with ``_round_{n}``; 0: never.
    keep_last : int, optional
        How many of these stay, the last saved ones; all by default.

    Raises
    ------
    CheckpointError
        The bank is not fitted, or the files cannot be written: then the last whole checkpoint stays.
    """
    if not bank.generators:
        raise CheckpointError(f"node {node} has no fitted generators to save")
    about = _describe(base_name, node, bank, metadata)
    rounds: list[int | None] = [None, about.round] if frequency and about.round % frequency == 0 else [None]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            tidy(folder, Manifest.read(folder))  # what an earlier save that died had left to do
            named: set[str] = set()
            try:
                saved = _stage(folder, about, bank, rounds)
                _updated(Manifest.read(folder), saved, keep_last).write(folder)
                named = {file for checkpoint in saved.values() for file in checkpoint.files}
            finally:
                tidy(folder, Manifest.read(folder), named)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {checkpoint_name(base_name, node)} cannot be saved in {folder}: {error.strerror or error} "
            f"({error.filename or 'while writing'}); the last whole one stays"
        ) from error


def _describe(base_name: str, node: int, bank: Bank, metadata: Mapping[str, Any]) -> Checkpoint:
    """Return the checkpoint without its files."""
    if type(metadata.get("round")) is not int:
        raise CheckpointError(f"metadata of node {node} has no round, a whole number: {metadata.get('round')!r}")
    served = sorted(name for names in bank.classes.values() for name in names)
    return Checkpoint(
        base_name=base_name,
        node=node,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        kind=bank.settings.kind,
        granularity=bank.granularity.name,
        class_ids={name: bank.class_names.index(name) for name in served},
        sizes={"components": bank.codec.size, **model_sizes(bank)},
        lengths={"tokens": list(bank.codec.shape), **sequence_lengths(bank)},
        metadata=dict(metadata),
    )


def _stage(folder: Path, about: Checkpoint, bank: Bank, rounds: list[int | None]) -> dict[int | None, Checkpoint]:
    """Write every file beside its place, one at a time, and return the checkpoints with them, by round."""
    files: dict[int | None, dict[str, Part]] = {round: {} for round in rounds}
    for part, tensors in _parts(bank):
        content = serialise(tensors, about.header(part))
        written = replace(part, bytes=len(content), sha256=digest(content))
        for round in rounds:
            file = _file(about, part, round)
            stage(folder, file, content)
            files[round][file] = written
    sync_folder(folder)
    return {round: replace(about, files=files[round]) for round in rounds}


def _parts(bank: Bank) -> Iterator[tuple[Part, dict[str, Tensor]]]:
    for key in bank.generators:
        state = bank.state(key)
        statistics = [name for name in STATISTICS if name in state]
        yield Part(key, list(bank.classes[key]), _numbers(state), statistics), state


def _file(about: Checkpoint, part: Part, round: int | None) -> str:
    return generator_file(about.base_name, about.node, about.granularity, part.key, round)


def _numbers(state: Mapping[str, Tensor]) -> int:
    return sum(value.numel() for name, value in state.items() if not name.startswith("optimizer."))


def _updated(manifest: Manifest, saved: Mapping[int | None, Checkpoint], keep_last: int | None) -> Manifest:
    """Return the manifest with the ``saved`` checkpoints and without those of earlier rounds that are not kept."""
    checkpoints = dict(manifest.checkpoints)
    for round, checkpoint in saved.items():
        name = checkpoint_name(checkpoint.base_name, checkpoint.node, round)
        checkpoints.pop(name, None)  # so that it becomes the last
        checkpoints[name] = checkpoint
    if keep_last is not None:
        newest = saved[None]
        for name in list(Manifest(checkpoints).rounds(newest.base_name, newest.node).values())[:-keep_last]:
            del checkpoints[name]
    return Manifest(checkpoints, sorted(set(manifest.parts()) - set(Manifest(checkpoints).parts())))

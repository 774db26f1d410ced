"""Loading checkpoints of generators: every file is read and checked before anything is used."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fedgen.errors import CheckpointError, FedgenError
from fedgen.exchange.agreement import differ, disagreements, model_sizes
from fedgen.exchange.manifest import Checkpoint, Manifest
from fedgen.exchange.names import checkpoint_name, generator_file
from fedgen.exchange.parts import read_part
from fedgen.files import readable
from fedgen.models.generators import Generator
from fedgen.models.marginals import Marginals
from fedgen.training.bank import Bank
from fedgen.training.granularity import slots

log = logging.getLogger(__name__)


def load_bank(
    folder: Path,
    base_name: str,
    node: int,
    bank: Bank,
    classes: list[str],
    expected: Mapping[str, Any],
    round: int | None = None,
    check: str = "strict",
) -> dict[str, Any]:
    """Fill ``bank`` with the checkpoint of ``node``, all of it or nothing.

    Parameters
    ----------
    folder, base_name, node
        As given to `save_bank`.
    bank : Bank
        Bank of the run's settings; takes over the generators.
    classes : list[str]
        Classes of which the node has clips; the checkpoint must serve these, with the bank's granularity.
    expected : Mapping
        Metadata that the checkpoint must carry, such as ``{"encoder": identity, "target": "sd"}``.
    round : int, optional
        Which round's; the latest by default.
    check : str
        ``strict`` refuses whatever differs; ``warn`` logs what may work all the same: another encoder, target, data set
        or split (as far as ``expected`` has them), classes beyond those needed.

    Returns
    -------
    dict
        The metadata given to `save_bank`.

    Raises
    ------
    CheckpointError
        Lists every problem found: a file missing (and the command that makes it), damaged, or of another kind,
        granularity, class, size, encoder or target. The bank is then as it was before.
    """
    with readable(folder):
        checkpoint = _find(folder, base_name, node, bank, classes, round)
        problems, warnings = disagreements(checkpoint, bank, classes, expected, check)
        states = _read(folder, checkpoint, problems)
    generators, marginals = _generators(checkpoint, states, bank, problems)
    name = f"checkpoint {checkpoint_name(base_name, node, round)} in {folder}"
    if problems:
        raise CheckpointError(f"{name}: {'; '.join(problems)}")
    for warning in warnings:
        log.warning("%s: %s", name, warning)
    bank.generators, bank.marginals, bank.classes = generators, marginals, checkpoint.classes
    return checkpoint.metadata


def has_bank(folder: Path, base_name: str, node: int, round: int | None = None) -> bool:
    """Return whether the manifest of ``folder`` names a checkpoint of ``node`` (of ``round``, if given).

    Raises
    ------
    CheckpointError
        There is a manifest, but it is damaged or of another format.
    """
    return Manifest.read(folder).find(base_name, node, round) is not None


def _find(folder: Path, base_name: str, node: int, bank: Bank, classes: list[str], round: int | None) -> Checkpoint:
    manifest = Manifest.read(folder)
    found = manifest.find(base_name, node, round)
    if found is not None:
        return found
    latest = manifest.find(base_name, node)
    if latest is not None:
        rounds = ", ".join(map(str, sorted({*manifest.rounds(base_name, node), latest.round})))
        raise CheckpointError(
            f"no checkpoint {checkpoint_name(base_name, node, round)} in {folder}: checkpoint.round={round} is not one "
            f"of the rounds there are: {rounds}"
        )
    granularity = bank.granularity.name
    files = [generator_file(base_name, node, granularity, key) for key in slots(bank.granularity, classes)]
    known = ", ".join(sorted(manifest.checkpoints)) or "none"
    raise CheckpointError(
        f"no checkpoint {checkpoint_name(base_name, node)} in {folder}, which should hold {', '.join(files)} "
        f"(found: {known}); make it with "
        f"`fedgen run mode=train_generators generator={bank.settings.kind} granularity={granularity}`"
    )


def _read(folder: Path, checkpoint: Checkpoint, problems: list[str]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each file that is whole, adding to ``problems`` what is wrong with the others."""
    states = {}
    for file in checkpoint.files:
        try:
            states[file] = read_part(folder, checkpoint, file)
        except CheckpointError as error:
            problems.append(str(error))
    return states


def _generators(
    checkpoint: Checkpoint,
    states: Mapping[str, dict[str, Tensor]],
    bank: Bank,
    problems: list[str],
) -> tuple[dict[str, Generator], dict[str, Marginals]]:
    """Return new generators with the states; of another kind they cannot be told to fit."""
    generators: dict[str, Generator] = {}
    marginals: dict[str, Marginals] = {}
    if checkpoint.kind != bank.settings.kind:
        return generators, marginals
    faults = []
    for file in (file for file in checkpoint.files if file in states):
        key = checkpoint.files[file].key
        try:
            generators[key], own = bank.of_state(states[file])
        except FedgenError as error:
            faults.append(f"{file}: {error}")
            continue
        if own is not None:
            marginals[key] = own
    if faults:  # what a user can change, before the tensors that show it
        here = model_sizes(bank)
        names = ("width", "latents")
        problems += differ({f"generator.{name}": (checkpoint.sizes.get(name), here[name]) for name in names})
    problems += faults
    return generators, marginals

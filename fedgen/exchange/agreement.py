"""Whether a checkpoint fits a run: what cannot work, and what only differs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fedgen.errors import choose
from fedgen.exchange.manifest import Checkpoint
from fedgen.training.bank import Bank
from fedgen.training.granularity import slots

CHECKS = ("strict", "warn")
WARNINGS = ("encoder", "target", "dataset", "split")  # metadata that may differ with ``check=warn``


def disagreements(
    checkpoint: Checkpoint, bank: Bank, classes: list[str], expected: Mapping[str, Any], check: str
) -> tuple[list[str], list[str]]:
    """Return what forbids to load ``checkpoint`` into ``bank``, and what is only worth a warning.

    Parameters
    ----------
    checkpoint : Checkpoint
    bank : Bank
        Bank of the run's settings.
    classes : list[str]
        Classes that it must serve.
    expected : Mapping
        Metadata that it must carry.
    check : str
        ``strict``: nothing may differ. ``warn``: encoder, target, dataset and split may, and it may serve more classes
        than needed.
    """
    choose(check, CHECKS, "checkpoint.check")
    plain = json.loads(json.dumps(dict(expected)))  # as JSON gives it back: lists for tuples
    metadata = {name: (checkpoint.metadata.get(name), value) for name, value in plain.items()}
    fatal = differ(_essentials(checkpoint, bank)) + _missing(checkpoint, bank, classes)
    fatal += differ({name: pair for name, pair in metadata.items() if name not in WARNINGS})
    mild = differ({name: pair for name, pair in metadata.items() if name in WARNINGS})
    mild += _surplus(checkpoint, bank, classes)
    return (fatal + mild, []) if check == "strict" else (fatal, mild)


def model_sizes(bank: Bank) -> dict[str, Any]:
    """Return the sizes that the settings give every generator; JSON."""
    conditions = {name: list(shape) for name, shape in bank.condition_sizes.items()}
    return {"width": bank.settings.width, "latents": bank.settings.latents, "conditions": conditions}


def sequence_lengths(bank: Bank) -> dict[str, Any]:
    """Return the lengths that the settings ask for; JSON, None being the encoder's."""
    lengths = bank.settings.lengths
    return {"training": lengths.training, "output": lengths.output, "upsampling": lengths.upsampling}


def _essentials(checkpoint: Checkpoint, bank: Bank) -> dict[str, tuple[Any, Any]]:
    """Return what must be the same, by name: the checkpoint's and the run's."""
    return {
        "kind": (checkpoint.kind, bank.settings.kind),
        "granularity": (checkpoint.granularity, bank.granularity.name),
        "size of conditions": (checkpoint.sizes.get("conditions"), model_sizes(bank)["conditions"]),
        "generator.training_length": (checkpoint.lengths.get("training"), bank.settings.training_length),
    }


def differ(pairs: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Say which pairs of the checkpoint's and the run's value are not equal."""
    return [f"{name} is {found}, this run has {here}" for name, (found, here) in pairs.items() if found != here]


def _missing(checkpoint: Checkpoint, bank: Bank, classes: list[str]) -> list[str]:
    """Say which classes no generator serves in its slot, and which ones go by another id."""
    if checkpoint.granularity != bank.granularity.name:
        return []  # other slots: told already
    problems = []
    served = checkpoint.classes
    wanted = slots(bank.granularity, classes)
    absent = {key: [name for name in names if name not in served.get(key, [])] for key, names in wanted.items()}
    if any(absent.values()):
        told = ", ".join(f"{name} (generator {key})" for key, names in absent.items() for name in names)
        problems.append(f"classes is {served}, this run has {wanted}: not served are {told}")
    for name in classes:
        found, here = checkpoint.class_ids.get(name), bank.class_names.index(name)
        if found is not None and found != here:
            problems.append(f"id of class {name} is {found}, this run has {here}: its classes are in another order")
    return problems


def _surplus(checkpoint: Checkpoint, bank: Bank, classes: list[str]) -> list[str]:
    served = checkpoint.classes
    more = [name for names in served.values() for name in names if name not in classes]
    if not more or checkpoint.granularity != bank.granularity.name:
        return []
    return [f"classes is {served}, this run has {slots(bank.granularity, classes)}: {', '.join(more)} not needed"]

"""The table of old keys, ``migrate_table.csv``, and the readers of old values.

A reader takes a JSON value and returns fedgen's. It raises `ValueError` for a value that cannot be translated and
returns a `Remark` for one that sets nothing.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgen.config.strategy import STRATEGIES
from fedgen.errors import suggestion

Reader = Callable[[Any], Any]


@dataclass(frozen=True)
class Remark:
    """The remark on a value that sets nothing, by default the key's note; ``changed``: its meaning is another here."""

    text: str = ""
    changed: bool = True


@dataclass(frozen=True)
class Key:
    """What becomes of an old key."""

    new: str  # the key here; empty where there is none
    read: Reader
    note: str  # what changed in meaning (of true, where the key is a flag), or why there is no counterpart
    node: str  # the key of ``nodes.N`` here, if it may stand in a node's entry
    joint: bool  # whether it is decided together with other keys
    unless: str  # an old key that counts instead where both are there


def flag(value: Any) -> bool:
    """Return true or false, which may also be 1, 0 or text."""
    known = {"true": True, "1": True, "false": False, "0": False}.get(str(value).lower())
    if known is None:
        raise ValueError("is neither true nor false")
    return known


def whole(value: Any) -> int:
    """Return a whole number, which may also be text."""
    exact = number(value)
    if exact != int(exact):
        raise ValueError("is not a whole number")
    return int(exact)


def number(value: Any) -> float:
    """Return a number, which may also be text."""
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            if math.isfinite(float(value)):
                return float(value)
    raise ValueError("is not a number")


def text(value: Any) -> str:
    """Return text in which Hydra would replace nothing."""
    if not isinstance(value, str) or not value:
        raise ValueError("is not a text")
    if "${" in value:
        raise ValueError("holds ${, which Hydra would replace")
    return value


def names(value: Any) -> list[str] | Remark:
    """Return names of classes, each once."""
    if value == []:
        return Remark("an empty list is as good as no key", changed=False)
    if not isinstance(value, list):
        raise ValueError("is not a list of class names")
    if any(isinstance(item, int | list) for item in value):
        raise ValueError("holds numbers of classes: classes go by name here")
    return list(dict.fromkeys(map(text, value)))


def groups(value: Any) -> dict[str, Any]:
    """Return the classes of each named group."""
    if not isinstance(value, Mapping) or [] in value.values():
        raise ValueError("does not map names of groups to classes")
    return {text(name): names(classes) for name, classes in value.items()}


def seed(value: Any) -> int | Remark:
    """Return a seed; below 0 it stood for none."""
    chosen = whole(value)
    return chosen if chosen >= 0 else Remark("below 0 meant no seed: a run is always seeded here, seed=0 by default")


def device(value: Any) -> str:
    """Return ``cpu``, ``cuda`` or ``auto``."""
    name = text(value).lower().removesuffix(":0")
    if name.startswith("cuda:"):
        raise ValueError(f"names a GPU: write cuda, and set CUDA_VISIBLE_DEVICES={name.removeprefix('cuda:')}")
    return one_of("cpu", "cuda", "auto")(name)


def one_of(*choices: str, **renamed: Any) -> Reader:
    """Return a reader of one of ``choices`` or of names that are other ones here; capitals do not count."""
    known = {**{name: name for name in choices}, **renamed}

    def read(value: Any) -> Any:
        name = str(value).lower().replace("-", "_")
        if name not in known:
            raise ValueError(f"is not one of {', '.join(known)}.{suggestion(name, known)}")
        return known[name]

    return read


def switch(on: Any, off: Any) -> Reader:
    """Return a reader of true and false that gives ``on`` or ``off``."""
    return lambda value: on if flag(value) else off


LENGTH = "samples had the training length; here they get the encoder's, unless generator.output_length is set"
FEDA2V = "FedA2V is what fedgen does; strategy= chooses the aggregation"

READERS: dict[str, Reader] = {
    reader.__name__: reader for reader in (flag, whole, number, text, names, groups, seed, device)
} | {
    "": lambda value: value,
    "folds": lambda value: [whole(item) for item in (value if isinstance(value, list) else [value])],
    "samples": lambda value: "auto" if str(value).lower() == "auto" else whole(value),
    "strategy": one_of(*STRATEGIES, feda2v=Remark(FEDA2V, changed=False)),
    "upsampling": switch("learned", "linear"),
    "sharing": switch("shared", "local"),
    "memory": switch("low", Remark("memory=auto picks from what is free; memory=high never saves memory")),
    "load": switch(Remark(), Remark("nothing is loaded without checkpoint.load", changed=False)),
    "use_folds": switch(Remark(changed=False), Remark()),
}
NULLS = {  # the meaning of null
    "synthetic_samples_per_class": "auto",
    "generator_output_sequence_length": Remark(LENGTH),
}


def rows() -> dict[str, Key]:
    """Return the table; ``read`` is a reader's name, or the names that a value may have (``old=new`` if another here).

    A key of one section only stands with it: ``dataset.name``, ``wandb.*``.
    """
    table: dict[str, Key] = {}
    with Path(__file__).with_name("migrate_table.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            choices = {name: here or name for name, _, here in (word.partition("=") for word in row["read"].split())}
            read = READERS.get(row["read"]) or one_of(**choices)
            key = Key(row["new"], read, row["note"], row["node"], bool(row["joint"]), row["unless"])
            table |= dict.fromkeys(row["old"].split(), key)
    return table


TABLE = rows()

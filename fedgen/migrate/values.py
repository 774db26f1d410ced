"""Readers of old values: each takes what JSON gives and returns what fedgen takes, or says why that cannot be.

A reader raises `ValueError` for a value that cannot be translated and returns a `Remark` for one that sets nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fedgen.errors import suggestion

Reader = Callable[[Any], Any]


@dataclass(frozen=True)
class Remark:
    """What is said of a value that no override stands for.

    Attributes
    ----------
    text : str
    changed : bool
        Whether something is otherwise here; if not, the value merely asks for what fedgen does anyway.
    """

    text: str
    changed: bool = True


def flag(value: Any) -> bool:
    """Return true or false, which may also be 1, 0 or text."""
    known = {"true": True, "1": True, "false": False, "0": False}
    if isinstance(value, bool | int | str) and str(value).lower() in known:
        return known[str(value).lower()]
    raise ValueError("is neither true nor false")


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
    return class_names(value) if value != [] else Remark("an empty list is as good as no key", changed=False)


def class_names(value: Any) -> list[str]:
    """Return names of classes, at least one and each once."""
    if not isinstance(value, list) or not value:
        raise ValueError("is not a list of class names")
    if any(isinstance(item, int | list) for item in value):
        raise ValueError("holds numbers of classes: classes go by name here")
    return list(dict.fromkeys(text(item) for item in value))


def groups(value: Any) -> dict[str, list[str]]:
    """Return the classes of each named group."""
    if not isinstance(value, Mapping):
        raise ValueError("does not map names of groups to classes")
    return {text(name): class_names(classes) for name, classes in value.items()}


def samples(value: Any) -> int | str:
    """Return a number of samples or ``auto``."""
    return "auto" if str(value).lower() == "auto" else whole(value)


def folds(value: Any) -> list[int]:
    """Return numbers of folds; a single one may stand without brackets."""
    return [whole(item) for item in (value if isinstance(value, list) else [value])]


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


def one_of(*choices: str, **renamed: str | Remark) -> Reader:
    """Return a reader of one of ``choices`` or of names that are other ones here; capitals do not count."""
    known = {**{name: name for name in choices}, **renamed}

    def read(value: Any) -> str | Remark:
        name = str(value).lower().replace("-", "_")
        if name not in known:
            raise ValueError(f"is not one of {', '.join(known)}.{suggestion(name, known)}")
        return known[name]

    return read


def switch(on: Any, off: Any) -> Reader:
    """Return a reader of true and false that gives ``on`` or ``off``."""
    return lambda value: on if flag(value) else off

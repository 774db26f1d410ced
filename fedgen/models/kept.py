"""What a process computes once and keeps from one message to the next, within bounds."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar


class Sized(Protocol):
    """Something that says how many bytes it takes."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        ...


Value = TypeVar("Value", bound=Sized)

LIMIT = 2**29  # bytes that a process keeps
_kept: dict[Hashable, Any] = {}  # what was used last is last


def kept(key: Hashable, compute: Callable[[], Value]) -> Value:
    """Return what ``compute`` gave for ``key``; what was used longest ago is forgotten where it is too much."""
    value: Value = _kept.pop(key) if key in _kept else compute()
    _kept[key] = value
    while len(_kept) > 1 and sum(other.nbytes for other in _kept.values()) > LIMIT:
        del _kept[next(iter(_kept))]
    return value

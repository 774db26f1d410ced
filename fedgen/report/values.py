"""Values as the page writes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

NOTHING = "·"


def figure(value: Any, digits: int = 3) -> str:
    """Return a number with ``digits`` after the point, a count as it is, and a dot for what is not there."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOTHING
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def digits_for(values: Sequence[float]) -> int:
    """Return how many digits after the point tell ``values`` apart: three, or more where all are small."""
    largest = max(map(abs, values), default=0.0)
    return min(12, max(3, 2 - math.floor(math.log10(largest)))) if largest else 3


def counted(number: int, what: str) -> str:
    """Return a number of things."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return values by dotted names, as text.

    Entries of a list of mappings go by their ``name`` where each has one of its own, by their place otherwise.
    """
    found: dict[str, str] = {}
    for key, value in values.items():
        inner = _by_name(value) if isinstance(value, list | tuple) else value
        if isinstance(inner, Mapping) and inner:
            found |= flattened(inner, f"{prefix}{key}.")
        else:
            found[prefix + str(key)] = _text(value)
    return found


def of_nodes(values: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what is known of each node as heads and rows of a table, a column for each node."""
    columns = [flattened(facts) for facts in values.values()]
    rows = [
        (key, *(column.get(key, NOTHING) for column in columns)) for key in dict.fromkeys(k for c in columns for k in c)
    ]
    return {"heads": [("what", False), *((f"node {number}", True) for number in values)], "rows": rows, "ends": set()}


def _by_name(entries: Sequence[Any]) -> Any:
    """Return a list of mappings as a mapping, any other as it is."""
    if not entries or not all(isinstance(entry, Mapping) for entry in entries):
        return entries
    names = [entry.get("name") for entry in entries]
    if len({name for name in names if isinstance(name, str)}) < len(names):
        return {str(place): entry for place, entry in enumerate(entries)}
    return {entry["name"]: {key: value for key, value in entry.items() if key != "name"} for entry in entries}


def _text(value: Any) -> str:
    """Return a value as one would write it in the configuration."""
    if value is None or value in ([], {}, ()):
        return NOTHING
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)

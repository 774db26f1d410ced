"""The old file: strict JSON, flat or nested, as a list of entries that know where they stood."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fedgen.errors import ConfigError
from fedgen.migrate.table import MAPPINGS, TABLE


@dataclass(frozen=True)
class Entry:
    """A key of the old file and its value.

    Attributes
    ----------
    path : str
        The key with the sections around it, such as ``feda2v.generator_type``.
    name : str
        The key as the table has it; empty if it is unknown.
    value : Any
        What JSON gives.
    node : int, optional
        The node in whose entry it stood; None: it holds for all.
    """

    path: str
    name: str
    value: Any
    node: int | None = None

    def __str__(self) -> str:
        return f"{self.path}={json.dumps(self.value, ensure_ascii=False)}"


def read_old(path: Path) -> list[Entry]:
    """Return every entry of the file.

    Raises
    ------
    ConfigError
        The file cannot be read, is not strict JSON (line and column are named), has a key twice in one place, or holds
        something else than keys and values.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
        values = json.loads(content, object_pairs_hook=_unique, parse_constant=_not_json)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not JSON: byte {error.start} is not UTF-8") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no keys: a configuration is {{...}}")
    return list(_entries(values, "", None, str(path)))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"key {', '.join(map(repr, twice))} stands twice in one place: only one value can be meant")
    return dict(pairs)


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _entries(values: Mapping[str, Any], prefix: str, node: int | None, file: str) -> Iterator[Entry]:
    """Yield the entries of a section; a section may have any name."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        if key in ("nodes", "nodes_tasks") and isinstance(value, dict | list):
            yield from _of_nodes(value, path, file)
        elif isinstance(value, dict) and key not in MAPPINGS:
            yield from _entries(value, f"{path}.", node, file)
        else:
            yield Entry(path, table_name(path), value, node)


def _of_nodes(nodes: Mapping[str, Any] | list[Any], path: str, file: str) -> Iterator[Entry]:
    """Yield the number of nodes, then the entries of each."""
    numbered = nodes.items() if isinstance(nodes, Mapping) else enumerate(nodes)
    found: dict[int, Any] = {}
    for key, own in numbered:
        number = re.fullmatch(r"(?:node[_ ]?)?(\d+)", str(key), re.IGNORECASE)
        if not number or not isinstance(own, dict):
            raise ConfigError(f"{file}: {path}.{key} is no node: nodes are numbers with keys of their own")
        found[int(number.group(1))] = own
    if sorted(found) != list(range(len(nodes))):
        numbers = ", ".join(map(str, sorted(found)))
        raise ConfigError(f"{file}: {path} has the nodes {numbers}; nodes are numbered 0, 1, 2 ... here")
    yield Entry(path, "nodes", len(found))
    for number_, own in found.items():
        yield from _entries(own, f"{path}.{number_}.", number_, file)


def table_name(path: str) -> str:
    """Return the key of the table that ``path`` is: the key in its section, its whole section, or the key anywhere."""
    *sections, key = path.split(".")
    section = sections[-1] if sections else ""
    known = (f"{section}.{key}", f"{section}.*", key, "_*" if key.startswith("_") else "")
    return next((name for name in known if name in TABLE), "")

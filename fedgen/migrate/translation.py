"""The translation itself: every entry of the old file is set, decided upon with others, or listed with a reason."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fedgen.config import load_config
from fedgen.errors import ConfigError, suggestion
from fedgen.migrate.decisions import DECISIONS
from fedgen.migrate.division import DIVISIONS
from fedgen.migrate.old import Entry, read_old
from fedgen.migrate.overrides import overrides
from fedgen.migrate.result import Translation, joined
from fedgen.migrate.table import TABLE
from fedgen.migrate.values import Remark


def translate(path: Path) -> Translation:
    """Translate an old configuration and compose the result; what cannot be translated is listed in ``problems``.

    Raises
    ------
    ConfigError
        The file cannot be read: see `fedgen.migrate.old.read_old`.
    """
    result = gather(read_old(path))
    validate(result)
    return result


def gather(entries: list[Entry]) -> Translation:
    """Return what the entries of an old file say, not composed yet."""
    result = Translation()
    for entry in entries:
        _take(entry, result)
    for decide in (*DECISIONS, *DIVISIONS):
        decide(result)
    single = [entry for own in result.of_nodes.values() for alike in own.values() for entry in alike]
    for entry in [*result.given(*result.old), *single]:
        _set_alone(entry, result)
    for entry in [*result.given(*result.old), *single]:
        if not result.mentions(entry):
            result.dropped.append((entry, "nothing follows from it"))
    return result


def _take(entry: Entry, result: Translation) -> None:
    """Read the value of an entry and file it under its name; say so if it stands twice with different values."""
    if not entry.name:
        nearest = suggestion(entry.path.split(".")[-1], TABLE).strip() or "No key like it is known."
        result.unknown.append((entry, nearest))
        return
    row = TABLE[entry.name]
    if not row.new:
        result.dropped.append((entry, row.note))
        return
    try:
        value = row.read(entry.value) if entry.value is not None else _null(entry)
    except ValueError as error:
        result.problems.append(f"{entry} {error} ({row.new})")
        return
    if isinstance(value, Remark):
        result.remark(entry, value)
        return
    result.file(entry, value)


def _null(entry: Entry) -> Any:
    row = TABLE[entry.name]
    return row.null if isinstance(row.null, Remark) else row.read(row.null)


def _set_alone(entry: Entry, result: Translation) -> None:
    """Set what ``entry`` says on its own."""
    row = TABLE[entry.name]
    if row.joint:
        return
    if row.unless in result.old:
        result.dropped.append((entry, f"{result.old[row.unless][0].path} counts"))
        return
    key = row.new if entry.node is None or not row.node else f"nodes.{entry.node}.{row.node}"
    value = result.values[entry.path]
    result.set(key, value, entry)
    if row.note and value is not False:
        result.changed.append((entry, row.note))


def validate(result: Translation) -> None:
    """Compose the configuration; leave out and report what it refuses, until the rest composes."""
    kept = {key: setting.value for key, setting in result.settings.items()}
    while True:
        try:
            result.config = load_config(overrides(kept))
            return
        except ConfigError as error:
            named = [key for key in kept if re.sub(r"nodes\.\d+", "nodes.*", key) in str(error)]
            if not named:
                result.problems.append(str(error))
                return
            guilty = max(named, key=len)
            sources = joined(result.settings[guilty].sources)
            result.problems.append(f"{sources} would be {overrides({guilty: kept.pop(guilty)})[0]}: {error}")

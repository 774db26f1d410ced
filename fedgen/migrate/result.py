"""What became of an old file: new settings, and everything that was not carried over as it stood."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fedgen.errors import require
from fedgen.migrate.old import Entry
from fedgen.migrate.table import TABLE
from fedgen.migrate.values import Remark
from fedgen.settings import Config


@dataclass
class Setting:
    """The value of a key here, and the old entries that it comes from."""

    value: Any
    sources: list[Entry]


@dataclass
class Translation:
    """What became of an old file.

    Attributes
    ----------
    old : dict[str, list[Entry]]
        Entries for all nodes, by the table's key; several, where a key stands in several places with one value.
    of_nodes : dict[int, dict[str, list[Entry]]]
        Entries of single nodes.
    values : dict[str, Any]
        The new value that each old value was read as, by the entry's path.
    settings : dict[str, Setting]
        New keys.
    changed, dropped : list[tuple[Entry or str, str]]
        Entries whose meaning changed, and entries that set nothing here, with the reason.
    unknown : list[tuple[Entry or str, str]]
        Entries that no version of the predecessor is known to have read, with the nearest one known.
    problems : list[str]
        What cannot be translated, each with the old and the new key.
    config : Config
        The configuration that the settings without the problems compose to.
    """

    old: dict[str, list[Entry]] = field(default_factory=dict)
    of_nodes: dict[int, dict[str, list[Entry]]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Setting] = field(default_factory=dict)
    changed: list[tuple[Entry | str, str]] = field(default_factory=list)
    dropped: list[tuple[Entry | str, str]] = field(default_factory=list)
    unknown: list[tuple[Entry | str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    config: Config = field(default_factory=Config)

    def get(self, name: str) -> Any:
        """Return the new value that the old key ``name`` was read as; None if it is not there or sets nothing."""
        return self.values[self.old[name][0].path] if name in self.old else None

    def given(self, *names: str) -> list[Entry]:
        """Return those entries for all nodes that set something, of the old keys ``names``."""
        return [entry for name in names for entry in self.old.get(name, [])]

    def file(self, entry: Entry, value: Any) -> None:
        """File ``entry`` under its name with the new value; another value under that name is a problem."""
        row = TABLE[entry.name]
        alone = entry.node is not None and row.node
        place = self.of_nodes.setdefault(entry.node or 0, {}) if alone else self.old
        alike = place.setdefault(entry.name, [])
        if alike and self.values[alike[0].path] != value:
            self.problems.append(f"{alike[0]} and {entry} contradict each other ({row.new})")
            return
        alike.append(entry)
        self.values[entry.path] = value

    def chosen(self, key: str) -> Any:
        """Return the value of the new key ``key``, None if it is not set."""
        return self.settings[key].value if key in self.settings else None

    def set(self, key: str, value: Any, *sources: Entry) -> None:
        """Set a new key; a second value for it is a problem that names the old entries of both."""
        known = self.settings.setdefault(key, Setting(value, []))
        if known.value == value:
            known.sources += [entry for entry in sources if entry not in known.sources]
        else:
            both = f"{joined(known.sources)} and {joined(sources)}"
            self.problems.append(f"{both} contradict each other: {key}={known.value} or {key}={value}?")

    def finished(self, origin: str) -> dict[str, Any]:
        """Return the new values by key.

        Raises
        ------
        ConfigError
            There are problems; the first is named.
        """
        first, more = next(iter(self.problems), ""), len(self.problems) - 1
        also = f" ({more} more of this kind: see above)" if more > 0 else ""
        require(not self.problems, f"{origin} cannot be translated: {first}{also}")
        return {key: setting.value for key, setting in self.settings.items()}

    def mentions(self, entry: Entry) -> bool:
        """Say whether anything was set or said because of ``entry``."""
        used = [source for setting in self.settings.values() for source in setting.sources]
        told = [about for about, _ in [*self.changed, *self.dropped]]
        return entry in used or entry in told or any(str(entry) in problem for problem in self.problems)

    def remark(self, entry: Entry, remark: Remark) -> None:
        """Take down what is said of ``entry``."""
        (self.changed if remark.changed else self.dropped).append((entry, remark.text))


def joined(entries: Iterable[Entry]) -> str:
    """Return the entries as text."""
    return ", ".join(str(entry) for entry in entries)

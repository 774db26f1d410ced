"""What became of every old key, for people to read."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedgen.migrate.old import Entry
from fedgen.migrate.overrides import ordered, overrides
from fedgen.migrate.result import Translation

Row = tuple[str, str]
WIDTH = 160  # of a report that no terminal shows


def report(result: Translation) -> None:
    """Print on standard error what became of each key, in sections; none is left out."""
    console = Console(stderr=True)
    console = console if console.is_terminal else Console(stderr=True, width=WIDTH)
    sections = {
        "Translated": [*_translated(result)],
        "Changed in meaning": [*_by_reason(result.changed)],
        "Without effect here": [*_by_reason(result.dropped)],
        "Unknown, left out": [*_by_reason(result.unknown)],
        "Not in the file, so the default of fedgen holds": [*_open(result)],
        "Cannot be translated": [(problem, "") for problem in result.problems],
    }
    for title, rows in sections.items():
        if rows:
            console.print(Text(title, style="bold"), _table(rows), "")


def _translated(result: Translation) -> Iterable[Row]:
    for key in ordered(result.settings):
        setting = result.settings[key]
        sources = "\n".join(map(str, setting.sources)) or "(nothing in the file says otherwise)"
        yield sources, overrides({key: setting.value})[0]


def _by_reason(entries: Iterable[tuple[Entry | str, str]]) -> Iterable[Row]:
    """Yield entries with what is said of them; those of which the same is said stand together."""
    reasons: dict[str, list[Entry | str]] = {}
    for entry, reason in entries:
        reasons.setdefault(reason, []).append(entry)
    for reason, alike in reasons.items():
        yield "\n".join(map(str, alike)), reason


def _open(result: Translation) -> Iterable[Row]:
    """Yield what decides most about a run and is not in the old file."""
    config = result.config
    values = {
        "data": config.data.name,
        "target": config.target.name,
        "encoder": config.encoder.name,
        "generator": config.generator.kind,
        "rounds": config.rounds,
        "adapter.training.epochs": config.adapter.training.epochs,
        "generator.training.epochs": config.generator.training.epochs,
        "synthesis.samples_per_class": config.synthesis.samples_per_class,
        "seed": config.seed,
    }
    left = {key: value for key, value in values.items() if key not in result.settings}
    if left:
        yield " ".join(f"{key}={value}" for key, value in left.items()), ""


def _table(rows: Iterable[Row]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2))
    for _ in range(2):
        table.add_column(overflow="fold")
    for old, new in rows:
        table.add_row(Text(old), Text(new))
    return table

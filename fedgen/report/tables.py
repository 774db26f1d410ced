"""Tables on the terminal: label distributions and runs side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedgen.errors import visible

WIDEST = 1000  # characters of a line where nothing limits it
MAX_SETTINGS, MAX_VALUE_CHARS = 6, 40  # of a run in a table
ROOM, BORDER = 32, 3  # characters for runs and settings on a narrow terminal, and beside a column
LEAST = 3  # figures that every terminal shows


class PlainTable(Table):
    """A table whose cells are plain text: no markup and no control characters."""

    def add_row(self, *cells: str, style: str = "") -> None:  # type: ignore[override]
        """Add a row of texts."""
        super().add_row(*(Text(visible(cell)) for cell in cells), style=style)


def show(table: Table) -> None:
    """Print a table; where there is no terminal it gets the width it needs."""
    needed = Console(width=WIDEST, markup=False).measure(table).maximum
    width = None if Console().is_terminal else max(needed, 80)
    Console(width=width, markup=False, emoji=False).print(table)  # titles are folders' names


def terminal_width() -> int | None:
    """Return the characters of a line of the terminal; None: there is none."""
    console = Console()
    return console.width if console.is_terminal else None


def distribution_table(nodes: Mapping[str, Mapping[str, int]], classes: list[str]) -> Table:
    """Return how many clips of each class each node trains on.

    Parameters
    ----------
    nodes : Mapping
        Clips by class name, by node number.
    classes : list[str]
        Row order.
    """
    table = PlainTable(title="training clips of each class on each node")
    table.add_column("class")
    for number in nodes:
        table.add_column(f"node {number}", justify="right")
    for name in classes:
        table.add_row(name, *(str(counts.get(name, "·")) for counts in nodes.values()))
    table.add_section()
    table.add_row("all", *(str(sum(counts.values())) for counts in nodes.values()))
    return table


def comparison_table(runs: Mapping[str, Mapping[str, Any]], width: int | None = None) -> Table:
    """Return results of several runs side by side.

    Parameters
    ----------
    runs : Mapping
        Contents of ``results.json`` by run name; ``settings``, in which runs differ, by key.
    width : int, optional
        Characters of a line. Where they are too few, the last figures are left out: half a figure says nothing.
    """
    figures = [_figures(result) for result in runs.values()]
    parts = {name: (*name.split(), *(row[name] for row in figures)) for name in figures[0]}
    widths = {name: max(map(len, own)) for name, own in parts.items()}
    while width is not None and len(widths) > LEAST and ROOM + sum(own + BORDER for own in widths.values()) > width:
        widths.popitem()
    differ = any(result.get("settings") for result in runs.values())
    left_out = [name for name in figures[0] if name not in widths]
    caption = f"no room for {', '.join(left_out)}" if left_out else None
    table = PlainTable(title="zero-shot accuracy on the held-out fold", caption=caption)
    for name in ("run", "settings") if differ else ("run",):
        table.add_column(name, overflow="fold")
    for name, own in widths.items():
        table.add_column(name, justify="left" if name == "mode" else "right", width=own)
    for (name, result), row in zip(runs.items(), figures, strict=True):
        texts = [name, _settings(result["settings"])] if differ else [name]
        table.add_row(*texts, *(row[key] for key in widths))
    return table


def _settings(values: Mapping[str, str]) -> str:
    """Return at most `MAX_SETTINGS` settings as overrides, each value truncated."""
    told = [
        f"{key}={value if len(value) <= MAX_VALUE_CHARS else value[:MAX_VALUE_CHARS] + '...'}"
        for key, value in values.items()
    ]
    return " ".join(
        told[:MAX_SETTINGS] + ([f"and {len(told) - MAX_SETTINGS} more"] if len(told) > MAX_SETTINGS else [])
    )


def _figures(result: Mapping[str, Any]) -> dict[str, str]:
    cosines = [head["cosine"] for head in result["heads"].values()]
    sent, received = (sum(result["bytes"][way]) / 1e6 for way in ("sent", "received"))
    samples = sum(result["samples"].values())
    return {
        "mode": str(result["mode"]),
        "rounds": str(sum(phase["rounds"] for phase in result["phases"])),
        "accuracy": f"{result['accuracy']:.3f}" + (f" ± {result['deviation']:.3f}" if "deviation" in result else ""),
        "attack": _attack(result),
        "balanced": f"{result['balanced_accuracy']:.3f}",
        "worst class": f"{min(result['per_class'].values()):.3f}",
        "cosine": f"{sum(cosines) / len(cosines):.3f}",
        "samples": str(samples) if samples else "·",
        "MB sent": f"{sent:.1f}" if sent else "·",
        "MB received": f"{received:.1f}" if received else "·",
        "s": f"{result['seconds']['total']:.0f}",
    }


def _attack(result: Mapping[str, Any]) -> str:
    """Return the AUC of the strongest attack, with a question mark if the gate could not judge it."""
    gate = (result.get("evaluation") or {}).get("gate") or {}
    if gate.get("auc") is None:
        return "·"
    return f"{gate['auc']:.2f}{'?' if gate['verdict'] == 'not judged' else ''}"


def quality_table(evaluation: Mapping[str, Any]) -> Table:
    """Return the measures of synthetic samples.

    Parameters
    ----------
    evaluation : Mapping
        ``evaluation`` of ``results.json``.
    """
    table = PlainTable(title=f"{evaluation['samples']} synthetic samples")
    for name in ("measure", "synthetic", "compare with", "what that is"):
        table.add_column(name, justify="right" if name in ("synthetic", "compare with") else "left", overflow="fold")
    probes, fidelity = evaluation.get("utility", {}), evaluation.get("fidelity") or {}
    rows = [(f"accuracy, {name} probe", x["tstr"], x["trtr"], "trained on real clips") for name, x in probes.items()]
    if fidelity.get("synthetic"):
        real = fidelity["real"]
        meaning = "training against held-out clips"
        rows += [(name, value, real[name], meaning) for name, value in fidelity["synthetic"].items()]
    for name, value, reference, meaning in rows:
        table.add_row(name, *("·" if x is None else f"{x:.3f}" for x in (value, reference)), meaning)
    return table

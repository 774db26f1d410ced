"""Tables on the terminal: label distributions and runs side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

WIDEST = 1000  # characters of a line where nothing limits it


def show(table: Table) -> None:
    """Print a table; where there is no terminal it gets the width it needs."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(Console(width=WIDEST).measure(table).maximum, 80))
    console.print(table)


def distribution_table(nodes: Mapping[str, Mapping[str, int]], classes: list[str]) -> Table:
    """Return how many clips of each class each node trains on.

    Parameters
    ----------
    nodes : Mapping
        Clips by class name, by node number.
    classes : list[str]
        Row order.
    """
    table = Table(title="training clips of each class on each node")
    table.add_column("class")
    for number in nodes:
        table.add_column(f"node {number}", justify="right")
    for name in classes:
        table.add_row(name, *(str(counts.get(name, "·")) for counts in nodes.values()))
    table.add_section()
    table.add_row("all", *(str(sum(counts.values())) for counts in nodes.values()))
    return table


def comparison_table(runs: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return results of several runs side by side.

    Parameters
    ----------
    runs : Mapping
        Contents of ``results.json`` by run name.
    """
    table = Table(title="zero-shot accuracy on the held-out fold")
    table.add_column("run")
    table.add_column("mode")
    for name in ("rounds", "accuracy", "balanced", "worst class", "cosine", "samples", "MB sent", "MB received", "s"):
        table.add_column(name, justify="right")
    for name, result in runs.items():
        table.add_row(name, *_row(result))
    return table


def _row(result: Mapping[str, Any]) -> list[str]:
    cosines = [head["cosine"] for head in result["heads"].values()]
    traffic = [sum(result["bytes"][way]) / 1e6 for way in ("sent", "received")]
    samples = sum(result["samples"].values())
    return [
        str(result["mode"]),
        str(sum(phase["rounds"] for phase in result["phases"])),
        f"{result['accuracy']:.3f}" + (f" ± {result['deviation']:.3f}" if "deviation" in result else ""),
        f"{result['balanced_accuracy']:.3f}",
        f"{min(result['per_class'].values()):.3f}",
        f"{sum(cosines) / len(cosines):.3f}",
        str(samples) if samples else "·",
        *(f"{value:.1f}" if value else "·" for value in traffic),
        f"{result['seconds']['total']:.0f}",
    ]


def quality_table(evaluation: Mapping[str, Any]) -> Table:
    """Return what was measured of synthetic samples.

    Parameters
    ----------
    evaluation : Mapping
        ``evaluation`` of ``results.json``.
    """
    table = Table(title=f"{evaluation['samples']} synthetic samples")
    for name in ("measure", "synthetic", "compare with", "what that is"):
        table.add_column(name, justify="right" if name in ("synthetic", "compare with") else "left", overflow="fold")
    for rows in (_utility_rows(evaluation), _fidelity_rows(evaluation), _privacy_rows(evaluation)):
        for name, value, reference, meaning in rows:
            table.add_row(name, _number(value), _number(reference), meaning)
        table.add_section()
    if "gate" in evaluation:
        table.add_row("gate", evaluation["gate"]["verdict"], "", "; ".join(evaluation["gate"]["reasons"]))
    return table


Rows = list[tuple[str, float | None, float | None, str]]


def _utility_rows(evaluation: Mapping[str, Any]) -> Rows:
    probes = evaluation.get("utility", {})
    return [(f"accuracy, {name} probe", x["tstr"], x["trtr"], "trained on real clips") for name, x in probes.items()]


def _fidelity_rows(evaluation: Mapping[str, Any]) -> Rows:
    fidelity = evaluation.get("fidelity")
    if not fidelity or not fidelity["synthetic"]:
        return []
    made, real, told = fidelity["synthetic"], fidelity["real"], fidelity["classifier"]
    rows: Rows = [(name, value, real[name], "training against held-out clips") for name, value in made.items()]
    return [*rows, ("classifier's AUC", told["auc"], 0.5, "not to be told from real")] if told else rows


def _privacy_rows(evaluation: Mapping[str, Any]) -> Rows:
    privacy = evaluation.get("privacy")
    if not privacy or "membership_error" not in privacy:  # nodes that measure each for itself have no figure in common
        return []
    auc = f"real clips in place of samples; standard error {privacy['membership_error']:.3f}"
    return [
        ("distance ratio", privacy["distance_ratio"], 1.0, "held-out clips"),
        ("near copies", privacy["near_copies"], privacy["near_copies_held_out"], "held-out clips"),
        ("membership AUC", privacy["membership_auc"], privacy["membership_reference"], auc),
    ]


def _number(value: float | None) -> str:
    return "·" if value is None else f"{value:.3f}"

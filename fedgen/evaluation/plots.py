"""Pictures of a run: accuracy over rounds, label distribution over nodes, confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BLUE = "#2b6cb0"


def draw_run(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw ``accuracy.png``, ``partition.png`` and ``confusion.png`` into ``folder`` and return their paths.

    Parameters
    ----------
    results : Mapping
        Content of ``results.json``.
    folder : Path
        An existing folder.
    """
    names = results["classes"]
    side = 3.0 + 0.4 * len(names)
    figures = {
        "accuracy.png": Figure(figsize=(7.0, 4.0), layout="constrained"),
        "partition.png": Figure(figsize=(side, 1.8 + 0.45 * len(results["nodes"])), layout="constrained"),
        "confusion.png": Figure(figsize=(side, side), layout="constrained"),
    }
    accuracy_axes(figures["accuracy.png"].subplots(), results["history"])
    partition_axes(figures["partition.png"].subplots(), results["nodes"], names)
    confusion_axes(figures["confusion.png"].subplots(), results["confusion"], names)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=120)
    return [folder / name for name in figures]


def accuracy_axes(axes: Axes, history: list[dict[str, Any]]) -> None:
    """Draw accuracy on the held-out fold over rounds."""
    rounds = [entry["round"] for entry in history]
    axes.plot(rounds, [entry["accuracy"] for entry in history], "o-", color=BLUE, markersize=4)
    axes.set(xlabel="round", ylabel="zero-shot accuracy", ylim=(0, 1), title="Global adapters on the held-out fold")
    last = history[-1]["accuracy"]
    axes.annotate(f"{last:.3f}", (rounds[-1], last), xytext=(0, 7), textcoords="offset points", ha="center")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def partition_axes(axes: Axes, nodes: Mapping[str, Mapping[str, int]], names: list[str]) -> None:
    """Draw how many training clips of each class each node has."""
    counts = np.array([[node.get(name, 0) for name in names] for node in nodes.values()])  # (nodes, classes)
    _matrix(axes, counts, [f"node {number}" for number in nodes], names)
    axes.set(title="Training clips of each class on each node")


def confusion_axes(axes: Axes, confusion: list[list[int]], names: list[str]) -> None:
    """Draw true classes (rows) against predicted ones."""
    _matrix(axes, np.array(confusion), names, names)
    axes.set(title="Held-out clips: class and nearest target", ylabel="class", xlabel="nearest target")


def _matrix(axes: Axes, counts: np.ndarray, rows: list[str], columns: list[str]) -> None:
    axes.imshow(counts, cmap="Blues", aspect="auto")
    axes.set_xticks(range(len(columns)), [name.replace("_", " ") for name in columns], rotation=60, ha="right")
    axes.set_yticks(range(len(rows)), [name.replace("_", " ") for name in rows])
    threshold = counts.max() / 2
    for row, column in zip(*counts.nonzero(), strict=True):
        value = counts[row, column]
        color = "white" if value > threshold else "black"
        axes.text(column, row, str(value), ha="center", va="center", color=color, fontsize=8)

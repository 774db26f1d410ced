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
    drawings = {
        "accuracy.png": (accuracy_axes, results["history"], (7.0, 4.0)),
        "partition.png": (partition_axes, (results["nodes"], names), (2.5 + 0.5 * len(names), 1.8 + 0.45 * len(results["nodes"]))),
        "confusion.png": (confusion_axes, (results["confusion"], names), (3.0 + 0.4 * len(names),) * 2),
    }
    paths = []
    for name, (draw, content, size) in drawings.items():
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots(), content)
        figure.savefig(folder / name, dpi=120)
        paths.append(folder / name)
    return paths


def accuracy_axes(axes: Axes, history: list[dict[str, Any]]) -> None:
    """Draw accuracy on the held-out fold over rounds."""
    rounds = [entry["round"] for entry in history]
    axes.plot(rounds, [entry["accuracy"] for entry in history], "o-", color=BLUE, markersize=4)
    axes.set(xlabel="round", ylabel="zero-shot accuracy", ylim=(0, 1), title="Global adapters on the held-out fold")
    axes.annotate(
        f"{history[-1]['accuracy']:.3f}", (rounds[-1], history[-1]["accuracy"]), xytext=(0, 7), textcoords="offset points",
        ha="center",
    )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def partition_axes(axes: Axes, content: tuple[Mapping[str, Mapping[str, int]], list[str]]) -> None:
    """Draw how many training clips of each class each node has."""
    nodes, names = content
    counts = np.array([[node.get(name, 0) for name in names] for node in nodes.values()])  # (nodes, classes)
    _matrix(axes, counts, [f"node {number}" for number in nodes], names)
    axes.set(title="Training clips of each class on each node")


def confusion_axes(axes: Axes, content: tuple[list[list[int]], list[str]]) -> None:
    """Draw true classes (rows) against predicted ones."""
    confusion, names = content
    _matrix(axes, np.array(confusion), names, names)
    axes.set(title="Held-out clips: class and nearest target", ylabel="class", xlabel="nearest target")


def _matrix(axes: Axes, counts: np.ndarray, rows: list[str], columns: list[str]) -> None:
    axes.imshow(counts, cmap="Blues", aspect="auto")
    axes.set_xticks(range(len(columns)), [name.replace("_", " ") for name in columns], rotation=60, ha="right")
    axes.set_yticks(range(len(rows)), [name.replace("_", " ") for name in rows])
    threshold = counts.max() / 2
    for row, column in zip(*counts.nonzero(), strict=True):
        value = counts[row, column]
        axes.text(column, row, str(value), ha="center", va="center", color="white" if value > threshold else "black", fontsize=8)

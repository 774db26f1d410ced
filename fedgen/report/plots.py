"""Pictures of a run: accuracy over rounds, label distribution over nodes, confusion matrix, samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from fedgen.evaluation.quality import Site

BLUE = "#2b6cb0"
ORANGE = "#dd8452"
SAMPLES = "samples.json"
KINDS = {"synthetic": "synthetic", "training": "training clips", "held_out": "held-out clips"}
LONGEST = 40  # characters of a name
MOST_POINTS = 200  # of a class and kind in the picture


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
    axes.set_xticks(range(len(columns)), [*map(_label, columns)], rotation=60, ha="right", parse_math=False)
    axes.set_yticks(range(len(rows)), [*map(_label, rows)], parse_math=False)
    threshold = counts.max() / 2
    for row, column in zip(*counts.nonzero(), strict=True):
        value = counts[row, column]
        color = "white" if value > threshold else "black"
        axes.text(column, row, str(value), ha="center", va="center", color=color, fontsize=8)


def _label(name: str) -> str:
    """Return a name as a picture has room for it."""
    return (name if len(name) <= LONGEST else name[:LONGEST] + "...").replace("_", " ")


def sample_points(records: Site, names: list[str]) -> dict[str, Any]:
    """Return real and synthetic records in the two directions in which the real ones differ most, as JSON values.

    Nothing of an embedding but these two numbers is in it; of the samples of a class it holds `MOST_POINTS` at most.

    Parameters
    ----------
    records : Site
        All training clips, held-out clips and samples.
    names : list[str]
        Class names by id.

    Returns
    -------
    dict
        ``classes``: by class, for each of ``synthetic``, ``training`` and ``held_out``, points ``[x, y]``;
        ``explained``: the share of the real records' variance that lies in each direction.
    """
    real = torch.cat([records.train.flat, records.held_out.flat])
    centre = real.mean(dim=0)
    values, directions = torch.linalg.svd(real - centre, full_matrices=False)[1:]
    plane = torch.zeros(real.shape[1], 2, dtype=real.dtype)
    plane[:, : len(directions[:2])] = directions[:2].T  # (F, 2); a single record has no second direction
    share = (values**2 / (values**2).sum().clamp(min=1e-30))[:2]
    classes: dict[str, dict[str, list[list[float]]]] = {}
    for label in records.synthetic.labels.unique().tolist():
        classes[names[label]] = {
            kind: _points((chosen.at(chosen.labels == label).flat - centre) @ plane)
            for kind, chosen in zip(KINDS, (records.synthetic, records.train, records.held_out), strict=True)
        }
    return {"explained": [round(value, 4) for value in share.tolist()], "classes": classes}


def _points(found: Tensor) -> list[list[float]]:
    """Return ``(n, 2)`` as short numbers, evenly thinned to `MOST_POINTS`."""
    chosen = torch.linspace(0, max(0, len(found) - 1), min(len(found), MOST_POINTS)).round().long()
    return [[float(f"{value:.4g}") for value in point] for point in found[chosen].tolist()]


def draw_samples(points: Mapping[str, Any], file: Path) -> None:
    """Draw what `sample_points` returned to ``file``, each class for itself."""
    classes = points["classes"]
    columns = max(1, min(5, len(classes)))
    rows = max(1, -(-len(classes) // columns))
    figure = Figure(figsize=(2.6 * columns, 2.6 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, (name, kinds) in zip(grid, classes.items(), strict=False):
        sample_axes(axes, kinds)
        axes.set_title(_label(name), parse_math=False)
    for axes in grid[len(classes) :]:
        axes.set_visible(False)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(file, dpi=120)


def sample_axes(axes: Axes, kinds: Mapping[str, list[list[float]]]) -> None:
    """Draw the records of one class."""
    styles: dict[str, dict[str, Any]] = {
        "synthetic": {"color": ORANGE, "s": 5, "alpha": 0.5},
        "training": {"color": BLUE, "s": 12},
        "held_out": {"color": "black", "s": 16, "marker": "x", "linewidths": 0.9},
    }
    for kind, name in KINDS.items():
        points = np.array(kinds[kind], dtype=float).reshape(-1, 2)
        axes.scatter(points[:, 0], points[:, 1], label=name, **styles[kind])
    axes.tick_params(labelsize=6)

"""Pictures of a run: accuracy and losses over rounds, clips of the nodes, confusion matrix, samples."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cycler import cycler
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedgen.evaluation.quality import Site

STYLE: dict[Any, Any] = {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "legend.fontsize": "small",
    "legend.frameon": False,
}
COLOURS = ("#2b7bd0", "#dd7532", "#2f9960", "#c2539a", "#9a8a10", "#7a6ff0", "#d9473d", "#1a959e")
LARGEST = 1e30  # absolute value that is drawn
MAX_NAME_CHARS = 40
MAX_POINTS = 200  # of a class and kind in the picture

Points = Sequence[tuple[float, float]]


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
    accuracy = [(entry["round"], entry["accuracy"]) for entry in results["history"]]
    figures = {
        "accuracy.png": line_figure({"global adapters": accuracy}, "zero-shot accuracy", (0, 1)),
        "partition.png": Figure(figsize=(side, 1.8 + 0.45 * len(results["nodes"])), layout="constrained"),
        "confusion.png": Figure(figsize=(side, side), layout="constrained"),
    }
    partition_axes(figures["partition.png"].subplots(), results["nodes"], names)
    confusion_axes(figures["confusion.png"].subplots(), results["confusion"], names)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=120)
    return [folder / name for name in figures]


@rc_context(STYLE)
def line_figure(series: Mapping[str, Points], y_label: str, limits: tuple[float, float] | None = None) -> Figure:
    """Return a chart of lines over rounds.

    Parameters
    ----------
    series : Mapping
        Finite points (round, value) by name; a name's place decides colour and dashes.
    y_label : str
    limits : tuple[float, float], optional
        Of the y axis; by default what the values need.
    """
    names = {name: _label(name) for name, points in series.items() if points}
    columns = max(1, 60 // (8 + max(map(len, names.values()), default=0)))
    figure = Figure(figsize=(5.0, 3.0 + 0.2 * math.ceil(len(names) / columns)), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(cycler(linestyle=["-", "--", ":"]) * cycler(color=COLOURS))
    lines = {
        name: axes.plot([x for x, _ in points], [y for _, y in points], marker="." if len(points) <= 40 else "")[0]
        for name, points in series.items()
    }
    axes.set(xlabel="round", ylabel=y_label, ylim=limits)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    figure.legend([lines[name] for name in names], names.values(), loc="outside lower center", ncols=columns)
    return figure


@rc_context(STYLE)
def as_svg(figure: Figure) -> bytes:
    """Return a figure as an SVG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", dpi=120, metadata={"Date": None})
    return stream.getvalue()


def drawn(points: Points) -> list[tuple[float, float]]:
    """Return the points that a chart has room for: nodes may have sent any number."""
    return [(x, y) for x, y in points if math.isfinite(x) and abs(y) <= LARGEST]


def summed_up(series: Mapping[str, Points]) -> dict[str, Points]:
    """Return ``series``, or where there are more than colours the mean, the lowest and the highest of them."""
    if len(series) <= len(COLOURS):
        return dict(series)
    by_x: dict[float, list[float]] = {}
    for points in series.values():
        for x, y in points:
            by_x.setdefault(x, []).append(y)
    columns = sorted(by_x.items())
    return {
        f"mean of {sum(map(bool, series.values()))}": [(x, sum(values) / len(values)) for x, values in columns],
        "lowest": [(x, min(values)) for x, values in columns],
        "highest": [(x, max(values)) for x, values in columns],
    }


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
    return (name if len(name) <= MAX_NAME_CHARS else name[:MAX_NAME_CHARS] + "...").replace("_", " ")


@rc_context(STYLE)
def samples_figure(records: Site, names: list[str]) -> Figure:
    """Return a picture of real and synthetic records by class, in the two directions in which real ones differ most.

    Parameters
    ----------
    records : Site
        All training clips, held-out clips and samples; of each class and kind, `MAX_POINTS` at most are drawn.
    names : list[str]
        Class names by id.
    """
    real = torch.cat([records.train.flat, records.held_out.flat])
    centre = real.mean(dim=0)
    values, directions = torch.linalg.svd(real - centre, full_matrices=False)[1:]
    plane = torch.zeros(real.shape[1], 2, dtype=real.dtype)
    plane[:, : len(directions[:2])] = directions[:2].T  # (F, 2); a single record has no second direction
    share = float((values[:2] ** 2).sum() / (values**2).sum().clamp(min=1e-30))
    labels = records.synthetic.labels.unique().tolist()
    columns = max(1, min(5, len(labels)))
    rows = max(1, -(-len(labels) // columns))
    figure = Figure(figsize=(2.6 * columns, 2.6 * rows + 0.6), layout="constrained")
    figure.suptitle(f"directions with {100 * share:.0f} % of the real records' variance", fontsize="small")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    kinds = (
        (records.synthetic, {"label": "synthetic", "color": COLOURS[1], "s": 5, "alpha": 0.5}),
        (records.train, {"label": "training clips", "color": COLOURS[0], "s": 12}),
        (records.held_out, {"label": "held-out clips", "color": "#808080", "s": 16, "marker": "x", "linewidths": 0.9}),
    )
    for axes, label in zip(grid, labels, strict=False):
        for chosen, style in kinds:
            own = (chosen.at(chosen.labels == label).flat - centre) @ plane  # (n, 2)
            thin = torch.linspace(0, max(0, len(own) - 1), min(len(own), MAX_POINTS)).round().long()
            axes.scatter(*own[thin].T.numpy(), **style)
        axes.tick_params(labelsize=6)
        axes.set_title(_label(names[label]))
    for axes in grid[len(labels) :]:
        axes.set_visible(False)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure

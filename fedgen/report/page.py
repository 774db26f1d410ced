"""The page of `fedgen report`; its text is in ``page.html``, its style in ``style.css``."""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich.table import Table

from fedgen.config.compose import to_yaml
from fedgen.data.files import write_atomically
from fedgen.report.comparison import flat, with_differences
from fedgen.report.plots import Points, as_svg, drawn, line_figure, summed_up
from fedgen.report.record import RunRecord, told_apart
from fedgen.report.tables import comparison_table, distribution_table, quality_table

logger = logging.getLogger(__name__)

PAGE = "report.html"
HERE = Path(__file__).parent
MAX_REASONS = 200  # rows of replies that are missing
MAX_IMAGES = 60
MAX_REASON_CHARS = 400  # characters of a reason
PICTURES = {
    "confusion.png": "Confusion",
    "samples.png": "Real and synthetic embeddings",
    "audit.png": "Attacks: true against false positives",
}


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write one page about the runs in ``folders`` and return its path.

    Parameters
    ----------
    folders : Sequence[Path]
    out : Path, optional
        By default ``report.html`` in the run's folder, or in the one that holds all of them.

    Raises
    ------
    ConfigError
        A folder is not a run folder.
    """
    runs = [RunRecord.read(folder) for folder in {folder.absolute(): folder for folder in folders}.values()]
    file = out or Path(os.path.commonpath([folder.absolute() for folder in folders])) / PAGE
    write_atomically(file, render(runs).encode())
    return file


def render(runs: Sequence[RunRecord]) -> str:
    """Return the page of ``runs``."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    named = dict(zip(told_apart(runs), runs, strict=True))
    finished = {name: (flat(asdict(run.config)), run.results) for name, run in named.items() if run.results is not None}
    values = {
        "style": Markup((HERE / "style.css").read_text(encoding="utf-8")),  # ours: it needs no escaping
        "runs": [section(run, name, number) for number, (name, run) in enumerate(named.items())],
        "comparison": html_table(comparison_table(with_differences(finished))) if len(finished) > 1 else None,
        "accuracy": chart("Accuracy after each round", {name: run.accuracy for name, run in named.items()}, (0, 1)),
    }
    return environment.get_template("page.html").render(values)


def section(run: RunRecord, name: str, number: int) -> dict[str, Any]:
    """Return the values of one run for the template; no other run of the page has its ``name``."""
    missing, evaluation = run.missing(), run.evaluation or {}
    return {
        "id": f"run{number}",
        "name": name,
        "path": str(run.path.absolute()),
        "mode": run.mode,
        "state": _state(run),
        "unfinished": run.results is None,
        "tiles": _tiles(run),
        "config": to_yaml(run.config),
        "nodes": html_table(distribution_table(run.nodes, run.classes)) if run.nodes else None,
        "losses": [chart(title, series) for title, series in run.losses().items()],
        "pictures": [
            _picture(title, run.path / file) for file, title in PICTURES.items() if (run.path / file).exists()
        ],
        "quality": html_table(quality_table(evaluation)) if evaluation else None,
        "gate": evaluation.get("gate"),
        "privacy": flat((run.results or {}).get("privacy") or {}),
        "done": run.rounds[0],
        "missing": [(*place, why[:MAX_REASON_CHARS]) for *place, why in missing[:MAX_REASONS]],
        "more_missing": max(0, len(missing) - MAX_REASONS),
        "images": images(run.path),
    }


def _state(run: RunRecord) -> str:
    done, asked = run.rounds
    if run.results is not None:
        return f"finished; rounds: {done}"
    if run.stopped is not None:
        return f"stopped after {done} of {asked} rounds: {run.stopped[:MAX_REASON_CHARS]}"
    return f"not finished: {done} of {asked} rounds"


def _tiles(run: RunRecord) -> dict[str, str]:
    """Return the main figures."""
    done, asked = run.rounds
    tiles = {"rounds": f"{done} of {asked}"}
    if run.server:
        last = run.server[-1]
        tiles |= {"accuracy": f"{last['server/accuracy']:.3f}", "balanced": f"{last['server/balanced_accuracy']:.3f}"}
    if run.results is not None:
        tiles["worst class"] = f"{min(run.results['per_class'].values()):.3f}"
    if run.evaluation and "gate" in run.evaluation:
        tiles["gate"] = str(run.evaluation["gate"]["verdict"])
    if run.config.privacy.used:
        tiles["epsilon"] = f"{run.config.privacy.epsilon:g}"
    if done:
        tiles["MB sent"] = f"{run.total('bytes_sent') / 1e6:.1f}"
        tiles["MB received"] = f"{run.total('bytes_received') / 1e6:.1f}"
        tiles["seconds of rounds"] = f"{run.total('seconds'):.0f}"
    return tiles


def chart(title: str, series: Mapping[str, Points], limits: tuple[float, float] | None = None) -> dict[str, Any]:
    """Return a chart as an image for the page, and the names that have no figures in it.

    Of accuracy, which has ``limits``, every line is drawn; of losses as many as there are colours, or their mean.
    """
    shown = {name: drawn(points) for name, points in series.items()}
    silent = [name for name, points in shown.items() if not points]
    lines = shown if limits else summed_up(shown)
    ends = [f"{name} ends at {points[-1][1]:.3g}" for name, points in lines.items() if points]
    source = _data(as_svg(line_figure(lines, "accuracy" if limits else "loss", limits)), "svg+xml")
    picture = {"source": source, "about": f"{title}. {'; '.join(ends)}"}
    return {"title": title, "picture": picture if ends else None, "without": silent if ends else []}


def _data(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _picture(name: str, file: Path) -> dict[str, str]:
    return {"name": name, "source": _data(file.read_bytes(), "png")}


def html_table(table: Table) -> dict[str, Any]:
    """Return title, heads and rows of a table for the terminal, with which columns hold numbers."""
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    return {
        "title": str(table.title)[:1].upper() + str(table.title)[1:],
        "heads": [(str(column.header), column.justify == "right") for column in table.columns],
        "rows": list(zip(*columns, strict=True)),
        "ends": {number for number, row in enumerate(table.rows) if row.end_section},
    }


def images(folder: Path) -> list[dict[str, str]]:
    """Return the grids of rendered pictures of a run as data for the page."""
    files = sorted(folder.glob("render*/**/grid.png"))
    if len(files) > MAX_IMAGES:
        logger.warning("%s: the page shows %d of %d grids", folder, MAX_IMAGES, len(files))
    return [_picture(str(file.relative_to(folder).with_suffix("")), file) for file in files[:MAX_IMAGES]]

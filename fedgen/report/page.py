"""The page of `fedgen report`; its text is in ``page.html``, its style in ``style.css``."""

from __future__ import annotations

import base64
import io
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image, UnidentifiedImageError
from rich.table import Table

from fedgen.config.phases import MODES, Generators
from fedgen.data.files import write_atomically
from fedgen.data.plain import read_json
from fedgen.errors import ConfigError, FedgenError, said
from fedgen.evaluation.audit import AUDIT
from fedgen.privacy.result import Report
from fedgen.privacy.show import audit_table
from fedgen.report.comparison import flat, with_differences
from fedgen.report.plots import Points, as_svg, draw_run, draw_samples, drawn, line_figure, samples_figure, summed_up
from fedgen.report.record import RunRecord, told_apart
from fedgen.report.tables import comparison_table, distribution_table, quality_table

NOTHING = "·"


def figure(value: Any) -> str:
    """Return a number with three digits after the point, a count as it is, and a dot for what is not there."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOTHING
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def counted(number: int, what: str) -> str:
    """Return a number of things."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return values by dotted names, as text.

    Entries of a list of mappings go by their ``name`` where each has one of its own, by their place otherwise.
    """
    found: dict[str, str] = {}
    for key, value in values.items():
        inner = _by_name(value) if isinstance(value, list | tuple) else value
        if isinstance(inner, Mapping) and inner:
            found |= flattened(inner, f"{prefix}{key}.")
        else:
            found[prefix + str(key)] = _text(value)
    return found


def of_nodes(values: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return a table with a column for each node and a row for each value."""
    columns = [flattened(facts) for facts in values.values()]
    rows = [
        (key, *(column.get(key, NOTHING) for column in columns)) for key in dict.fromkeys(k for c in columns for k in c)
    ]
    return plain_table("Budget spent by each node", ["what"], [f"node {number}" for number in values], rows)


def plain_table(
    title: str, texts: Sequence[str], numbers: Sequence[str], rows: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """Return a table for the template: columns of ``texts``, then of ``numbers``."""
    heads = [*((name, False) for name in texts), *((name, True) for name in numbers)]
    return {"title": title, "heads": heads, "rows": rows, "ends": set()}


def _by_name(entries: Sequence[Any]) -> Any:
    """Return a list of mappings as a mapping, any other as it is."""
    if not entries or not all(isinstance(entry, Mapping) for entry in entries):
        return entries
    names = [entry.get("name") for entry in entries]
    if len({name for name in names if isinstance(name, str)}) < len(names):
        return {str(place): entry for place, entry in enumerate(entries)}
    return {entry["name"]: {key: value for key, value in entry.items() if key != "name"} for entry in entries}


def _text(value: Any) -> str:
    """Return a value as one would write it in the configuration."""
    if value is None or value in ([], {}, ()):
        return NOTHING
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


logger = logging.getLogger(__name__)

PAGE = "report.html"
MAX_BESIDE = 7  # references that a chart has colours for, beside the run itself


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write one page about the runs in ``folders`` and return its path.

    A single run is compared with those that lie beside its folder and are comparable.

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
    references = beside(runs[0]) if len(runs) == 1 else []
    file = out or Path(os.path.commonpath([folder.absolute() for folder in folders])) / PAGE
    write_atomically(file, render(runs, references).encode())
    return file


def beside(run: RunRecord) -> list[RunRecord]:
    """Return comparable runs in sibling folders."""
    found = []
    for folder in sorted(run.path.absolute().parent.iterdir()):
        if folder == run.path.absolute() or not (folder / "config.yaml").is_file():
            continue
        try:
            other = RunRecord.read(folder)
        except ConfigError:  # of another version of the settings
            continue
        if other.accuracy and run.comparable(other):
            found.append(other)
    if len(found) > MAX_BESIDE:
        logger.warning("%s: %d of %d comparable runs beside it are drawn", run.path, MAX_BESIDE, len(found))
    return found[:MAX_BESIDE]


def draw_again(folder: Path) -> list[Path]:
    """Draw the pictures of a finished run into its folder again, and return their paths."""
    run = RunRecord.read(folder)
    if run.results is None:
        return []
    pictures = draw_run(run.results, folder)
    if run.points:
        draw_samples(run.points, folder / "samples.png")
        pictures.append(folder / "samples.png")
    return pictures


HERE = Path(__file__).parent
MAX_REASONS = 200  # rows of replies that are missing
MAX_IMAGES = 60
IMAGE_SIDE = 384  # pixels; larger images are made smaller for the page
GRID, GRID_SIDE = "grid.png", 1152  # the pictures beside it, together
MAX_REASON_CHARS = 400  # characters of a reason
BY_CLASS = ("frechet", "precision", "recall", "density", "coverage")
OVERVIEW = (
    "data.name",
    "data.test_fold",
    "encoder.name",
    "target.name",
    "partition.name",
    "partition.nodes",
    "generator.kind",
    "granularity.name",
    "sharing.name",
    "strategy.name",
    "global_training.name",
    "synthesis.samples_per_class",
    "privacy.name",
    "seed",
)
OF_GENERATORS = ("generator.kind", "granularity.name", "sharing.name")
OF_SAMPLES = ("global_training.name", "synthesis.samples_per_class")


def render(runs: Sequence[RunRecord], references: Sequence[RunRecord] = ()) -> str:
    """Return the page of ``runs``; ``references`` are runs that theirs are compared with, but not shown themselves."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["figure"] = figure
    compared = [*runs, *references]
    names = told_apart(compared)
    accuracy = {name: run.accuracy for name, run in zip(names, compared, strict=True)}
    values = {
        "style": Markup((HERE / "style.css").read_text(encoding="utf-8")),  # ours: it needs no escaping
        "runs": [section(run, names[number], number) for number, run in enumerate(runs)],
        "comparison": _comparison(dict(zip(names, compared, strict=True))),
        "accuracy": chart("Accuracy after each round", accuracy, (0, 1), False),
        "references": names[len(runs) :],
    }
    return environment.get_template("page.html").render(values)


def _comparison(runs: Mapping[str, RunRecord]) -> dict[str, Any] | None:
    """Return the results of finished runs with the settings in which they differ, the most accurate first."""
    finished = {name: (flat(asdict(run.config)), run.results) for name, run in runs.items() if run.results is not None}
    return html_table(comparison_table(with_differences(finished))) if len(finished) > 1 else None


def section(run: RunRecord, name: str, number: int) -> dict[str, Any]:
    """Return the values of one run for the template; no other run of the page has its ``name``."""
    done, asked = run.rounds
    given = ("mode", "rounds") if run.config.phases else ()  # which phases take the place of
    settings = flattened({key: value for key, value in asdict(run.config).items() if key not in given})
    privacy = (run.results or {}).get("privacy") or {}
    return {
        "id": f"run{number}",
        "name": name,
        "path": str(run.path.absolute()),
        "mode": run.mode,
        "state": _state(run),
        "unfinished": run.results is None,
        "tiles": _tiles(run, done, asked),
        "overview": _overview(run, settings),
        "config": settings,
        "nodes": html_table(distribution_table(run.nodes, run.classes)) if run.nodes else None,
        "losses": _losses(run),
        "epochs": any(
            x % 1 for series in run.generator_losses().values() for points in series.values() for x, _ in points
        ),
        "confusion": matrix(run.results["confusion"], run.classes) if run.results else None,
        "per_class": {name: value for name, value in run.results["per_class"].items()} if run.results else {},
        "samples": _picture(samples_figure(run.points), "Embeddings by class") if run.points else None,
        "explained": sum(run.points["explained"]) if run.points else 0,
        "quality": html_table(quality_table(run.evaluation)) if run.evaluation else None,
        "gate": (run.evaluation or {}).get("gate"),
        "audit": _audit(run.path),
        "by_class": _by_class(run.evaluation or {}),
        "privacy": flattened({key: value for key, value in privacy.items() if key != "nodes"}),
        "spent": of_nodes(privacy["nodes"]) if privacy.get("nodes") else None,
        "done": done,
        "phases": run.phases(),
        "missing": [(*place, why[:MAX_REASON_CHARS]) for *place, why in run.missing()[:MAX_REASONS]],
        "more_missing": max(0, len(run.missing()) - MAX_REASONS),
        "images": images(run.path),
    }


def _overview(run: RunRecord, settings: Mapping[str, str]) -> dict[str, str]:
    """Return the most important settings that the run's modes use."""
    modes = [MODES[phase.mode] for phase in run.config.phase_list]
    idle: list[str] = []
    if all(mode.generators is Generators.NONE for mode in modes):
        idle += OF_GENERATORS
    if not any(mode.synthesizes for mode in modes):
        idle += OF_SAMPLES
    return {key: settings[key] for key in OVERVIEW if key in settings and key not in idle}


def _state(run: RunRecord) -> str:
    done, asked = run.rounds
    if run.results is not None:
        return f"finished after {counted(done, 'round')}"
    if run.stopped is not None:
        return f"stopped after {done} of {counted(asked, 'round')}: {run.stopped[:MAX_REASON_CHARS]}"
    return f"not finished: {done} of {counted(asked, 'round')}"


def _tiles(run: RunRecord, done: int, asked: int) -> dict[str, str]:
    """Return the main figures."""
    tiles = {}
    if "accuracy" in run.last:
        tiles["accuracy"] = figure(run.last["accuracy"])
        tiles["balanced"] = figure(run.last["balanced_accuracy"])
    if run.results is not None:
        tiles["worst class"] = figure(min(run.results["per_class"].values()))
    tiles["rounds"] = f"{done} of {asked}"
    if run.evaluation and "gate" in run.evaluation:
        tiles["gate"] = str(run.evaluation["gate"]["verdict"])
    if run.config.privacy.used:
        tiles["epsilon"] = f"{run.config.privacy.epsilon:g}"
    if done:
        tiles["MB sent"] = f"{sum(phase['bytes_sent'] for phase in run.phases()) / 1e6:.1f}"
        tiles["MB received"] = f"{sum(phase['bytes_received'] for phase in run.phases()) / 1e6:.1f}"
    if run.results is not None:
        tiles["seconds in all"] = f"{run.results['seconds']['total']:.0f}"
    return tiles


def _losses(run: RunRecord) -> list[dict[str, Any]]:
    """Return a chart for each head, each component of generators, and the training on the pool."""
    pool = run.global_losses()
    return [
        *(chart(f"Adapters, {head}", series) for head, series in run.adapter_losses().items()),
        *(chart(f"Generators, {name.replace('_', ' ')}", s) for name, s in run.generator_losses().items()),
        *([chart("Global adapters, on the pool of samples", pool)] if pool else []),
    ]


def chart(
    title: str, series: Mapping[str, Points], limits: tuple[float, float] | None = None, shorten: bool = True
) -> dict[str, Any]:
    """Return a chart as an image for the page, and the names that have no figures in it."""
    shown = {name: drawn(points) for name, points in series.items()}
    silent = [name for name, points in shown.items() if not points]
    lines = summed_up(shown) if shorten else shown
    ends = [f"{name} ends at {points[-1][1]:.3g}" for name, points in lines.items() if points]
    figure = line_figure(lines, "accuracy" if limits else "loss", limits)
    return {
        "title": title,
        "picture": _picture(figure, f"{title}. {'; '.join(ends)}") if ends else None,
        "without": silent if ends else [],
    }


def _picture(figure: Figure, about: str) -> dict[str, str]:
    return {"source": f"data:image/svg+xml;base64,{base64.b64encode(as_svg(figure)).decode()}", "about": about}


def html_table(table: Table) -> dict[str, Any]:
    """Return title, heads and rows of a table for the terminal, with which columns hold numbers."""
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    return {
        "title": str(table.title)[:1].upper() + str(table.title)[1:],
        "heads": [(str(column.header), column.justify == "right") for column in table.columns],
        "rows": list(zip(*columns, strict=True)),
        "ends": {number for number, row in enumerate(table.rows) if row.end_section},
    }


def matrix(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> dict[str, Any]:
    """Return a confusion matrix with how much colour each cell has: its share of its row."""
    rows = []
    for name, row in zip(classes, counts, strict=True):
        total = max(1, sum(row))
        rows.append((name, [(count, round(count / total, 2)) for count in row]))
    return {"classes": list(classes), "rows": rows}


def _by_class(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the measures of the samples of each class."""
    fidelity = (evaluation.get("fidelity") or {}).get("per_class") or {}
    rows = []
    for name, own in fidelity.items():
        values = (own or {}).get("synthetic") or {}
        rows.append((name, *(figure(values.get(key)) for key in BY_CLASS)))
    return plain_table("Measures of synthetic samples, by class", ["class"], BY_CLASS, rows) if rows else None


def _audit(folder: Path) -> Any:
    """Return the table of the attacks on a run; None without an audit that can be read."""
    file = folder / AUDIT
    if not file.is_file():
        return None
    try:
        values = read_json(file.read_text(encoding="utf-8"))
        return html_table(audit_table(Report.from_dict(values), values["names"])) if "attacks" in values else None
    except (FedgenError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        logger.warning("%s is left out: %s", file, said(error))
        return None


def images(folder: Path) -> list[dict[str, str]]:
    """Return the rendered pictures of a run as data for the page, grids in place of their pictures."""
    found = []
    files = [file for file in sorted(folder.glob("render*/**/*.png")) if not _in_a_grid(file)]
    if len(files) > MAX_IMAGES:
        logger.warning("%s: the page shows %d of %d pictures", folder, MAX_IMAGES, len(files))
    for file in files[:MAX_IMAGES]:
        side = GRID_SIDE if file.name == GRID else IMAGE_SIDE
        try:
            with Image.open(file) as opened:
                picture = opened.convert("RGB")
                picture.thumbnail((side, side))
                buffer = io.BytesIO()
                picture.save(buffer, "JPEG", quality=85)
        except (OSError, UnidentifiedImageError) as error:
            logger.warning("%s is not on the page: %s", file, error)  # half written, perhaps
            continue
        data = base64.b64encode(buffer.getvalue()).decode()
        name = str(file.relative_to(folder).with_suffix(""))
        wide = "wide" if file.name == GRID else ""
        size = {"width": str(picture.width), "height": str(picture.height)}
        found.append(
            {"name": name, "source": f"data:image/jpeg;base64,{data}", "about": _about(file), "kind": wide, **size}
        )
    return found


def _in_a_grid(file: Path) -> bool:
    return file.name != GRID and (file.parent / GRID).is_file()


def _about(file: Path) -> str:
    """Return the settings of a picture, from the JSON beside it."""
    beside = file.with_suffix(".json")
    if not beside.is_file():
        return ""
    facts = json.loads(beside.read_text(encoding="utf-8"))
    return ", ".join(f"{k} {v}" for k, v in facts.items() if isinstance(v, str | int | float))[:MAX_REASON_CHARS]

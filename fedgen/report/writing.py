"""Writing the page: which runs are on it, and where it goes."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from fedgen.errors import ConfigError
from fedgen.evaluation.plots import draw_run, draw_samples
from fedgen.files import write_atomically
from fedgen.report.page import render
from fedgen.report.record import RunRecord

logger = logging.getLogger(__name__)

PAGE = "report.html"
MOST_BESIDE = 7  # references that a chart has colours for, beside the run itself


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
        A folder is none of a run.
    """
    runs = [RunRecord.read(folder) for folder in {folder.absolute(): folder for folder in folders}.values()]
    references = beside(runs[0]) if len(runs) == 1 else []
    file = out or Path(os.path.commonpath([folder.absolute() for folder in folders])) / PAGE
    write_atomically(file, render(runs, references).encode())
    return file


def beside(run: RunRecord) -> list[RunRecord]:
    """Return comparable runs in the folders beside a run's."""
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
    if len(found) > MOST_BESIDE:
        logger.warning("%s: %d of %d comparable runs beside it are drawn", run.path, MOST_BESIDE, len(found))
    return found[:MOST_BESIDE]


def draw_again(folder: Path) -> list[Path]:
    """Draw the pictures of a finished run into its folder again, and return their paths."""
    run = RunRecord.read(folder)
    if run.results is None:
        return []
    pictures = draw_run(run.results, folder)
    if run.points and run.points["classes"]:
        draw_samples(run.points, folder / "samples.png")
        pictures.append(folder / "samples.png")
    return pictures

"""What the benchmarks share: arguments, a table, a file of figures, and the memory of a process."""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table


def parser(text: str | None, name: str) -> argparse.ArgumentParser:
    """Return a parser with ``--out`` whose help is ``text`` as it stands."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, default=Path(f"runs/benchmarks/{name}.json"))
    return made


def data(folder: str) -> list[str]:
    """Return the overrides for a ``folder`` in the ESC-50 layout, or for ``sounds``."""
    return ["data=sounds"] if folder == "sounds" else ["experiment=esc10", f"data.root={folder}"]


def save(arguments: argparse.Namespace, rows: Sequence[dict[str, Any]], **facts: Any) -> None:
    """Write arguments, facts and rows to ``--out``."""
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    given = {name: value for name, value in vars(arguments).items() if name != "out"}
    found = {**given, **facts, "torch": torch.__version__, "rows": rows}
    arguments.out.write_text(json.dumps(found, indent=1, default=str))


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> None:
    """Print a table; numbers with four digits, nothing for None."""
    table = Table(title=title, caption=caption or None)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*map(written, row))
    Console(width=120).print(table)


def written(value: Any) -> str:
    """Return a value as tables show it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "met" if value else "missed"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def mean_and_error(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the mean and its standard error; None of no values, an error of 0 of one."""
    if not values:
        return None
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return statistics.mean(values), error


def plus_minus(pair: tuple[float, float] | None) -> str:
    """Return a mean and its error as tables show them."""
    return f"{pair[0]:.3f} ± {pair[1]:.3f}" if pair else ""


def finished(folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the results of the run in ``folder``; the first time, start it as a process of its own.

    Raises
    ------
    RuntimeError
        It failed; with its last words.
    """
    results = folder / "results.json"
    if not results.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "fedgen.cli", "run", *overrides, f"hydra.run.dir={folder}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not results.is_file():
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(results.read_text()))


def resident(name: str) -> float:
    """Return this process's ``VmHWM`` (most) or ``VmRSS`` (now) resident memory in MiB; elsewhere both are the most."""
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(rf"{name}:\s+(\d+) kB", status.read_text())):
        return int(found[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)

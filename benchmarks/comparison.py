"""From the cells of `generators.py` to its tables: means over blocks, and differences to a reference within them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from figures import mean_and_error, show

TARGET = 0.97  # of the accuracy with real clips
REFERENCE = "gaussian"
REAL = "real clips"
DIRECTIONS = {  # 1: more is better
    "precision": 1,
    "density": 1,
    "coverage": 1,
    "recall": 1,
    "frechet": -1,
    "mmd": -1,
}
SMALL = ("frechet", "mmd")
TO_WIN = ("precision", "density", "coverage")
CLEAR = 2  # errors that a mean difference must exceed to count
FULL = 0.995  # where the reference has as much, as much is enough: precision and coverage end at 1

Cell = Mapping[str, Any]
Row = dict[str, Any]


def summary(cells: Sequence[Cell], rows: Sequence[tuple[str, int]], neural: Sequence[str]) -> list[Row]:
    """Return a row for real clips and one for each way and length, averaged over blocks.

    Parameters
    ----------
    cells : Sequence[Cell]
        One for each way, length, fold and seed.
    rows : Sequence[tuple[str, int]]
        Ways and lengths, in the order of the tables.
    neural : Sequence[str]
        Ways that are compared with `REFERENCE` of the same length.
    """
    chosen = {row: [cell for cell in cells if (cell["way"], cell["length"]) == row] for row in rows}
    real = {(cell["fold"], cell["seed"]): cell for cell in cells}  # the same in every way
    found = [{"way": REAL, "length": None, **_means([scores(cell, real=True) for cell in real.values()])}]
    for (way, length), own in chosen.items():
        row = {"way": way, "length": length, **_means([scores(cell) for cell in own])}
        row["met"] = {probe: mean >= TARGET for probe, (mean, _) in row["shares"].items()}
        row["seconds"] = statistics.median(cell["seconds"] for cell in own)
        if way in neural and (REFERENCE, length) in chosen:
            row["against"] = compared(own, chosen[REFERENCE, length])
        found.append(row)
    return found


def scores(cell: Cell, real: bool = False) -> dict[str, dict[str, float]]:
    """Return ``accuracy`` and ``shares`` by probe and the other ``measures``, or what real clips have instead."""
    report = cell["report"]
    utility, fidelity = report["utility"], report["fidelity"]
    accuracy = {probe: value["trtr" if real else "tstr"] for probe, value in utility.items()}
    shares = {probe: accuracy[probe] / value["trtr"] for probe, value in utility.items() if value["trtr"]}
    measures = dict(fidelity["real" if real else "synthetic"])
    return {"accuracy": accuracy, "shares": shares, "measures": measures}


def _means(found: Sequence[Mapping[str, Mapping[str, float]]]) -> Row:
    return {
        "blocks": len(found),
        **{
            part: {name: mean_and_error([one[part][name] for one in found if name in one[part]]) for name in names}
            for part, names in found[0].items()
        },
    }


def compared(own: Sequence[Cell], reference: Sequence[Cell]) -> Row:
    """Return differences to the reference within blocks, what is clearly better or worse, and whether ``own`` wins.

    It wins if it is clearly better in each of `TO_WIN`, or not lower where the reference is `FULL`, and clearly worse
    in nothing.
    """
    blocks = {(cell["fold"], cell["seed"]): _measures(cell) for cell in reference}
    pairs = [(_measures(cell), blocks[cell["fold"], cell["seed"]]) for cell in own]
    differences = {
        name: mean_and_error([mine[name] - other[name] for mine, other in pairs]) or (0.0, 0.0) for name in pairs[0][0]
    }
    gains = {name: (DIRECTIONS.get(name, 1) * mean, error) for name, (mean, error) in differences.items()}
    better = [name for name, (mean, error) in gains.items() if mean > CLEAR * error]
    worse = [name for name, (mean, error) in gains.items() if -mean > CLEAR * error]
    full = [name for name in TO_WIN if gains[name][0] >= 0 and statistics.mean(x[name] for x in blocks.values()) > FULL]
    wins = set(TO_WIN) <= {*better, *full} and not worse
    return {"differences": differences, "better": better, "worse": worse, "wins": wins}


def _measures(cell: Cell) -> dict[str, float]:
    found = scores(cell)
    return {f"{probe} probe": value for probe, value in found["accuracy"].items()} | found["measures"]


def tables(rows: Sequence[Row], title: str) -> None:
    """Print utility, fidelity, and what neural kinds gain and lose."""
    probes = list(rows[0]["accuracy"])
    names = list(DIRECTIONS)
    heads = [word for probe in probes for word in (probe, "of real")]
    cells = [[*_name(row), *_learnt(row, probes), row.get("seconds")] for row in rows]
    show(f"what is learnt: {title}", ["tokens", "way", *heads, "CPU s"], cells)
    cells = [[*_name(row), *(_fidelity(name, row["measures"][name]) for name in names)] for row in rows]
    heads = [f"1000 {name}" if name in SMALL else name for name in names]
    show(f"how like real clips: {title}", ["tokens", "way", *heads], cells)
    cells = [
        [*_name(row), *(_pair(found["differences"][name], "+") for name in TO_WIN), *_lists(found), found["wins"]]
        for row in rows
        if (found := row.get("against"))
    ]
    if cells:
        show(f"against {REFERENCE}: {title}", ["tokens", "way", *TO_WIN, "better", "worse", "wins"], cells)


def _name(row: Row) -> list[Any]:
    return [row["length"], row["way"]]


def _learnt(row: Row, probes: Sequence[str]) -> list[str | None]:
    return [
        word
        for probe in probes
        for word in (f"{row['accuracy'][probe][0]:.3f}", _pair(row["shares"].get(probe), "", 2))
    ]


def _fidelity(name: str, value: tuple[float, float]) -> str | None:
    return _pair((1000 * value[0], 1000 * value[1]), "", 1) if name in SMALL else _pair(value)


def _lists(found: Row) -> list[str]:
    return [", ".join(found[name]) or "nothing" for name in ("better", "worse")]


def _pair(value: tuple[float, float] | None, sign: str = "", digits: int = 3) -> str | None:
    return f"{value[0]:{sign}.{digits}f}±{value[1]:.{digits}f}" if value else None

"""Runs side by side: the best first, and those that differ in nothing but the seed as one, with mean and deviation."""

from __future__ import annotations

import os
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedgen.config import to_yaml
from fedgen.run_folder import RunFolder
from fedgen.settings import Config

Results = Mapping[str, Any]


def compared(folders: Sequence[RunFolder]) -> dict[str, Results]:
    """Return the results of runs by name, the most accurate first.

    Runs that differ only in ``seed`` become one: means, and the standard deviation of accuracy as ``deviation``.

    Raises
    ------
    ConfigError
        A folder is none of a run, or of one that has not finished.
    """
    groups: dict[str, list[tuple[str, Results]]] = defaultdict(list)
    for folder in folders:
        groups[_settings(folder.config())].append((str(folder.path), folder.results()))
    runs = dict(row for group in groups.values() for row in _rows(group))
    return dict(sorted(runs.items(), key=lambda run: -run[1]["accuracy"]))


def _settings(config: Config) -> str:
    """Return what decides a run's results besides the seed."""
    return to_yaml(replace(config, seed=0, run_dir=None, resume=None, threads=None))


def _rows(group: list[tuple[str, Results]]) -> list[tuple[str, Results]]:
    """Return one row for runs of several seeds; runs of the same seed stay apart."""
    paths, results = zip(*group, strict=True)
    seeds = sorted(result["seed"] for result in results)
    if len(set(seeds)) < len(group) or len(group) == 1:
        return group
    return [(f"{os.path.commonpath(paths)} (seeds {', '.join(map(str, seeds))})", mean_results(results))]


def mean_results(results: Sequence[Results]) -> Results:
    """Return the means over runs of what a comparison shows; ``deviation`` is the sample's, of accuracy."""

    def mean(values: Sequence[float]) -> float:
        return statistics.fmean(values)

    first = results[0]
    return {
        **first,
        "accuracy": mean([r["accuracy"] for r in results]),
        "deviation": statistics.stdev([r["accuracy"] for r in results]),
        "balanced_accuracy": mean([r["balanced_accuracy"] for r in results]),
        "per_class": {name: mean([r["per_class"][name] for r in results]) for name in first["per_class"]},
        "heads": {
            head: {name: mean([r["heads"][head][name] for r in results]) for name in values}
            for head, values in first["heads"].items()
        },
        "bytes": {way: [mean([sum(r["bytes"][way]) for r in results])] for way in ("sent", "received")},
        "seconds": {"total": mean([r["seconds"]["total"] for r in results])},
    }

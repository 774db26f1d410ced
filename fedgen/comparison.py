"""Runs side by side: the best first, and those that differ in nothing but the seed as one, with mean and deviation."""

from __future__ import annotations

import json
import os
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedgen.errors import choose
from fedgen.run_folder import RunFolder
from fedgen.settings import Config

Results = Mapping[str, Any]
NO_MATTER = ("run_dir", "resume", "threads")  # settings that results do not depend on


@dataclass(frozen=True)
class _Run:
    path: str
    varied: dict[str, str]
    results: Results


def compared(folders: Sequence[RunFolder], over: Sequence[str] = ("seed",)) -> dict[str, Results]:
    """Return the results of runs by name, the most accurate first.

    Runs that differ only in the settings ``over`` become one: means, and the standard deviation of accuracy as
    ``deviation``.

    Parameters
    ----------
    folders : sequence of RunFolder
    over : sequence of str
        Keys of the configuration, such as ``seed`` and ``data.test_fold``.

    Raises
    ------
    ConfigError
        A folder is none of a run, or of one that has not finished; a key is none of the configuration.
    """
    groups: dict[str, list[_Run]] = defaultdict(list)
    for folder in folders:
        settings, varied = _split(folder.config(), over)
        groups[settings].append(_Run(str(folder.path), varied, folder.results()))
    runs: dict[str, Results] = {}
    for group in groups.values():
        for name, results in _rows(group):
            runs[name if name not in runs else f"{name} of {group[0].path}"] = results
    return dict(sorted(runs.items(), key=lambda run: -run[1]["accuracy"]))


def _split(config: Config, over: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return what decides a run's results besides the keys ``over``, and their values."""
    values: dict[str, Any] = asdict(config)
    varied: dict[str, str] = {}
    for key in over:
        *groups, name = key.split(".")
        inner: Any = values
        for part in groups:
            inner = inner.get(part) if isinstance(inner, dict) else None
        known = sorted(inner) if isinstance(inner, dict) else sorted(values)
        varied[key] = str(inner.pop(choose(name, known, f"--over {key}")))
    for name in NO_MATTER:
        values.pop(name, None)
    return json.dumps(values, sort_keys=True, default=str), varied


def _rows(group: list[_Run]) -> list[tuple[str, Results]]:
    """Return one row for runs that differ in what is varied; runs that are alike in it stay apart."""
    if len({tuple(run.varied.values()) for run in group}) < len(group) or len(group) == 1:
        return [(run.path, run.results) for run in group]
    names = []
    for key in group[0].varied:
        found = list(dict.fromkeys(run.varied[key] for run in group))
        if len(found) > 1:
            names.append(f"{'seeds' if key == 'seed' else key} {', '.join(found)}")
    alike = os.path.commonprefix([run.path for run in group])  # noqa: RUF071 (of characters, not folders: runs/esc10_folds/federate_fold)
    return [(f"{alike}* ({'; '.join(names)})", mean_results([run.results for run in group]))]


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

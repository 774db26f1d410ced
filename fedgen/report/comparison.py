"""Runs side by side: the best first, and those that differ in nothing but the seed as one, with mean and deviation."""

from __future__ import annotations

import json
import os
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedgen.config.compose import OPEN_KEYS
from fedgen.errors import require, suggestion
from fedgen.privacy.gate import FAILED, PASSED, UNKNOWN
from fedgen.runs.folder import RunFolder

Results = Mapping[str, Any]
IRRELEVANT = ("run_dir", "resume", "threads")  # settings that results do not depend on
APART = ("mode", "rounds")  # settings that results hold themselves
CHOICES = ("kind", "name")  # settings that name the choice of a group
FOLLOWING = "data.store"  # a folder that is named after other settings


@dataclass(frozen=True)
class _Run:
    """A run, or several in one row: name, settings by key, varied settings, results."""

    name: str
    settings: dict[str, str]
    varied: dict[str, str]
    results: Results


def compared(folders: Sequence[RunFolder], over: Sequence[str] = ("seed",)) -> dict[str, Results]:
    """Return the results of runs by name, the most accurate first.

    Runs that differ only in the settings ``over`` become one: means, and the standard deviation of accuracy as
    ``deviation``. ``settings`` are those in which rows differ.

    Parameters
    ----------
    folders : sequence of RunFolder
    over : sequence of str
        Keys of the configuration, such as ``seed`` and ``data.test_fold``.

    Raises
    ------
    ConfigError
        A folder is not a finished run, or a key is unknown.
    """
    groups: dict[str, list[_Run]] = defaultdict(list)
    for folder in folders:
        settings = flat(asdict(folder.config()))
        for key in over:
            require(key in settings, f"--over {key}: unknown configuration key.{suggestion(key, settings)}")
        varied = {key: settings[key] for key in over}
        rest = json.dumps({key: value for key, value in settings.items() if key not in varied})
        groups[rest].append(_Run(str(folder.path), settings, varied, folder.results()))
    rows: dict[str, _Run] = {}
    for group in groups.values():
        for row in _rows(group):
            rows[row.name if row.name not in rows else f"{row.name} of {group[0].name}"] = row
    return with_differences({name: (row.settings, row.results) for name, row in rows.items()})


def unsure(folders: Sequence[RunFolder]) -> list[str]:
    """Return a line for each verdict of the gate but ``passed``: its runs, and the summary of the first."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for folder in folders:
        gate = (folder.results().get("evaluation") or {}).get("gate")
        if gate and gate["verdict"] != PASSED:
            found[gate["verdict"]].append((str(folder.path), gate["summary"]))
    return [
        f"privacy {verdict} in {len(runs)} of {len(folders)} runs ({', '.join(n for n, _ in runs[:3])}"
        f"{', ...' if len(runs) > 3 else ''}): {runs[0][1]}"
        for verdict, runs in found.items()
    ]


def with_differences(runs: Mapping[str, tuple[Mapping[str, str], Results]]) -> dict[str, Results]:
    """Return results by name, the most accurate first, each with the ``settings`` in which runs differ.

    Parameters
    ----------
    runs : Mapping
        Settings, as `flat` gives them, and results, by name.
    """
    differ = differences([settings for settings, _ in runs.values()])
    rows = {name: {**results, "settings": own} for (name, (_, results)), own in zip(runs.items(), differ, strict=True)}
    return dict(sorted(rows.items(), key=lambda row: -row[1]["accuracy"]))


def _rows(group: list[_Run]) -> list[_Run]:
    """Merge runs that differ only in the varied keys; duplicates stay separate rows."""
    if len({tuple(run.varied.values()) for run in group}) < len(group) or len(group) == 1:
        return group
    names = []
    for key in group[0].varied:
        found = list(dict.fromkeys(run.varied[key] for run in group))
        if len(found) > 1:
            names.append(f"{'seeds' if key == 'seed' else key} {', '.join(found)}")
    alike = os.path.commonprefix([run.name for run in group])  # noqa: RUF071 (of characters, not folders: runs/esc10_folds/federate_fold)
    rest = {key: value for key, value in group[0].settings.items() if key not in group[0].varied}
    return [_Run(f"{alike}* ({'; '.join(names)})", rest, {}, mean_results([run.results for run in group]))]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return settings that results depend on by their dotted keys, as one would type them."""
    found: dict[str, str] = {}
    for name, value in values.items():
        key = prefix + name
        if isinstance(value, dict) and key not in OPEN_KEYS:
            found |= flat(value, f"{key}.")
        elif key not in IRRELEVANT:
            found[key] = value if isinstance(value, str) else json.dumps(value).replace('"', "")
    return found


def differences(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return of each row the settings in which rows differ.

    Where a group's choice differs and the rest of the group follows from it, as much of ``generator=vae`` does, the
    choice stands for all.
    """

    def values(*keys: str) -> set[tuple[str | None, ...]]:
        return {tuple(row.get(key) for key in keys) for row in rows if keys[-1] in row}

    keys = dict.fromkeys(key for row in rows for key in row if key not in APART)
    differ = [key for key in keys if len(values(key)) > 1]
    telling = [key for key in differ if key.rpartition(".")[2] in CHOICES and "." in key]

    def follows(key: str, others: Sequence[str]) -> bool:
        """Return whether the values of ``others`` determine that of ``key``."""
        return bool(others) and len(values(*others, key)) == len({row[:-1] for row in values(*others, key)})

    def told(key: str) -> bool:
        groups = [name for name in telling if name != key and key.startswith(name.rpartition(".")[0] + ".")]
        return any(follows(key, [name]) for name in groups)

    chosen = [key for key in differ if not told(key)]
    if FOLLOWING in chosen and follows(FOLLOWING, rest := [key for key in chosen if key != FOLLOWING]):
        chosen = rest
    return [{key: row[key] for key in chosen if key in row} for row in rows]


def mean_results(results: Sequence[Results]) -> Results:
    """Return the means over runs of the figures in a comparison; ``deviation`` is the sample's, of accuracy."""
    figures = [{name: run[name] for name in ("accuracy", "balanced_accuracy", "per_class", "heads")} for run in results]
    return {
        **results[0],
        **_mean(figures),
        "deviation": statistics.stdev(run["accuracy"] for run in results),
        "bytes": {way: [_mean([sum(run["bytes"][way]) for run in results])] for way in ("sent", "received")},
        "seconds": {"total": _mean([run["seconds"]["total"] for run in results])},
        "evaluation": _mean_gate([(run.get("evaluation") or {}).get("gate") or {} for run in results]),
    }


def _mean(values: Sequence[Any]) -> Any:
    """Return the mean of numbers, or of each number in mappings with the same keys."""
    if isinstance(values[0], Mapping):
        return {key: _mean([value[key] for value in values]) for key in values[0]}
    return statistics.fmean(values)


def _mean_gate(gates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the gate of several runs: the mean AUC of the strongest attack, and the worst verdict."""
    aucs = [gate["auc"] for gate in gates if gate.get("auc") is not None]
    if len(aucs) < len(gates):
        return {}
    verdicts = {gate["verdict"] for gate in gates}
    return {
        "gate": {"auc": statistics.fmean(aucs), "verdict": next(v for v in (FAILED, UNKNOWN, PASSED) if v in verdicts)}
    }

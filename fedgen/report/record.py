"""The content of a run folder, also of an unfinished run."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgen.config.settings import Config
from fedgen.runs.folder import RunFolder

Series = dict[str, list[tuple[float, float]]]
"""Points (x, y) by name, such as ``node 0``."""

NODE_METRIC = re.compile(r"train/node_(\d+)/(.+)")
GLOBAL = "server/global_"


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes
    ----------
    path : Path
    config : Config
    lines : list[dict]
        Of ``metrics.jsonl``.
    results : dict, optional
        ``results.json``; None: the run has not finished.
    nodes : dict[str, dict[str, int]]
        ``partition.json``: training clips by class name, by node number.
    evaluated : dict, optional
        ``evaluation.json``, what `fedgen evaluate` found later.
    stopped : str, optional
        Why it stopped or failed, if it has not finished and that is known.
    """

    path: Path
    config: Config
    lines: list[dict[str, Any]]
    results: dict[str, Any] | None
    nodes: dict[str, dict[str, int]]
    evaluated: dict[str, Any] | None
    stopped: str | None

    @classmethod
    def read(cls, path: Path) -> RunRecord:
        """Read a run's folder; only ``config.yaml`` must be there.

        Raises
        ------
        ConfigError
            It is no run folder.
        """
        folder = RunFolder(path)
        config = folder.config()
        results, nodes, evaluated = map(folder.load_json, ("results.json", "partition.json", "evaluation.json"))
        stopped = folder.failure() if results is None else None
        return cls(path, config, folder.metrics(), results, nodes or {}, evaluated, stopped)

    @property
    def mode(self) -> str:
        """Modes of the phases, in their order."""
        return " + ".join(phase.mode for phase in self.config.phase_list)

    @property
    def server(self) -> list[dict[str, Any]]:
        """The server's line of each round."""
        return [line for line in self.lines if "server/accuracy" in line]

    @property
    def rounds(self) -> tuple[int, int]:
        """Rounds that are done, and those that were asked for."""
        done = sum(line["round"] > 0 and bool(line.get("server/answered")) for line in self.server)
        return done, sum(phase.rounds for phase in self.config.phase_list)

    def total(self, name: str) -> float:
        """Return the sum over rounds of a number in the server's lines, such as ``bytes_sent``."""
        return sum(number(line[f"server/{name}"]) for line in self.server if line.get("server/answered"))

    @property
    def accuracy(self) -> list[tuple[float, float]]:
        """Accuracy on the held-out clips after each round."""
        return [(float(line["round"]), number(line["server/accuracy"])) for line in self.server]

    @property
    def classes(self) -> list[str]:
        """Class names in their order."""
        if self.results is not None:
            return [str(name) for name in self.results["classes"]]
        return list(dict.fromkeys(name for counts in self.nodes.values() for name in counts))

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """What was measured of samples, at the end of the run or later."""
        for source in (self.evaluated, self.results):
            if source is not None and source.get("evaluation"):
                return dict(source["evaluation"])
        return None

    def losses(self) -> dict[str, Series]:
        """Return losses over rounds: of adapters by head and of generators by node, and of the training on the pool.

        Every chart has all nodes that have metrics in it, in the same order.
        """
        pool, nodes = "Global adapters, on the pool of samples", set[int]()
        found: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for line in self.lines:
            for key, value in line.items():
                match, place = NODE_METRIC.fullmatch(key), (float(line["round"]), number(value))
                if match and match[2].endswith("_loss"):
                    nodes.add(int(match[1]))
                    title = "Generators" if match[2] == "generator_loss" else f"Adapters, {match[2][:-5]}"
                    found.setdefault(title, {}).setdefault(f"node {match[1]}", []).append(place)
                elif key.startswith(GLOBAL):
                    name = key.removeprefix(GLOBAL).removesuffix("_loss")
                    found.setdefault(pool, {}).setdefault("all heads" if name == "loss" else name, []).append(place)
        names = [f"node {node}" for node in sorted(nodes)]
        return {
            title: series if title == pool else {name: series.get(name, []) for name in names}
            for title, series in sorted(found.items())
        }

    def missing(self) -> list[tuple[str, str, str, str]]:
        """Return round, node, ``missing`` or ``refused``, and the reason, for every reply that was not used."""
        found = []
        for line in self.lines:
            round_number = str(line["round"])
            for node, why in line.get("server/refused_nodes", {}).items():
                found.append((round_number, str(node), "not let in", str(why)))
            for node, why in line.get("server/lost", {}).items():
                kind = "refused" if node in line.get("server/refused", {}) else "missing"
                found.append((round_number, f"node {node}", kind, str(why).removeprefix("refused: ")))
        return found


def told_apart(runs: Sequence[RunRecord]) -> list[str]:
    """Return a name for each run: its path, from the folder above the one that holds all of them."""
    paths = [run.path.absolute() for run in runs]
    above = Path(os.path.commonpath([path.parent for path in paths])).parent
    return [str(path.relative_to(above)) for path in paths]


def number(value: object) -> float:
    """Return ``value`` if it is a number, else NaN: nodes may have sent anything."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan

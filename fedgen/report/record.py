"""The content of a run folder, also of an unfinished run."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from fedgen.config.settings import Config
from fedgen.report.plots import SAMPLES
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
    points : dict, optional
        ``samples.json``, the picture of real and synthetic embeddings.
    stopped : str, optional
        Why it stopped or failed, if it has not finished and that is known.
    """

    path: Path
    config: Config
    lines: list[dict[str, Any]]
    results: dict[str, Any] | None
    nodes: dict[str, dict[str, int]]
    evaluated: dict[str, Any] | None
    points: dict[str, Any] | None
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
        files = (folder.load_json(name) for name in ("results.json", "partition.json", "evaluation.json", SAMPLES))
        results, nodes, evaluated, points = files
        points = points if points and points["classes"] else None
        stopped = folder.failure() if results is None else None
        return cls(path, config, folder.metrics(), results, nodes or {}, evaluated, points, stopped)

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
        return sum(line["round"] > 0 for line in self.rounds_lines), sum(x.rounds for x in self.config.phase_list)

    @property
    def rounds_lines(self) -> list[dict[str, Any]]:
        """The server's lines without the evaluation before the first round."""
        return [line for line in self.server if line.get("server/answered")]

    @property
    def accuracy(self) -> list[tuple[float, float]]:
        """Accuracy on the held-out clips after each round."""
        return [(float(line["round"]), number(line["server/accuracy"])) for line in self.server]

    @property
    def last(self) -> dict[str, Any]:
        """Scores after the last round: those of ``results.json``, or what the metrics tell."""
        if self.results is not None:
            return self.results
        line = self.server[-1] if self.server else {}
        return {name: line[f"server/{name}"] for name in ("accuracy", "balanced_accuracy") if f"server/{name}" in line}

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

    def adapter_losses(self) -> dict[str, Series]:
        """Return the adapters' losses over rounds by head, by node."""
        found: dict[str, Series] = {}
        for line, node, name, value in self._node_metrics():
            if name.endswith("_loss") and name != "generator_loss":
                head = found.setdefault(name.removesuffix("_loss"), {})
                head.setdefault(f"node {node}", []).append((float(line["round"]), number(value)))
        return {head: self._every_node(series) for head, series in found.items()}

    def generator_losses(self) -> dict[str, Series]:
        """Return losses over epochs by component, by node: the mean over a node's generators.

        Rounds are one long on the x axis; the epochs of a round lie before its number.
        """
        found: dict[str, Series] = {}
        for line, node, name, value in self._node_metrics():
            if name != "generator" or not isinstance(value, list):
                continue
            entries = [entry for entry in value if isinstance(entry, dict)]
            epochs = 1 + max((int(number(entry.get("epoch", 0))) for entry in entries), default=0)
            for component in dict.fromkeys(key for entry in entries for key in entry):
                if component in ("generator", "epoch"):
                    continue
                points = found.setdefault(component, {}).setdefault(f"node {node}", [])
                points += [
                    (line["round"] - 1 + (epoch + 1) / epochs, _mean(entries, epoch, component))
                    for epoch in range(epochs)
                ]
        return {component: self._every_node(series) for component, series in found.items()}

    def global_losses(self) -> Series:
        """Return the losses of the training on the pool over rounds, by head."""
        found: Series = {}
        for line in self.server:
            for name, value in line.items():
                if name.startswith(GLOBAL):
                    found.setdefault(name.removeprefix(GLOBAL), []).append((float(line["round"]), number(value)))
        if len(found) == 2:  # one head, whose loss is the whole
            found.pop("loss", None)
        return {"all heads" if name == "loss" else name.removesuffix("_loss"): points for name, points in found.items()}

    def phases(self) -> list[dict[str, Any]]:
        """Return rounds, bytes and seconds of each phase."""
        return [
            {
                "phase": name,
                "rounds": len(lines),
                **{key: sum(number(x[f"server/{key}"]) for x in lines) for key in COSTS},
            }
            for name, lines in ((n, list(g)) for n, g in groupby(self.rounds_lines, lambda line: str(line["phase"])))
        ]

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

    def comparable(self, other: RunRecord) -> bool:
        """Return whether both runs have the same clips and targets."""
        mine, theirs = self.config, other.config
        same = all(getattr(mine, part) == getattr(theirs, part) for part in ("data", "encoder", "target", "seed"))
        return same and mine.partition == theirs.partition

    def _every_node(self, series: Series) -> Series:
        """Return ``series`` with all nodes that have metrics, in their order: one has the same place in every chart."""
        nodes = sorted({node for _, node, _, _ in self._node_metrics()})
        return {name: series.get(name, []) for name in (f"node {node}" for node in nodes)}

    def _node_metrics(self) -> Iterator[tuple[dict[str, Any], int, str, Any]]:
        for line in self.lines:
            for key, value in line.items():
                if found := NODE_METRIC.fullmatch(key):
                    yield line, int(found[1]), found[2], value


def told_apart(runs: Sequence[RunRecord]) -> list[str]:
    """Return a name for each run: the last two parts of its folder's path, or as many more as tell all apart."""
    paths = [run.path.absolute().parts for run in runs]
    longest = max(map(len, paths), default=0)
    for parts in range(2, longest):
        names = ["/".join(path[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(run.path.absolute()) for run in runs]


COSTS = ("bytes_sent", "bytes_received", "seconds")


def number(value: object) -> float:
    """Return ``value`` if it is a number, else NaN: nodes may have sent anything."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _mean(entries: list[dict[str, Any]], epoch: int, component: str) -> float:
    found = [number(entry.get(component)) for entry in entries if entry.get("epoch") == epoch and component in entry]
    return sum(found) / len(found) if found else math.nan

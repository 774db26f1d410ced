"""What happened in a round: participants, failures, losses, samples, bytes and seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedgen.config.phases import Phase
from fedgen.evaluation.zero_shot import Scores

KEPT = (
    "round",
    "lost",
    "refused",
    "samples",
    "spent",
    "bytes_sent",
    "bytes_received",
    "seconds",
)  # for results.json


@dataclass
class RoundReport:
    """What happened in one round.

    Attributes
    ----------
    round : int
        Counted over the whole run, from 1.
    answered : list[int]
        Numbers of the nodes whose replies were used.
    lost : dict[int, str]
        Why a node's reply is missing or was refused.
    refused : dict[int, str]
        The part of ``lost`` that is no fault of the network: a reply came, and was not good.
    metrics : dict[int, dict[str, float]]
        What each node reported of its training.
    generators : dict[int, list[dict[str, float | str]]]
        Losses of each node's generators by epoch and component.
    statistics : dict[int, dict]
        Mean, deviation and range of the samples of each node, and how many there are of each class id.
    samples : dict[int, int]
        Synthetic samples in the pool by global class id.
    spent : dict[int, dict]
        What each node has spent of its privacy budget, if it has one.
    global_losses : dict[str, float]
        Losses of the training on the pool.
    bytes_sent, bytes_received : int
        Size of the records from and to the server.
    seconds : float
        From the first message to the end of the server's work.
    """

    round: int
    answered: list[int] = field(default_factory=list)
    lost: dict[int, str] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    generators: dict[int, list[dict[str, float | str]]] = field(default_factory=dict)
    statistics: dict[int, dict[str, Any]] = field(default_factory=dict)
    samples: dict[int, int] = field(default_factory=dict)
    spent: dict[int, dict[str, Any]] = field(default_factory=dict)
    global_losses: dict[str, float] = field(default_factory=dict)
    bytes_sent: int = 0
    bytes_received: int = 0
    seconds: float = 0.0

    @property
    def missing(self) -> dict[str, dict[str, str]]:
        """The nodes whose replies are missing, and of these the refused ones, as ``metrics.jsonl`` names them."""
        found = {"server/lost": self.lost, "server/refused": self.refused}
        return {name: {str(number): why for number, why in nodes.items()} for name, nodes in found.items() if nodes}

    def line(self, phase: Phase, scores: Scores, nodes: int) -> str:
        """Return one line about the round: participants of all ``nodes``, losses, accuracy, megabytes and seconds."""
        parts = [f"round {self.round}/{phase.last} {phase.mode.name}"]
        if self.metrics:
            parts.append(f"nodes {len(self.answered)}/{nodes}")
            for name in ("loss", "generator_loss"):
                values = [metrics[name] for metrics in self.metrics.values() if name in metrics]
                if values:
                    parts.append(f"{name.replace('_', ' ')} {sum(values) / len(values):.3f}")
        parts += [f"pool {sum(self.samples.values())}"] if self.samples else []
        parts += [f"global loss {self.global_losses['loss']:.3f}"] if "loss" in self.global_losses else []
        parts.append(f"accuracy {scores.accuracy:.3f}")
        if self.bytes_sent or self.bytes_received:
            parts.append(f"sent {self.bytes_sent / 1e6:.1f} MB, received {self.bytes_received / 1e6:.1f} MB")
        return " | ".join([*parts, f"{self.seconds:.1f} s"])

    def node_metrics(self) -> Iterator[dict[str, Any]]:
        """Yield the metrics of each node under the names that ``metrics.jsonl`` has."""
        for number, metrics in sorted(self.metrics.items()):
            line: dict[str, Any] = {f"train/node_{number}/{name}": value for name, value in metrics.items()}
            if self.generators.get(number):
                line[f"train/node_{number}/generator"] = self.generators[number]
            if number in self.statistics:
                line[f"train/node_{number}/synthetic"] = self.statistics[number]
            yield {"node": number, **line}

    def server_metrics(self, scores: Scores) -> dict[str, Any]:
        """Return the server's metrics under the names that ``metrics.jsonl`` has."""
        line: dict[str, Any] = {"accuracy": scores.accuracy, "balanced_accuracy": scores.balanced_accuracy}
        for head, values in scores.heads.items():
            line |= {f"{head}_{name}": value for name, value in values.items()}
        if self.samples:
            line["synthetic_samples_total"] = sum(self.samples.values())
            line["synthetic_samples_classes"] = len(self.samples)
        line |= {f"global_{name}": value for name, value in self.global_losses.items()}
        line |= {name: getattr(self, name) for name in ("bytes_sent", "bytes_received", "seconds", "answered")}
        return {f"server/{name}": value for name, value in line.items()} | self.missing

    def state(self) -> dict[str, Any]:
        """Return the fields that results are made of, as JSON values; the rest is in ``metrics.jsonl``."""
        return {name: getattr(self, name) for name in KEPT}

    @classmethod
    def from_state(cls, values: Mapping[str, Any]) -> RoundReport:
        """Return the report that `state` made JSON of; JSON has no whole numbers as keys."""
        by_number = ("lost", "refused", "samples", "spent")
        numbers = {name: {int(key): x for key, x in values.get(name, {}).items()} for name in by_number}
        return cls(**{**values, **numbers})

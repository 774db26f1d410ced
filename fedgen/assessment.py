"""The samples of a run, held against each node's own clips and the held-out ones; and what the gate makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedgen.errors import LeakError
from fedgen.evaluation.features import Records, read_records
from fedgen.evaluation.gate import FAILED, judge
from fedgen.evaluation.privacy import Site, measure_privacy
from fedgen.evaluation.quality import AdapterTask, fidelity_report, privacy_values, segments_of, utility_report
from fedgen.models.samples import PooledTokens, SyntheticTokens
from fedgen.task import Task

Counts = Mapping[str, Mapping[str, int]]
"""Training clips by class name, by node number: ``partition.json``."""


@dataclass(frozen=True)
class Assessment:
    """What samples are worth and give away.

    Attributes
    ----------
    results : dict
        JSON values: ``samples``, ``privacy`` and ``gate`` unless the gate is off, ``utility`` and ``fidelity`` if they
        were asked for.
    records : Site, optional
        Everyone's clips, the held-out ones and all samples, for a picture, where this machine has them.
    classes : list[str]
        Class names by id.
    """

    results: dict[str, Any]
    records: Site | None
    classes: list[str]

    @property
    def leak(self) -> LeakError | None:
        """The error that a failed gate ends a run with."""
        gate = self.results.get("gate")
        if gate is None or gate["verdict"] != FAILED or gate["setting"] != "fail":
            return None
        return LeakError(
            f"the synthetic samples leak: {'; '.join(gate['reasons'])}. Everything is saved; evaluation.gate=warn lets "
            "such a run pass"
        )


def assess(
    task: Task, pool: Mapping[int, SyntheticTokens], nodes: Counts, probes: Sequence[str], quality: bool
) -> Assessment | None:
    """Measure the samples of every node; None if there are none, or nothing is to be measured.

    Parameters
    ----------
    task : Task
        Of this machine, which must have the nodes' clips: where a node has others, privacy is not judged.
    pool : Mapping[int, SyntheticTokens]
        Samples by node.
    nodes : Counts
        What the nodes said they train on.
    probes : Sequence[str]
        Classifiers that utility is measured with.
    quality : bool
        Whether utility and fidelity are measured, or privacy alone.
    """
    settings = task.config.evaluation
    numbers = sorted(node for node, samples in pool.items() if len(samples))
    pool = {node: pool[node].to(task.device) for node in numbers}  # their noise begins anew: same figures each time
    if not pool or (settings.gate == "off" and not quality):
        return None
    made = PooledTokens(list(pool.values()))
    train, held_out = task.tokens(np.concatenate(task.parts)), task.test_tokens()
    count = segments_of(train, made)
    folds = torch.from_numpy(task.store.folds[np.concatenate(task.parts)])
    own = {node: read_records(samples, count) for node, samples in pool.items()}
    everything = Site(read_records(train, count, folds), read_records(held_out, count), _joined(list(own.values())))
    results: dict[str, Any] = {"samples": len(made)}
    if settings.gate != "off":
        results |= _privacy(task, everything, own, nodes)
    if quality:
        seed, adapters = task.seed("evaluation"), task.config.adapter.training
        probing = AdapterTask(task.targets.heads, task.adapters, adapters)
        results |= utility_report(everything, task.classes, probes, (train, held_out, made), probing, seed)
        results["fidelity"] = fidelity_report(everything, task.classes, seed)
    return Assessment(results, everything, task.classes)


def _privacy(task: Task, everything: Site, own: Mapping[int, Records], nodes: Counts) -> dict[str, Any]:
    """Return what the samples give away, and the verdict."""
    strangers = [node for node in own if not _is_here(task, node, nodes)]
    sites = {} if strangers else _sites(task, everything, own)
    report = measure_privacy(sites, task.seed("evaluation"))
    verdict = judge(report, task.config.evaluation)
    reasons = [f"node {node} trains on clips that this machine does not have" for node in strangers]
    return {
        "privacy": privacy_values(report, task.classes),
        "gate": {
            "setting": task.config.evaluation.gate,
            "verdict": verdict.verdict,
            "reasons": reasons or verdict.reasons,
        },
    }


def _is_here(task: Task, node: int, nodes: Counts) -> bool:
    """Say whether a node's clips are those that this machine would deal it, as far as their numbers tell."""
    if node >= len(task.parts):
        return False
    said = nodes.get(str(node), {})
    labels = [task.classes[label] for label in task.store.labels[task.parts[node]]]
    dealt = Counter(labels)
    return bool(said) and all(dealt.get(name) == count for name, count in said.items())


def _sites(task: Task, everything: Site, own: Mapping[int, Records]) -> dict[int, Site]:
    """Return what each node's samples are compared with; generators that all nodes share have seen everyone's clips."""
    if task.config.sharing.name == "shared":
        return {node: Site(everything.train, everything.held_out, samples) for node, samples in own.items()}
    ends = np.cumsum([len(part) for part in task.parts])
    shares = {node: torch.arange(ends[node] - len(task.parts[node]), ends[node]) for node in own}
    return {
        node: Site(everything.train.at(shares[node]), everything.held_out, samples) for node, samples in own.items()
    }


def _joined(records: list[Records]) -> Records:
    return Records(torch.cat([r.segments for r in records]), torch.cat([r.labels for r in records]))

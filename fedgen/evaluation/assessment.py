"""Value of a run's samples, and leakage of everything that its nodes sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedgen.data.tokens import Summaries
from fedgen.errors import LeakError
from fedgen.evaluation.audit import Clips, Sent, audit_run, verdict_of
from fedgen.evaluation.features import Records, read_records
from fedgen.evaluation.quality import AdapterTask, Site, fidelity_report, segments_of, utility_report
from fedgen.models.samples import PooledSummaries, SyntheticTokens
from fedgen.privacy.gate import FAILED, UNKNOWN
from fedgen.privacy.result import Report
from fedgen.task import Task

Counts = Mapping[str, Mapping[str, int]]
"""Training clips by class name, by node number: ``partition.json``."""


@dataclass(frozen=True)
class Assessment:
    """Results of the audit and of the measures of samples."""

    results: dict[str, Any]  # JSON: samples, gate unless it is off, utility and fidelity if they were asked for
    records: Site | None  # for the scatter plot, if this machine has the clips
    classes: list[str]  # names by id
    report: Report | None = None  # of the audit
    by_node: dict[str, Any] | None = None  # audits that nodes made for themselves, as JSON values by number

    @property
    def leak(self) -> LeakError | None:
        """The error that a failed gate ends a run with."""
        gate = self.results.get("gate")
        if gate is None or gate["verdict"] != FAILED or gate["setting"] != "fail":
            return None
        return LeakError(
            f"what nodes sent tells their clips: {'; '.join(gate['reasons'])}. Everything is saved; "
            "evaluation.gate=warn lets such a run pass"
        )


def assess(
    task: Task, sent: Mapping[int, Sent], pool: Mapping[int, SyntheticTokens], nodes: Counts, quality: Sequence[str]
) -> Assessment | None:
    """Audit the messages of every node, and measure its samples; None without samples, or if neither is asked for.

    ``task`` is that of this machine, which must have the nodes' clips: where ``nodes``, their own counts, differ from
    them, nothing is judged. ``pool`` holds the last samples by node; ``quality`` are probes, the audit alone if empty.
    """
    pool = {node: samples.to(task.device) for node, samples in sorted(pool.items()) if len(samples)}
    if not pool or (task.config.gate == "off" and not quality):
        return None
    results: dict[str, Any] = {"samples": sum(map(len, pool.values()))}
    report, records = None, None
    if task.config.gate != "off":
        report, results["gate"] = _audited(task, sent, nodes)
    if quality:
        records, found = _quality(task, pool, quality)
        results |= found
    return Assessment(results, records, task.classes, report)


def clips_of(task: Task) -> dict[int, Clips]:
    """Return the clips of each node by number, as this machine would deal them."""
    return {node: Clips(*task.split_controls(share)) for node, share in enumerate(task.shares)}


def _audited(task: Task, sent: Mapping[int, Sent], nodes: Counts) -> tuple[Report | None, dict[str, Any]]:
    """Return the audit and the gate's verdict."""
    strangers = [node for node in sent if not _is_here(task, node, nodes)]
    report = None if strangers else audit_run(task, sent, clips_of(task))
    verdict = verdict_of(task, report)
    if strangers:
        reasons = [f"node {node} trains on clips that this machine does not have" for node in strangers]
        verdict |= {"verdict": UNKNOWN, "reasons": reasons, "summary": f"{UNKNOWN}: {reasons[0]}"}
    return report, verdict


def _is_here(task: Task, node: int, nodes: Counts) -> bool:
    """Return whether a node's clips are those that this machine would deal it, judged by their counts."""
    if node >= len(task.parts):
        return False
    said = nodes.get(str(node), {})
    dealt = Counter(task.classes[label] for label in task.store.labels[task.parts[node]])
    return bool(said) and all(dealt.get(name) == count for name, count in said.items())


def _quality(task: Task, pool: Mapping[int, SyntheticTokens], probes: Sequence[str]) -> tuple[Site, dict[str, Any]]:
    """Return the clips and samples as records, and their utility and fidelity."""
    train, held_out = task.tokens(np.concatenate(task.parts)), task.tokens(task.test_indices)
    count = segments_of(train, *pool.values())
    own = [read_records(samples, count) for samples in pool.values()]
    synthetic = Records(torch.cat([r.segments for r in own]), torch.cat([r.labels for r in own]))
    records = Site(read_records(train, count), read_records(held_out, count), synthetic)
    seed = task.seed("evaluation")
    probing, sources = None, None
    if "adapter" in probes:
        probing = AdapterTask(task.targets.heads, task.adapters, task.config.adapter.training)
        real = Summaries.of(train, task.bands), Summaries.of(held_out, task.bands)
        sources = *real, PooledSummaries(list(pool.values()))
    found = utility_report(records, task.classes, probes, sources, probing, seed)
    return records, found | {"fidelity": fidelity_report(records, task.classes, seed)}

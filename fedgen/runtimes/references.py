"""The references around a federation, without Flower: every node alone, and one node with everyone's clips."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor

from fedgen.config.phases import Phase, plan
from fedgen.config.settings import Config
from fedgen.data.progress import show_step
from fedgen.data.tokens import Summaries
from fedgen.errors import ConfigError
from fedgen.evaluation.zero_shot import Scores, mean_scores, zero_shot
from fedgen.node.data import NodeData
from fedgen.node.node import Node
from fedgen.report.recorder import Recorder
from fedgen.report.rounds import RoundReport
from fedgen.runs.folder import RunFolder, RunState
from fedgen.task import Task, prepare_task


def run_reference(config: Config) -> dict[str, Any]:
    """Train each node alone for as many rounds as a federation would, and return the results.

    ``standalone`` has the nodes of the partition and reports the mean of their scores on the whole held-out fold;
    ``centralised`` has one node with everyone's clips.

    Raises
    ------
    ConfigError
        With ``checkpoint.load``: references start afresh.
    """
    if config.checkpoint.load:
        raise ConfigError(f"checkpoint.load={config.checkpoint.load}: mode={config.phase_list[0].mode} starts afresh")
    task = prepare_task(config)
    folder, state = RunFolder.begin(task.config)
    (phase,) = plan(config.phase_list)
    nodes = [Node.open(NodeData(task, number), folder.path) for number in range(len(task.parts))]
    recorder = Recorder(folder, task)
    recorder.partition({node.partition_id: node.data.counts for node in nodes})
    weights = {node.partition_id: task.adapters().state_dict() for node in nodes}
    if state is not None:
        weights = {node.partition_id: state.tensors[f"node{node.partition_id}"] for node in nodes}
        recorder.load(state.facts)
    test = task.summaries(task.test_indices)
    for round_number in range(state.round + 1 if state else 1, phase.rounds + 1):
        report, scores = _round(task, nodes, weights, test, phase, round_number)
        kept = weights[0] if len(nodes) == 1 else {}
        recorder.round(phase, report, scores, kept or None)
        tensors = {f"node{number}": own for number, own in weights.items()}
        folder.save_state(RunState(round_number, tensors, recorder.state()))
    return recorder.finish()


def _round(
    task: Task,
    nodes: list[Node],
    weights: dict[int, dict[str, Tensor]],
    test: Summaries,
    phase: Phase,
    round_number: int,
) -> tuple[RoundReport, Scores]:
    """Train every node's own ``weights`` for one round, in place, and return the mean scores."""
    started = time.monotonic()
    report, scores = RoundReport(round_number), []
    for done, node in enumerate(nodes):
        show_step("training adapters", f"{done}/{len(nodes)} nodes")
        weights[node.partition_id], losses = node.train(weights[node.partition_id], round_number, phase)
        report.metrics[node.partition_id] = {"num-examples": len(node.data.indices), **losses}
        report.answered.append(node.partition_id)
        adapters = task.adapters()
        adapters.load_state_dict(weights[node.partition_id])
        scores.append(zero_shot(adapters, test, task.targets.heads, task.classes))
    report.seconds = time.monotonic() - started
    return report, mean_scores(scores)

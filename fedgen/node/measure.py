"""What a node measures on its own clips where the server has none: scores of adapters, and an audit."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import Tensor

from fedgen.errors import DataError
from fedgen.evaluation.audit import Clips, Sent, audit_run, named, verdict_of
from fedgen.evaluation.zero_shot import zero_shot
from fedgen.node.node import Node


def measure_adapters(node: Node, weights: dict[str, Tensor]) -> dict[str, Any]:
    """Return the scores of adapters on the node's held-out clips, as JSON has them.

    Raises
    ------
    DataError
        The node has no held-out clip, or is private: scores tell of clips that its budget does not cover.
    """
    _refuse_private(node, "scores on its held-out clips")
    if not len(node.held_out):
        raise DataError(f"node {node.number} has no clip in data.test_fold={node.config.data.test_fold} to test on")
    adapters = node.task.adapters()
    adapters.load_state_dict(weights)
    return asdict(zero_shot(adapters, node.task.tokens(node.held_out), node.task.targets.heads, node.task.classes))


def audit_node(node: Node, round_number: int) -> dict[str, Any]:
    """Return what the node's samples of a round and its last adapters tell of its clips, and the verdict, as JSON.

    Raises
    ------
    DataError
        The node is private: what this tells of clips its budget does not cover.
    """
    _refuse_private(node, "an audit by its clips")
    report = audit_run(
        node.task, {node.number: sent_by(node, round_number)}, {node.number: Clips(node.indices, node.controls)}
    )
    audit = None if report is None else named(report, node.task.classes)
    return {"audit": audit, **verdict_of(node.task, report)}


def sent_by(node: Node, round_number: int) -> Sent:
    """Return what left the node in a round, as far as the server sees it: masked adapters are not seen."""
    samples, strategy = node.synthesize(round_number), node.config.strategy
    adapters = node.state.adapters() if strategy.send == "all" and not strategy.secure.used else None
    return Sent(samples.latents.cpu(), samples.labels, [adapters] if adapters else [])


def _refuse_private(node: Node, what: str) -> None:
    if node.config.privacy.used:
        raise DataError(f"node {node.number} does not send {what}: privacy=dp")

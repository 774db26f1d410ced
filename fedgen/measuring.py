"""What a node measures on its own clips where the server has none: scores of adapters, and what samples give away."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from fedgen.errors import DataError
from fedgen.evaluation.features import read_records
from fedgen.evaluation.gate import judge
from fedgen.evaluation.privacy import Site, measure_privacy
from fedgen.evaluation.quality import privacy_values, segments_of
from fedgen.evaluation.zero_shot import zero_shot
from fedgen.node import Node


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


def measure_samples(node: Node, round_number: int) -> dict[str, Any]:
    """Return what the node's samples of a round give away of its clips, and the verdict, as JSON has them.

    Raises
    ------
    DataError
        The node is private: what this tells of clips its budget does not cover.
    """
    _refuse_private(node, "a comparison of its samples with clips")
    samples = node.synthesize(round_number).to(node.task.device)
    count = segments_of(node.source, samples)
    folds = torch.from_numpy(node.task.store.folds[node.indices])
    held_out = read_records(node.task.tokens(node.held_out), count)
    site = Site(read_records(node.source, count, folds), held_out, read_records(samples, count))
    report = measure_privacy({node.number: site}, node.task.seed("evaluation"))
    verdict = judge(report, node.config.evaluation)
    return {"privacy": privacy_values(report, node.task.classes), **asdict(verdict)}


def _refuse_private(node: Node, what: str) -> None:
    if node.config.privacy.used:
        raise DataError(f"node {node.number} does not send {what}: privacy=dp")

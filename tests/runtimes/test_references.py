"""The lower and the upper reference."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from federations import Federate

from fedgen.config.phases import PhaseSettings, plan
from fedgen.config.settings import Config
from fedgen.evaluation.zero_shot import mean_scores, zero_shot
from fedgen.node.data import NodeData
from fedgen.node.node import Node
from fedgen.runs.folder import RunFolder
from fedgen.task import Task, prepare_task


def test_standalone_is_the_mean_of_nodes_that_never_meet(
    tiny: Callable[..., Config], federate: Federate, tmp_path: Path
) -> None:
    config = tiny("mode=standalone", "rounds=2")
    results = federate(config, tmp_path / "run")
    task, (phase,) = prepare_task(config), plan([PhaseSettings("standalone", 2)])
    scores = []
    for number in range(3):
        adapters = task.adapters()
        for round_number in (1, 2):
            node = Node.open(NodeData(task, number), tmp_path / "alone")
            adapters.load_state_dict(node.train(adapters.state_dict(), round_number, phase)[0])
        scores.append(zero_shot(adapters, task.summaries(task.test_indices), task.targets.heads, task.classes))
    assert results["accuracy"] == mean_scores(scores).accuracy
    assert results["heads"] == mean_scores(scores).heads
    assert [entry["round"] for entry in results["history"]] == [1, 2]
    assert not (tmp_path / "run" / "checkpoints" / "adapters.safetensors").exists()  # there is no global adapter


def test_centralised_has_everyones_clips(tiny: Callable[..., Config], federate: Federate, tmp_path: Path) -> None:
    results = federate(tiny("mode=centralised", "rounds=2"), tmp_path)
    assert results["nodes"] == {"0": dict.fromkeys(results["classes"], 4)}
    weights, finished = RunFolder(tmp_path).load_adapters({})
    assert finished == 2
    assert {value.dtype for value in weights.values()} == {torch.float32}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("node") for line in lines] == [0, None, 0, None]


@pytest.mark.parametrize("partition", ["iid", "dirichlet"])
def test_standalone_on_other_partitions(
    partition: str, tiny: Callable[..., Config], federate: Federate, tmp_path: Path
) -> None:
    results = federate(tiny("mode=standalone", "rounds=1", f"partition={partition}", "partition.nodes=2"), tmp_path)
    assert len(results["nodes"]) == 2
    assert sum(sum(counts.values()) for counts in results["nodes"].values()) == 24


def test_references_and_the_federation_start_from_the_same_adapters(task: Task) -> None:
    first, second = task.adapters().state_dict(), task.adapters().state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())

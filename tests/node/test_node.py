"""One site: its share, its memory on disk, and what it checks before it trains."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedgen.config.phases import PhaseSettings, plan
from fedgen.config.settings import Config, NodeConfig
from fedgen.data.tensors import load_tensors
from fedgen.errors import CheckpointError, ConfigError, DataError
from fedgen.node.data import NodeData
from fedgen.node.node import Node
from fedgen.task import Task

Tiny = Callable[..., Config]
(PHASE,) = plan([PhaseSettings("combined", 2)])


@pytest.fixture
def with_config(task: Task, tiny: Tiny) -> Callable[..., Task]:
    """The session's data under other settings."""
    return lambda *overrides: replace(task, config=replace(tiny(*overrides), data=task.config.data))


def opened(task: Task, partition_id: int, home: Path, load: Path | None = None, **options: Any) -> Node:
    checkpoints = options.pop("checkpoints", None)
    return Node.open(NodeData(task, partition_id, **options), home, load, checkpoints)


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_its_share(task: Task, tmp_path: Path) -> None:
    node = opened(task, 1, tmp_path)
    assert {task.classes[label]: count for label, count in node.data.counts.items()} == {"rain": 4, "crickets": 4}
    assert node.data.source.labels.tolist() == task.store.labels[node.data.indices].tolist()
    assert not set(task.store.folds[node.data.indices]) & {task.config.data.test_fold}


def test_a_store_of_its_own(task: Task, tmp_path: Path) -> None:
    node = opened(task, 7, tmp_path, own_store=True)
    assert node.data.indices.tolist() == task.store.train_indices(task.config.data.test_fold).tolist()


def test_a_node_without_a_part_or_without_clips(task: Task, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"node 3 has no part: partition\.nodes=3"):
        opened(task, 3, tmp_path)
    empty = replace(task)
    vars(empty)["shares"] = [np.empty(0, np.int64)]
    with pytest.raises(DataError, match="node 0 has no clip to train on"):
        opened(empty, 0, tmp_path)


def test_training_repeats_and_depends_on_node_and_round(task: Task, tmp_path: Path) -> None:
    start = task.adapters().state_dict()

    def train(name: str, number: int = 0, round_number: int = 1) -> dict[str, torch.Tensor]:
        return opened(task, number, tmp_path / name).train(start, round_number, PHASE)[0]

    first = train("a")
    assert equal(first, train("b"))
    assert equal(first, train("a"))  # the same round again
    assert not equal(first, start)
    assert not equal(first, train("c", number=1))
    second = train("d", round_number=2)
    assert not equal(first, second)
    assert not equal(second, train("a", round_number=2))  # moments go on


def test_moments_are_on_disk(task: Task, tmp_path: Path) -> None:
    weights = task.adapters().state_dict()
    for round_number in (1, 2):
        weights, _ = opened(task, 0, tmp_path).train(weights, round_number, PHASE)
        state, metadata = load_tensors(tmp_path / f"state/node0/optimizer/round_{round_number}.safetensors")
        assert metadata == {"round": round_number}
        assert float(state["step.narrow.weight"]) == round_number


def test_the_proximal_term_reaches_the_training(task: Task, with_config: Callable[..., Task], tmp_path: Path) -> None:
    longer = with_config("adapter.training.epochs=4")
    start = longer.adapters().state_dict()

    def way(mu: float) -> float:
        trained, _ = opened(longer, 0, tmp_path / str(mu)).train(start, 1, PHASE, mu)
        return sum(float((trained[name] - start[name]).square().sum()) for name in start)

    assert way(1000.0) < 0.7 * way(0.0)


def test_generators_survive_the_process(task: Task, tmp_path: Path) -> None:
    losses = opened(task, 0, tmp_path).generators.fit(1)
    assert {entry["generator"] for entry in losses} == {"unified"}
    samples = opened(task, 0, tmp_path).synthesize(1)
    assert samples.counts() == {0: 6, 1: 6}
    assert torch.equal(samples.latents, opened(task, 0, tmp_path).synthesize(1).latents)
    assert not torch.equal(samples.latents, opened(task, 0, tmp_path).synthesize(2).latents)


def test_generators_go_on_training(with_config: Callable[..., Task], tmp_path: Path) -> None:
    task, checkpoints = with_config("generator.kind=vae"), tmp_path / "checkpoints"
    opened(task, 0, tmp_path).generators.fit(1)
    first = load_tensors(checkpoints / "vae_unified_node0_round_1" / "vae_unified_node0.safetensors")[0]
    opened(task, 0, tmp_path).generators.fit(2)
    second = load_tensors(checkpoints / "vae_unified_node0_round_2" / "vae_unified_node0.safetensors")[0]
    steps = [name for name in first if "step." in name]
    assert steps
    assert all(float(second[name]) > float(first[name]) for name in steps)


def test_an_earlier_run_is_read_and_left_alone(task: Task, tmp_path: Path) -> None:
    earlier, own = tmp_path / "earlier", tmp_path / "own"
    opened(task, 0, earlier).train(task.adapters().state_dict(), 1, PHASE)
    opened(task, 0, earlier).generators.fit(1)
    before = {path: path.read_bytes() for path in earlier.rglob("*") if path.is_file()}
    node = opened(task, 0, own, load=earlier)
    node.prepare(finished=1)
    assert torch.equal(node.synthesize(2).latents, opened(task, 0, earlier).synthesize(2).latents)
    node.generators.fit(2)
    node.train(task.adapters().state_dict(), 2, PHASE)
    assert {path: path.read_bytes() for path in earlier.rglob("*") if path.is_file()} == before
    assert [path.name for path in sorted((own / "state/node0/optimizer").iterdir())] == [
        "round_1.safetensors",
        "round_2.safetensors",
    ]


def test_the_generators_of_a_round(with_config: Callable[..., Task], tmp_path: Path) -> None:
    """`checkpoint.frequency` keeps them, `checkpoint.round` goes on from them."""
    task = with_config("generator.kind=vae", "checkpoint.frequency=1", "checkpoint.keep_last=2")
    drawn = {}
    for round_number in (1, 2, 3):
        opened(task, 0, tmp_path / "earlier").generators.fit(round_number)
        drawn[round_number] = opened(task, 0, tmp_path / "earlier").generators.load().sample({0: 2}, seed=0).latents
    chosen = with_config("generator.kind=vae", "mode=generate", "checkpoint.round=2")
    node = opened(chosen, 0, tmp_path / "own", load=tmp_path / "earlier")
    node.prepare(finished=3)
    assert torch.equal(node.generators.load().sample({0: 2}, seed=0).latents, drawn[2])
    assert not torch.equal(drawn[2], drawn[3])
    gone = with_config("generator.kind=vae", "mode=generate", "checkpoint.round=1")
    with pytest.raises(CheckpointError, match=r"checkpoint\.round"):
        opened(gone, 0, tmp_path / "own", load=tmp_path / "earlier").prepare(finished=3)


def test_generators_need_not_be_saved_for_their_user(with_config: Callable[..., Task], tmp_path: Path) -> None:
    node = opened(with_config("checkpoint.save=false"), 0, tmp_path)
    node.generators.fit(1)
    assert node.synthesize(1).counts() == {0: 6, 1: 6}
    assert not (tmp_path / "checkpoints").exists()


def test_a_folder_for_checkpoints(with_config: Callable[..., Task], tmp_path: Path) -> None:
    opened(with_config(), 0, tmp_path / "run", checkpoints=tmp_path / "mine").generators.fit(1)
    assert (tmp_path / "mine" / "vae_unified_node0_round_1" / "vae_unified_node0.safetensors").is_file()
    assert not (tmp_path / "run" / "checkpoints").exists()


class TestANodeOfItsOwn:
    def test_granularity_and_groups(self, with_config: Callable[..., Task], tmp_path: Path) -> None:
        task = with_config(
            "nodes={0: {granularity: per_class}, 1: {granularity: per_group, groups: {wet: [rain, crickets]}}}"
        )
        nodes = [opened(task, number, tmp_path) for number in range(3)]
        assert [node.data.slots for node in nodes] == [
            {"dog": ["dog"], "cow": ["cow"]},
            {"wet": ["rain", "crickets"]},
            {"unified": ["siren", "engine"]},
        ]
        for node in nodes:
            node.generators.fit(1)
        files = {path.name for path in (tmp_path / "checkpoints").glob("*/*.safetensors")}
        assert files == {
            "vae_perclass_node0_class_dog.safetensors",
            "vae_perclass_node0_class_cow.safetensors",
            "vae_group_node1_group_wet.safetensors",
            "vae_unified_node2.safetensors",
        }

    def test_classes_and_samples(self, with_config: Callable[..., Task], tmp_path: Path) -> None:
        task = with_config("nodes={0: {classes: [cow], samples_per_class: '3'}}")
        node = opened(task, 0, tmp_path)
        assert node.data.counts == {1: 4}
        node.generators.fit(1)
        assert node.synthesize(1).counts() == {1: 3}

    def test_its_own_word_goes_before_the_configuration(self, with_config: Callable[..., Task], tmp_path: Path) -> None:
        task = with_config("nodes={0: {granularity: per_class, samples_per_class: '3'}}")
        node = opened(task, 0, tmp_path, own=NodeConfig(samples_per_class="5"))
        assert (node.data.samples_per_class, node.data.granularity.name) == (5, "per_class")

    def test_classes_that_it_does_not_have(self, with_config: Callable[..., Task], tmp_path: Path) -> None:
        with pytest.raises(
            DataError, match=r"nodes\.0\.classes names rain, of which the node has no clip; it has dog, cow"
        ):
            opened(with_config("nodes={0: {classes: [dog, rain]}}"), 0, tmp_path)
        with pytest.raises(ConfigError, match=r"nodes\.0\.classes='dgo' is not one of.*Did you mean 'dog'"):
            opened(with_config("nodes={0: {classes: [dgo]}}"), 0, tmp_path)


@pytest.mark.parametrize(
    ("granularity", "base"), [("unified", "vae_unified"), ("per_class", "vae_perclass"), ("per_group", "vae_group")]
)
def test_names_of_files(granularity: str, base: str, with_config: Callable[..., Task], tmp_path: Path) -> None:
    assert opened(with_config(f"granularity={granularity}"), 0, tmp_path).generators.base_name == base
    mine = with_config(f"granularity={granularity}", "checkpoint.base_name=mine")
    assert opened(mine, 0, tmp_path).generators.base_name == "mine"


def test_check_before_training(with_config: Callable[..., Task], tmp_path: Path) -> None:
    Node.open(
        NodeData(with_config("mode=federate", "granularity=per_group", "granularity.groups={a: [cow]}"), 0), tmp_path
    ).prepare()
    task = with_config("mode=combined", "granularity=per_group", "granularity.groups={a: [cow]}")
    with pytest.raises(ConfigError, match=r"in no group of granularity\.groups: dog"):
        opened(task, 0, tmp_path).prepare()
    with pytest.raises(CheckpointError, match=r"no checkpoint vae_unified_node0 in .*fedgen run mode=train_generators"):
        opened(with_config("mode=generate"), 0, tmp_path).prepare()
    # what an earlier phase trains, a later one may load
    opened(with_config("phases=[{mode: train_generators}, {mode: generate}]"), 0, tmp_path).prepare()


def test_check_of_a_granularity_without_groups(with_config: Callable[..., Task], tmp_path: Path) -> None:
    task = with_config("mode=combined", "granularity=per_group")
    task.store.groups, groups = {}, task.store.groups
    try:
        with pytest.raises(ConfigError, match=r"granularity=per_group needs granularity\.groups, which is empty"):
            opened(task, 0, tmp_path).prepare()
    finally:
        task.store.groups = groups


def test_check_of_generators_that_do_not_fit(task: Task, with_config: Callable[..., Task], tmp_path: Path) -> None:
    opened(task, 0, tmp_path / "earlier").generators.fit(1)
    for mode in ("generate", "combined"):
        other = with_config(f"mode={mode}", "generator=vae")
        with pytest.raises(CheckpointError, match=r"kind is gaussian, this run has vae"):
            opened(other, 0, tmp_path / "own", load=tmp_path / "earlier").prepare()


def test_check_of_a_load_that_knows_nothing_of_the_node(task: Task, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere knows nothing of node 0: checkpoint\.load="):
        opened(task, 0, tmp_path / "own", load=tmp_path / "nowhere").prepare()


def test_auto_is_the_mean_number_of_clips(with_config: Callable[..., Task], tmp_path: Path) -> None:
    task = with_config("synthesis.samples_per_class=auto")
    opened(task, 0, tmp_path).generators.fit(1)
    assert opened(task, 0, tmp_path).synthesize(1).counts() == {0: 4, 1: 4}

"""privacy=dp from end to end: one release, nothing else of the clips, and what it costs."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from federations import Federate, Nodes
from flwr.app import Context, Message

from fedgen.client_app import app as client_app
from fedgen.config.compose import load_config
from fedgen.config.phases import plan
from fedgen.config.settings import Config
from fedgen.data.store import Store
from fedgen.data.tensors import load_tensors
from fedgen.errors import AggregationError, CheckpointError, ConfigError, DataError
from fedgen.models.training import train_adapters
from fedgen.node.data import NodeData
from fedgen.node.node import Node
from fedgen.privacy.release import release
from fedgen.task import prepare_task

Tiny = Callable[..., Config]
DP = ("privacy.name=dp", "privacy.epsilon=8", "privacy.delta=0.01", "privacy.components=8", "privacy.seed=1")


@pytest.fixture(autouse=True)
def computed_of_clips(monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    """Return what this process keeps that was computed of clips: at first nothing, whatever ran before."""
    kept: dict[Any, Any] = {}
    monkeypatch.setattr("fedgen.node.data._cache", kept)
    return kept


def private(tiny: Tiny, *overrides: str) -> Config:
    return tiny(*DP, "mode=combined", "rounds=2", "synthesis.fill=4", *overrides)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_results_say_what_each_node_has_spent(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    results = federate(private(tiny), tmp_path)
    found = results["privacy"]
    assert (found["epsilon"], found["delta"]) == (8, 0.01)
    assert sorted(found["nodes"]) == ["0", "1", "2"]
    for facts in found["nodes"].values():
        assert facts["epsilon"] == pytest.approx(8, rel=1e-3)
        assert facts["clips"] == 8
    assert "privacy" not in federate(tiny("mode=federate"), tmp_path / "other")


def test_clips_are_read_once_in_a_run(
    tiny: Tiny,
    federate: Federate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    computed_of_clips: dict[Any, Any],
) -> None:
    """Each node reads its training clips for its release; after that, only the server's held-out clips are read."""
    read: list[tuple[int, ...]] = []
    original = Store.tokens

    def tokens(self: Store, indices: Any, dtype: torch.dtype = torch.float16) -> torch.Tensor:
        read.append(tuple(int(index) for index in indices))
        return original(self, indices, dtype)

    config = private(tiny, "rounds=3", 'evaluation.gate="off"')
    monkeypatch.setattr(Store, "tokens", tokens)
    federate(config, tmp_path)
    task = prepare_task(config)
    held_out = set(task.store.test_indices(config.data.test_fold).tolist())
    training = [indices for indices in read if not set(indices) <= held_out]
    assert sorted(training) == sorted(tuple(part.tolist()) for part in task.parts)
    assert not computed_of_clips


@pytest.mark.parametrize("mode", ["combined", "federate"])
def test_everything_sent_depends_on_clips_through_the_release_alone(
    mode: str, tiny: Tiny, federate: Federate, tmp_path: Path, computed_of_clips: dict[Any, Any]
) -> None:
    """A second run, over other clips, sends the same if the release is that of the first."""
    config = private(tiny, f"mode={mode}", 'evaluation.gate="off"', "evaluation.quality=false")
    heard: list[list[str]] = [[], []]

    def listening(into: list[str]) -> Callable[[Message, Context], Message]:
        def handle(message: Message, context: Context) -> Message:
            if message.metadata.message_type == "train" and into is heard[1]:
                node = int(context.node_config["partition-id"])
                source = tmp_path / "first" / "state" / f"node{node}" / "release.safetensors"
                target = tmp_path / "second" / "state" / f"node{node}" / "release.safetensors"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
            reply = client_app(message, context)
            into.extend(said(reply))
            return reply

        return handle

    federate(config, tmp_path / "first", listening(heard[0]))
    assert sum("num-examples" in line for line in heard[0]) == 6
    computed_of_clips.clear()
    original = Store.tokens

    def others(self: Store, indices: Any, dtype: torch.dtype = torch.float16) -> torch.Tensor:
        return original(self, indices, dtype).flip(1) + 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "tokens", others)
        federate(config, tmp_path / "second", listening(heard[1]))
    assert sorted(heard[0]) == sorted(heard[1])


def said(reply: Message) -> list[str]:
    """Return everything in a reply but how long it took."""
    content = reply.content
    arrays = [
        f"{name}={sha256(array.data).hexdigest()}"
        for record in content.array_records.values()
        for name, array in record.items()
    ]
    records = [*content.metric_records.values(), *content.config_records.values()]
    values = [f"{name}={value}" for record in records for name, value in record.items() if name != "seconds"]
    return arrays + values


def test_every_node_draws_noise_of_its_own_and_only_once(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int | None] = []

    def spy(source: Any, space: Any, settings: Any, seed: int | None = None) -> Any:
        seeds.append(seed)
        return release(source, space, settings, seed)

    monkeypatch.setattr("fedgen.node.private.release", spy)
    task = prepare_task(private(tiny))
    made = [Node.open(NodeData(task, number), tmp_path).generators.release for number in range(3)]
    assert len(set(seeds)) == 3
    again = [
        Node.open(NodeData(task, number), tmp_path).generators.release for number in range(3)
    ]  # as after a restart
    assert len(seeds) == 3
    for first, second in zip(made, again, strict=True):
        assert torch.equal(first.density.means, second.density.means)
    Node.open(NodeData(prepare_task(private(tiny, "privacy.seed=null")), 0), tmp_path / "real").generators.release  # noqa: B018
    assert seeds[3] is None


def test_a_release_of_other_clips_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    """As many of each class, in another partition."""
    node = Node.open(NodeData(prepare_task(private(tiny)), 0), tmp_path)
    assert node.generators.release
    other = Node.open(NodeData(node.task, 0), tmp_path)
    store = node.task.store
    held_out = store.test_indices(node.config.data.test_fold)
    first = store.labels[node.data.indices[0]]
    other.data.indices = node.data.indices.copy()
    other.data.indices[0] = next(index for index in held_out if store.labels[index] == first)
    assert other.data.counts == node.data.counts
    with pytest.raises(CheckpointError, match="clips is"):
        other.generators.release  # noqa: B018


def test_without_a_seed_the_noise_differs_from_run_to_run(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    def means(name: str, *overrides: str) -> torch.Tensor:
        federate(private(tiny, "rounds=1", *overrides), tmp_path / name)
        tensors, _ = load_tensors(tmp_path / name / "state/node0/release.safetensors")
        return tensors["means"]

    assert torch.equal(means("a"), means("b"))
    assert not torch.equal(means("c", "privacy.seed=null"), means("d", "privacy.seed=null"))
    assert not torch.equal(means("e", "privacy.seed=2"), means("f"))


def test_a_later_run_goes_on_from_the_release_and_spends_nothing(
    tiny: Tiny, federate: Federate, tmp_path: Path
) -> None:
    federate(private(tiny, "mode=train_generators", "privacy.seed=null"), tmp_path / "first")
    load = f"checkpoint.load={tmp_path / 'first'}"
    federate(private(tiny, "mode=generate", "privacy.seed=null", load), tmp_path / "second")
    files = [(tmp_path / run / "state/node1/release.safetensors").read_bytes() for run in ("first", "second")]
    assert files[0] == files[1]
    with pytest.raises(DataError, match=r"private release of node 0 is not this run's: privacy is .*'epsilon': 8"):
        federate(private(tiny, "mode=generate", "privacy.seed=null", "privacy.epsilon=4", load), tmp_path / "third")


def test_a_run_without_privacy_is_no_start_for_one_with_it(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    federate(tiny("mode=train_generators"), tmp_path / "first")
    load = f"checkpoint.load={tmp_path / 'first'}"
    with pytest.raises((DataError, CheckpointError), match="no private release"):
        federate(private(tiny, "mode=generate", load), tmp_path / "second")


def test_a_node_refuses_what_reads_clips(tiny: Tiny, tmp_path: Path) -> None:
    task = prepare_task(private(tiny))
    node = Node.open(NodeData(task, 0), tmp_path)
    with pytest.raises(DataError, match="privacy=dp"):
        node.fit_shared({}, 1, plan(node.config.phase_list)[0])


def test_losses_of_generators_are_not_told(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    federate(private(tiny), tmp_path)
    assert not any("generator" in key for line in lines(tmp_path) for key in line)


@pytest.mark.parametrize("granularity", ["unified", "per_class"])
def test_every_granularity(granularity: str, tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    results = federate(private(tiny, f"granularity={granularity}"), tmp_path)
    assert results["samples"] == dict.fromkeys(results["classes"], 6)


def test_federated_averaging_is_private_too(
    tiny: Tiny, federate: Federate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def spy(adapters: Any, source: Any, *rest: Any, **named: Any) -> Any:
        seen.append(type(source).__name__)
        return train_adapters(adapters, source, *rest, **named)

    monkeypatch.setattr("fedgen.node.node.train_adapters", spy)
    results = federate(private(tiny, "mode=federate"), tmp_path)
    assert set(seen) == {"PooledSummaries"}
    assert results["privacy"]["nodes"]


REFUSED = {
    "generator=vae": r"generator=gaussian",
    "sharing=shared": r"sharing=local",
    "mode=centralised": r"privacy=dp means nothing with mode=centralised",
    "privacy.delta=null": r"needs privacy\.delta",
    "privacy.epsilon=-1": r"privacy\.epsilon=-1",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_cannot_be_private_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED[override]):
        load_config([*DP, override])


def test_a_budget_without_privacy_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.epsilon=3"):
        load_config(["privacy.epsilon=3"])


@pytest.mark.parametrize(
    ("limit", "overrides", "reason"),
    [
        ("4", DP, r"max-epsilon=4 refuses privacy=dp privacy\.epsilon=8"),
        ("4", (), r"max-epsilon=4 refuses privacy=none"),
        ("many", DP, r"max-epsilon='many' must be a number"),
        ("8", DP, r"max-epsilon refuses privacy\.seed=1"),
    ],
)
def test_a_node_limits_what_a_server_may_ask(
    limit: str, overrides: tuple[str, ...], reason: str, tiny: Tiny, federate: Federate, tmp_path: Path
) -> None:
    def careful(message: Message, context: Context) -> Message:
        if int(context.node_config["partition-id"]) == 1:
            context.node_config["max-epsilon"] = limit
        return client_app(message, context)

    with pytest.raises(DataError, match=reason):
        federate(tiny(*overrides), tmp_path, careful)


def test_a_delta_too_large_for_a_node_ends_the_run_before_any_training(
    tiny: Tiny, federate: Federate, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"nodes cannot start: .*privacy\.delta=0\.2 is too large.* 8 clips"):
        federate(private(tiny, "privacy.delta=0.2"), tmp_path)
    assert not (tmp_path / "state/node0").exists()


def test_what_is_spent_must_be_readable(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    def lie(request: Message, reply: Message, node: int) -> Message | None:
        if request.metadata.message_type == "train" and node == 0:
            reply.content.config_records["report"]["privacy"] = "[1]"
        return None

    with pytest.raises(AggregationError, match="what was spent of a privacy budget cannot be read"):
        federate(private(tiny), tmp_path, Nodes(lie))

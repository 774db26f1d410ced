"""Nodes get each other's samples: which ones, and what happens when they do not come."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from federations import Federate, Nodes
from flwr.app import Context, Message
from spaces import toy_space

from fedgen.client_app import app as client_app
from fedgen.config.settings import Config, SynthesisConfig
from fedgen.data.store import Store
from fedgen.errors import AggregationError
from fedgen.messages.checks import NodeInfo
from fedgen.messages.samples import SAMPLES
from fedgen.models.samples import SyntheticTokens
from fedgen.models.settings import CodecSettings
from fedgen.server.pool import MAX_SOURCES, SamplePool
from fedgen.task import prepare_task

Tiny = Callable[..., Config]


CODEC = toy_space((6, 5), CodecSettings(3, 3, 4)).codec


def pool_of(fill: int, held: dict[int, SyntheticTokens]) -> SamplePool:
    pool = SamplePool(CODEC, Config(seed=5, synthesis=SynthesisConfig(fill=fill)))
    pool.samples = held
    return pool


def samples(seed: int, counts: dict[int, int]) -> SyntheticTokens:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([label for label, count in counts.items() for _ in range(count)])
    return SyntheticTokens(CODEC, torch.randn(len(labels), CODEC.size, generator=generator), labels, seed)


POOL = {0: samples(0, {0: 20, 1: 20}), 1: samples(1, {1: 20, 2: 20}), 2: samples(2, {3: 20})}


class Heard:
    """Nodes that note what fills them up, and train as ever."""

    def __init__(self) -> None:
        self.fills: list[tuple[int, dict[str, set[str]]]] = []  # node, names of arrays by record
        self.trained: list[int] = []  # whether a training message speaks of filling

    def __call__(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type == "query.fill":
            records = message.content.array_records
            node = int(context.node_config["partition-id"])
            self.fills.append((node, {key: set(record) for key, record in records.items()}))
        if message.metadata.message_type == "train":
            self.trained.append(int(message.content.config_records["config"]["filled"]))
        return client_app(message, context)


def test_classes_are_filled_up_to_what_is_wanted_by_others_samples_alone() -> None:
    chosen = pool_of(12, POOL).chosen(NodeInfo(1, {1: 7, 2: 40}), round_number=3)
    assert {number: own.counts() for number, own in chosen.items()} == {0: {0: 12, 1: 5}, 2: {3: 12}}
    assert all(own.codec is CODEC for own in chosen.values())


def test_samples_of_a_class_come_from_all_nodes_that_have_it_and_change_with_the_round() -> None:
    def of_class_1(round_number: int) -> dict[int, list[float]]:
        chosen = pool_of(16, POOL).chosen(NodeInfo(2, {3: 9}), round_number)
        return {number: own.latents[own.labels == 1][:, 0].tolist() for number, own in chosen.items()}

    first = of_class_1(1)
    assert sorted(map(len, first.values())) != [0, 16]
    assert sum(map(len, first.values())) == 16
    assert first == of_class_1(1)
    assert first != of_class_1(2)
    every = {number: set(own.latents[:, 0].tolist()) for number, own in POOL.items()}
    assert all(set(values) <= every[number] for number, values in first.items())


def test_samples_of_a_class_come_from_the_same_few_nodes_in_every_round() -> None:
    pool = {number: samples(number, {0: 8}) for number in range(1, 10)}

    def donors(round_number: int, member: int) -> set[int]:
        return set(pool_of(30, pool).chosen(NodeInfo(member, {1: 3}), round_number))

    assert len(donors(1, 20)) == MAX_SOURCES
    assert donors(1, 20) == donors(2, 20)
    assert len({frozenset(donors(1, member)) for member in range(20, 26)}) > 1


def test_a_node_that_is_alone_gets_nothing() -> None:
    assert pool_of(12, {0: POOL[0]}).chosen(NodeInfo(0, {0: 3}), 1) == {}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_from_the_second_round_on_and_no_codec_travels(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    heard = Heard()
    federate(tiny("mode=combined", "rounds=3", "synthesis.fill=4"), tmp_path, heard)
    nodes = 3
    assert heard.trained == [0] * nodes + [1] * 2 * nodes
    assert [sorted(node for node, _ in part) for part in (heard.fills[:nodes], heard.fills[nodes:])] == [[0, 1, 2]] * 2
    others = {node: {f"samples.{other}" for other in range(nodes) if other != node} for node in range(nodes)}
    for node, came in heard.fills:
        assert came == {key: set(SAMPLES) for key in others[node]}


def test_adapters_really_train_on_them(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    """Without the server's own training, another round differs exactly where nodes are filled up."""
    common = ("mode=combined", "rounds=2", "global_training=none")

    def losses(name: str, *overrides: str) -> list[float]:
        federate(tiny(*common, *overrides), tmp_path / name)
        return [line[f"train/node_{line['node']}/loss"] for line in lines(tmp_path / name) if "node" in line]

    alone, filled = losses("alone", "synthesis.fill=0"), losses("filled", "synthesis.fill=4")
    assert alone[:3] == filled[:3]
    assert all(one != other for one, other in zip(alone[3:], filled[3:], strict=True))


def test_too_few_nodes_that_take_them_end_the_run(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    def refuse(request: Message, reply: Message, node: int) -> Message | None:
        if request.metadata.message_type == "query.fill" and node == 2:
            raise ValueError("no room")
        return None

    with pytest.raises(AggregationError, match=r"node 2.*no room"):
        federate(tiny("mode=combined", "rounds=2", "synthesis.fill=4"), tmp_path, Nodes(refuse))


def test_samples_of_another_length_fill_up_as_well(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    """Their summaries do not depend on the tokens that they are decoded to."""
    losses = []
    for length in (4, 514):
        overrides = "mode=combined", "rounds=2", f"generator.output_length={length}", "synthesis.fill=4"
        federate(tiny(*overrides), tmp_path / str(length))
        found = [line for line in lines(tmp_path / str(length)) if "node" in line]
        losses.append([line[f"train/node_{line['node']}/loss"] for line in found])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_clips_are_read_in_the_first_round_alone(
    tiny: Tiny, federate: Federate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("mode=combined", "rounds=3", "synthesis.fill=4", 'evaluation.gate="off"')
    task = prepare_task(config)
    own = [tuple(part.tolist()) for part in task.parts]
    read: list[tuple[int, ...]] = []
    original = Store.tokens

    def tokens(self: Store, indices: Any, dtype: torch.dtype = torch.float16) -> torch.Tensor:
        read.append(tuple(int(index) for index in indices))
        return original(self, indices, dtype)

    monkeypatch.setattr("fedgen.node.data._cache", {})
    monkeypatch.setattr(Store, "tokens", tokens)
    federate(config, tmp_path)
    assert sorted(clips for clips in read if clips in own) == sorted(own)

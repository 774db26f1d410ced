"""One codec for all nodes, each with generators of its own: it is fitted to sums, travels once, and outlives a loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from federations import Federate, Nodes
from flwr.app import Context, Error, Message
from torch import Tensor

from fedgen.client_app import app as client_app
from fedgen.errors import AggregationError, ConfigError
from fedgen.exchange.files import load_tensors
from fedgen.models.codec import Codec
from fedgen.run_folder import RunFolder
from fedgen.settings import Config
from fedgen.task import prepare_task

Tiny = Callable[..., Config]


class Listener:
    """Nodes whose messages are counted by type, and whose codecs are told by whether samples brought one."""

    def __init__(self) -> None:
        self.types: list[tuple[str, int]] = []
        self.brought: list[bool] = []

    def __call__(self, message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        self.types.append((message.metadata.message_type, int(context.node_config["partition-id"])))
        if message.metadata.message_type == "query.synthesize":
            self.brought.append("codec.mean" in next(iter(reply.content.array_records.values())))
        return reply


def codecs(folder: Path) -> list[dict[str, Tensor]]:
    """Codec of each node's saved generators."""
    return [load_tensors(path)[0] for path in sorted((folder / "checkpoints").glob("*_codec.safetensors"))]


def test_it_is_that_of_all_clips_and_travels_once(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    listener, config = Listener(), tiny("mode=one_shot", "rounds=2", "sharing.codec=shared")
    federate(config, tmp_path, listener)
    counts = Counter(kind for kind, _ in listener.types)
    assert (counts["query.moments"], counts["query.codec"], counts["query.synthesize"]) == (6, 3, 6)
    assert listener.brought == [False] * 6  # the server made the codec: samples come without it
    task = prepare_task(replace(config, run_dir=str(tmp_path)))
    alone = Codec.fit(task.tokens(np.concatenate(task.parts)), config.generator.codec)
    first, *others = codecs(tmp_path)
    assert len(others) == 2
    for name, value in alone.state().items():
        assert first[name].shape == value.shape
        assert all(torch.equal(first[name], other[name]) for other in others)
    clips = task.test_tokens().batch(torch.arange(6))
    shared = Codec.from_state(first)
    torch.testing.assert_close(
        shared.decode(shared.encode(clips)), alone.decode(alone.encode(clips)), atol=5e-2, rtol=0
    )


def test_or_each_node_has_its_own(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    listener = Listener()
    federate(tiny("mode=one_shot", "rounds=2", "sharing.codec=own"), tmp_path, listener)
    assert {kind for kind, _ in listener.types} == {"query.describe", "train", "query.synthesize", "query.fill"}
    assert listener.brought == [True] * 3 + [False] * 3
    first, *others = codecs(tmp_path)
    assert not any(torch.equal(first["channels"], other["channels"]) for other in others)


def test_nothing_is_exchanged_where_no_generator_is_trained(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    listener = Listener()
    federate(tiny("mode=federate", "sharing.codec=shared"), tmp_path, listener)
    assert {kind for kind, _ in listener.types} == {"query.describe", "train"}


def test_a_node_that_missed_it_gets_it_when_it_is_back(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    def lose(message: Message, reply: Message, number: int) -> Message | None:
        if number == 1 and message.metadata.message_type == "query.codec" and not asked:
            asked.append(number)
            return Message(Error(code=0, reason="gone"), reply_to=message)
        return None

    asked: list[int] = []
    config = tiny("mode=one_shot", "rounds=2", "sharing.codec=shared", "strategy.min_nodes=2")
    results = federate(config, tmp_path, Nodes(lose))
    assert results["lost"]["1"].keys() == {"1"}
    assert "2" not in results["lost"]
    assert asked == [1]
    assert len(results["samples"]) == 6


def test_the_second_run_keeps_the_codec_of_its_generators(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    federate(tiny("mode=train_generators", "sharing.codec=shared"), tmp_path / "one")
    federate(tiny("mode=generate", "sharing.codec=shared", f"checkpoint.load={tmp_path / 'one'}"), tmp_path / "two")
    pool = RunFolder(tmp_path / "two").states.latest()
    assert pool is not None
    (first, *_), samples = codecs(tmp_path / "one"), pool.tensors["samples_node0"]
    torch.testing.assert_close(samples["codec.mean"], first["mean"])


def test_few_clips_need_codecs_of_their_own(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sharing=shared needs sharing\.codec=shared"):
        tiny("sharing=shared", "sharing.codec=own")
    config = tiny("mode=one_shot", "sharing.codec=shared", "partition=iid", "partition.nodes=12")
    with pytest.raises(AggregationError, match=r"sharing\.codec=own"):
        federate(config, tmp_path)

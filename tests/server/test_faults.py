"""Nodes that hang, raise or come back: the round goes on without them, or the run stops and can be resumed."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from federations import Federate, Nodes
from flwr.app import Message

from fedgen.config.compose import load_config
from fedgen.config.settings import Config
from fedgen.data.tensors import load_tensors
from fedgen.errors import AggregationError
from fedgen.runtimes.local import run_config as run
from fedgen.server.grid import RoundGrid

Tiny = Callable[..., Config]


def server_lines(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "node" not in line]


class Faulty(Nodes):
    """Node 1 does something in one round before it answers a type of message; ``asked`` notes who is asked for what."""

    def __init__(self, message_type: str, round_number: int, act: Callable[[], None]) -> None:
        self.asked: list[tuple[int, str, int]] = []

        def change(message: Message, reply: Message, node: int) -> None:
            number = int(str(message.content.config_records["config"].get("round", 0)))
            self.asked.append((number, message.metadata.message_type, node))
            if (node, message.metadata.message_type, number) == (1, message_type, round_number):
                act()

        super().__init__(change)


def fail() -> None:
    raise OSError("disk full")


@pytest.mark.parametrize("message_type", ["train", "query.synthesize"])
def test_a_run_that_stops_for_a_failing_node_is_resumed(
    message_type: str, tiny: Tiny, federate: Federate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It names node and cause in the log and the metrics, and ends as if nothing had happened."""
    config = tiny("mode=combined", "rounds=3")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = federate(config, whole)
    with pytest.raises(AggregationError, match=r"round 2: 2 good replies.*node 1: OSError: disk full"):
        federate(config, broken, Faulty(message_type, 2, fail))
    last = server_lines(broken)[-1]
    assert (last["round"], last["server/lost"]) == (2, {"1": "OSError: disk full"})
    assert "min_nodes=3 are needed" in last["server/stopped"]
    assert "round 2: node 1 is missing: OSError: disk full" in caplog.text
    assert f"goes on after the last finished round with resume={broken}" in caplog.text

    found = run(load_config([f"resume={broken}"]))
    times = ("seconds", "bytes")
    assert {k: v for k, v in found.items() if k not in times} == {k: v for k, v in expected.items() if k not in times}
    assert [line["round"] for line in server_lines(broken)] == [0, 1, 2, 3]
    for name in ("checkpoints/adapters.safetensors", "state/server/round_3/samples_node1.safetensors"):
        first, second = (load_tensors(folder / name)[0] for folder in (whole, broken))
        assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_node_that_hangs_is_left_out_of_its_round_and_comes_back(
    tiny: Tiny, federate: Federate, tmp_path: Path
) -> None:
    """Its late reply counts nowhere, its samples of before stay in the pool once, and it is asked again."""
    nodes = Faulty("train", 2, lambda: time.sleep(8))
    results = federate(tiny("mode=combined", "rounds=3", "strategy.min_nodes=2", "strategy.timeout=7"), tmp_path, nodes)
    first, second, third = server_lines(tmp_path)[1:]
    assert "server/lost" not in first
    assert second["server/answered"] == [0, 2]
    assert second["server/lost"]["1"].startswith("no reply in time")
    assert third["server/answered"] == [0, 1, 2]
    assert [line["server/synthetic_samples_total"] for line in (first, second, third)] == [36, 36, 36]
    assert results["lost"] == {"2": {"1": second["server/lost"]["1"]}}
    assert results["refused"] == {}
    of_the_second = [kind for number, kind, node in nodes.asked if (number, node) == (2, 1)]
    assert of_the_second == ["query.fill", "train"]  # nothing more, once it had missed the training
    assert (3, "query.synthesize", 1) in nodes.asked
    moments = sorted(path.name for path in (tmp_path / "state" / "node1" / "optimizer").glob("*"))
    assert moments == ["round_2.safetensors", "round_3.safetensors"]  # it went on from its own state


def test_every_exchange_has_the_time_out(
    tiny: Tiny, federate: Federate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, given = RoundGrid.send_and_receive, dict[str, set[float | None]]()

    def watched(grid: RoundGrid, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        sent = list(messages)
        for message in sent:
            given.setdefault(message.metadata.message_type, set()).add(timeout)
        return send(grid, sent, timeout=timeout)

    monkeypatch.setattr(RoundGrid, "send_and_receive", watched)
    federate(tiny("mode=combined", "rounds=2", "strategy.timeout=77"), tmp_path)
    assert {"query.describe", "query.fill", "train", "query.synthesize"} <= set(given)
    assert set().union(*given.values()) == {77}


def test_some_nodes_a_round(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    """Others' samples fill up and stay in the pool, whoever is asked; the same seed asks the same."""
    config = tiny("mode=combined", "rounds=4", "strategy.nodes_per_round=2")
    asked = []
    for folder in ("first", "second"):
        federate(config, tmp_path / folder)
        asked.append([line["server/answered"] for line in server_lines(tmp_path / folder)[1:]])
    assert asked[0] == asked[1]
    assert all(len(nodes) == 2 for nodes in asked[0])
    assert len(set(map(tuple, asked[0]))) > 1
    lines = server_lines(tmp_path / "first")[1:]
    assert not any("server/lost" in line for line in lines)
    assert [line["server/synthetic_samples_total"] for line in lines] == [
        12 * len({node for nodes in asked[0][: number + 1] for node in nodes}) for number in range(4)
    ]


def test_some_nodes_a_round_are_the_same_after_a_restart(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    config = tiny("mode=combined", "rounds=3", "strategy.nodes_per_round=2", "strategy.pool_nodes=1")
    federate(config, tmp_path / "whole")
    chosen = [line["server/answered"] for line in server_lines(tmp_path / "whole")[1:]]

    class Fails(Faulty):
        def __init__(self) -> None:
            super().__init__("", 0, fail)

        def __call__(self, message: Message, context: Any) -> Message:
            reply = super().__call__(message, context)
            if self.asked[-1][:2] == (3, "train"):
                fail()
            return reply

    with pytest.raises(AggregationError):
        federate(config, tmp_path / "broken", Fails())
    run(load_config([f"resume={tmp_path / 'broken'}"]))
    assert [line["server/answered"] for line in server_lines(tmp_path / "broken")[1:]] == chosen
    pooled = [
        sorted(path.name for path in (tmp_path / name / "state/server/round_3").glob("samples*"))
        for name in ("whole", "broken")
    ]
    assert pooled[0] == pooled[1] == [f"samples_node{node}.safetensors" for node in chosen[-1]]

"""The ServerApp: who must be there before it starts, and what it takes as its configuration."""

import json
import re
import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from federations import Federate, Nodes
from flwr.app import ConfigRecord, Message, RecordDict

from fedgen.client_app import app as client_app
from fedgen.config.compose import to_yaml
from fedgen.config.settings import Config
from fedgen.errors import AggregationError, ConfigError, DataError
from fedgen.runs.folder import RunFolder
from fedgen.runtimes.local import LocalGrid, run_server
from fedgen.server_app import app as server_app
from fedgen.server_app import federate as federate_over

Tiny = Callable[..., Config]


@pytest.fixture
def over(tiny: Tiny, no_plots: None, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Federate over a grid of ``nodes`` nodes, whatever the configuration says."""

    def start(*overrides: str, nodes: int = 3, app: Any = client_app, **options: Any) -> dict[str, Any]:
        config = replace(tiny("mode=federate", "rounds=1", *overrides), run_dir=str(tmp_path))
        return federate_over(LocalGrid(app, nodes, {}, **options), config)

    return start


def test_fewer_nodes_than_the_partition_needs(over: Callable[..., Any]) -> None:
    with pytest.raises(AggregationError, match=r"2 nodes are there after strategy\.wait=0\.2 s, partition\.nodes=3"):
        over("strategy.wait=0.2", nodes=2)


def test_more_nodes_than_parts(over: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    over("mode=federate", nodes=4)
    assert re.search(r"does not take part: .*node 3 has no part: partition\.nodes=3", caplog.text)


def test_two_nodes_with_the_same_number(over: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match=r"two nodes have the same partition-id: \[0, 0, 2\]"):
        over(node_configs=[{}, {"partition-id": 0}, {}])


def test_a_node_that_does_not_answer_at_the_start(over: Callable[..., Any]) -> None:
    def slow(message: Message, reply: Message, node: int) -> None:
        time.sleep(1.0)

    with pytest.raises(DataError, match=r"nodes cannot start: no reply in time.*strategy\.timeout=0\.9 s"):
        over("strategy.timeout=0.9", app=Nodes(slow))


def test_every_problem_is_named_once(over: Callable[..., Any]) -> None:
    with pytest.raises(DataError) as raised:
        over("mode=generate")
    assert [f"no checkpoint vae_unified_node{n}" in str(raised.value) for n in range(3)] == [True] * 3


def describing(**changes: Any) -> Nodes:
    """Node 1 describes itself otherwise."""

    def change(message: Message, reply: Message, node: int) -> Message | None:
        if node != 1 or message.metadata.message_type != "query.describe":
            return None
        facts = json.loads(str(reply.content["facts"]["json"])) | changes
        return Message(RecordDict({"facts": ConfigRecord({"json": json.dumps(facts)})}), reply_to=message)

    return Nodes(change)


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"classes": ["dog"]}, r"classes \['dog'\], the server has \['dog', "),
        ({"shape": [4, 768]}, r"shape of tokens \(4, 768\), the server has \(514, 768\)"),
        ({"encoder": {"name": "ast"}}, r"encoder \{'name': 'ast'\}, the server has \{"),
    ],
)
def test_a_node_that_disagrees(changes: dict[str, Any], differs: str, over: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match=f"node 1 has {differs}"):
        over(app=describing(**changes))


@pytest.mark.parametrize("mode", ["standalone", "centralised"])
def test_references_are_not_for_flower(mode: str, over: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=f"mode={mode} is a reference, not a federation: run it with `fedgen run`"):
        over(f"mode={mode}")


def test_overrides_and_resolved_configurations_are_the_same(
    tiny_overrides: list[str], tiny: Tiny, no_plots: None, tmp_path: Path
) -> None:
    results = []
    for name in ("overrides", "config"):
        overrides = ["mode=federate", "rounds=1", f"run_dir={tmp_path / name}"]
        text = shlex.join([*tiny_overrides, *overrides]) if name == "overrides" else to_yaml(tiny(*overrides))
        run_server(server_app, LocalGrid(client_app, 3, {name: text}), {name: text})
        results.append(RunFolder(tmp_path / name).results())
        del results[-1]["seconds"]
    results[0]["bytes"] = results[1]["bytes"]  # the names of the folders are of other lengths
    assert results[0] == results[1]


def test_without_a_folder_the_run_goes_below_the_home(tiny_overrides: list[str], no_plots: None, home: Path) -> None:
    values = {"overrides": shlex.join([*tiny_overrides, "mode=federate", "rounds=1"])}
    run_server(server_app, LocalGrid(client_app, 3, values), values)
    (results,) = (home / "runs").glob("*/results.json")
    assert json.loads(results.read_text())["mode"] == "federate"


def test_a_bad_override_is_named(no_plots: None) -> None:
    values = {"overrides": "mode=combinedt"}
    with pytest.raises(ConfigError, match=r"mode='combinedt' is not one of .*Did you mean 'combined'"):
        run_server(server_app, LocalGrid(client_app, 3, values), values)


def test_global_training_none_leaves_the_average(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    results = [
        federate(tiny("mode=combined", f"global_training={name}"), tmp_path / name) for name in ("none", "supervised")
    ]
    average = federate(tiny("mode=federate", "rounds=1"), tmp_path / "average")
    assert results[0]["heads"] == average["heads"] != results[1]["heads"]
    assert sum(results[0]["samples"].values()) == 36

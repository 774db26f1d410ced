"""Nodes with stores of their own and a server without any: what they agree on, who measures, and who is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message

from fedgen.client_app import app as client_app
from fedgen.config.compose import load_config, to_yaml
from fedgen.config.settings import Config
from fedgen.errors import AggregationError, ConfigError, DataError
from fedgen.runs.folder import RunFolder
from fedgen.runtimes.local import LocalGrid, run_server
from fedgen.server_app import app as server_app
from fedgen.task import prepare_task

SITES = [["dog", "cow", "rain"], ["rain", "crickets", "cow"], ["siren", "engine"]]
ALL = sorted({name for names in SITES for name in names})

Deploy = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def stores(tiny: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One store for each of `SITES`; in each a class's id is another one."""
    folder = tmp_path_factory.mktemp("stores")
    for number, names in enumerate(SITES):
        config = tiny(f"data.classes=[{','.join(names)}]", f"data.store={folder / str(number)}")
        prepare_task(replace(config, data=replace(config.data, seed=number)))
    return [str(folder / str(number)) for number in range(len(SITES))]


@pytest.fixture
def deploy(stores: list[str], tiny_overrides: list[str], tmp_path: Path, no_plots: None) -> Deploy:
    """Runs a federation of nodes that have `stores`; ``facts`` go before what their node configurations say."""

    def start(
        *overrides: str,
        facts: dict[int, dict[str, Any]] | None = None,
        app: Any = client_app,
        run: str = "run",
        grid: type[LocalGrid] = LocalGrid,
    ) -> dict[str, Any]:
        own = facts or {}
        configs = [
            {"store": store, "state": str(tmp_path / f"site{number}"), **own.get(number, {})}
            for number, store in enumerate(stores)
        ]
        first = [*tiny_overrides, "data=nodes", "data.classes=[]", f"run_dir={tmp_path / run}"]
        resumes = any(text.startswith("resume=") for text in overrides)
        config = load_config([*overrides] if resumes else [*first, *overrides])
        values = {"config": to_yaml(config)}
        run_server(server_app, grid(app, len(SITES), values, configs), values)
        return RunFolder(tmp_path / run).results()

    return start


def test_classes_are_agreed_on_by_name_and_nodes_do_the_testing(deploy: Deploy, tmp_path: Path) -> None:
    results = deploy("mode=combined", "rounds=2")
    assert results["classes"] == ALL
    assert {number: set(counts) for number, counts in results["nodes"].items()} == {
        str(number): set(names) for number, names in enumerate(SITES)
    }
    tested = {name: sum(row) for name, row in zip(ALL, results["confusion"], strict=True)}
    assert tested == {"cow": 4, "crickets": 2, "dog": 2, "engine": 2, "rain": 4, "siren": 2}
    right = sum(row[i] for i, row in enumerate(results["confusion"]))
    assert results["accuracy"] == pytest.approx(right / 16)
    assert set(results["samples"]) == set(ALL)
    there = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert not {name for name in there if name.startswith("vae")}  # generators stay where they were trained
    for number in range(len(SITES)):
        assert [*(tmp_path / f"site{number}" / "run" / "checkpoints").glob("*/manifest.json")]


def test_scores_are_those_of_one_machine_with_all_test_clips(
    deploy: Deploy, stores: list[str], tiny: Callable[..., Config], tmp_path: Path
) -> None:
    results = deploy("mode=federate")
    task = prepare_task(tiny("data=nodes", f"data.classes=[{','.join(ALL)}]"))
    weights, _ = RunFolder(tmp_path / "run").load_adapters(task.identity())
    right, errors, clips = 0.0, 0.0, 0
    adapters = task.adapters()
    adapters.load_state_dict(weights)
    adapters.eval()
    for store in stores:
        site = prepare_task(tiny("data=nodes", f"data.store={store}", f"data.classes=[{','.join(ALL)}]"))
        test = site.tokens(site.test_indices)
        with torch.no_grad():
            output = adapters(test.batch(torch.arange(len(test))))["text"]
        target = site.targets.heads["text"]
        right += float((torch.nn.functional.normalize(output, dim=1) @ target.T).argmax(1).eq(test.labels).sum())
        errors += float((output - target[test.labels]).square().mean(dim=1).sum())
        clips += len(test)
    assert results["accuracy"] == pytest.approx(right / clips)
    assert results["heads"]["text"]["mse"] == pytest.approx(errors / clips, rel=1e-4)


def test_a_server_with_clips_tests_itself(deploy: Deploy, stores: list[str]) -> None:
    results = deploy("mode=federate", f"data.store={stores[2]}")
    assert {name for name, row in zip(ALL, results["confusion"], strict=True) if sum(row)} == {"siren", "engine"}


def test_every_node_audits_what_it_sent(deploy: Deploy, tmp_path: Path) -> None:
    controls = ["evaluation.controls=0.5", "evaluation.min_controls=2"]
    found = deploy("mode=combined", *controls, "evaluation.gate=warn")["evaluation"]
    assert found["gate"]["verdict"] in ("passed", "failed")
    assert found["gate"]["summary"].startswith("node ")
    audits = json.loads((tmp_path / "run" / "audit.json").read_text())["by_node"]
    assert set(audits) == {"0", "1", "2"}
    assert {attack["name"] for attack in audits["0"]["attacks"]} >= {"nearest", "loss_drop"}


def test_a_node_that_leaks_fails_the_run(deploy: Deploy, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"audit": None, "verdict": "failed", "reasons": ["copies"], "summary": "failed: copies"}

    def confess(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if message.metadata.message_type == "query.assess" and context.node_config["partition-id"] == 1:
            reply.content.config_records["report"]["audit"] = json.dumps(told)
        return reply

    with pytest.raises(Exception, match="node 1: copies"):
        deploy("mode=combined", "evaluation.gate=fail", app=confess)


def test_classes_keep_the_ids_that_the_run_gives_them(deploy: Deploy) -> None:
    classes = ["siren", "engine", "dog", "cow", "rain", "crickets"]
    assert deploy("mode=combined", f"data.classes=[{','.join(classes)}]")["classes"] == classes


def test_an_interrupted_run_goes_on_as_if_it_had_never_stopped(
    deploy: Deploy, stores: list[str], figures: Callable[[dict[str, Any]], dict[str, Any]], tmp_path: Path
) -> None:
    def broken(message: Message, context: Context) -> Message:
        if message.content.config_records["config"].get("round") == 2:
            raise OSError("power cut")
        return client_app(message, context)

    whole = deploy("mode=combined", "rounds=3", run="whole")
    with pytest.raises(AggregationError, match="power cut"):
        deploy("mode=combined", "rounds=3", app=broken)
    resumed = deploy(f"resume={tmp_path / 'run'}", "device=cpu")
    assert figures(resumed) == figures(whole)


@pytest.mark.parametrize(
    ("overrides", "facts", "reason"),
    [
        (["data.classes=[dog,cow,rain,crickets,siren]"], {}, "node 2 has clips of engine, which data.classes="),
        (["encoder.stride=8"], {}, "was made by encoder .* the run's encoder is"),
    ],
)
def test_a_node_that_disagrees_is_refused_with_the_reason(
    deploy: Deploy, overrides: list[str], facts: dict[int, dict[str, Any]], reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        deploy("mode=federate", *overrides, facts=facts)


def test_the_others_go_on_without_a_node_that_disagrees(
    deploy: Deploy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    results = deploy("mode=combined", "rounds=2", "strategy.min_nodes=2", facts={2: {"store": str(tmp_path / "gone")}})
    assert set(results["nodes"]) == {"0", "1"}
    assert results["classes"] == ["cow", "crickets", "dog", "rain"]
    assert "does not take part" in caplog.text
    assert "gone holds no embedding store" in caplog.text
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (refused,) = lines[0]["server/refused_nodes"].values()
    assert "gone holds no embedding store" in refused


def test_a_node_leaves_out_a_class_that_the_run_has_not(deploy: Deploy) -> None:
    names = "data.classes=[dog,cow,rain,crickets,siren]"
    results = deploy("mode=federate", names, facts={2: {"classes": "siren"}})
    assert set(results["nodes"]["2"]) == {"siren"}


def test_other_targets_are_refused(deploy: Deploy) -> None:
    def other(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if message.metadata.message_type == "query.describe" and context.node_config["partition-id"] == 1:
            said = json.loads(str(reply.content.config_records["facts"]["json"]))
            said["targets"][0][0] += 0.1
            reply.content.config_records["facts"]["json"] = json.dumps(said)
        return reply

    with pytest.raises(DataError, match="node 1 has other targets than the server"):
        deploy("mode=federate", app=other)


def test_scores_of_other_clips_are_refused(deploy: Deploy) -> None:
    def boast(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if message.metadata.message_type == "evaluate":
            said = json.loads(str(reply.content.config_records["report"]["scores"]))
            said["confusion"][0][0] += 1000
            reply.content.config_records["report"]["scores"] = json.dumps(said)
        return reply

    with pytest.raises(AggregationError, match="no node has tested"):
        deploy("mode=federate", app=boast)


def test_a_private_run_needs_clips_on_the_server() -> None:
    private = ["data=nodes", "privacy=dp", "privacy.epsilon=4", "privacy.delta=0.001"]
    with pytest.raises(ConfigError, match=r"needs data\.store"):
        load_config(private)


def test_a_private_node_tells_nothing_of_its_clips(deploy: Deploy, stores: list[str]) -> None:
    asked = []

    def listen(message: Message, context: Context) -> Message:
        asked.append(message.metadata.message_type)
        return client_app(message, context)

    private = ["privacy=dp", "privacy.epsilon=100", "privacy.delta=0.001", f"data.store={stores[0]}"]
    results = deploy("mode=combined", *private, app=listen)
    assert results["evaluation"]["gate"]["verdict"] == "not judged"
    assert not {"evaluate", "query.assess"} & set(asked)


@pytest.mark.parametrize("mode", ["standalone", "centralised"])
def test_references_need_everyones_clips(mode: str) -> None:
    with pytest.raises(ConfigError, match="not data=nodes"):
        load_config(["data=nodes", f"mode={mode}"])


def test_nodes_without_a_store_say_so(tiny: Callable[..., Config], tmp_path: Path) -> None:
    config = replace(tiny("data=nodes", "data.classes=[]", "mode=federate"), run_dir=str(tmp_path))
    values = {"config": to_yaml(config)}
    with pytest.raises(DataError, match="the node configuration names no store"):
        run_server(server_app, LocalGrid(client_app, 3, values), values)


class Absent(LocalGrid):
    """A grid whose third node is not there at first, and comes with the message that ``comes_with`` names."""

    comes_with = ("query.synthesize", 1)
    here = False

    def get_node_ids(self) -> list[int]:
        return super().get_node_ids() if self.here else super().get_node_ids()[:2]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        (message,) = messages
        asked = message.metadata.message_type, message.content.config_records["config"].get("round")
        self.here = self.here or asked == self.comes_with
        return super().push_messages([message])


def test_a_node_that_comes_late_takes_part_from_then_on(deploy: Deploy, tmp_path: Path) -> None:
    classes = f"data.classes=[{','.join(ALL)}]"
    results = deploy("mode=combined", "rounds=3", "strategy.min_nodes=2", classes, grid=Absent)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    answered = {line["round"]: line["server/answered"] for line in lines if line.get("server/answered")}
    assert answered == {1: [0, 1], 2: [0, 1, 2], 3: [0, 1, 2]}
    assert set(results["nodes"]) == {"0", "1", "2"}
    assert set(results["samples"]) == set(ALL)


class Renamed(LocalGrid):
    """A grid whose second node comes back under another id before round 2, as a SuperNode without a key does."""

    trained = False

    def get_node_ids(self) -> list[int]:
        if self.trained and not self._waiting and 1002 in self._contexts:
            self._contexts[2002] = self._contexts.pop(1002)
            self._contexts[2002].node_id = 2002
        return super().get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        (message,) = messages
        self.trained = self.trained or message.metadata.message_type == "query.synthesize"
        return super().push_messages([message])


def test_a_node_that_comes_back_under_another_id_remembers_the_run(
    deploy: Deploy, figures: Callable[[dict[str, Any]], dict[str, Any]], tmp_path: Path
) -> None:
    whole = deploy("mode=combined", "rounds=3", run="whole")
    shutil.rmtree(tmp_path / "site1" / "whole")
    returned = deploy("mode=combined", "rounds=3", grid=Renamed)
    assert figures(returned) == figures(whole)


def test_a_node_that_is_missing_is_not_waited_for_twice(deploy: Deploy, tmp_path: Path) -> None:
    asked: list[tuple[str, int]] = []

    def lame(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        asked.append((message.metadata.message_type, number))
        if message.metadata.message_type == "train" and number == 2:
            raise OSError("out of order")
        return client_app(message, context)

    results = deploy("mode=federate", "strategy.min_nodes=2", app=lame)
    assert asked.count(("evaluate", 0)) == 2  # before the first round, and after it
    assert asked.count(("evaluate", 2)) == 1
    assert sum(map(sum, results["confusion"])) == 12
    assert "out of order" in results["lost"]["1"]["2"]

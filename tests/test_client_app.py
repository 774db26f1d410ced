"""The ClientApp: what it reads from messages and what it replies."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, Message, RecordDict

from fedgen.client_app import app
from fedgen.config.compose import to_yaml
from fedgen.config.phases import plan
from fedgen.config.settings import Config
from fedgen.messages.instruction import Instruction
from fedgen.messages.samples import SAMPLES
from fedgen.models.generators.bank import generator_loss
from fedgen.node.settings import node_home
from fedgen.runtimes.local import LocalGrid
from fedgen.task import Task

Ask = Callable[..., Message]


@pytest.fixture
def ask(task: Task, tiny: Callable[..., Config], tmp_path: Path) -> Ask:
    """Send one message to a node of its own grid and return the reply."""

    def send(kind: str, *overrides: str, arrays: ArrayRecord | None = None, node: int = 0, **facts: Any) -> Message:
        config = replace(tiny(*overrides), data=task.config.data, run_dir=str(tmp_path))
        instruction = Instruction(to_yaml(config), mode=config.mode, rounds=config.rounds, round=1)
        content = RecordDict({"config": instruction.to_record()})
        for name, record in facts.pop("records", {}).items():
            content[name] = record
        if arrays is not None:
            content["arrays"] = arrays
        grid = LocalGrid(app, 3, {}, [facts] * 3)
        (reply,) = grid.send_and_receive([Message(content, grid.get_node_ids()[node], kind)])
        return reply

    return send


def test_training(ask: Ask, task: Task) -> None:
    start = task.adapters().state_dict()
    reply = ask("train", "mode=combined", arrays=ArrayRecord(start))
    assert not reply.has_error()
    assert [len(reply.content.array_records), len(reply.content.metric_records)] == [1, 1]  # as Flower demands
    weights = reply.content["arrays"].to_torch_state_dict()
    assert {name: (value.shape, value.dtype) for name, value in weights.items()} == {
        name: (value.shape, value.dtype) for name, value in start.items()
    }
    metrics = dict(reply.content["metrics"])
    assert metrics["num-examples"] == 8
    assert {"loss", "text_loss", "generator_loss", "seconds"} <= set(metrics)
    assert json.loads(str(reply.content["report"]["generators"]))[0]["generator"] == "unified"


def test_without_generators_nothing_of_them_is_reported(ask: Ask, task: Task) -> None:
    reply = ask("train", "mode=federate", arrays=ArrayRecord(task.adapters().state_dict()))
    assert "generator_loss" not in reply.content["metrics"]
    assert json.loads(str(reply.content["report"]["generators"])) == []


def test_frozen_adapters_are_not_sent_back(ask: Ask, task: Task) -> None:
    reply = ask("train", "mode=generators_only", arrays=ArrayRecord(task.adapters().state_dict()))
    assert len(reply.content["arrays"]) == 0
    assert reply.content["metrics"]["num-examples"] == 8


def test_description(ask: Ask, task: Task) -> None:
    facts = json.loads(str(ask("query.describe", node=2).content["facts"]["json"]))
    assert (facts["partition_id"], facts["classes"]) == (2, task.classes)
    assert facts["counts"] == {"4": 4, "5": 4}
    assert tuple(facts["shape"]) == task.store.shape


def test_a_node_that_cannot_take_part_says_why(ask: Ask) -> None:
    assert "no checkpoint vae_unified_node0" in str(ask("query.describe", "mode=generate").error.reason)
    number = {"partition-id": 5}
    assert "node 5 has no part: partition.nodes=3" in str(ask("query.describe", **number).error.reason)


def test_samples(ask: Ask, task: Task) -> None:
    ask("train", "mode=combined", arrays=ArrayRecord(task.adapters().state_dict()))
    reply = ask("query.synthesize", "mode=combined")
    assert list(reply.content) == ["samples"]
    assert set(reply.content["samples"]) == set(SAMPLES)
    record = reply.content["samples"]
    assert record["classes"].numpy().tolist() == [0, 1]
    assert record["counts"].numpy().tolist() == [6, 6]
    again = ask("query.synthesize", "mode=combined").content["samples"]
    assert record["latents"].data == again["latents"].data


def test_the_store_of_the_node_configuration(ask: Ask, task: Task, tmp_path: Path) -> None:
    facts = json.loads(str(ask("query.describe", store=str(task.store.path)).content["facts"]["json"]))
    assert sum(facts["counts"].values()) == 24
    assert "nowhere" in str(ask("query.describe", store=str(tmp_path / "nowhere")).error.reason)


def test_the_state_folder_of_the_node_configuration(ask: Ask, task: Task, tmp_path: Path) -> None:
    ask("train", "mode=federate", arrays=ArrayRecord(task.adapters().state_dict()), state=str(tmp_path / "state"))
    name = "state/node0/optimizer/round_1.safetensors"
    assert (tmp_path / "state" / tmp_path.name / name).is_file()
    assert not (tmp_path / name).exists()
    assert node_home("/runs/a", {}) == Path("/runs/a")


def test_a_node_configuration_of_its_own(ask: Ask) -> None:
    facts = {"granularity": "per_group", "groups": '{"pets": ["dog"], "herd": ["cow"]}', "samples-per-class": 3}
    said = json.loads(str(ask("query.describe", "mode=combined", **facts).content["facts"]["json"]))
    assert (said["granularity"], said["slots"]) == ("per_group", {"pets": ["dog"], "herd": ["cow"]})
    said = json.loads(str(ask("query.describe", classes="cow").content["facts"]["json"]))
    assert said["counts"] == {"1": 4}
    assert "groups='{pets}' must be JSON" in str(ask("query.describe", groups="{pets}").error.reason)
    assert "granularity" in str(ask("query.describe", granularity="per_clas").error.reason)


def test_the_device_of_the_node_configuration(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert json.loads(str(ask("query.describe", device="cpu").content["facts"]["json"]))["device"] == "cpu"
    assert "device=cuda, but torch sees no CUDA device" in str(ask("query.describe", device="cuda").error.reason)
    assert "device='gpu' is not one of" in str(ask("query.describe", device="gpu").error.reason)


def test_instructions(tiny: Callable[..., Config]) -> None:
    config = tiny("phases=[{mode: train_generators, rounds: 2}, {mode: generate, rounds: 3}]")
    sent = Instruction(to_yaml(config), finished=4, mode="generate", rounds=3, offset=6, round=7, rejoined=[2])
    record = sent.to_record()
    record["proximal-mu"] = 0.5  # as FedProx does
    read = Instruction.of(Message(RecordDict({"config": record}), 5, "train"))
    assert read == replace(sent, proximal_mu=0.5, codec=[])
    assert (read.config, read.phase) == (config, plan(config.phase_list, finished=4)[1])


def test_the_generator_loss_is_the_mean_of_the_last_epochs() -> None:
    history = [
        {"generator": key, "epoch": n, "loss": loss} for key, n, loss in [("a", 0, 9.0), ("a", 1, 1.0), ("b", 0, 3.0)]
    ]
    assert generator_loss(history) == {"generator_loss": 2.0}  # type: ignore[arg-type]
    assert generator_loss([]) == {}

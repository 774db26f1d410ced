"""Generators that all nodes train together: from node to node, or averaged; weights and optimiser state travel."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from federations import Federate, Nodes
from flwr.app import Context, Message
from torch import Tensor

from fedgen.client_app import app as client_app
from fedgen.config.settings import Config
from fedgen.data.tensors import load_tensors
from fedgen.errors import AggregationError, FedgenError
from fedgen.messages.states import states_from_records
from fedgen.models.generators import KINDS
from fedgen.models.generators.bank import Bank
from fedgen.models.settings import Schedule
from fedgen.runs.folder import RunFolder
from fedgen.task import prepare_task

Tiny = Callable[..., Config]
SCHEMES = ["cyclic", "average"]
NEURAL = [kind for kind, cls in KINDS.items() if not cls.restarts]


def shared(tiny: Tiny, scheme: str, *overrides: str) -> Config:
    return tiny("mode=combined", "sharing=shared", f"sharing.scheme={scheme}", *overrides)


def server_state(folder: Path) -> dict[str, Tensor]:
    """The shared generators as the server keeps them."""
    return RunFolder(folder).state().tensors["shared"]  # type: ignore[union-attr]


class Listener:
    """Nodes whose every exchange of shared generators is kept: (type, node, received, sent)."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int, Any, Any]] = []

    def __call__(self, message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        kind, node = message.metadata.message_type, int(context.node_config["partition-id"])
        if kind in ("query.fit", "query.adopt"):
            sent = states_from_records(reply.content) if kind == "query.fit" else {}
            self.heard.append((kind, node, states_from_records(message.content), sent))
        return reply


@pytest.mark.parametrize("granularity", ["unified", "per_class", "per_group"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_in_every_granularity_is_shared(
    kind: str, scheme: str, granularity: str, tiny: Tiny, federate: Federate, tmp_path: Path
) -> None:
    config = shared(tiny, scheme, f"generator={kind}", f"granularity={granularity}", "generator.training.epochs=1")
    results = federate(config, tmp_path)
    assert results["samples"] == dict.fromkeys(results["classes"], 6)
    assert results["lost"] == {}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(line[f"train/node_{line['node']}/generator"] for line in lines if "node" in line)


@pytest.mark.parametrize("kind", NEURAL)
def test_a_cycle_is_one_process_that_sees_the_same_batches_in_the_same_order(
    kind: str, tiny: Tiny, federate: Federate, tmp_path: Path
) -> None:
    """Two rounds over three nodes: weights, step counts and moments are those of six calls on one generator."""
    config = shared(tiny, "cyclic", f"generator={kind}", "rounds=2")
    federate(config, tmp_path)
    found = server_state(tmp_path)
    task = prepare_task(replace(config, run_dir=str(tmp_path)))
    states: dict[str, dict[str, Tensor]] = {}
    for round_number in (1, 2):
        for node in range(3):
            conditions, split = task.targets.conditions(), task.seed("split", node)
            bank = Bank(config.generator, task.granularity, task.classes, task.space, conditions, split_seed=split)
            seed, schedule = task.seed("generators", round_number, node), Schedule(round_number - 1, 2)
            start = task.seed("shared generators")
            bank.fit_shared(task.tokens(task.parts[node]), states, start, seed, schedule)
            states = bank.shared_states()
    expected = states["unified"]
    steps = [name for name in expected if "step." in name]
    assert steps
    for name, value in expected.items():
        assert torch.equal(value, found[f"unified/unified\n{name}"]), name
    assert all(float(expected[name]) >= 6 for name in steps)  # at least one batch for each node and round


def test_each_node_goes_on_where_the_one_before_stopped(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    listener = Listener()
    federate(shared(tiny, "cyclic", "generator=vae", "rounds=2"), tmp_path, listener)
    hops = [(node, received, sent) for kind, node, received, sent in listener.heard if kind == "query.fit"]
    assert [node for node, _, _ in hops] == [0, 1, 2, 0, 1, 2]
    assert hops[0][1] == {}  # nobody has trained yet
    for (_, _, sent), (_, received, _) in pairwise(hops):
        assert _equal(sent["unified"], received["unified"])
    adopted = [received for kind, _, received, _ in listener.heard if kind == "query.adopt"]
    assert all(_equal(state["unified"], hops[2][2]["unified"]) for state in adopted[:3])
    assert all(_equal(state["unified"], hops[5][2]["unified"]) for state in adopted[3:])


def test_an_average_weighs_nodes_by_their_clips(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    listener = Listener()
    nodes = "nodes={0: {classes: [dog]}}"  # half as many clips as the others
    federate(shared(tiny, "average", "generator=vae", nodes), tmp_path, listener)
    sent = [sent["unified"] for kind, _, _, sent in listener.heard if kind == "query.fit"]
    found = {name.split("\n")[1]: value for name, value in server_state(tmp_path).items() if "\n" in name}
    assert found.keys() == sent[0].keys()
    for name, value in found.items():
        if "step." not in name:
            mean = 0.2 * sent[0][name] + 0.4 * sent[1][name] + 0.4 * sent[2][name]
            torch.testing.assert_close(value, mean, rtol=1e-4, atol=1e-6)


def test_per_class_generators_travel_only_to_nodes_that_have_the_class(
    tiny: Tiny, federate: Federate, tmp_path: Path
) -> None:
    listener = Listener()
    assignment = "partition.assignment=[[dog, rain], [rain, siren]]"
    overrides = ["generator=vae", "granularity=per_class", "partition=explicit", "partition.nodes=2", assignment]
    federate(shared(tiny, "cyclic", *overrides, "data.clips_per_class=12"), tmp_path, listener)
    first, second = ((received, sent) for kind, _, received, sent in listener.heard if kind == "query.fit")
    assert (set(first[1]), set(second[0]), set(second[1])) == ({"dog", "rain"}, {"rain"}, {"rain", "siren"})
    assert _equal(first[1]["rain"], second[0]["rain"])


def test_a_gaussian_shared_by_nodes_is_that_of_all_their_clips(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    """A class dealt to two nodes: each samples from the mean of all its clips, in either scheme."""
    assignment = "partition.assignment=[[dog, rain], [rain, siren]]"
    overrides = ["partition=explicit", "partition.nodes=2", assignment, "data.clips_per_class=12"]
    means = []
    for scheme in SCHEMES:
        federate(shared(tiny, scheme, *overrides, "rounds=2"), tmp_path / scheme)
        for node in range(2):
            (file,) = (tmp_path / scheme / "checkpoints").glob(f"*/vae_unified_node{node}.safetensors")
            state, _ = load_tensors(file)
            row = state["classes"].tolist().index(2)  # rain
            means.append(state["means"][row])
    for mean in means[1:]:
        torch.testing.assert_close(mean, means[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_reset_on_class_change_starts_anew_on_every_node_alike(
    scheme: str, tiny: Tiny, federate: Federate, tmp_path: Path
) -> None:
    """Node 1 lacks a class of node 0: going from 1 to 0 is a change, so is every hop to classes that are new."""
    listener = Listener()
    overrides = ["generator=vae", "rounds=2", "sharing.reset_on_class_change=true"]
    federate(shared(tiny, scheme, *overrides), tmp_path, listener)
    received = [state for kind, _, state, _ in listener.heard if kind == "query.fit"]
    if scheme == "cyclic":
        assert received == [{}] * 6  # every node has classes that the one before did not
    else:
        assert received[:3] == [{}] * 3
        assert all(_equal(state["unified"], received[3]["unified"]) for state in received[3:])  # nothing new: goes on
    without = Listener()
    federate(shared(tiny, scheme, "generator=vae", "rounds=2"), tmp_path / "without", without)
    assert sum(not state for kind, _, state, _ in without.heard if kind == "query.fit") == (
        1 if scheme == "cyclic" else 3
    )


def test_a_node_that_starts_anew_forgets_the_optimiser_too(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    listener = Listener()
    overrides = ["generator=vae", "rounds=2", "sharing.reset_on_class_change=true"]
    federate(shared(tiny, "cyclic", *overrides), tmp_path, listener)
    sent = [sent["unified"] for kind, _, _, sent in listener.heard if kind == "query.fit"]
    steps = [{float(value) for name, value in state.items() if "step." in name} for state in sent]
    assert steps == [steps[0]] * 6


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_hostile_state_is_refused(
    scheme: str, tiny: Tiny, federate: Federate, tmp_path: Path, nodes_that: type[Nodes]
) -> None:
    def poison(message: Message, reply: Message, node: int) -> None:
        if message.metadata.message_type == "query.fit" and node == 1:
            record = reply.content.array_records["state.unified"]
            name = next(iter(record))
            record[name] = type(record[name])(record[name].numpy() * float("nan"))

    config = shared(tiny, scheme, "generator=vae", "strategy.min_nodes=2")
    results = federate(config, tmp_path, nodes_that(poison))
    assert "NaN" in results["lost"]["1"]["1"]
    assert all(value.isfinite().all() for value in server_state(tmp_path).values())
    with pytest.raises(AggregationError, match=r"good replies, strategy\.min_nodes=3.*node 1: refused"):
        federate(shared(tiny, scheme, "generator=vae"), tmp_path / "strict", nodes_that(poison))


def test_a_node_with_too_few_clips_does_not_send_sums_over_them(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    few = ["partition=explicit", "partition.nodes=2", "partition.assignment=[[dog], [dog, rain]]"]
    config = shared(tiny, "average", "generator=gaussian", *few)
    with pytest.raises(FedgenError, match=r"ids \[0\] have fewer than 3.*use sharing=local"):
        federate(config, tmp_path)


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())

"""mode=analytic in a federation: one exchange, the same for every partition, and nodes that are forgotten."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from federations import Federate, Nodes
from flwr.app import Message

from fedgen.cli import main
from fedgen.config.settings import Config
from fedgen.config.strategy import SecureSettings
from fedgen.data.tensors import load_tensors
from fedgen.errors import AggregationError, ConfigError
from fedgen.privacy.settings import PrivacySettings
from fedgen.runs.folder import RunFolder

SECURE = ["mode=analytic", "adapter.hidden=32"]
PRIVATE = PrivacySettings("dp", 8.0, 0.01, seed=1)


@pytest.fixture(scope="module")
def private(tiny: Callable[..., Config]) -> Config:
    """The nodes' sums are of their private releases, and not masked."""
    config = tiny(*SECURE)
    strategy = replace(config.strategy, secure=SecureSettings())
    return replace(config, privacy=PRIVATE, strategy=strategy)


def adapters(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(folder / "checkpoints" / "adapters.safetensors")[0]


def alike(one: Path, other: Path) -> bool:
    first, second = adapters(one), adapters(other)
    return all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


def test_the_partition_does_not_matter(tiny: Callable[..., Config], federate: Federate, tmp_path: Path) -> None:
    by_class = federate(tiny(*SECURE), tmp_path / "classes")
    federate(tiny(*SECURE, "partition=iid", "partition.nodes=4"), tmp_path / "iid")
    assert alike(tmp_path / "classes", tmp_path / "iid")
    assert by_class["accuracy"] > 0.3
    assert by_class["mode"] == "analytic"
    assert len(by_class["history"]) == 2


def test_the_server_sees_the_total_alone(
    tiny: Callable[..., Config], federate: Federate, nodes_that: type[Nodes], tmp_path: Path
) -> None:
    seen: list[set[str]] = []

    def look(request: Message, reply: Message, number: int) -> None:
        if not reply.has_error():
            seen.extend(set(record) for record in reply.content.array_records.values())

    federate(tiny(*SECURE), tmp_path / "run", nodes_that(look))
    assert {"masked"} in seen
    assert not any("sums" in names for names in seen)
    state = RunFolder(tmp_path / "run").state()
    assert state is not None
    assert set(state.tensors["sums"]) == {"all"}


@pytest.mark.parametrize("way", ["secure", "private"])
def test_a_node_is_forgotten(
    way: str,
    tiny: Callable[..., Config],
    private: Config,
    federate: Federate,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    before = federate(tiny(*SECURE) if way == "secure" else private, run)
    kept = {n: load_tensors(run / "state" / f"node{n}" / "sums" / "round_1.safetensors")[0]["sums"] for n in range(3)}
    assert main(["forget", str(run), "--node", "2"]) == 0
    after, state = RunFolder(run).results(), RunFolder(run).state()
    assert state is not None
    assert torch.stack([*state.tensors["sums"].values()]).sum(dim=0).equal(kept[0] + kept[1])
    assert after["forgotten"] == [2]
    assert set(after["nodes"]) == {"0", "1"}
    assert after["accuracy"] <= before["accuracy"]
    gone = {name for name, count in before["nodes"]["2"].items() if count}
    assert all(after["per_class"][name] == 0 for name in gone)
    assert not (run / "state" / "node2").exists()
    assert main(["forget", str(run), "--node", "2"]) == 1
    assert "--node='2' is not one of 0, 1" in capsys.readouterr().err


def test_sums_that_are_elsewhere(
    tiny: Callable[..., Config], federate: Federate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    federate(tiny(*SECURE), tmp_path / "run")
    before = adapters(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "state" / "node1")
    assert main(["forget", str(tmp_path / "run"), "--node", "1"]) == 1
    assert "the part of node 1 is on its own machine" in capsys.readouterr().err
    assert all(value.equal(before[name]) for name, value in adapters(tmp_path / "run").items())


def test_only_analytic_runs_forget(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["forget", str(finished), "--node", "0"]) == 1
    assert "only mode=analytic can forget" in capsys.readouterr().err


def test_what_other_phases_keep_of_a_node_is_not_forgotten(
    tiny: Callable[..., Config], federate: Federate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    phases = "phases=[{mode: combined, rounds: 1}, {mode: analytic}]"
    federate(tiny(phases, "strategy.secure.name=secagg", "adapter.hidden=32"), tmp_path / "run")
    assert main(["forget", str(tmp_path / "run"), "--node", "0"]) == 1
    assert "only mode=analytic can forget" in capsys.readouterr().err


def test_a_node_sends_no_sums_in_the_clear(tiny: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"needs strategy\.secure.name=secagg or privacy=dp"):
        tiny(*SECURE, "strategy.secure.name=none")


def test_it_is_one_exchange(tiny: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match="one exchange: rounds=2 must be 1"):
        tiny(*SECURE, "rounds=2")


def test_training_goes_on_from_it(tiny: Callable[..., Config], federate: Federate, tmp_path: Path) -> None:
    phases = "phases=[{mode: analytic}, {mode: combined, rounds: 1}]"
    results = federate(tiny(phases, "strategy.secure.name=secagg", "adapter.hidden=32"), tmp_path / "run")
    assert [line["round"] for line in results["history"]] == [0, 1, 2]


def test_sums_of_another_size_are_refused(
    private: Config, federate: Federate, nodes_that: type[Nodes], tmp_path: Path
) -> None:
    def cut(request: Message, reply: Message, number: int) -> None:
        records = reply.content.array_records
        if number == 1 and "arrays" in records and "sums" in records["arrays"]:
            array = records["arrays"]["sums"].numpy()[:-1]
            records["arrays"]["sums"] = type(records["arrays"]["sums"])(array)

    with pytest.raises(AggregationError, match=r"node 1: refused: .*sums"):
        federate(private, tmp_path / "run", nodes_that(cut))

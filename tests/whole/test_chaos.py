"""Parts of a deployment that die or hang: real SuperLink, SuperNodes and ServerApp, real signals."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any

import pytest
import torch
from federations import Federate
from machines import Machines, rounds
from safetensors.torch import load_file, save_file

from fedgen.config.settings import Config
from fedgen.runs.folder import RunFolder
from fedgen.task import prepare_task

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


@pytest.fixture
def machines(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Machines]:
    """A SuperLink and three SuperNodes, or as many as ``nodes`` says, running."""
    made = Machines(tmp_path, nodes=getattr(request, "param", 3))
    try:
        made.start_link()
        for number in range(made.nodes):
            made.start_node(number)
        yield made
    finally:
        made.stop()


def test_a_node_that_is_killed_and_one_that_hangs(
    machines: Machines, tiny_overrides: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    machines.submit(
        [
            *tiny_overrides,
            "mode=combined",
            "rounds=30",
            "synthesis.fill=0",
            "strategy.wait=120",
            "strategy.min_nodes=1",
            "strategy.timeout=60",
            f"run_dir={run}",
        ]
    )
    machines.until(lambda: 1 in rounds(run), "round 1 is finished")
    machines.signal(machines.home(1), SIGKILL)
    machines.signal(machines.home(2), SIGSTOP)
    machines.until(lambda: any(line["server/answered"] == [0] for line in rounds(run).values()), "node 0 goes on alone")
    alone = next(line for line in rounds(run).values() if line["server/answered"] == [0])
    assert set(alone["server/lost"]) == {"1", "2"}
    assert re.search("no reply in time|failed to report a heartbeat", alone["server/lost"]["2"])  # whichever is first
    machines.signal(machines.home(2), SIGCONT)
    machines.start_node(1)
    last = len(rounds(run))
    machines.until(
        lambda: any(n > last and line["server/answered"] == [0, 1, 2] for n, line in rounds(run).items()),
        "both nodes are back",
    )
    kept = machines.home(1) / "state" / "run" / "state" / "node1"
    moments = sorted(int(re.findall(r"\d+", path.name)[0]) for path in (kept / "optimizer").iterdir())
    assert moments[-1] > last  # it went on from what it had: both rounds before its end are there or pruned
    for line in rounds(run).values():
        if "server/synthetic_samples_total" in line:  # 6 classes with 6 samples: never one twice
            assert line["server/synthetic_samples_total"] <= 36


@pytest.mark.parametrize("machines", [2], indirect=True)
def test_superlink_and_server_are_killed_and_the_run_is_resumed(
    machines: Machines,
    tiny_overrides: list[str],
    tiny: Callable[..., Config],
    federate: Federate,
    figures: Callable[[dict[str, Any]], dict[str, Any]],
    tmp_path: Path,
) -> None:
    run, overrides = tmp_path / "run", ["mode=combined", "rounds=3", "synthesis.fill=0", "partition.nodes=2"]
    machines.submit([*tiny_overrides, *overrides, "strategy.wait=120", f"run_dir={run}"])
    machines.until(lambda: 1 in rounds(run), "round 1 is finished")
    machines.signal(machines.link, SIGKILL)
    machines.start_link()
    for number in range(2):  # what systemd does with a node that exits, or waits for a SuperLink that forgot it
        machines.signal(machines.home(number), SIGKILL)
        machines.start_node(number)
    assert not (run / "results.json").exists()
    machines.submit([f"resume={run}"])
    machines.until(lambda: 2 in rounds(run), "round 2 is finished")
    machines.signal(machines.link, SIGKILL, only="flwr-serverapp")
    machines.submit([f"resume={run}"])
    machines.until(lambda: (run / "results.json").is_file(), "the run is finished")
    results = RunFolder(run).results()
    expected = federate(tiny(*overrides), tmp_path / "whole")
    assert figures(results) == figures(expected)


def test_a_node_that_raises_and_one_that_sends_what_is_not_finite(
    tiny: Callable[..., Config], tiny_overrides: list[str], tmp_path: Path
) -> None:
    """Node 1 cannot save anything after round 1; node 2's embeddings are damaged, and so are its adapters."""
    run, damaged = tmp_path / "run", tmp_path / "store"
    shutil.copytree(prepare_task(tiny()).store.path, damaged)
    for shard in damaged.glob("*.safetensors"):
        tokens = load_file(shard)
        save_file({name: torch.full_like(value, torch.nan) for name, value in tokens.items()}, shard)
    made = Machines(tmp_path, nodes=3)
    try:
        made.start_link()
        for number in range(3):
            made.start_node(number, f'store="{damaged}"' if number == 2 else "")
        rounds_of = ["mode=federate", "rounds=3", "strategy.wait=120", "strategy.min_nodes=1", f"run_dir={run}"]
        made.submit([*tiny_overrides, *rounds_of])
        made.until(lambda: 1 in rounds(run), "round 1 is finished")
        optimizer = made.home(1) / "state" / "run" / "state" / "node1" / "optimizer"
        while not optimizer.is_file():  # where a folder was: nothing can be saved from now on
            shutil.rmtree(optimizer, ignore_errors=True)
            with contextlib.suppress(OSError):
                optimizer.touch()
        made.until(lambda: (run / "results.json").is_file(), "the run is finished")
    finally:
        made.stop()
    results = RunFolder(run).results()
    assert [rounds(run)[number]["server/answered"] for number in (1, 3)] == [[0, 1], [0]]
    assert "cannot be written" in rounds(run)[3]["server/lost"]["1"]
    assert "cannot be written" in results["lost"]["3"]["1"]
    assert all("NaN or infinite" in rounds(run)[number]["server/refused"]["2"] for number in (1, 2, 3))
    assert results["refused"] == {"2": 3}
    weights = load_file(run / "checkpoints" / "adapters.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())


@pytest.mark.huge
def test_300_megabytes_of_samples_from_every_node(
    machines: Machines, tiny_overrides: list[str], tmp_path: Path
) -> None:
    """A byte a coefficient: more samples than anybody needs."""
    run, samples = tmp_path / "run", 1_300_000
    tokens = ["codec.channels=24", "codec.positions=48", "codec.components=119", "synthesis.max_samples=3000000"]
    machines.submit(
        [
            *tiny_overrides,
            "mode=combined",
            *tokens,
            f"synthesis.samples_per_class={samples}",
            "synthesis.fill=0",
            "global_training=none",
            "evaluation.gate=off",
            "strategy.wait=120",
            f"run_dir={run}",
        ]
    )
    peak = 0.0
    while not (run / "results.json").is_file():
        machines.until(lambda: machines.memory("flwr-serverapp") or (run / "results.json").is_file(), "the run goes on")
        peak = max(peak, machines.memory("flwr-serverapp"))
        time.sleep(0.5)
    results = RunFolder(run).results()
    assert results["samples"] == dict.fromkeys(results["classes"], samples)
    one = results["bytes"]["received"][0] / 3 / 2**20
    assert one > 280
    # torch, the pool, and what Flower and a save take of one node's samples at a time: of all three together they would
    # take 5 times 3 times a node's
    assert peak < 600 + 3 * one + 7 * one

"""What Flower costs: a federation of three nodes against the same work in a plain loop (the baseline).

A round of ``mode=combined``: every node trains its adapters on its clips and on others' samples, fits its generators,
draws samples and says what they are like; adapters are averaged, samples pooled, and the adapters trained on the pool.
The loop calls the same nodes and the same training and knows no Flower: no messages, no checks, nothing serialised,
nodes that keep what they have read. The federation runs on the grid in this process (``fedgen run``) and in Flower's
simulation (``fedgen simulate``), whose nodes work one after the other too, so that the figure is of Flower and not of
the number of cores. Every run is a process of its own with one thread.

Compared are the seconds of the rounds, as ``metrics.jsonl`` has them; start-up, the evaluation of the global adapters
and the saving of the run's state lie outside and are told apart. Repeats take turns; a ratio is one of medians.

    python benchmarks/federation.py                          # 2 rounds, 514 tokens, 3 repeats: three minutes
    python benchmarks/federation.py --ways plain grid encoder.stride=10 generator=vae
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from figures import parser, save, show
from torch import Tensor

from fedgen.config.compose import load_config
from fedgen.config.phases import plan
from fedgen.messages.checks import NodeInfo
from fedgen.models.samples import PooledSummaries
from fedgen.models.settings import Schedule
from fedgen.models.training import TrainingOptions, train_adapters
from fedgen.node.data import NodeData
from fedgen.node.node import Node
from fedgen.runtimes.local import run_config as run
from fedgen.runtimes.simulation import simulate
from fedgen.server.pool import SamplePool
from fedgen.task import open_task, prepare_task

TARGETS = {"grid": 1.05, "simulation": 1.3}
NODES = 3


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse(words)
    if arguments.child:
        seconds = WAYS[arguments.child](arguments.overrides, arguments.home)
        arguments.home.with_suffix(".json").write_text(json.dumps(seconds))
        return
    overrides = settings(arguments)
    prepare_task(load_config(overrides))
    rounds: dict[str, list[list[float]]] = {way: [] for way in arguments.ways}
    rest: dict[str, list[float]] = {way: [] for way in arguments.ways}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(arguments.repeats):
            for way in arguments.ways:
                started = time.perf_counter()
                rounds[way].append(child(way, Path(folder) / f"{way}_{repeat}", overrides))
                rest[way].append(time.perf_counter() - started - sum(rounds[way][-1]))
    rows = [row(way, rounds, rest[way]) for way in arguments.ways]
    title = f"{NODES} nodes, {arguments.rounds} rounds, one thread: seconds"
    show(title, list(rows[0]), [list(found.values()) for found in rows], "targets: grid 1.05, simulation 1.3 times")
    save(arguments, rows, rounds=rounds, targets=TARGETS)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__, "federation")
    made.add_argument("--ways", nargs="+", choices=["plain", *TARGETS], default=["plain", *TARGETS])
    made.add_argument("--child", help=argparse.SUPPRESS)  # the way that this process goes
    made.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    made.add_argument("--rounds", type=int, default=2)
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("overrides", nargs="*", help="of the configuration")
    return made.parse_intermixed_args(words)


def settings(arguments: argparse.Namespace) -> list[str]:
    """Return the overrides of all ways: nothing is measured after the last round."""
    data = ["data=sounds", "encoder.stride=16", f"partition.nodes={NODES}", "mode=combined", "threads=1", "device=cpu"]
    quiet = ["evaluation.quality=false", "evaluation.gate=off", "strategy.wait=120"]
    return [*data, *quiet, f"rounds={arguments.rounds}", *arguments.overrides]


def child(way: str, home: Path, overrides: list[str]) -> list[float]:
    """Go one way in a fresh process, and return the seconds of each round."""
    command = [sys.executable, __file__, "--child", way, "--home", str(home), *overrides]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}")
    return list(json.loads(home.with_suffix(".json").read_text()))


def plain(overrides: list[str], home: Path) -> list[float]:
    """Do the work of a run in a loop, and return the seconds of each round."""
    task = open_task(prepare_task(load_config(overrides)).config)
    (phase,) = plan(task.config.phase_list)
    nodes = [Node.open(NodeData(task, number), home) for number in range(NODES)]
    for node in nodes:
        node.prepare()
    adapters, pool = task.adapters(), SamplePool(task.space.codec, task.config)
    seconds = []
    for number in range(1, phase.rounds + 1):
        started = time.perf_counter()
        states, filled = [], pool.shares(phase)
        for node in nodes:
            if filled:
                node.state.save_others(pool.chosen(NodeInfo(node.partition_id, node.data.counts), number), number)
            states.append(node.train(adapters.state_dict(), number, phase, filled=filled)[0])
            node.generators.fit(number)
        adapters.load_state_dict(averaged(states, [len(node.data.indices) for node in nodes]))
        pool.samples = {node.partition_id: node.synthesize(number) for node in nodes}
        for drawn in pool.samples.values():
            drawn.statistics()
        chosen, schedule = task.config.global_training, Schedule(number - 1, phase.rounds)
        samples, seed = PooledSummaries(list(pool.samples.values())), task.seed("global", number)
        train_adapters(adapters, samples, task.targets.heads, chosen, seed, options=TrainingOptions(schedule))
        seconds.append(time.perf_counter() - started)
    return seconds


def averaged(states: list[dict[str, Tensor]], clips: list[int]) -> dict[str, Tensor]:
    """Return the mean of ``states``, weighted by ``clips``."""
    total = sum(clips)
    return {
        name: sum((state[name] * (count / total) for state, count in zip(states, clips, strict=True)), Tensor([0.0]))
        for name in states[0]
    }


def grid(overrides: list[str], home: Path) -> list[float]:
    """Run the federation in this process, and return the seconds of each round."""
    run(replace(load_config(overrides), run_dir=str(home)))
    return round_seconds(home)


def simulation(overrides: list[str], home: Path) -> list[float]:
    """Run the federation in Flower's simulation, one node at a time, and return the seconds of each round."""
    simulate(replace(load_config(overrides), run_dir=str(home)), cpus=os.cpu_count() or 1)
    return round_seconds(home)


def round_seconds(home: Path) -> list[float]:
    """Return what ``metrics.jsonl`` says of each round's seconds, the state before the first left out."""
    lines = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
    return [line["server/seconds"] for line in lines if line["round"] > 0 and "server/seconds" in line]


def row(way: str, rounds: dict[str, list[list[float]]], rest: list[float]) -> dict[str, Any]:
    """Return the medians over repeats, and how many times those of the plain loop they are."""
    medians = {name: statistics.median(sum(found) for found in repeats) for name, repeats in rounds.items()}
    times = medians[way] / medians["plain"] if way in TARGETS and "plain" in medians else None
    return {
        "way": way,
        "rounds": medians[way],
        "first": statistics.median(found[0] for found in rounds[way]),
        "last": statistics.median(found[-1] for found in rounds[way]),
        "start-up and rest": statistics.median(rest),
        "times the loop": times,
        "target": None if times is None else times <= TARGETS[way],
    }


WAYS = {"plain": plain, "grid": grid, "simulation": simulation}

if __name__ == "__main__":
    main()

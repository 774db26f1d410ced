"""What memory=low saves and what it costs in time: one node's round under memory=high (the baseline) and memory=low.

A round is what a node does in mode=combined: train adapters, fit the generators, save, and draw samples.
Every run is a process of its own. Peak is the most memory that was ever resident in it (VmHWM of /proc; ru_maxrss
elsewhere), idle what was resident before the round: Python, torch and the configuration. Files that the system caches
do not count: they give way. On CUDA the device's peak is torch's own count. Runs take turns and repeat; the smallest
figure counts, and CPU seconds too, so that a busy machine tells the same. The losses show that both learn the same.

    python benchmarks/memory.py                            # 240 synthesised sounds of 1214 tokens: three minutes
    python benchmarks/memory.py --clips 40 target=sd       # twice the sounds, another target
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from figures import parser, resident, save, show

from fedgen.config.compose import load_config
from fedgen.config.phases import plan
from fedgen.node.data import NodeData
from fedgen.node.node import Node
from fedgen.task import Task, open_task, prepare_task

logger = logging.getLogger(__name__)

LEVELS = ("high", "low")
COLUMNS = {
    "peak_mib": "peak MiB",
    "idle_mib": "idle MiB",
    "round_mib": "of the round",
    "device_mib": "on CUDA",
    "seconds": "seconds",
    "cpu_seconds": "CPU s",
    "adapter_loss": "adapter loss",
    "generator_loss": "generator loss",
}


def main(words: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse(words)
    if arguments.child:
        json.dump(measure(arguments.child, arguments.overrides), sys.stdout)
        return
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*settings(arguments), f"data.store={folder}/store"]
        encoded = prepare_task(load_config(overrides)).store
        logger.info("%d clips, tokens %s", len(encoded), encoded.shape)
        runs: dict[tuple[str, str], list[dict[str, float]]] = {(k, n): [] for k in arguments.kinds for n in LEVELS}
        for repeat in range(arguments.repeats):
            for kind, level in runs:
                home = f"{folder}/{kind}_{level}_{repeat}"
                runs[kind, level].append(child(home, [*overrides, f"generator={kind}", f"memory={level}"]))
    rows = [{"kind": kind, "memory": level, **smallest(found)} for (kind, level), found in runs.items()]
    table(rows, arguments)
    save(arguments, rows, ratios=ratios(rows))


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__, "memory")
    made.add_argument("--kinds", nargs="+", default=["gaussian", "vae"])
    made.add_argument("--clips", type=int, default=20, help="of each of 15 classes; one in five is held out")
    made.add_argument("--epochs", type=int, default=1, help="of the adapters")
    made.add_argument("--repeats", type=int, default=2)
    made.add_argument("--child", help=argparse.SUPPRESS)  # the node's folder: measure one round there
    made.add_argument("overrides", nargs="*", help="of the configuration, such as encoder.stride=16 for 514 tokens")
    return made.parse_args(words)


def settings(arguments: argparse.Namespace) -> list[str]:
    """Return the overrides of a run with one node that has all training clips."""
    one_node = ["mode=combined", "rounds=1", "partition=iid", "partition.nodes=1"]
    size = [f"data.clips_per_class={arguments.clips}", f"adapter.training.epochs={arguments.epochs}"]
    return [*one_node, *size, "target=flux", "threads=1", *arguments.overrides]


def child(home: str, overrides: list[str]) -> dict[str, float]:
    """Measure a round in a fresh process whose node lives in ``home``."""
    command = [sys.executable, __file__, "--child", home, *overrides]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def measure(home: str, overrides: list[str]) -> dict[str, float]:
    """Do one round and return what it took."""
    task = open_task(load_config(overrides))
    if task.device.type == "cuda":
        torch.zeros(1, device=task.device)  # start CUDA before the clock
    idle = resident("VmRSS")
    started, worked = time.perf_counter(), time.process_time()
    losses = round_of(task, Path(home))
    seconds = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - worked}
    device = torch.cuda.max_memory_allocated() / 2**20 if task.device.type == "cuda" else 0.0
    peak = resident("VmHWM")
    return {"peak_mib": peak, "idle_mib": idle, "round_mib": peak - idle, "device_mib": device, **seconds, **losses}


def round_of(task: Task, home: Path) -> dict[str, float]:
    """Let a node do its round, and return its last losses."""
    node = Node.open(NodeData(task, 0), home)
    node.prepare()
    (phase,) = plan(task.config.phase_list)
    _, losses = node.train(task.adapters().state_dict(), 1, phase)
    history = node.generators.fit(1)
    node.synthesize(1)
    return {"adapter_loss": losses["loss"], "generator_loss": float(history[-1].get("loss", 0.0)) if history else 0.0}


def smallest(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: min(run[name] for run in runs) for name in COLUMNS}


def ratios(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return low as a share of high, by kind."""
    by_kind: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_kind.setdefault(row["kind"], {})[row["memory"]] = row
    names = [name for name in COLUMNS if name.endswith(("mib", "seconds"))]
    return {
        kind: {name: both["low"][name] / both["high"][name] for name in names if both["high"][name]}
        for kind, both in by_kind.items()
    }


def table(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    cells = [[row["kind"], row["memory"], *(row[name] for name in COLUMNS)] for row in rows]
    for kind, shares in ratios(rows).items():
        cells.append([kind, "low / high", *(shares.get(name) for name in COLUMNS)])
    title = f"one node's round, {arguments.clips} clips a class"
    show(title, ["kind", "memory", *COLUMNS.values()], cells, "smallest of all repeats")


if __name__ == "__main__":
    main()

"""What a node needs at the native length, 1214 x 768 tokens: parameters, memory over its data, CPU seconds.

One node of three, with a third of the synthesised classes, fits each kind of generator to its clips in the public
codec, which its machine has already, and trains its adapters for one round; each in a process of its own, on one
thread. Peak is the most memory that was ever resident in it (see ``memory.py``), idle what was before the work: Python,
torch, the configuration and the codec. What the node holds of its clips, in float32, is told apart. Repeats take turns;
the smallest figure counts.

The baseline, the predecessor's flat MLP, never ran at this length: its parameters are counted, and its memory is the
least that weights, gradients and Adam's two moments take, without activations.

    python benchmarks/native.py                              # 80 clips: two minutes
    python benchmarks/native.py --kinds vae data.clips_per_class=40
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from figures import parser, resident, save, show
from predecessor import parameters

from fedgen.config.compose import load_config
from fedgen.config.phases import plan
from fedgen.data.tokens import LazyTokens, TensorTokens
from fedgen.models.generators import KINDS
from fedgen.models.generators.bank import Bank
from fedgen.models.generators.neural import NeuralGenerator
from fedgen.node.data import NodeData
from fedgen.node.node import Node
from fedgen.task import open_task, prepare_task

ADAPTERS = "adapters"
TARGETS = {"parameters": 2e6, "over_mib": 1000**3 / 2**20, "cpu_seconds": 60.0}  # of a generator; 1 GB
COLUMNS = {
    "work": "work",
    "parameters": "parameters",
    "codec_numbers": "codec",
    "cpu_seconds": "CPU s",
    "peak_mib": "peak MiB",
    "idle_mib": "idle MiB",
    "data_mib": "data MiB",
    "over_mib": "over data MiB",
    "met": "target",
}


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse(words)
    if arguments.child:
        json.dump(measure(arguments.child, Path(arguments.home), arguments.overrides), sys.stdout)
        return
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*settings(arguments), f"data.store={folder}/store"]
        store = prepare_task(load_config(overrides)).store
        runs: dict[str, list[dict[str, float]]] = {work: [] for work in (*arguments.kinds, ADAPTERS)}
        for repeat in range(arguments.repeats):
            for work, found in runs.items():
                found.append(child(work, f"{folder}/{work}_{repeat}", overrides))
    rows = [baseline(*store.shape)]
    for work, found in runs.items():
        least = {name: min(run[name] for run in found) for name in found[0]}
        bounds = {name: limit for name, limit in TARGETS.items() if work != ADAPTERS or name != "parameters"}
        rows.append({"work": work, **least, "met": all(least[name] <= limit for name, limit in bounds.items())})
    caption = "targets of a generator: 2 M parameters, 1 GB over its data, 60 s; of adapters the last two"
    title = f"a node at {store.shape[0]} x {store.shape[1]} tokens, one thread"
    show(title, list(COLUMNS.values()), [[row.get(name) for name in COLUMNS] for row in rows], caption)
    save(arguments, rows, shape=store.shape, targets=TARGETS)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__, "native")
    made.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    made.add_argument("--repeats", type=int, default=1)
    made.add_argument("--child", help=argparse.SUPPRESS)  # what to measure in this process
    made.add_argument("--home", help=argparse.SUPPRESS)  # of the node
    made.add_argument("overrides", nargs="*", help="of the configuration")
    return made.parse_intermixed_args(words)


def settings(arguments: argparse.Namespace) -> list[str]:
    return ["partition.nodes=3", "mode=combined", "target=flux", "threads=1", "memory=high", *arguments.overrides]


def baseline(length: int, width: int) -> dict[str, Any]:
    """Return what the predecessor's generator would need."""
    count = parameters(length, width)
    return {"work": "predecessor, never ran", "parameters": count, "over_mib": 4 * 4 * count / 2**20}


def child(work: str, home: str, overrides: list[str]) -> dict[str, float]:
    """Measure one piece of work in a fresh process whose node lives in ``home``."""
    command = [sys.executable, __file__, "--child", work, "--home", home]
    if work in KINDS:
        overrides = [*overrides, f"generator={work}"]
    done = subprocess.run([*command, *overrides], check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def measure(work: str, home: Path, overrides: list[str]) -> dict[str, float]:
    """Do one piece of a node's round and return what it took."""
    task = open_task(load_config(overrides))
    node = Node.open(NodeData(task, 0), home)
    assert task.space.codec.size  # read before the clock starts: a machine computes it once
    idle, worked = resident("VmRSS"), time.process_time()
    if work == ADAPTERS:
        (phase,) = plan(task.config.phase_list)
        weights, _ = node.train(task.adapters().state_dict(), 1, phase)
        count, codec = sum(value.numel() for value in weights.values()), 0
    else:
        node.generators.fit(1)
    seconds, peak = time.process_time() - worked, resident("VmHWM")
    if work != ADAPTERS:
        count, codec = numbers(node.generators.load())
    source = node.data.source.opened if isinstance(node.data.source, LazyTokens) else node.data.source
    held = source.tokens.nbytes / 2**20 if isinstance(source, TensorTokens) else 0.0
    memory = {"peak_mib": peak, "idle_mib": idle, "data_mib": held, "over_mib": peak - held}
    return {"parameters": count, "codec_numbers": codec, "cpu_seconds": seconds, **memory}


def numbers(bank: Bank) -> tuple[int, int]:
    """Return how many numbers the generators have learnt, and how many the codec."""
    count = 0
    for generator in bank.generators.values():
        if isinstance(generator, NeuralGenerator):
            count += sum(value.numel() for value in generator.model.parameters())
        else:
            count += sum(value.numel() for value in generator.state().values())
    return count, sum(value.numel() for value in bank.codec.state().values())


if __name__ == "__main__":
    main()

"""A federation of many nodes of which a round asks some: seconds and memory against the number of nodes.

Every node is one of ``mode=combined`` with a store of its own (the same few synthesised sounds), on the grid in this
process, one after the other: it trains tiny adapters, fits a generator, and sends samples, and others' samples reach it
from the second round on. A run is a process of its own with one thread.

The peak is the most memory that was ever resident in it: Python, torch, the server, and the node that works. The
nodes' garbage, which ends with their processes elsewhere, is collected after every tenth message. CPU seconds, by which
a busy machine tells the same, are of the meeting before the first round, to which every node comes; of the first round,
in which all nodes are new; and of the last with what follows it: the fewer nodes there are, the more of them have been
asked before.

What may grow with the nodes: their descriptions, Flower's contexts, the samples that the server keeps
(``strategy.pool_nodes`` bounds them). Flat is a peak of at most 1.1 times that of the fewest
nodes, and a first round of at most 1.25 times. Seconds grow with the nodes that a round asks.

    python benchmarks/scale.py                                  # 125 to 1000 nodes, 100 a round: five minutes
    python benchmarks/scale.py --nodes 1000 --asked 25 50 100   # how a round grows with the nodes that it asks
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from figures import parser, resident, save, show
from flwr.app import Context, Message

from fedgen.client_app import app as client_app
from fedgen.config.compose import load_config, to_yaml
from fedgen.runtimes.local import LocalGrid, run_server
from fedgen.server_app import app as server_app
from fedgen.task import prepare_task

FLAT = {"peak_mib": 1.1, "first": 1.25}  # times the figure of the fewest nodes
COLLECTED = 10  # messages after which garbage is collected
COLUMNS = {
    "nodes": "nodes",
    "asked": "a round",
    "meeting": "meeting",
    "first": "first round",
    "last": "last round",
    "node": "ms a node",
    "idle_mib": "idle MiB",
    "peak_mib": "peak MiB",
    "flat": "flat",
}


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse(words)
    if arguments.child:
        nodes, asked, home = arguments.child
        json.dump(measure(int(nodes), int(asked), Path(home), arguments.overrides), sys.stdout)
        return
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*settings(arguments), f"data.store={folder}/store"]
        prepare_task(load_config(overrides))
        pairs = [(nodes, min(asked, nodes)) for nodes in arguments.nodes for asked in arguments.asked]
        rows = [child(nodes, asked, Path(folder), overrides) for nodes, asked in dict.fromkeys(pairs)]
    for row in rows:
        row["flat"] = flat(row, rows)
    cells = [[row[name] for name in COLUMNS] for row in rows]
    show(f"mode=combined, {arguments.rounds} rounds: CPU seconds and memory", list(COLUMNS.values()), cells)
    save(arguments, rows, targets=FLAT)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__, "scale")
    made.add_argument("--nodes", type=int, nargs="+", default=[125, 250, 500, 1000])
    made.add_argument("--asked", type=int, nargs="+", default=[100], help="nodes that a round asks")
    made.add_argument("--rounds", type=int, default=2)
    made.add_argument("--child", nargs=3, help=argparse.SUPPRESS)  # nodes, nodes a round, folder
    made.add_argument("overrides", nargs="*", help="of the configuration")
    return made.parse_intermixed_args(words)


def settings(arguments: argparse.Namespace) -> list[str]:
    """Return the overrides of all runs: the work of a node is as small as it goes."""
    data = ["data=sounds", "data.classes=[dog, rain, siren]", "data.clips_per_class=4"]
    store = ["data.folds=2", "data.test_fold=2", "encoder.stride=16", "target=small"]
    adapter = ["adapter.width=16", "adapter.hidden=32", "adapter.training.epochs=1"]
    codec = ["codec.channels=16", "codec.positions=8", "codec.components=16"]
    rest = ["global_training.epochs=1", "synthesis.samples_per_class=4", "synthesis.fill=4", "evaluation.quality=false"]
    run = ["mode=combined", f"rounds={arguments.rounds}", "partition=iid", "evaluation.gate=off", "threads=1"]
    return [*data, *store, *adapter, *codec, *rest, *run, "device=cpu", *arguments.overrides]


def child(nodes: int, asked: int, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Measure a federation in a fresh process."""
    command = [sys.executable, __file__, "--child", str(nodes), str(asked), str(folder), *overrides]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(nodes: int, asked: int, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Run a federation and return what it took."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    config = load_config([*overrides, f"partition.nodes={nodes}", f"strategy.nodes_per_round={asked}"])
    home = folder / f"{nodes}_{asked}"
    values = {"config": to_yaml(replace(config, run_dir=str(home)))}
    marks: dict[int, float] = {}  # CPU seconds when the first node was asked in a round; 0 is the meeting

    def answer(message: Message, context: Context) -> Message:
        marks.setdefault(int(str(message.content.config_records["config"].get("round", 0))), time.process_time())
        if next(messages) % COLLECTED == 0:
            gc.collect()
        return client_app(message, context)

    messages = itertools.count(1)
    gc.freeze()  # so that collecting is quick
    idle = resident("VmRSS")
    grid = LocalGrid(answer, nodes, values, [{"store": f"{folder}/store"}] * nodes)  # type: ignore[arg-type]
    run_server(server_app, grid, values)
    end = time.process_time()
    lines = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
    rounds = [line for line in lines if line.get("server/answered")]
    wrong = [line for line in rounds if "server/lost" in line or len(line["server/answered"]) != asked]
    if wrong or len(rounds) != config.rounds:
        raise RuntimeError(f"{len(rounds)} rounds, of which {len(wrong)} not with {asked} nodes")
    first = marks.get(2, end) - marks[1]
    return {
        "nodes": nodes,
        "asked": asked,
        "meeting": marks[1] - marks[0],
        "first": first,
        "last": end - marks[config.rounds],
        "node": 1000 * first / asked,
        "idle_mib": idle,
        "peak_mib": resident("VmHWM"),
    }


def flat(row: dict[str, Any], rows: list[dict[str, Any]]) -> bool | None:
    """Say whether a row is as the one with the fewest nodes that asks as many; None for that one itself."""
    first = min((other for other in rows if other["asked"] == row["asked"]), key=lambda other: int(other["nodes"]))
    return None if first is row else all(row[name] <= times * first[name] for name, times in FLAT.items())


if __name__ == "__main__":
    main()

"""Accuracy without real data: how near a federation that exchanges synthetic samples comes to training on everyone's.

Each held-out fold and seed is a block; in a block every way of learning sees the same clips, dealt to the same nodes,
with the same settings. What counts is the share of the block's `centralised` accuracy, averaged over blocks; the error
is that of the mean over blocks. `federate` and `standalone` are the lower references.

    python benchmarks/accuracy.py ../shared/data/esc10                       # ESC-10, 3 nodes with 3, 3 and 4 classes
    python benchmarks/accuracy.py ../shared/data/esc10 --folds 5 --seeds 0   # one block
    python benchmarks/accuracy.py ../shared/data/esc10 --options --folds 1 2 3 4 data.leave_out=[5]    # choose settings
    python benchmarks/accuracy.py ../shared/data/esc10 partition=dirichlet partition.alpha=0.1 partition.nodes=10
    python benchmarks/accuracy.py sounds encoder.stride=16                   # the synthesised sounds

Runs go on in parallel, one thread each, and every finished one is kept in ``--out``: interrupted, the benchmark goes on
where it was. All 5 folds, 3 seeds and ways take some hours on two cores.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from figures import data, finished, mean_and_error, plus_minus, show

from fedgen.config.compose import load_config
from fedgen.models.generators import KINDS
from fedgen.task import prepare_task

logger = logging.getLogger(__name__)

REFERENCE = "centralised"
GOAL = 0.95  # of the reference
GENERATE = "phases=[{mode: train_generators, rounds: 1}, {mode: generate, rounds: 9}]"
PRIVATE = ["privacy=dp", "privacy.delta=0.001"]
WAYS = {
    "standalone": ["mode=standalone"],
    "federate": ["mode=federate"],
    "fedprox": ["mode=federate", "strategy=fedprox"],
    "one_shot": ["mode=one_shot"],
    "combined": ["mode=combined"],
    **{
        f"{mode} epsilon {epsilon}": [f"mode={mode}", *PRIVATE, f"privacy.epsilon={epsilon}"]
        for mode in ("combined", "analytic")
        for epsilon in (8, 3)
    },
    "analytic": ["mode=analytic"],
    **{f"generate {kind}": [f"generator={kind}", GENERATE] for kind in KINDS},
    REFERENCE: ["mode=centralised"],
}
OPTIONS = {  # what the defaults of `combined` are compared with
    "combined, fill=0": ["mode=combined", "synthesis.fill=0"],
    "combined, global_training=none": ["mode=combined", "global_training=none"],
    "combined, global_training=distil": ["mode=combined", "global_training=distil"],
}


def main(words: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments = parse(words)
    common = [
        *data(arguments.data),
        "threads=1",
        "evaluation.quality=false",
        "evaluation.gate=warn",
        *arguments.overrides,
    ]
    prepare_task(load_config([*common, f"data.test_fold={arguments.folds[0]}"]))  # others may be left out
    cells = [(fold, seed, way) for fold in arguments.folds for seed in arguments.seeds for way in arguments.ways]
    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        jobs = [pool.submit(cell, arguments.out, common, *which) for which in cells]
        for done, job in enumerate(as_completed(jobs), start=1):
            rows.append(job.result())
            told = {name: value for name, value in rows[-1].items() if name != "per_class"}
            logger.info("%d/%d %s", done, len(jobs), told)
    table = summary(rows, arguments.ways)
    report(table, arguments)
    facts = {"overrides": common, "torch": torch.__version__, "goal": GOAL}
    (arguments.out / "accuracy.json").write_text(json.dumps({**facts, "ways": table, "runs": rows}, indent=1))


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder in the ESC-50 layout, or sounds")
    parser.add_argument("--folds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=[*WAYS, *OPTIONS])
    parser.add_argument("--options", action="store_true", help="compare the settings of combined")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/accuracy"))
    parser.add_argument("overrides", nargs="*", help="of the configuration")
    arguments = parser.parse_intermixed_args(words)
    arguments.ways = arguments.ways or (["combined", *OPTIONS, REFERENCE] if arguments.options else list(WAYS))
    return arguments


def cell(out: Path, common: list[str], fold: int, seed: int, way: str) -> dict[str, Any]:
    """Run one way on one fold with one seed, or read what it gave before."""
    folder = out / f"fold{fold}_seed{seed}" / re.sub(r"\W+", "_", way)
    found = finished(folder, [*common, *{**WAYS, **OPTIONS}[way], f"data.test_fold={fold}", f"seed={seed}"])
    gate = found.get("evaluation", {}).get("gate", {}).get("verdict")
    row = {"fold": fold, "seed": seed, "way": way, "accuracy": found["accuracy"], "seconds": found["seconds"]["total"]}
    return {**row, "gate": gate, "per_class": found["per_class"]}


def summary(rows: list[dict[str, Any]], ways: list[str]) -> list[dict[str, Any]]:
    """Return accuracy (also by fold and class), share of the reference and verdicts of each way over all blocks."""
    accuracy = {(row["way"], row["fold"], row["seed"]): row["accuracy"] for row in rows}
    table = []
    for way in ways:
        own = [row for row in rows if row["way"] == way]
        shares = [
            row["accuracy"] / accuracy[REFERENCE, row["fold"], row["seed"]]
            for row in own
            if accuracy.get((REFERENCE, row["fold"], row["seed"]))
        ]
        judged = [row["gate"] for row in own if row["gate"]]
        table.append(
            {
                "way": way,
                "runs": len(own),
                "accuracy": mean_and_error([row["accuracy"] for row in own]),
                "share": mean_and_error(shares),
                "per_class": {
                    name: statistics.fmean(row["per_class"][name] for row in own) for name in own[0]["per_class"]
                },
                "by_fold": {
                    fold: statistics.fmean(row["accuracy"] for row in own if row["fold"] == fold)
                    for fold in sorted({row["fold"] for row in own})
                },
                "passed": f"{judged.count('passed')}/{len(judged)}" if judged else None,
                "seconds": statistics.median(row["seconds"] for row in own),
            }
        )
    return table


def report(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    folds, seeds = ", ".join(map(str, arguments.folds)), ", ".join(map(str, arguments.seeds))
    columns = ["way", "runs", "accuracy", f"share of {REFERENCE}", "gate passed", "s a run"]
    lines = [
        [
            row["way"],
            row["runs"],
            plus_minus(row["accuracy"]),
            plus_minus(row["share"]),
            row["passed"],
            f"{row['seconds']:.0f}",
        ]
        for row in rows
    ]
    show(f"zero-shot accuracy, folds {folds} held out in turn, seeds {seeds}", columns, lines)
    for title, key in (("by held-out fold", "by_fold"), ("by class", "per_class")):
        parts = [[name, *(f"{row[key][name]:.3f}" for row in rows)] for name in rows[0][key]]
        show(f"zero-shot accuracy {title}", [title.split()[-1], *(row["way"] for row in rows)], parts)


if __name__ == "__main__":
    main()

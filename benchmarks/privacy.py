"""The frontier: accuracy against what the strongest attack on all messages finds.

Each held-out fold and seed is a block. Every way of the table has two runs in it: one with all clips, for its accuracy,
and one in which half of each node's recordings are controls that nobody trains on, which is attacked by everything in
`fedgen.audit`. The halves of the second run leave half of the clips a class, and fewer clips are told more easily. The
error is that of the mean over blocks.

    python benchmarks/privacy.py ../shared/data/esc10 encoder.stride=16 --seeds 0            # ESC-10, 514 tokens
    python benchmarks/privacy.py ../shared/data/esc10 --folds 1 2 3 4 'data.leave_out=[5]'   # to choose settings
    python benchmarks/privacy.py sounds encoder.stride=16 --ways default samples

Noise is drawn from ``privacy.seed``, so that figures can be repeated. Every finished run is kept in ``--out``:
interrupted, the benchmark goes on where it was. It leaves a table, ``privacy.json`` and ``privacy.png`` there.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from figures import data, finished, mean_and_error, plus_minus, show
from matplotlib.figure import Figure

from fedgen.config.compose import load_config
from fedgen.task import prepare_task

logger = logging.getLogger(__name__)

PUBLIC = ["generator.covariance=public"]
WAYS: dict[str, list[str]] = {
    "federate": ["mode=federate"],
    "default": [],
    "secure": ["strategy.secure.name=secagg"],
    "public 64": [*PUBLIC, "codec.components=64"],
    "public 16": [*PUBLIC, "codec.components=16"],
    "samples": ["strategy.send=samples"],
    "samples, public 16": ["strategy.send=samples", *PUBLIC, "codec.components=16"],
    "conditioned_vae": ["generator=conditioned_vae"],
    "gan": ["generator=gan"],
    "epsilon 8": ["privacy=dp", "privacy.epsilon=8"],
    "epsilon 3": ["privacy=dp", "privacy.epsilon=3"],
    "epsilon 1": ["privacy=dp", "privacy.epsilon=1"],
}
AUDITED = ["evaluation.controls=0.5", "evaluation.gate=warn", "evaluation.shadows=16"]
Row = dict[str, Any]


def main(words: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments = parse(words)
    common = [*data(arguments.data), "threads=1", "evaluation.quality=false", *arguments.overrides]
    prepare_task(load_config([*common, f"data.test_fold={arguments.folds[0]}"]))  # others may be left out
    cells = [(fold, seed, way) for fold in arguments.folds for seed in arguments.seeds for way in arguments.ways]
    rows: list[Row] = []
    for done, which in enumerate(cells, start=1):
        rows.append(block(arguments, common, *which))
        logger.info("%d/%d %s", done, len(cells), rows[-1])
    table = [summary(way, [row for row in rows if row["way"] == way]) for way in arguments.ways]
    folds, seeds = (", ".join(map(str, part)) for part in (arguments.folds, arguments.seeds))
    title = f"accuracy and the strongest attack, folds {folds} held out in turn, seeds {seeds}"
    lines = [[row["way"], *(plus_minus(row[name]) for name in ("accuracy", "auc", "tpr")), row["by"]] for row in table]
    show(title, ["way", "accuracy", "AUC", "found at 1 %", "by"], lines)
    facts = {"overrides": common, "delta": arguments.delta, "torch": torch.__version__}
    (arguments.out / "privacy.json").write_text(json.dumps({**facts, "table": table, "runs": rows}, indent=1))
    draw(table, arguments.out / "privacy.png")


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder in the ESC-50 layout, or sounds")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--folds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--delta", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/privacy"))
    parser.add_argument("overrides", nargs="*", help="of the configuration")
    return parser.parse_intermixed_args(words)


def block(arguments: argparse.Namespace, common: list[str], fold: int, seed: int, way: str) -> Row:
    """Run one way twice on one fold with one seed, or read what it gave before."""
    overrides = [*common, *WAYS[way], f"data.test_fold={fold}", f"seed={seed}"]
    if "privacy=dp" in overrides:
        overrides += [f"privacy.delta={arguments.delta}", f"privacy.seed={seed}"]
    folder = arguments.out / f"fold{fold}_seed{seed}" / way.replace(", ", "_").replace(" ", "_")
    accuracy = finished(folder / "all", [*overrides, "evaluation.gate=off"])["accuracy"]
    row = {"fold": fold, "seed": seed, "way": way, "accuracy": accuracy}
    if way == "federate":  # no samples are sent, and no audit is made
        return row
    halves = finished(folder / "halves", [*overrides, *AUDITED])
    audit = json.loads((folder / "halves" / "audit.json").read_text())
    strongest = max(audit["attacks"], key=lambda attack: attack["overall"]["auc"])
    found = {name: strongest["overall"][source] for name, source in (("auc", "auc"), ("tpr", "tpr_1"))}
    each = {attack["name"]: attack["overall"]["auc"] for attack in audit["attacks"]}
    return {**row, **found, "by": strongest["name"], "attacks": each, "halves": halves["accuracy"]}


def summary(way: str, rows: Sequence[Row]) -> Row:
    """Return a way's mean accuracy and attack with their errors over all blocks, and which attack it was."""
    names = [row["by"] for row in rows if "by" in row]
    figures = {
        name: mean_and_error([row[name] for row in rows if name in row])
        for name in ("accuracy", "auc", "tpr", "halves")
    }
    return {"way": way, **figures, "by": max(set(names), key=names.count) if names else ""}


def draw(table: Sequence[Row], path: Path) -> None:
    """Draw accuracy over the AUC of the strongest attack, with errors, and the gate's limit."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for number, row in enumerate(row for row in table if row["auc"]):
        (accuracy, error), (auc, spread) = row["accuracy"], row["auc"]
        axes.errorbar(auc, accuracy, error, spread, marker="o", capsize=3, color=f"C{number % 10}", label=row["way"])
    axes.axvline(0.6, color="black", linestyle=":", linewidth=1, label="limit of the gate")
    axes.set(
        xlabel="AUC of the strongest attack (0.5: nothing is told)", ylabel="zero-shot accuracy", xlim=(0.45, 1.02)
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="lower right")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()

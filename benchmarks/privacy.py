"""Accuracy against epsilon: what `privacy=dp` costs.

Each held-out fold and seed is a block; in a block all runs see the same clips, dealt by class to 3 nodes, with the same
settings but for the budget. The error is that of the mean over blocks.

    python benchmarks/privacy.py ../shared/data/esc10                                        # ESC-10
    python benchmarks/privacy.py ../shared/data/esc10 encoder.stride=16 --seeds 0            # 514 tokens, not 1214
    python benchmarks/privacy.py ../shared/data/esc10 --folds 1 2 3 4 'data.leave_out=[5]'   # to choose settings
    python benchmarks/privacy.py sounds encoder.stride=16    # flatters: public sounds are of the same recipes

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

from fedgen.config import load_config
from fedgen.task import prepare_task

logger = logging.getLogger(__name__)

MODES = ("federate", "one_shot")
OPEN = "none"  # the way without privacy
Row = dict[str, Any]


def main(words: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments = parse(words)
    common = [
        *data(arguments.data),
        "threads=1",
        "evaluation.quality=false",
        "evaluation.gate=off",
        *arguments.overrides,
    ]
    prepare_task(load_config([*common, f"data.test_fold={arguments.folds[0]}"]))  # others may be left out
    budgets = [OPEN, *map(str, sorted(arguments.epsilons))]
    cells = [
        (fold, seed, mode, epsilon)
        for fold in arguments.folds
        for seed in arguments.seeds
        for mode in arguments.modes
        for epsilon in budgets
    ]
    rows: list[Row] = []
    for done, which in enumerate(cells, start=1):
        rows.append(cell(arguments, common, *which))
        logger.info("%d/%d %s", done, len(cells), rows[-1])
    table = summary(rows, arguments.modes, budgets)
    folds, seeds = (", ".join(map(str, part)) for part in (arguments.folds, arguments.seeds))
    lines = [[row["epsilon"], *(plus_minus(row[mode]) for mode in arguments.modes)] for row in table]
    title = f"zero-shot accuracy, delta {arguments.delta:g}, folds {folds} held out in turn, seeds {seeds}"
    show(title, ["epsilon", *arguments.modes], lines)
    facts = {"overrides": common, "delta": arguments.delta, "torch": torch.__version__}
    (arguments.out / "privacy.json").write_text(json.dumps({**facts, "table": table, "runs": rows}, indent=1))
    draw(table, arguments.modes, arguments.out / "privacy.png")


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder in the ESC-50 layout, or sounds")
    parser.add_argument("--folds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epsilons", type=float, nargs="+", default=[1.0, 3.0, 8.0])
    parser.add_argument("--delta", type=float, default=1e-3)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/privacy"))
    parser.add_argument("overrides", nargs="*", help="of the configuration")
    return parser.parse_intermixed_args(words)


def cell(arguments: argparse.Namespace, common: list[str], fold: int, seed: int, mode: str, epsilon: str) -> Row:
    """Run one mode with one budget on one fold with one seed, or read what it gave before."""
    folder = arguments.out / f"fold{fold}_seed{seed}" / f"{mode}_{epsilon}"
    budget = [f"privacy.epsilon={epsilon}", f"privacy.delta={arguments.delta}", f"privacy.seed={seed}"]
    private = [] if epsilon == OPEN else ["privacy=dp", *budget]
    found = finished(folder, [*common, f"mode={mode}", *private, f"data.test_fold={fold}", f"seed={seed}"])
    facts = {"fold": fold, "seed": seed, "mode": mode, "epsilon": epsilon}
    return {**facts, "accuracy": found["accuracy"], "seconds": found["seconds"]["total"]}


def summary(rows: Sequence[Row], modes: Sequence[str], budgets: Sequence[str]) -> list[Row]:
    """Return each budget's mean accuracy and its error over all blocks, by mode."""

    def over_blocks(mode: str, epsilon: str) -> tuple[float, float] | None:
        return mean_and_error([row["accuracy"] for row in rows if (row["mode"], row["epsilon"]) == (mode, epsilon)])

    return [{"epsilon": epsilon, **{mode: over_blocks(mode, epsilon) for mode in modes}} for epsilon in budgets]


def draw(table: Sequence[Row], modes: Sequence[str], path: Path) -> None:
    """Draw accuracy over epsilon with its errors, and what is reached without privacy as a line of the same colour."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    (without,), private = ([row for row in table if (row["epsilon"] == OPEN) == wanted] for wanted in (True, False))
    for number, mode in enumerate(modes):
        colour = f"C{number}"
        axes.axhline(without[mode][0], color=colour, linestyle="--", label=f"{mode}, without privacy")
        epsilons, (means, errors) = (
            [float(row["epsilon"]) for row in private],
            zip(*(row[mode] for row in private), strict=True),
        )
        axes.errorbar(epsilons, means, errors, color=colour, marker="o", capsize=3, label=f"{mode}, privacy=dp")
    axes.set(xscale="log", xlabel="epsilon", ylabel="zero-shot accuracy", ylim=(0, 1))
    axes.set_xticks(epsilons, labels=[f"{epsilon:g}" for epsilon in epsilons], minor=False)
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()

"""An audit as a table and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

from fedgen.privacy.result import RATES, Report

MOST = 5  # attacks in the plot
COLORS = ("#2b6cb0", "#dd8452", "#55a868", "#8172b3", "#937860")


def audit_table(report: Report, classes: Sequence[str] = ()) -> Table:
    """Return the figures of every attack, and where each is worst; ``classes`` are the names by id."""
    table = Table(title=f"membership attacks; epsilon at delta {report.delta:g}")
    table.add_column("attack by", overflow="fold")
    for name in ("AUC", "TPR at 1 %", "at 0.1 %", "epsilon at least"):
        table.add_column(name, justify="right")
    for name in ("worst class", "worst node"):
        table.add_column(name)
    for attack in report.attacks:
        found = attack.overall
        rates = f"{found.tpr_1:.3f}", f"{found.tpr_01:.3f}", f"{found.epsilon:.2f}"
        alone = replace(report, attacks=[attack])
        worst = (_worst(alone, part, classes) for part in ("class", "node"))
        table.add_row(escape(attack.plain), f"{found.auc:.3f} ± {found.error:.3f}", *rates, *worst)
    return table


def _worst(report: Report, part: str, classes: Sequence[str]) -> str:
    found = report.worst(part)
    if found is None:
        return "·"
    number = int(found.where.split()[1])
    name = classes[number] if part == "class" and number < len(classes) else str(number)
    return f"{escape(name)}: {found.figures.auc:.2f}, at least {max(0.0, report.lower(found)):.2f}"


def draw_audit(report: Report, file: Path) -> None:
    """Draw the ROC curves of the strongest attacks on logarithmic axes to ``file`` (PNG)."""
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    axes = figure.subplots()
    shown = report.attacks[:MOST]
    lowest = 1 / max(1, max(attack.overall.members for attack in shown))
    for attack, color in zip(shown, COLORS, strict=False):
        label = f"{attack.plain}, AUC {attack.overall.auc:.2f}"
        axes.step(RATES, np.maximum(attack.roc, lowest / 3), where="post", color=color, label=label)
    axes.plot(RATES, RATES, color="black", linestyle="--", linewidth=0.9, label="chance")
    axes.set(xscale="log", yscale="log", xlim=(RATES[0], 1), ylim=(lowest / 2, 1.1))
    axes.set(xlabel="controls taken for members", ylabel="members found", title="Who was trained on?")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(file, dpi=120)

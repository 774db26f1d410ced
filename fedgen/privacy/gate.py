"""The gate: does a run fail because what it sent tells who was trained on?"""

from __future__ import annotations

from dataclasses import dataclass

from fedgen.privacy.result import Found, Report
from fedgen.privacy.settings import EvaluationSettings

PASSED, FAILED, UNKNOWN = "passed", "failed", "not judged"


@dataclass(frozen=True)
class Verdict:
    """``passed``, ``failed`` or ``not judged``, every reason in words, and one line for the end of a run."""

    verdict: str
    reasons: list[str]
    summary: str


def judge(report: Report | None, settings: EvaluationSettings) -> Verdict:
    """Hold the strongest attack against the limit: overall, and on the worst class and node.

    A significant leak fails at any number of clips; without one, fewer than ``min_controls`` are not judged.
    """
    strongest = None if report is None else report.worst("overall")
    if report is None or strongest is None:
        reason = "no class of a node has samples, clips that were trained on and controls"
        return Verdict(UNKNOWN, [reason], f"not judged: {reason}")
    reasons = _leaks(report, settings)
    few = strongest.figures.controls
    if reasons:
        verdict = FAILED
    elif few < settings.min_controls:
        verdict = UNKNOWN
        reasons = [f"{few} controls are fewer than evaluation.min_controls={settings.min_controls}: too few to pass"]
    else:
        verdict = PASSED
    return Verdict(verdict, reasons, summary(verdict, strongest, settings))


def _leaks(report: Report, settings: EvaluationSettings) -> list[str]:
    reasons = []
    for part in ("overall", "class", "node"):
        found = report.worst(part, settings.standard_errors)
        if found is not None and (lower := report.lower(found, settings.standard_errors)) > settings.max_auc:
            where = "" if part == "overall" else f" on {found.where}"
            sure = f"and surely above {lower:.2f}, with evaluation.max_auc={settings.max_auc:g}"
            reasons.append(f"attack by {found.attack.plain}{where}: AUC {_auc(found)}, {sure}")
    return reasons


def _auc(found: Found) -> str:
    return f"{found.figures.auc:.2f} ± {found.figures.error:.2f}"


def summary(verdict: str, strongest: Found, settings: EvaluationSettings) -> str:
    """Return one line: the verdict, the strongest attack's figures, and what they mean."""
    shown = strongest.figures
    meaning = next(words for bound, words in MEANINGS if shown.auc < bound)
    return (
        f"{verdict}: attack by {strongest.attack.plain}, AUC {_auc(strongest)} (limit {settings.max_auc:g}), finds "
        f"{shown.tpr_1:.0%} of members at 1 % false alarms: {meaning}"
    )


MEANINGS = [  # of an AUC below each bound
    (0.55, "who holds a clip learns next to nothing about whether it was trained on"),
    (0.65, "who holds a clip can guess a little better than chance whether it was trained on"),
    (0.80, "who holds a clip can often tell whether it was trained on"),
    (0.95, "who holds a clip can mostly tell whether it was trained on"),
    (1.01, "who holds a clip can tell whether it was trained on"),
]

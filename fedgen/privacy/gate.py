"""The gate: does a run fail because what it sent tells who was trained on?"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedgen.errors import choose, require
from fedgen.privacy.result import Found, Report

GATES = ("auto", "off", "warn", "fail")
PROBES = ("pooled", "segments", "adapter")
PASSED, FAILED, UNKNOWN = "passed", "failed", "not judged"


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured at the end of a run, and what no attack may do.

    Parameters
    ----------
    quality : bool
        Whether fidelity and utility are measured at the end of a run; `fedgen evaluate` always does.
    probes : list[str]
        Classifiers that utility is measured with at the end of a run; `fedgen evaluate` takes all.
    gate : str
        ``fail``: a run that leaks ends with an error; ``warn`` only says so; ``off`` does not look; ``auto``: ``fail``
        where the run claims privacy, ``warn`` elsewhere.
    max_auc : float
        Limit of the AUC of the strongest attack.
    standard_errors : float
        By how many standard errors a single attack must be above the limit to fail, and more the more there are:
        1.645 keeps false alarms at 5 % whatever their number; 0 takes estimates as they are.
    controls : float
        Share of the recordings of a class that a node does not train on, so that attacks can be judged; none with
        ``off`` and in runs without samples.
    min_controls : int
        Fewest controls that suffice to pass.
    shadows : int
        Fits of a node's generators to random clips, which attacks compare with; 0: none.
    """

    quality: bool = True
    probes: list[str] = field(default_factory=lambda: ["pooled", "segments"])
    gate: str = "auto"
    max_auc: float = 0.60
    standard_errors: float = 1.645
    controls: float = 0.1
    min_controls: int = 30
    shadows: int = 8

    def __post_init__(self) -> None:
        choose(self.gate, GATES, "evaluation.gate")
        for probe in self.probes:
            choose(probe, PROBES, "evaluation.probes")
        require(0.5 <= self.max_auc <= 1, f"evaluation.max_auc={self.max_auc} must be between 0.5 and 1")
        require(self.standard_errors >= 0, f"evaluation.standard_errors={self.standard_errors} must be at least 0")
        require(0 <= self.controls < 1, f"evaluation.controls={self.controls} must be at least 0 and below 1")
        require(self.shadows == 0 or self.shadows >= 2, f"evaluation.shadows={self.shadows} must be 0, or at least 2")
        require(self.min_controls >= 2, f"evaluation.min_controls={self.min_controls} must be at least 2")


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
    return (
        f"{verdict}: attack by {strongest.attack.plain}, AUC {_auc(strongest)} (limit {settings.max_auc:g}), finds "
        f"{shown.tpr_1:.0%} of members at 1 % false alarms: {_meaning(shown.auc)}"
    )


def _meaning(auc: float) -> str:
    for bound, words in MEANINGS:
        if auc < bound:
            return words
    return MEANINGS[-1][1]


MEANINGS = [
    (0.55, "who holds a clip learns next to nothing about whether it was trained on"),
    (0.65, "who holds a clip can guess a little better than chance whether it was trained on"),
    (0.80, "who holds a clip can often tell whether it was trained on"),
    (0.95, "who holds a clip can mostly tell whether it was trained on"),
    (1.01, "who holds a clip can tell whether it was trained on"),
]

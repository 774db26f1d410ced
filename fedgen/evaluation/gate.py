"""The gate: does a run fail because its synthetic samples leak?"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedgen.errors import choose, require
from fedgen.evaluation.privacy import Privacy, PrivacyReport

GATES = ("off", "warn", "fail")
PROBES = ("pooled", "segments", "adapter")
PASSED, FAILED, UNKNOWN = "passed", "failed", "not judged"


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured at the end of a run, and what samples must not do.

    Parameters
    ----------
    quality : bool
        Whether fidelity and utility are measured at the end of a run; `fedgen evaluate` always does.
    probes : list[str]
        Classifiers that utility is measured with at the end of a run; `fedgen evaluate` takes all.
    gate : str
        ``fail``: a run whose samples leak ends with an error; ``warn`` only says so; ``off`` does not look.
    min_distance_ratio, max_near_copies, max_membership_auc : float
        Limits of what `Privacy` measures.
    standard_errors : float
        By how many standard errors the AUC must be above its limit to fail: 1.645 is a one-sided test at 5 %; 0 takes
        the estimate as it is.
    controls : float
        Share of the recordings of a class that a node does not train on, for attacks to be judged by; none with ``off``
        and in runs without samples.
    min_held_out : int
        Fewest held-out records that suffice to judge.
    """

    quality: bool = True
    probes: list[str] = field(default_factory=lambda: ["pooled", "segments"])
    gate: str = "fail"
    min_distance_ratio: float = 1.0
    max_near_copies: float = 0.05
    max_membership_auc: float = 0.60
    standard_errors: float = 1.645
    controls: float = 0.1
    min_held_out: int = 30

    def __post_init__(self) -> None:
        choose(self.gate, GATES, "evaluation.gate")
        for probe in self.probes:
            choose(probe, PROBES, "evaluation.probes")
        ratio, share, auc = self.min_distance_ratio, self.max_near_copies, self.max_membership_auc
        require(ratio >= 0, f"evaluation.min_distance_ratio={ratio} must be at least 0")
        require(0 <= share <= 1, f"evaluation.max_near_copies={share} must be between 0 and 1")
        require(0.5 <= auc <= 1, f"evaluation.max_membership_auc={auc} must be between 0.5 and 1")
        require(self.standard_errors >= 0, f"evaluation.standard_errors={self.standard_errors} must be at least 0")
        require(0 <= self.controls < 1, f"evaluation.controls={self.controls} must be at least 0 and below 1")
        require(self.min_held_out >= 2, f"evaluation.min_held_out={self.min_held_out} must be at least 2")


@dataclass(frozen=True)
class Verdict:
    """``passed``, ``failed`` or ``not judged``, and every reason in words."""

    verdict: str
    reasons: list[str]


def judge(report: PrivacyReport | None, settings: EvaluationSettings) -> Verdict:
    """Hold what was measured against the limits; None: there was nothing to compare samples with.

    The share of near copies is judged overall and for every site that has held-out records enough of its own, so that
    many sites do not hide one.
    """
    if report is None:
        return Verdict(UNKNOWN, ["no class has samples and at least 2 training and 2 held-out records"])
    privacy = report.overall
    if privacy.held_out < settings.min_held_out:
        few = f"{privacy.held_out} held-out records are fewer than evaluation.min_held_out={settings.min_held_out}"
        return Verdict(UNKNOWN, [few])
    reasons = [
        *_distance_reasons(privacy, settings),
        *_copy_reasons(report, settings),
        *_auc_reasons(privacy, settings),
    ]
    return Verdict(FAILED if reasons else PASSED, reasons)


def _distance_reasons(privacy: Privacy, settings: EvaluationSettings) -> list[str]:
    ratio, limit = privacy.distance_ratio, settings.min_distance_ratio
    text = f"median distance ratio {ratio:.3f} is below evaluation.min_distance_ratio={limit:g}"
    return [text] if ratio < limit else []


def _copy_reasons(report: PrivacyReport, settings: EvaluationSettings) -> list[str]:
    limit = settings.max_near_copies
    sites = {number: site for number, site in report.sites.items() if site.held_out >= settings.min_held_out}
    shares = {"": report.overall.near_copies} | {f" of node {n}": site.near_copies for n, site in sites.items()}
    return [
        f"{share:.1%} near copies among the samples{where} are above evaluation.max_near_copies={limit:.1%}"
        for where, share in shares.items()
        if share > limit
    ]


def _auc_reasons(privacy: Privacy, settings: EvaluationSettings) -> list[str]:
    auc, error, limit = privacy.membership_auc, privacy.membership_error, settings.max_membership_auc
    text = f"membership AUC {auc:.3f} (standard error {error:.3f}) is above evaluation.max_membership_auc={limit:g}"
    return [text] if auc - settings.standard_errors * error > limit else []

"""Settings of ``privacy`` and ``evaluation``. Nothing here imports torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fedgen.errors import choose, require

PRIVACY = ("none", "dp")
GATES = ("auto", "off", "warn", "fail")
PROBES = ("pooled", "segments", "adapter")


@dataclass(frozen=True)
class PrivacySettings:
    """Whether, and how much, a node's clips are protected by differential privacy."""

    name: str = "none"  # none or dp
    epsilon: float | None = None  # budget of a node's release: dp needs it
    delta: float | None = None  # the same, below one over the node's clips
    clip: float = 1.2  # largest norm of a clip's whitened latents, in root mean squares of public sounds within classes
    # leading whitened coefficients whose means are read; as many as the budget affords by default
    components: int | None = None
    seed: int | None = None  # of the noise, for simulations alone: whoever knows it can remove the noise

    def __post_init__(self) -> None:
        choose(self.name, PRIVACY, "privacy")
        require(0 < self.clip < math.inf, f"privacy.clip={self.clip} must be a finite number above 0")
        few = self.components is not None and self.components < 1
        require(not few, f"privacy.components={self.components} must be at least 1")
        require(self.seed is None or self.seed >= 0, f"privacy.seed={self.seed} must be at least 0")
        for name, most in (("epsilon", math.inf), ("delta", 1.0)):
            value = getattr(self, name)
            if not self.used:
                require(value is None, f"privacy.{name}={value} means nothing with privacy={self.name}: use privacy=dp")
                continue
            require(value is not None, f"privacy=dp needs privacy.{name}, which has no default")
            limit = "a finite number above 0" if most == math.inf else "above 0 and below 1"
            require(0 < value < most, f"privacy.{name}={value} must be {limit}")

    @property
    def used(self) -> bool:
        """Whether there is any privacy."""
        return self.name == "dp"

    @property
    def budget(self) -> tuple[float, float]:
        """Epsilon and delta of ``dp``."""
        assert self.epsilon is not None
        assert self.delta is not None
        return self.epsilon, self.delta

    def check_clips(self, clips: int) -> None:
        """Raise `ConfigError` where ``delta`` would allow a mechanism that publishes one of ``clips`` at random."""
        reason = f"to publish one of the node's {clips} clips at random would do; take less than {1 / clips:.2g}"
        require(self.budget[1] < 1 / clips, f"privacy.delta={self.delta} is too large: {reason}")


@dataclass(frozen=True)
class EvaluationSettings:
    """Measures at the end of a run, and the limit of every attack."""

    quality: bool = True  # measure fidelity and utility; `fedgen evaluate` always does
    # classifiers of utility, also adapter; `fedgen evaluate` takes all
    probes: list[str] = field(default_factory=lambda: ["pooled", "segments"])
    gate: str = "auto"  # fail, warn or off: what a leak does; auto: fail where the run claims privacy, warn elsewhere
    max_auc: float = 0.60  # limit of the AUC of the strongest attack
    # above the limit, for a failure: 1.645 keeps false alarms at 5 %; 0: estimates as they are
    standard_errors: float = 1.645
    controls: float = 0.1  # share of a class's recordings that a node does not train on, to judge attacks by
    min_controls: int = 30  # fewest controls that suffice to pass
    shadows: int = 8  # fits of a node's generators to random clips, for attacks to compare with; 0: none

    def __post_init__(self) -> None:
        choose(self.gate, GATES, "evaluation.gate")
        for probe in self.probes:
            choose(probe, PROBES, "evaluation.probes")
        require(0.5 <= self.max_auc <= 1, f"evaluation.max_auc={self.max_auc} must be between 0.5 and 1")
        require(self.standard_errors >= 0, f"evaluation.standard_errors={self.standard_errors} must be at least 0")
        require(0 <= self.controls < 1, f"evaluation.controls={self.controls} must be at least 0 and below 1")
        require(self.shadows == 0 or self.shadows >= 2, f"evaluation.shadows={self.shadows} must be 0, or at least 2")
        require(self.min_controls >= 2, f"evaluation.min_controls={self.min_controls} must be at least 2")

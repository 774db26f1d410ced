"""Noise that a budget needs, and the budget that a release has spent.

All mechanisms here are Gaussian. With noise of ``m`` times the sensitivity, one is exactly as private as telling two
normal distributions apart whose means lie ``1 / m`` deviations apart, and several composed, each chosen after the ones
before, are one with ``1 / m² = sum(1 / m_i²)``. Epsilons raise `ConfigError` if the accountant is not installed.

References
----------
Balle and Wang, "Improving the Gaussian mechanism for differential privacy", ICML 2018 (epsilon, in closed form).
Dong, Roth and Su, "Gaussian differential privacy", JRSS B 2022 (composition, which is exact).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

from fedgen.errors import ConfigError


@dataclass(frozen=True)
class Mechanism:
    """A sum over clips behind Gaussian noise."""

    name: str  # of the sum
    sensitivity: float  # largest addition of one clip to the sum (Euclidean norm), in latent units
    multiplier: float  # deviation of the noise over the sensitivity
    replacement: float  # largest change by replacing a clip by another of its class, over the sensitivity

    @property
    def deviation(self) -> float:
        """Deviation of the noise, in the units of the sum."""
        return self.multiplier * self.sensitivity


@dataclass(frozen=True)
class Spent:
    """Budget that a release has spent, for one clip."""

    epsilon: float  # of all mechanisms composed
    delta: float
    epsilon_of: dict[str, float]  # of each mechanism alone, at the same delta
    epsilon_replaced: float  # composed, where neighbours differ in one clip replaced by another of its class
    clips: int  # that were read
    mechanisms: tuple[Mechanism, ...]

    @classmethod
    def on(cls, mechanisms: Sequence[Mechanism], delta: float, clips: int) -> Spent:
        """Return the budget of ``mechanisms``, one after the other on the same clips, at ``delta``."""
        alone = {mechanism.name: epsilon(mechanism.multiplier, delta) for mechanism in mechanisms}
        composed = epsilon(compose([mechanism.multiplier for mechanism in mechanisms]), delta)
        replaced = compose([mechanism.multiplier / mechanism.replacement for mechanism in mechanisms])
        return cls(composed, delta, alone, epsilon(replaced, delta), clips, tuple(mechanisms))

    def facts(self) -> dict[str, Any]:
        """Return everything as JSON has it."""
        return asdict(self) | {"mechanisms": [asdict(mechanism) for mechanism in self.mechanisms]}

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> Spent:
        """Rebuild from `facts`."""
        return cls(**facts | {"mechanisms": tuple(Mechanism(**values) for values in facts["mechanisms"])})


def calibrate(budget: tuple[float, float]) -> float:
    """Return the least noise, over the sensitivity, within ``budget``, epsilon and delta."""
    return float(_gaussian().get_sigma_gaussian(*budget))


def epsilon(multiplier: float, delta: float) -> float:
    """Return the epsilon at ``delta`` of noise of ``multiplier`` times the sensitivity."""
    return float(_gaussian().get_epsilon_gaussian(multiplier, delta))


def compose(multipliers: Sequence[float]) -> float:
    """Return the multiplier of the one mechanism that is as private as all with ``multipliers``."""
    return float(sum(multiplier**-2 for multiplier in multipliers) ** -0.5)


def _gaussian() -> Any:
    try:
        return import_module("dp_accounting.gaussian_mechanism")
    except ImportError as error:
        raise ConfigError(
            "privacy=dp needs the package dp-accounting, which is not installed: pip install 'fedgen[privacy]'"
        ) from error

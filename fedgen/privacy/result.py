"""Report of an audit: every attack's figures, overall, by class and by node, as JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from fedgen.errors import DataError
from fedgen.privacy.evidence import Candidates
from fedgen.privacy.figures import Figures, Stratum, effective_tests, figures, summed, true_positives

VERSION = 1
ERRORS = 1.645  # a one-sided test at 5 %
RATES = [float(f"{rate:.4g}") for rate in np.logspace(-3, 0, 61)]  # false-positive rates of a ROC
NAMES = {
    "nearest": "distance to the nearest sample",
    "density": "density of the samples",
    "density_ratio": "density of the samples over the population's",
    "class_mean": "mean of the samples",
    "moments": "mean and covariance of the samples",
    "likelihood_ratio": "likelihood ratio against shadow fits",
    "posterior": "likelihood of the class Gaussians",
    "loss": "loss of a node's adapters",
    "loss_drop": "what training took off the loss",
}


@dataclass(frozen=True)
class Attack:
    """Figures of one attack; ``roc`` holds its true-positive rate at each of `RATES`."""

    name: str
    overall: Figures
    classes: dict[int, Figures]
    nodes: dict[int, Figures]
    roc: list[float]

    @property
    def plain(self) -> str:
        """The attack's name in plain words."""
        return NAMES.get(self.name, self.name)


@dataclass(frozen=True)
class Found:
    """One figure: by which attack, and where: ``overall``, ``class 3``, ``node 0``."""

    attack: Attack
    where: str
    figures: Figures

    @property
    def part(self) -> str:
        """``overall``, ``class`` or ``node``."""
        return self.where.split()[0]


@dataclass(frozen=True)
class Report:
    """All attacks on one run, the strongest first."""

    attacks: list[Attack]
    delta: float  # of the bounds on epsilon
    tests: float  # effective number of independent tests of all attacks, overall
    part_tests: float  # the same by class and node

    def worst(self, part: str, standard_errors: float = ERRORS) -> Found | None:
        """Return the figure of a part (``overall``, ``class`` or ``node``) with the highest `lower` limit, or None."""
        found = [f for attack in self.attacks for f in parts(attack) if f.part == part]
        return max(found, key=lambda f: self.lower(f, standard_errors), default=None)

    def lower(self, found: Found, standard_errors: float = ERRORS) -> float:
        """Return a lower limit of the AUC that holds for every attack, class and node at once.

        The number of standard errors is raised so that all figures together have the false alarms of one; the attacks
        overall get one half of these, their classes and nodes the other.
        """
        if standard_errors == 0:
            return found.figures.auc
        tests = self.tests if found.part == "overall" else self.part_tests
        right = 1 - NormalDist().cdf(-standard_errors) / 2
        return found.figures.auc - NormalDist().inv_cdf(right ** (1 / tests)) * found.figures.error

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"version": VERSION, "rates": RATES, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """Rebuild from `to_dict`, also after JSON made text of numeric keys; `DataError` for another version."""
        if values.get("version") != VERSION:
            raise DataError(f"audit: version {values.get('version')!r} cannot be read, only {VERSION}")
        report: Report = TypeAdapter(cls).validate_python(values)
        return report


def parts(attack: Attack) -> list[Found]:
    """Return every figure of an attack."""
    places = {"overall": attack.overall}
    places |= {f"class {label}": value for label, value in attack.classes.items()}
    places |= {f"node {node}": value for node, value in attack.nodes.items()}
    return [Found(attack, where, value) for where, value in places.items()]


def measure(scores: Mapping[str, Tensor], candidates: Candidates, delta: float = 1e-5) -> Report | None:
    """Measure how well each attack tells members from controls of the same node and class.

    ``scores`` ``(N,)`` are by attack; a node's class with any nan is left out of that attack. ``delta`` is that of the
    bound on epsilon. Returns None if no class of any node has members, controls and scores.
    """
    recordings = torch.arange(len(candidates)) if candidates.recordings is None else candidates.recordings
    recordings = recordings.unique(return_inverse=True)[1]
    strata = {name: _strata(values.detach().cpu().double(), candidates) for name, values in scores.items()}
    strata = {name: found for name, found in strata.items() if found}
    if not strata:
        return None
    attacks = [_measured(name, found, recordings, delta) for name, found in strata.items()]
    attacks.sort(key=lambda attack: attack.overall.auc - ERRORS * attack.overall.error, reverse=True)
    everything = [summed(found, recordings, "chance") for found in strata.values()]
    pieces = [part for found in strata.values() for by in ("label", "node") for part in _by(found, by).values()]
    parts_ = [summed(part, recordings, "chance") for part in pieces]
    return Report(attacks, delta, effective_tests(everything), effective_tests(parts_))


def _strata(scores: Tensor, candidates: Candidates) -> list[Stratum]:
    found = [(node, label, rows) for node, label, rows in candidates.strata() if scores[rows].isfinite().all()]
    return [Stratum.of(node, label, rows, scores[rows], candidates.members[rows]) for node, label, rows in found]


def _by(strata: Sequence[Stratum], name: str) -> dict[int, list[Stratum]]:
    found: dict[int, list[Stratum]] = {}
    for stratum in strata:
        found.setdefault(getattr(stratum, name), []).append(stratum)
    return dict(sorted(found.items()))


def _measured(name: str, strata: Sequence[Stratum], recordings: Tensor, delta: float) -> Attack:
    scores, members = (torch.cat([getattr(s, key) for s in strata]).numpy() for key in ("scores", "members"))
    roc = [round(true_positives(scores[members], scores[~members], rate), 4) for rate in RATES]
    classes, nodes = (
        {key: figures(part, recordings, delta) for key, part in _by(strata, by).items()} for by in ("label", "node")
    )
    return Attack(name, figures(strata, recordings, delta), classes, nodes, roc)

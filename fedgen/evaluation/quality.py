"""All measures of synthetic data put together: utility, fidelity and privacy, overall and by class, as JSON values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fedgen.data.tokens import TokenSource
from fedgen.evaluation.features import SEGMENTS, Records, read_records
from fedgen.evaluation.fidelity import measure_fidelity
from fedgen.evaluation.privacy import PrivacyReport, Site, measure_privacy
from fedgen.evaluation.probes import Utility, adapter_probe, linear_probe, two_sample
from fedgen.models.adapters import Adapters
from fedgen.models.seeds import seeded
from fedgen.training.adapters import TrainingSettings

MOST = 2000  # records of a cloud: fidelity takes distances between all pairs


@dataclass(frozen=True)
class AdapterTask:
    """What the adapter probe needs: targets ``{head: (C, *shape)}``, untrained adapters, and how to train them."""

    targets: dict[str, Tensor]
    new_adapters: Callable[[], Adapters]
    settings: TrainingSettings


def quality(
    train: TokenSource,
    held_out: TokenSource,
    synthetic: TokenSource,
    classes: list[str],
    task: AdapterTask | None = None,
    probes: Sequence[str] = ("pooled", "segments"),
    groups: Tensor | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure synthetic samples of one site by everything there is.

    Parameters
    ----------
    train : TokenSource
        Real clips that the generator was fitted to.
    held_out : TokenSource
        Real clips that it never saw, of other recordings.
    synthetic : TokenSource
        Its samples.
    classes : list[str]
        Class names by id.
    task : AdapterTask, optional
        For the probe ``adapter``, which is left out without it.
    probes : Sequence[str]
        ``pooled``, ``segments``, ``adapter``.
    groups : Tensor, optional
        Fold of each training clip ``(N,)``, for the reference of the membership AUC.
    seed : int

    Returns
    -------
    dict
        ``utility``, ``fidelity`` and ``privacy`` (None where there is too little to compare), as JSON values.
    """
    count = segments_of(train, held_out, synthetic)
    site = Site(read_records(train, count, groups), read_records(held_out, count), read_records(synthetic, count))
    found = utility_report(site, classes, probes, (train, held_out, synthetic), task, seed)
    found |= {"fidelity": fidelity_report(site, classes, seed)}
    return found | {"privacy": privacy_values(measure_privacy({0: site}, seed), classes)}


def segments_of(*sources: TokenSource) -> int:
    """Return how many segments all of ``sources`` can be cut into."""
    return min(SEGMENTS, *(source.shape[0] for source in sources))


def utility_report(
    site: Site,
    classes: list[str],
    probes: Sequence[str],
    sources: tuple[TokenSource, TokenSource, TokenSource],
    task: AdapterTask | None,
    seed: int,
) -> dict[str, Any]:
    """Return ``{"utility": {probe: {"tstr", "trtr", "per_class"}}}`` for the probes that can be done.

    ``sources`` are training, held-out and synthetic tokens, which the adapter probe reads.
    """
    found: dict[str, Utility] = {}
    for probe in probes:
        if probe != "adapter":
            found[probe] = linear_probe(site.train, site.held_out, site.synthetic, probe == "pooled")
        elif task is not None:
            found[probe] = adapter_probe(*sources, task.targets, classes, task.new_adapters, task.settings, seed)
    return {
        "utility": {
            probe: {**asdict(value), "per_class": {classes[label]: x for label, x in value.per_class.items()}}
            for probe, value in found.items()
        }
    }


def fidelity_report(site: Site, classes: list[str], seed: int) -> dict[str, Any]:
    """Return how like held-out records as many synthetic records are as there are real ones to train on.

    ``synthetic`` and, for comparison, the ``real`` training records are held against the held-out ones; ``classifier``
    says how well synthetic records are told from the training records.
    """
    return {**_compared(site, seed), "per_class": _compared_by_class(site, classes, seed)}


def _compared_by_class(site: Site, classes: list[str], seed: int) -> dict[str, Any]:
    found = {}
    for label in site.synthetic.labels.unique().tolist():
        own = Site(*(records.at(records.labels == label) for records in (site.train, site.held_out, site.synthetic)))
        found[classes[label]] = _compared(own, seed)
    return found


def _compared(site: Site, seed: int) -> dict[str, Any]:
    count = min(len(site.train), len(site.synthetic), MOST)
    real, made, held_out = (
        _some(records, size, seed).segments.flatten(1)
        for records, size in ((site.train, count), (site.synthetic, count), (site.held_out, MOST))
    )
    found = {name: measure_fidelity(held_out, cloud) for name, cloud in (("synthetic", made), ("real", real))}
    told = two_sample(real, made, seed)
    return {
        **{name: asdict(value) if value else None for name, value in found.items()},
        "classifier": {"accuracy": told[0], "auc": told[1]} if told else None,
    }


def _some(records: Records, count: int, seed: int) -> Records:
    order = torch.randperm(len(records), generator=seeded(seed, "fidelity"))
    return records.at(order[:count])


def privacy_values(report: PrivacyReport | None, classes: list[str]) -> dict[str, Any] | None:
    """Return a report as JSON values, classes by name and nodes by number."""
    if report is None:
        return None
    return {
        **asdict(report.overall),
        "per_class": {classes[label]: asdict(value) for label, value in report.classes.items()},
        "nodes": {str(number): asdict(value) for number, value in report.sites.items()},
    }

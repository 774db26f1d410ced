"""Value of synthetic data: utility and fidelity, overall and by class, as JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fedgen.data.seeds import seeded
from fedgen.data.tokens import SummarySource, TokenSource
from fedgen.evaluation.features import SEGMENTS, Records
from fedgen.evaluation.fidelity import measure_fidelity
from fedgen.evaluation.probes import AdapterTask, Utility, adapter_probe, linear_probe

MOST = 2000  # records of a cloud: fidelity takes distances between all pairs


@dataclass(frozen=True)
class Site:
    """Training records, held-out records of the same classes, and synthetic records."""

    train: Records
    held_out: Records
    synthetic: Records


def segments_of(*sources: TokenSource) -> int:
    """Return the number of segments that all of ``sources`` can be cut into."""
    return min(SEGMENTS, *(source.shape[0] for source in sources))


def utility_report(
    site: Site,
    classes: list[str],
    probes: Sequence[str],
    sources: tuple[SummarySource, SummarySource, SummarySource] | None,
    task: AdapterTask | None,
    seed: int,
) -> dict[str, Any]:
    """Return ``{"utility": {probe: {"tstr", "trtr", "per_class"}}}`` for the probes that can be done.

    ``sources`` are training, held-out and synthetic summaries, which the adapter probe reads.
    """
    found: dict[str, Utility] = {}
    for probe in probes:
        if probe != "adapter":
            found[probe] = linear_probe(site.train, site.held_out, site.synthetic, probe == "pooled")
        elif task is not None and sources is not None:
            found[probe] = adapter_probe(*sources, task, classes, seed)
    return {
        "utility": {
            probe: {**asdict(value), "per_class": {classes[label]: x for label, x in value.per_class.items()}}
            for probe, value in found.items()
        }
    }


def fidelity_report(site: Site, classes: list[str], seed: int) -> dict[str, Any]:
    """Return the similarity of synthetic records, as many as there are real ones, to held-out records.

    ``synthetic`` and, for comparison, the ``real`` training records are compared with the held-out ones.
    """
    found = {}
    for label in site.synthetic.labels.unique().tolist():
        own = Site(*(records.at(records.labels == label) for records in (site.train, site.held_out, site.synthetic)))
        found[classes[label]] = _compared(own, seed)
    return {**_compared(site, seed), "per_class": found}


def _compared(site: Site, seed: int) -> dict[str, Any]:
    count = min(len(site.train), len(site.synthetic), MOST)
    real, made, held_out = (
        _some(records, size, seed).segments.flatten(1)
        for records, size in ((site.train, count), (site.synthetic, count), (site.held_out, MOST))
    )
    found = {name: measure_fidelity(held_out, cloud) for name, cloud in (("synthetic", made), ("real", real))}
    return {name: asdict(value) if value else None for name, value in found.items()}


def _some(records: Records, count: int, seed: int) -> Records:
    order = torch.randperm(len(records), generator=seeded(seed, "fidelity"))
    return records.at(order[:count])

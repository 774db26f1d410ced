"""Reports: attacks find what they should, survive JSON, and are shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from worlds import audit, fitted, on_nodes, world

from fedgen.errors import DataError
from fedgen.privacy.attacks import loss, sample_scores
from fedgen.privacy.evidence import Candidates, GaussianFit, Release
from fedgen.privacy.result import Report, measure
from fedgen.privacy.show import audit_table, draw_audit


def release_of(candidates: Candidates, size: int = 32, seed: int = 0) -> list[Release]:
    """Class Gaussians about means of clips, with a public covariance."""
    own = candidates.members
    public = (torch.arange(1, size + 1).double() ** -0.5).diag()

    def draw(rows: torch.Tensor, shadow: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = candidates.labels[rows].unique().repeat_interleave(128)
        means = torch.zeros(int(labels.max()) + 1, size, dtype=torch.float64)
        for label in labels.unique():
            means[label] = candidates.latents[rows[candidates.labels[rows] == label]].mean(dim=0)
        noise = torch.randn(len(labels), size, generator=torch.Generator().manual_seed(shadow), dtype=torch.float64)
        return means[labels] + noise @ public.sqrt(), labels

    releases = on_nodes(candidates, *draw(own.nonzero()[:, 0], seed))
    return [replace(release, draw=draw, gaussian=GaussianFit(covariance=public)) for release in releases]


def auc(report: Report | None, name: str) -> float:
    assert report is not None
    return next(attack.overall.auc for attack in report.attacks if attack.name == name)


def test_means_of_clips_tell_though_no_distance_does() -> None:
    candidates = world(32, 0)
    report = audit(candidates, release_of(candidates), shadows=8)
    assert auc(report, "nearest") < 0.65
    for name in ("class_mean", "likelihood_ratio", "posterior"):
        assert auc(report, name) > 0.8


def test_covariances_of_clips_tell_nearly_all() -> None:
    candidates = world(16, 1)
    own = candidates.members
    made = fitted(candidates.latents[own].float(), candidates.labels[own], 128, 0.6, 0)
    releases = [replace(release, gaussian=GaussianFit(0.6)) for release in on_nodes(candidates, *made)]
    report = audit(candidates, releases)
    for name in ("density_ratio", "moments", "posterior"):
        assert auc(report, name) > 0.9


def test_scores_look_at_no_more_of_membership_than_counts() -> None:
    candidates = world(32, 2)
    swapped = replace(candidates, members=~candidates.members)  # as many
    release = on_nodes(world(32, 3), world(32, 3).latents, world(32, 3).labels)[0]
    scores, other = (sample_scores(each, release, each.whitening()) for each in (candidates, swapped))
    assert torch.equal(scores.nan_to_num(), other.nan_to_num())


def test_losses_tell() -> None:
    candidates = world(4, 0)
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(3, len(candidates), generator=generator).abs()
    after = before - 0.2 * candidates.members - 0.1 * torch.rand(before.shape, generator=generator)
    report = measure(loss(before, after), candidates)
    assert auc(report, "loss_drop") == 1.0
    assert 0.5 < auc(report, "loss") < 1.0


def test_classes_without_samples_are_left_out() -> None:
    candidates = world(32, 0)
    releases = release_of(candidates)[:1]
    releases[0] = replace(releases[0], latents=releases[0].latents[:128], labels=releases[0].labels[:128])
    report = audit(candidates, releases, shadows=4)
    assert report is not None
    for attack in report.attacks:
        assert list(attack.classes) == [0]
        assert attack.overall.controls == 17
    empty = replace(
        releases[0], latents=releases[0].latents[:0], labels=releases[0].labels[:0], draw=None, gaussian=None
    )
    assert audit(candidates, [empty]) is None


def test_reports_survive_json_and_are_shown(tmp_path: Path) -> None:
    candidates = world(32, 0)
    report = audit(candidates, [replace(release, draw=None) for release in release_of(candidates)])
    assert report is not None
    values = json.loads(json.dumps(report.to_dict()))
    assert Report.from_dict(values) == report
    with pytest.raises(DataError, match="version 0 cannot be read"):
        Report.from_dict({**values, "version": 0})
    draw_audit(report, tmp_path / "roc.png")
    assert (tmp_path / "roc.png").read_bytes()[:4] == b"\x89PNG"
    console = Console(width=200, record=True, file=(tmp_path / "table").open("w"))
    console.print(audit_table(report))
    assert "likelihood of the class Gaussians" in console.export_text()


def test_candidates_of_other_sizes_are_refused() -> None:
    with pytest.raises(DataError, match="labels has 3 rows for 2 candidates"):
        Candidates(torch.zeros(2, 4), torch.zeros(3), torch.zeros(2), torch.zeros(2))

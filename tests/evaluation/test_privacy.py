"""Privacy of samples whose origin is known."""

import pytest
import torch
from clouds import CLASSES, CLIPS, HELD_OUT, SAMPLES, copies, fresh, interpolations, recordings, site
from fedgen.evaluation.privacy import Privacy, Site, measure_privacy, membership, nearest

from fedgen.evaluation.features import Records


def privacy(synthetic: Records) -> Privacy:
    report = measure_privacy({0: site(synthetic)}, seed=0)
    assert report is not None
    return report.overall


def test_fresh_records_tell_nothing() -> None:
    found = privacy(fresh())
    assert found.distance_ratio == pytest.approx(1, abs=0.1)
    assert found.near_copies <= 0.01
    assert abs(found.membership_auc - 0.5) < 2 * found.membership_error
    assert (found.train, found.held_out, found.synthetic) == (CLASSES * CLIPS, CLASSES * HELD_OUT, CLASSES * SAMPLES)


def test_copies_tell_everything() -> None:
    found = privacy(copies())
    assert found.distance_ratio == pytest.approx(0, abs=1e-6)
    assert found.near_copies == 1
    assert found.membership_auc > 0.9


@pytest.mark.parametrize("leak", [copies(noise=0.2), interpolations()], ids=["noisy copies", "interpolations"])
def test_hidden_copies_are_found(leak: Records) -> None:
    found = privacy(leak)
    assert found.distance_ratio < 0.8
    assert found.near_copies > 0.2
    assert found.membership_auc > 0.8


def test_noise_on_a_copy_shows_by_degrees() -> None:
    found = [privacy(copies(noise)) for noise in (0.1, 0.5, 1.5)]
    assert found[0].distance_ratio < found[1].distance_ratio < found[2].distance_ratio
    assert found[0].membership_auc > found[1].membership_auc > found[2].membership_auc


def test_held_out_records_are_the_measure_of_themselves() -> None:
    """The held-out records handed out as samples: as far from training records as the measure says is usual."""
    held_out = recordings(HELD_OUT, seed=2)
    report = measure_privacy({0: Site(recordings(CLIPS, seed=1), held_out, held_out)}, seed=0)
    assert report is not None
    assert report.overall.distance_ratio == pytest.approx(1, abs=0.02)
    assert report.overall.near_copies == report.overall.near_copies_held_out
    assert report.overall.membership_auc == 0  # held-out records have themselves nearest


def test_reference_sees_held_out_records_that_lie_apart() -> None:
    """Held-out clips of another place look like records that were never trained on, whatever is handed out."""
    train, far = recordings(CLIPS, seed=1), recordings(HELD_OUT, seed=2)
    grouped = Records(train.segments, train.labels, torch.arange(len(train)) % 4)
    here = measure_privacy({0: Site(grouped, far, fresh())}, seed=0)
    away = measure_privacy({0: Site(grouped, Records(far.segments + 1.5, far.labels), fresh())}, seed=0)
    assert here is not None
    assert away is not None
    assert here.overall.membership_reference == pytest.approx(0.5, abs=0.12)
    assert away.overall.membership_reference > 0.8
    assert away.overall.membership_auc > 0.9


def test_by_class_and_by_node() -> None:
    """Node 1 copies class 3, and nothing else leaks."""
    own, bad = fresh(), copies()
    mixed = Records(
        torch.cat([own.segments[own.labels != 3], bad.segments[bad.labels == 3]]),
        torch.cat([own.labels[own.labels != 3], bad.labels[bad.labels == 3]]),
    )
    report = measure_privacy({0: site(own), 1: site(mixed)}, seed=0)
    assert report is not None
    assert report.classes[3].near_copies > 0.3
    assert max(report.classes[label].near_copies for label in range(3)) < 0.02
    assert report.sites[0].near_copies < 0.02 < 0.1 < report.sites[1].near_copies


def test_what_cannot_be_compared_says_nothing() -> None:
    lonely = Records(torch.zeros(3, 2, 24), torch.tensor([7, 7, 7]))  # a class without real clips
    assert measure_privacy({0: site(lonely)}, seed=0) is None
    assert measure_privacy({}, seed=0) is None


def test_same_seed_same_figures() -> None:
    assert measure_privacy({0: site(fresh())}, seed=5) == measure_privacy({0: site(fresh())}, seed=5)


def test_nearest() -> None:
    assert nearest(torch.tensor([[0.0, 0], [3, 4]]), torch.tensor([[0.0, 1], [3, 0]])).tolist() == [
        1,
        pytest.approx(3 * 2**0.5, abs=1),
    ]


def test_membership_of_known_cases() -> None:
    near, far = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    assert membership(near, far)[0] == 1
    assert membership(far, near)[0] == 0
    assert membership(near, near)[0] == 0.5
    assert membership(torch.tensor([1.0, 3.5]), far)[0] == 0.75


def test_standard_error_of_the_membership_auc() -> None:
    """It is the deviation of the AUC over many draws of the same distribution."""
    generator = torch.Generator().manual_seed(0)
    found = [
        membership(torch.randn(40, generator=generator), torch.randn(30, generator=generator) + 0.5) for _ in range(300)
    ]
    spread = float(torch.tensor([auc for auc, _ in found]).std())
    assert sum(sum(parts) for _, parts in found) / 300 == pytest.approx(spread**2, rel=0.2)

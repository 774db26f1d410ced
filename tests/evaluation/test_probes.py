"""Probes on records whose answer is known."""

from collections.abc import Callable

import torch
from clouds import recordings

from fedgen.config.settings import Config
from fedgen.evaluation.features import Records
from fedgen.evaluation.probes import AdapterTask, adapter_probe, linear_probe
from fedgen.task import Task


def test_good_samples_teach_as_much_as_real_clips() -> None:
    found = linear_probe(recordings(16, 1), recordings(20, 2), recordings(60, 3), pooled=True)
    assert found.tstr > 0.95
    assert found.trtr > 0.9
    assert found.per_class.keys() == {0, 1, 2, 3}


def test_samples_of_wrong_classes_teach_nothing() -> None:
    made = recordings(40, 3)
    wrong = Records(made.segments, (made.labels + 1) % 4)
    found = linear_probe(recordings(16, 1), recordings(20, 2), wrong, pooled=True)
    assert found.tstr < 0.1
    assert found.trtr > 0.9


def test_order_is_heard_by_segments_alone() -> None:
    """Loud then quiet against quiet then loud: the mean token is the same."""
    generator = torch.Generator().manual_seed(0)

    def clips(count: int) -> Records:
        labels = torch.arange(count) % 2
        rising = torch.stack([labels, 1 - labels], dim=1).float()[..., None]  # (N, 2, 1)
        return Records(rising + 0.1 * torch.randn(count, 2, 6, generator=generator), labels)

    train, test, made = clips(40), clips(40), clips(40)
    assert linear_probe(train, test, made, pooled=False).tstr == 1
    assert linear_probe(train, test, made, pooled=True).tstr < 0.75


def test_one_class() -> None:
    one = Records(torch.zeros(4, 2, 3), torch.ones(4, dtype=torch.int64))
    assert linear_probe(one, one, one, pooled=True).tstr == 1


def test_adapters_learn_from_real_clips_in_place_of_samples(task: Task, tiny: Callable[..., Config]) -> None:
    """The training clips themselves as samples: both ways are the same training."""
    train, held_out = (task.summaries(found) for found in (task.store.train_indices(3), task.test_indices))
    settings = tiny().adapter.training
    probing = AdapterTask(task.targets.heads, task.adapters, settings)
    found = adapter_probe(train, held_out, train, probing, task.classes, seed=0)
    assert found.tstr == found.trtr
    assert set(found.per_class) == set(range(6))

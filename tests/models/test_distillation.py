"""Distillation: who teaches what, and that the student gets there."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from federations import Federate
from torch import Tensor

from fedgen.config.settings import Config
from fedgen.data.tokens import Summaries, summarise
from fedgen.errors import ConfigError
from fedgen.models.adapters import Adapters, build_adapters
from fedgen.models.settings import AdapterSettings, GlobalTrainingSettings
from fedgen.models.training import Teachers, TrainingOptions, train_adapters

Tiny = Callable[..., Config]

SHAPES: dict[str, tuple[int, ...]] = {"clip": (7,), "t5": (2, 5)}
TARGETS = {"clip": torch.eye(4, 7), "t5": torch.stack([torch.eye(2, 5).roll(i, 1) for i in range(4)])}
COUNTS = {0: {0: 30, 1: 10}, 3: {1: 30, 2: 5}}  # nobody has class 3


def adapters(seed: int) -> Adapters:
    return build_adapters(6, SHAPES, AdapterSettings(width=8, hidden=16, dropout=0.0), seed)


def clips(count: int = 8) -> Tensor:
    return summarise(torch.randn(count, 9, 6, generator=torch.Generator().manual_seed(1)), bands=1)


def teachers(weight: float = 0.5) -> Teachers:
    return Teachers(adapters(9), {0: adapters(1).state_dict(), 3: adapters(2).state_dict()}, COUNTS, 4, weight)


@torch.no_grad()
def test_each_teacher_is_asked_about_its_own_classes_and_counts_by_its_clips() -> None:
    labels = torch.tensor([0, 1, 2, 3, 1, 0, 2, 3])
    found = teachers().outputs(clips(), labels)
    first, second = adapters(1)(clips()), adapters(2)(clips())
    for name in SHAPES:
        torch.testing.assert_close(found[name][labels == 0], first[name][labels == 0])
        torch.testing.assert_close(found[name][labels == 2], second[name][labels == 2])
        mixed = 0.25 * first[name] + 0.75 * second[name]
        torch.testing.assert_close(found[name][labels == 1], mixed[labels == 1])
        assert found[name][labels == 3].isnan().all()


def test_a_sample_without_a_teacher_teaches_nothing() -> None:
    student = adapters(5)
    labels = torch.full((8,), 3)
    losses = teachers().losses(student(clips()), clips(), labels, TARGETS)
    losses.sum().backward()
    assert losses.tolist() == [0, 0]
    assert all(p.grad is None or not p.grad.any() for p in student.parameters())


def test_a_student_of_one_teacher_becomes_like_it_and_the_teacher_stays() -> None:
    teacher = adapters(1)
    weights = {name: value.clone() for name, value in teacher.state_dict().items()}
    source = Summaries(clips(40), torch.arange(40) % 2)
    settings = GlobalTrainingSettings(name="distil", epochs=60, lr=1e-2, batch_size=8, weight_decay=0)
    taught = Teachers(adapters(9), {0: weights}, {0: {0: 1, 1: 1}}, 4, weight=1.0)

    def distance(student: Adapters) -> float:
        with torch.no_grad():
            return sum(float((student(clips(40))[n] - teacher(clips(40))[n]).square().mean()) for n in SHAPES)

    student = adapters(5)
    before = distance(student)
    train_adapters(student, source, TARGETS, settings, seed=0, options=TrainingOptions(teachers=taught))
    assert distance(student) < 0.05 * before
    assert all(torch.equal(value, weights[name]) for name, value in teacher.state_dict().items())


def test_its_weight_decides_between_teachers_and_targets() -> None:
    source = Summaries(clips(12), torch.arange(12) % 3)
    settings = GlobalTrainingSettings(name="distil", epochs=1, lr=1e-9, batch_size=12)

    def loss(weight: float | None) -> float:
        options = TrainingOptions(teachers=teachers(weight) if weight is not None else None)
        losses, _ = train_adapters(adapters(5), source, TARGETS, settings, 0, options=options)
        return losses["loss"]

    supervised, half, distilled = loss(None), loss(0.5), loss(1.0)
    assert half == pytest.approx((supervised + distilled) / 2, rel=1e-4)
    assert supervised != pytest.approx(distilled, rel=0.01)


@pytest.mark.parametrize("weight", [0, -0.5, 1.5])
def test_the_weight_of_teachers_is_a_share(weight: float) -> None:
    with pytest.raises(ConfigError, match=rf"global_training\.teacher_weight={weight}"):
        replace(GlobalTrainingSettings(), teacher_weight=weight)


def test_a_run_distils_from_the_adapters_that_came_in_the_round(
    tiny: Tiny, federate: Federate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Teachers] = []
    original = Teachers.losses

    def losses(self: Teachers, *arguments: object) -> Tensor:
        seen.append(self)
        return original(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Teachers, "losses", losses)
    results = federate(tiny("mode=combined", "rounds=2", "global_training=distil"), tmp_path)
    assert results["lost"] == {}
    assert len({id(each) for each in seen}) == 2  # one set of teachers a round
    first, second = seen[0], seen[-1]
    assert len(first.states) == 3
    assert any(not torch.equal(a, b) for a, b in zip(first.states[0].values(), second.states[0].values(), strict=True))
    assert (first.shares.sum(dim=0) == 1).all()

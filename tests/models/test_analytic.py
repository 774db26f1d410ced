"""Closed-form adapters: the sums are exact, the solution is that of all clips, and the adapters say the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from torch import Tensor

from fedgen.data.tokens import Summaries, summary_size
from fedgen.errors import ConfigError
from fedgen.models import analytic
from fedgen.models.adapters import Adapters, build_adapters
from fedgen.models.analytic import clip_sums, set_adapters, solve, sums_size
from fedgen.models.settings import AdapterSettings

WIDTH, BANDS, CLASSES, CLIPS = 5, 2, 4, 40
FEATURES = summary_size(WIDTH, BANDS)
TARGETS = {
    "text": torch.randn(CLASSES, 7, generator=torch.Generator().manual_seed(3)) + 1,
    "t5": torch.randn(CLASSES, 3, 9, generator=torch.Generator().manual_seed(4)) + 1,
}


def clips(count: int = CLIPS, seed: int = 0) -> Summaries:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    centres = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(9))
    return Summaries(centres[labels] + torch.randn(count, FEATURES, generator=generator), labels)


def part(source: Summaries, rows: Tensor) -> Summaries:
    return Summaries(source.values[rows], source.labels[rows])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=CLIPS, max_size=CLIPS), st.randoms(use_true_random=False))
def test_sums_are_the_same_for_every_partition_and_order(owners: list[int], random: np.random.Generator) -> None:
    source, nodes = clips(), torch.tensor(owners)
    order = list(range(7))
    random.shuffle(order)
    parts = [clip_sums(part(source, (nodes == node).nonzero()[:, 0]), CLASSES) for node in order if node in owners]
    assert torch.stack(parts).sum(dim=0).equal(clip_sums(source, CLASSES))


def test_a_node_is_forgotten_exactly() -> None:
    source, rows = clips(), torch.arange(CLIPS)
    whole, gone, rest = (clip_sums(part(source, chosen), CLASSES) for chosen in (rows, rows[:15], rows[15:]))
    assert (whole - gone).equal(rest)


def test_many_clips_are_added_up_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = clip_sums(clips(), CLASSES)
    monkeypatch.setattr(analytic, "ROWS", 7)
    assert clip_sums(clips(), CLASSES).equal(whole)
    assert len(whole) == sums_size(FEATURES, CLASSES)


def test_the_solution_is_ridge_regression_on_standardised_summaries() -> None:
    source = clips()
    weights, offsets = solve(clip_sums(source, CLASSES), FEATURES, CLASSES)
    values = source.values.double().numpy()
    standard = (values - values.mean(0)) / values.std(0)
    wanted = np.eye(CLASSES)[source.labels]
    model = Ridge(alpha=analytic.RIDGE * FEATURES, solver="cholesky").fit(standard, wanted)
    found = source.values.double() @ weights + offsets
    np.testing.assert_allclose(found, model.predict(standard), atol=1e-4)  # summaries are rounded to 1 / STEPS
    torch.testing.assert_close(found.sum(dim=1), torch.ones(CLIPS, dtype=torch.float64))


def written(hidden: int = 32) -> tuple[Adapters, Tensor, Tensor]:
    weights, offsets = solve(clip_sums(clips(), CLASSES), FEATURES, CLASSES)
    shapes = {name: tuple(value.shape[1:]) for name, value in TARGETS.items()}
    adapters = build_adapters(WIDTH, shapes, AdapterSettings(width=8, hidden=hidden), 0, BANDS).eval()
    set_adapters(adapters, weights, offsets, TARGETS)
    return adapters, weights, offsets


def test_the_nearest_target_is_that_of_the_highest_score() -> None:
    adapters, weights, offsets = written()
    others = clips(200, seed=1)
    scores = others.values.double() @ weights + offsets
    outputs = adapters(others.values)
    for name, target in TARGETS.items():
        assert outputs[name].shape == (200, *target.shape[1:])
        unit = torch.nn.functional.normalize(target.flatten(1), dim=1)
        products = outputs[name].flatten(1) @ unit.T
        gains = (products - products.mean(dim=1, keepdim=True)) / (scores - scores.mean(dim=1, keepdim=True))
        assert gains.std() < 1e-3 * gains.mean()  # products are the scores, but for one factor and one shift
        assert products.argmax(dim=1).equal(scores.argmax(dim=1))


def test_an_output_is_near_the_target_of_a_sure_clip() -> None:
    adapters, *_ = written()
    source = clips()
    for name, target in TARGETS.items():
        cosines = torch.nn.functional.cosine_similarity(
            adapters(source.values)[name].flatten(1), target[source.labels].flatten(1)
        )
        assert cosines.mean() > 0.6


def test_training_goes_on_from_it() -> None:
    adapters, *_ = written()
    outputs = adapters(clips().values)
    sum(value.square().sum() for value in outputs.values()).backward()
    assert all(parameter.grad is not None for parameter in adapters.parameters())


@pytest.mark.parametrize(("key", "small"), [("width", AdapterSettings(width=3)), ("hidden", AdapterSettings(hidden=4))])
def test_adapters_that_are_too_small_are_refused(key: str, small: AdapterSettings) -> None:
    adapters = build_adapters(WIDTH, {"text": (7,)}, small, 0, BANDS)
    with pytest.raises(ConfigError, match=rf"adapter\.{key}=. is too small for mode=analytic"):
        set_adapters(adapters, torch.zeros(FEATURES, CLASSES), torch.zeros(CLASSES), {"text": TARGETS["text"]})


def test_the_sum_over_nodes_tells_their_clips() -> None:
    """Secure aggregation hides nodes from the server, and no clip from who sees the sum: the security page says so."""
    members, others = clips(40), clips(40, seed=5)
    split = (FEATURES + 1) * (FEATURES + 2) // 2
    gram = torch.zeros(FEATURES + 1, FEATURES + 1, dtype=torch.float64)
    rows, columns = torch.triu_indices(FEATURES + 1, FEATURES + 1)
    gram[rows, columns] = gram[columns, rows] = clip_sums(members, CLASSES)[:split].double() / analytic.STEPS**2
    centre = gram[:-1, :-1] + 1e-3 * torch.eye(FEATURES, dtype=torch.float64)
    leverage = [
        (source.values.double() @ torch.linalg.inv(centre) * source.values.double()).sum(1)
        for source in (members, others)
    ]
    assert (leverage[0][:, None] < leverage[1]).double().mean() > 0.95

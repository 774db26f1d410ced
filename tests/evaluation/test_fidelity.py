"""Fidelity of clouds with a known answer, and against the libraries that everyone uses."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prdc import compute_prdc
from torch import Tensor
from torchmetrics.image.fid import _compute_fid

from fedgen.evaluation.fidelity import frechet, measure_fidelity, mmd, prdc

SHAPES = {"rows": st.integers(8, 40), "columns": st.integers(2, 30), "seed": st.integers(0, 10_000)}


def cloud(rows: int, columns: int, seed: int = 0, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return scale * values + shift


def test_frechet_of_gaussians_in_closed_form() -> None:
    """``|m1 - m2|^2 + sum of (s1 - s2)^2`` for independent columns."""
    first, second = cloud(20_000, 3, 1), cloud(20_000, 3, 2) * torch.tensor([1.0, 2.0, 3.0]) + torch.tensor([1.0, 0, 0])
    assert frechet(first, second) == pytest.approx(1 + 0 + 1 + 4, rel=0.03)


def test_frechet_of_a_shift_is_its_square() -> None:
    first = cloud(50, 80)
    assert frechet(first, first + 0.5) == pytest.approx(80 * 0.25)
    assert frechet(first, first) == pytest.approx(0, abs=1e-9)


@given(**SHAPES)
@settings(max_examples=25, deadline=None)
def test_frechet_agrees_with_torchmetrics(rows: int, columns: int, seed: int) -> None:
    """Given the same moments; fewer records than dimensions too."""
    first, second = cloud(rows, columns, seed), cloud(rows + 3, columns, seed + 1, shift=0.3, scale=1.5)
    moments = [part for x in (first, second) for part in (x.mean(dim=0), x.T.cov())]
    assert frechet(first, second) == pytest.approx(float(_compute_fid(*moments)), rel=1e-3, abs=1e-3)


@given(**SHAPES)
@settings(max_examples=25, deadline=None)
def test_prdc_agrees_with_its_authors(rows: int, columns: int, seed: int) -> None:
    real, synthetic = cloud(rows, columns, seed), cloud(rows + 5, columns, seed + 1, shift=0.4)
    wanted = compute_prdc(real.numpy(), synthetic.numpy(), nearest_k=3)
    assert prdc(real, synthetic, 3) == pytest.approx(
        [wanted[x] for x in ("precision", "recall", "density", "coverage")]
    )


def test_prdc_of_identical_and_of_disjoint_clouds() -> None:
    real = cloud(60, 4)
    assert prdc(real, real.clone(), 5)[:2] == (1, 1)
    assert prdc(real, real.clone(), 5)[3] == 1
    assert prdc(real, real + 100, 5) == (0, 0, 0, 0)


def test_a_collapsed_generator_has_precision_without_recall() -> None:
    precision, recall, _, coverage = prdc(cloud(100, 4), cloud(100, 4, 1, scale=0.05), 5)
    assert precision == 1
    assert recall < 0.1
    assert coverage < 0.5


def test_mmd_of_equal_and_different_clouds() -> None:
    same = [mmd(cloud(60, 5, 2 * seed), cloud(60, 5, 2 * seed + 1)) for seed in range(40)]
    assert abs(np.mean(same)) < 2 * np.std(same) / 40**0.5  # unbiased
    assert mmd(cloud(60, 5), cloud(60, 5, 1, shift=0.5)) > 10 * float(np.std(same))


def test_mmd_by_hand() -> None:
    """Two real points at distance 1 (the bandwidth), two synthetic ones on top of them."""
    real = torch.tensor([[0.0], [1.0]])
    e = float(np.exp(-0.5))
    assert mmd(real, real.clone()) == pytest.approx(e + e - 2 * (2 + 2 * e) / 4)


def test_measures_do_not_depend_on_the_unit() -> None:
    real, synthetic = cloud(40, 6), cloud(40, 6, 1, shift=0.2)
    first, second = measure_fidelity(real, synthetic), measure_fidelity(1000 * real, 1000 * synthetic)
    assert vars(first) == pytest.approx(vars(second))


def test_too_few_records_have_no_fidelity() -> None:
    assert measure_fidelity(cloud(2, 4), cloud(40, 4)) is None
    assert measure_fidelity(cloud(3, 4), cloud(40, 4)) is not None

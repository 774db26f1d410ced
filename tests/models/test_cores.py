"""Sums over the cores of several nodes give what the cores themselves would."""

import pytest
import torch

from fedgen.data.tokens import TensorTokens
from fedgen.errors import ConfigError
from fedgen.models.bases import Bases
from fedgen.models.cores import CoreMoments, principal

BASES = Bases(torch.eye(4), torch.eye(3))
FLAT = Bases(torch.eye(4))


def cores(count: int) -> torch.Tensor:
    """Cores of falling deviation far from 0: ``(N, 12)``."""
    values = torch.randn(count, 12, generator=torch.Generator().manual_seed(count))
    return 1000 + values * torch.logspace(1, -1, 12)


def measured(values: torch.Tensor, bases: Bases = BASES) -> CoreMoments:
    return CoreMoments.measure(TensorTokens(values.view(-1, 4, 3), torch.zeros(len(values))), bases, batch_size=7)


@pytest.mark.parametrize("bases", [BASES, FLAT])
def test_moments_of_parts_add_up_to_those_of_all(bases: Bases) -> None:
    values = cores(40)
    total = measured(values[:25], bases) + measured(values[25:], bases)
    centred = values.double() - values.double().mean(0)
    scatter = centred.T @ centred
    assert total.count == 40
    torch.testing.assert_close(total.mean, values.double().mean(0))
    torch.testing.assert_close(total.scatter, scatter if bases is BASES else scatter.diagonal())


@pytest.mark.parametrize(("count", "size"), [(40, 5), (6, 5), (4, 3)])
def test_components_of_sums_are_those_of_cores(count: int, size: int) -> None:
    values = cores(count)
    components, deviation, residual = principal(values - values.mean(0), 5)
    summed, summed_deviation, summed_residual = measured(values).principal(5)
    assert len(components) == len(summed) == size
    torch.testing.assert_close((components * summed).sum(1).abs(), torch.ones(size), atol=1e-4, rtol=0)
    torch.testing.assert_close(deviation, summed_deviation, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(residual, summed_residual, atol=2e-3, rtol=1e-3)


def test_what_does_not_vary_is_divided_by_one() -> None:
    moments = measured(torch.ones(5, 12))
    assert moments.deviation.tolist() == [1] * 12
    assert [part.isfinite().all().item() for part in moments.principal(3)] == [True] * 3


@pytest.mark.parametrize("clips", [1, 2])
def test_too_few_clips_to_hide_among_are_refused(clips: int) -> None:
    with pytest.raises(ConfigError, match=rf"at least 3 clips.*this node has {clips}: choose sharing=local"):
        measured(cores(clips))

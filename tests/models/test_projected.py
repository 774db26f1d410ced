"""Clips in bases of their own: what they keep, and that training on them is training on the tokens."""

import pytest
import torch
from torch import Tensor

from fedgen.data.tokens import TensorTokens
from fedgen.errors import ConfigError
from fedgen.models.adapters import build_adapters
from fedgen.models.samples import ProjectedTokens
from fedgen.models.settings import AdapterSettings, ProjectionSettings

SHAPE = (12, 8)


def clips(count: int = 20, rank: int | None = None) -> TensorTokens:
    generator = torch.Generator().manual_seed(3)
    if rank is None:
        tokens = torch.randn(count, *SHAPE, generator=generator)
    else:
        positions, channels = torch.randn(12, rank, generator=generator), torch.randn(8, rank, generator=generator)
        tokens = positions @ torch.randn(count, rank, rank, generator=generator) @ channels.T
    return TensorTokens(tokens, torch.arange(count) % 4)


def test_clips_of_the_rank_of_the_bases_are_kept_whole() -> None:
    source = clips(rank=3)
    found = ProjectedTokens.of(source, ProjectionSettings(3, 3), batch_size=7)
    order = torch.tensor([5, 0, 19, 5])
    torch.testing.assert_close(found.batch(order), source.batch(order), atol=1e-4, rtol=1e-4)
    assert found.labels.tolist() == source.labels.tolist()
    assert found.shape == SHAPE
    assert found.cores.shape == (20, 3, 3)


def test_larger_bases_lose_less_and_full_ones_nothing() -> None:
    source = clips()
    every = torch.arange(len(source))

    def lost(positions: int, channels: int) -> float:
        found = ProjectedTokens.of(source, ProjectionSettings(positions, channels)).batch(every)
        return float((found - source.batch(every)).square().mean())

    losses = [lost(2, 2), lost(6, 4), lost(12, 4), lost(100, 100)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-10


def test_adapters_see_in_factors_what_they_see_in_tokens() -> None:
    adapters = build_adapters(SHAPE, {"text": (5,)}, AdapterSettings(width=6, heads=2, hidden=7, dropout=0.0), 0)
    found = ProjectedTokens.of(clips(), ProjectionSettings(9, 5))
    order = torch.tensor([3, 1, 4])
    torch.testing.assert_close(adapters(found.factors(order))["text"], adapters(found.batch(order))["text"])


@pytest.mark.parametrize("name", ["positions", "channels"])
def test_sizes_are_not_negative(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"adapter\.projection\.{name}=-1"):
        ProjectionSettings(**{name: -1})
    assert not ProjectionSettings(**{name: 0}).used


def test_projection_reads_a_source_in_batches() -> None:
    class Counting(TensorTokens):
        largest = 0

        def batch(self, indices: Tensor) -> Tensor:
            Counting.largest = max(Counting.largest, len(indices))
            return super().batch(indices)

    source = Counting(clips().tokens, clips().labels)
    found = ProjectedTokens.of(source, ProjectionSettings(4, 4), batch_size=3)
    assert Counting.largest == 3
    assert len(found) == 20

"""Synthetic tokens are decoded when asked for; pools mix sources without mixing them up."""

import pytest
import torch

from fedgen.data.tokens import TensorTokens
from fedgen.models.codec import Codec, CodecSettings
from fedgen.models.samples import PooledTokens, SyntheticTokens
from fedgen.models.seeds import seeded


def synthetic(count: int, seed: int = 0, noise: bool = True) -> SyntheticTokens:
    tokens = torch.randn(20, 6, 5, generator=torch.Generator().manual_seed(seed))
    codec = Codec.fit(TensorTokens(tokens, torch.zeros(20)), CodecSettings(4, 4, 3, noise=noise))
    return SyntheticTokens(codec, torch.randn(count, codec.size), torch.arange(count) % 2, seed)


def test_batches_are_decoded_rows_with_seeded_noise() -> None:
    samples = synthetic(10)
    indices = torch.tensor([7, 2, 2])
    tokens = samples.batch(indices)
    assert tokens.shape == (3, 6, 5)
    assert not torch.equal(tokens[1], tokens[2])  # the noise is drawn for each row
    assert torch.equal(tokens, samples.to("cpu").batch(indices))
    silent = synthetic(10, noise=False)
    torch.testing.assert_close(silent.batch(indices), silent.codec.decode(silent.latents[indices]))


def test_a_pool_returns_each_row_from_its_source() -> None:
    parts = [
        TensorTokens(torch.full((n, 2, 2), 10.0 * n) + torch.arange(n)[:, None, None], torch.full((n,), n))
        for n in (3, 1, 4)
    ]
    pool = PooledTokens(parts)
    assert len(pool) == 8
    indices = torch.tensor([7, 0, 3, 4, 2, 0])
    assert pool.batch(indices)[:, 0, 0].tolist() == [43, 30, 10, 40, 32, 30]
    assert pool.labels[indices].tolist() == [4, 3, 1, 4, 3, 3]
    assert pool.counts() == {3: 3, 1: 1, 4: 4}
    assert pool.batch(torch.tensor([1, 2]))[:, 0, 0].tolist() == [31, 32]


def test_a_pool_needs_samples_of_one_shape() -> None:
    empty, small, large = (TensorTokens(torch.zeros(n, n, 2), torch.zeros(n)) for n in (0, 1, 2))
    assert len(PooledTokens([empty, small])) == 1
    for parts in ([empty], [small, large]):
        with pytest.raises(ValueError, match="one shape"):
            PooledTokens(parts)


def test_seeds_depend_on_the_whole_path() -> None:
    paths = [(0,), (1,), (0, 0), (0, 1), (0, "rain"), (0, "train"), (0, 1, 2)]
    draws = {seeded(*path).initial_seed() for path in paths}
    assert len(draws) == len(paths)
    assert seeded(3, "rain", 2).initial_seed() == seeded(3, "rain", 2).initial_seed()

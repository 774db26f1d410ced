"""Synthetic tokens are decoded when asked for; pools mix sources without mixing them up."""

import pytest
import torch

from fedgen.data.seeds import seeded
from fedgen.data.tokens import TensorTokens
from fedgen.errors import DataError
from fedgen.models.codec import Codec
from fedgen.models.samples import PooledTokens, SyntheticTokens
from fedgen.models.settings import CodecSettings, Lengths


def synthetic(count: int, seed: int = 0, noise: bool = True, length: int = 6, positions: int = 4) -> SyntheticTokens:
    tokens = torch.randn(20, length, 5, generator=torch.Generator().manual_seed(seed))
    codec = Codec.fit(TensorTokens(tokens, torch.zeros(20)), CodecSettings(4, positions, 3, noise=noise))[0]
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
        synthetic(3, seed=0, noise=False),
        synthetic(1, seed=1, noise=False, positions=2),
        synthetic(4, seed=2, noise=False),
    ]
    pool = PooledTokens(parts)
    assert len(pool) == 8
    indices = torch.tensor([7, 0, 3, 4, 2, 0])
    whole = torch.cat([part.batch(torch.arange(len(part))) for part in parts])
    torch.testing.assert_close(pool.batch(indices), whole[indices])
    assert pool.labels.tolist() == torch.cat([part.labels for part in parts]).tolist()
    assert pool.counts() == {0: 5, 1: 3}


def test_factors_are_the_tokens_and_project_like_them() -> None:
    weight = torch.randn(3, 5)
    pool = PooledTokens([synthetic(3, seed=0, noise=False), synthetic(2, seed=1, noise=False)])
    for source in (pool, pool.parts[0]):
        indices = torch.tensor([1, 0, 2])
        tokens = source.batch(indices)
        torch.testing.assert_close(source.factors(indices).dense(), tokens)
        torch.testing.assert_close(source.factors(indices).project(weight), tokens @ weight.T)


def resampled(count: int) -> SyntheticTokens:
    tokens = torch.randn(20, 9, 5, generator=torch.Generator().manual_seed(9))
    settings = CodecSettings(5, 3, 15, noise=False)
    codec = Codec.fit(TensorTokens(tokens, torch.zeros(20)), settings, Lengths(3, 6, "cubic"))[0]
    return SyntheticTokens(codec, torch.randn(count, codec.size), torch.zeros(count))


def test_samples_of_another_length_are_factors_too_and_pool_with_others() -> None:
    parts = [resampled(3), synthetic(2, noise=False)]
    pool, indices, weight = PooledTokens(parts), torch.tensor([4, 0, 2]), torch.randn(3, 5)
    whole = torch.cat([part.batch(torch.arange(len(part))) for part in parts])
    torch.testing.assert_close(pool.batch(indices), whole[indices])
    for source in (pool, parts[0]):
        tokens = source.batch(torch.tensor([2, 1]))
        torch.testing.assert_close(source.factors(torch.tensor([2, 1])).project(weight), tokens @ weight.T)


def test_statistics_are_of_the_decoded_tokens() -> None:
    samples = synthetic(200, noise=False)
    found = samples.statistics(per_class=70)
    tokens = samples.batch(torch.arange(140))  # classes take turns: the first 70 of each
    assert found["counts"] == {0: 100, 1: 100}
    expected = {"mean": tokens.mean(), "std": tokens.std(correction=0), "min": tokens.min(), "max": tokens.max()}
    assert {name: found[name] for name in expected} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-4, abs=1e-6
    )


def test_statistics_leave_the_samples_as_they_are() -> None:
    samples = synthetic(10)
    twin = samples.to("cpu")
    assert samples.statistics() == samples.statistics()
    assert torch.equal(samples.batch(torch.arange(10)), twin.batch(torch.arange(10)))
    assert synthetic(0).statistics() == {"counts": {}}


def test_a_pool_needs_samples_of_one_shape() -> None:
    short = synthetic(2, length=4)
    assert len(PooledTokens([synthetic(0), short])) == 2
    for parts in ([synthetic(0)], [synthetic(1), short]):
        with pytest.raises(ValueError, match="one shape"):
            PooledTokens(parts)


def test_seeds_depend_on_the_whole_path() -> None:
    paths = [(0,), (1,), (0, 0), (0, 1), (0, "rain"), (0, "train"), (0, 1, 2)]
    draws = {seeded(*path).initial_seed() for path in paths}
    assert len(draws) == len(paths)
    assert seeded(3, "rain", 2).initial_seed() == seeded(3, "rain", 2).initial_seed()


def test_samples_beside_a_codec_of_their_own_are_refused() -> None:
    """As runs saved them when each node fitted a codec to its clips."""
    samples = synthetic(6)
    assert set(samples.state()) == {"latents", "labels"}
    old = samples.state() | {f"codec.{name}": value for name, value in samples.codec.state().items()}
    with pytest.raises(DataError, match=r"a codec of a node's own clips.*run anew"):
        SyntheticTokens.from_state(old, samples.codec, 0)


def test_samples_at_a_byte_a_coefficient() -> None:
    samples = synthetic(6)
    scale = samples.latents.abs().amax(dim=0) / 127
    whole = (samples.latents / scale).round().to(torch.int8)
    compact = SyntheticTokens(samples.codec, whole, samples.labels, samples.seed, scale=scale)
    plain = SyntheticTokens(samples.codec, whole * scale, samples.labels, samples.seed)
    rows = torch.tensor([4, 1])
    assert compact.state()["latents"].dtype == torch.int8
    again = SyntheticTokens.from_state(compact.state(), samples.codec, samples.seed)
    for one in (compact, again, compact.to("cpu")):
        assert torch.equal(one.latents, plain.latents)
    assert torch.equal(again.batch(rows), plain.batch(rows))
    assert torch.equal(compact.at(rows).latents, plain.latents[rows])
    assert torch.equal(compact.at(compact.labels == 1).labels, compact.labels[compact.labels == 1])

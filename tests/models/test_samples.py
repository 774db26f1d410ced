"""Synthetic tokens are decoded when asked for; pools mix sources without mixing them up."""

import pytest
import torch

from fedgen.data.seeds import seeded
from fedgen.data.tokens import Summaries, TensorTokens, summary_size
from fedgen.errors import DataError
from fedgen.models.codec import Codec
from fedgen.models.samples import PooledSummaries, SyntheticTokens
from fedgen.models.settings import CodecSettings, Lengths


def synthetic(count: int, seed: int = 0, noise: bool = True, bands: int = 0) -> SyntheticTokens:
    tokens = torch.randn(20, 6, 5, generator=torch.Generator().manual_seed(seed))
    settings = CodecSettings(4, 4, 3, noise=noise)
    codec = Codec.fit(TensorTokens(tokens, torch.zeros(20)), settings, bands=bands)[0]
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


@pytest.mark.parametrize("length", [4, 6, 20])
def test_segments_are_means_of_decoded_tokens(length: int) -> None:
    """Also where samples are of another length than the clips."""
    source = TensorTokens(torch.randn(20, 9, 5, generator=torch.Generator().manual_seed(9)), torch.zeros(20))
    codec = Codec.fit(source, CodecSettings(5, 3, 9), Lengths(3, length, "cubic"))[0]
    samples = SyntheticTokens(codec, torch.randn(6, codec.size), torch.zeros(6), seed=2)
    indices = torch.tensor([4, 0, 2])
    tokens = samples.to("cpu").batch(indices)
    expected = torch.stack([part.mean(dim=1) for part in tokens.tensor_split(4, dim=1)], dim=1)
    torch.testing.assert_close(samples.segments(indices, 4), expected, atol=1e-5, rtol=1e-4)


def test_summaries_have_noise_of_their_own_that_starts_anew() -> None:
    samples, rows = synthetic(6, bands=2), torch.tensor([3, 1, 1])
    found = samples.summaries(rows)
    assert found.shape == (3, summary_size(5, 2))
    assert not torch.equal(found[1], found[2])
    assert torch.equal(found, samples.to("cpu").summaries(rows))
    silent = synthetic(6, noise=False, bands=2)
    torch.testing.assert_close(silent.summaries(rows), silent.codec.summaries(silent.latents[rows]))


def test_a_pool_returns_each_row_from_its_source() -> None:
    parts = [synthetic(count, seed, noise=False, bands=2) for seed, count in enumerate((3, 0, 1, 4))]
    clips = Summaries(torch.randn(2, summary_size(5, 2)), torch.tensor([1, 4]))
    pool = PooledSummaries([*parts, clips])
    assert len(pool) == 10
    whole = torch.cat([part.summaries(torch.arange(len(part))) for part in (*parts, clips)])
    for order in ([7, 0, 3, 9, 4, 2, 0, 8], list(range(10)), [5]):
        torch.testing.assert_close(pool.summaries(torch.tensor(order)), whole[order])
    assert pool.labels.tolist() == torch.cat([part.labels for part in (*parts, clips)]).tolist()
    assert pool.counts() == {0: 5, 1: 4, 4: 1}


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

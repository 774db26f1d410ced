"""The summary of a clip: what it is, and that codec and samples carry it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from federations import Federate
from torch import Tensor

from fedgen import load_run
from fedgen.config.settings import Config
from fedgen.data import sfx
from fedgen.data.settings import EncoderSettings
from fedgen.data.tensors import save_tensors
from fedgen.data.tokens import NARROW, Summaries, TensorTokens, directions, summarise, summary_size
from fedgen.errors import DataError
from fedgen.models.codec import Codec
from fedgen.models.public import PublicSpace
from fedgen.models.samples import PooledSummaries, SyntheticTokens
from fedgen.models.settings import CodecSettings

BANDS, COLUMNS, WIDTH = 3, 5, 6
SHAPE = (BANDS * COLUMNS, WIDTH)
SIZES = CodecSettings(channels=4, positions=4, components=64)
SIZE = summary_size(WIDTH, BANDS)
PINNED = [-0.2694533, 0.4261624, 0.0418020]  # of the first row of directions of 20


def clips(count: int = 40, seed: int = 0, width: int = WIDTH) -> TensorTokens:
    tokens = torch.randn(count, SHAPE[0], width, generator=torch.Generator().manual_seed(seed)).relu()
    return TensorTokens(tokens, torch.arange(count) % 4)


def fitted(source: TensorTokens | None = None) -> Codec:
    return Codec.fit(source or clips(200), SIZES, bands=BANDS)[0]


def standardised(values: list[Tensor]) -> Tensor:
    part = torch.stack(values).flatten()
    return (part - part.mean()) / (part.var(correction=0) + 1e-8).sqrt()


def by_hand(clip: Tensor, bands: int) -> Tensor:
    """The summary ``(F,)`` of the tokens ``(S, D)`` of one clip, number by number."""
    columns = len(clip) // bands
    grid = [[clip[len(clip) - bands * columns + row * columns + t] for t in range(columns)] for row in range(bands)]
    every = [token for row in grid for token in row]
    width, narrow = clip.shape[1], directions(clip.shape[1]).T
    at_once = [sum(grid[row][t] for row in range(bands)) / bands for t in range(columns)]
    parts = [
        [sum(token[d] for token in every) / len(every) for d in range(width)],
        [max(token[d] for token in every) for d in range(width)],
        [max(mean[d] for mean in at_once) for d in range(width)],
        [sum(token @ way for token in row) / columns for row in grid for way in narrow],
        [max(token @ way for token in row) for row in grid for way in narrow],
    ]
    return torch.cat([standardised(part) for part in parts])


@pytest.mark.parametrize("width", [WIDTH, NARROW + 4])
@pytest.mark.parametrize("leading", [0, 2])
@pytest.mark.parametrize("bands", [1, BANDS])
def test_it_is_five_parts_of_a_clips_tokens(width: int, leading: int, bands: int) -> None:
    """Tokens that stand for the clip do not count; with one band there is no telling them from others."""
    tokens = clips(4, width=width).tokens
    tokens = torch.cat([torch.full((4, leading, width), 99.0), tokens], dim=1)
    found = summarise(tokens, bands)
    assert found.shape == (4, summary_size(width, bands))
    torch.testing.assert_close(found, torch.stack([by_hand(clip, bands) for clip in tokens]), rtol=1e-4, atol=1e-4)


def test_directions_are_orthonormal_and_the_same_everywhere() -> None:
    found = directions(20)
    torch.testing.assert_close(found.T @ found, torch.eye(NARROW), atol=1e-5, rtol=0)
    assert found[0, :3].tolist() == pytest.approx(PINNED, abs=1e-6)
    assert directions(5).shape == (5, 5)


@pytest.mark.parametrize("loudness", [0.25, 7.0])
def test_a_loud_clip_has_the_summary_of_a_quiet_one(loudness: float) -> None:
    tokens = 50 * clips().tokens  # the deviation that is divided by is far above the least
    torch.testing.assert_close(summarise(loudness * tokens, BANDS), summarise(tokens, BANDS), atol=1e-3, rtol=1e-3)
    other = summarise(tokens.square(), BANDS)
    assert (other - summarise(tokens, BANDS)).abs().max() > 0.1


def test_tokens_of_half_precision_have_summaries_of_single() -> None:
    found = summarise(clips().tokens.half(), BANDS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, summarise(clips().tokens, BANDS), atol=0.02, rtol=0.02)


def test_summaries_are_read_in_batches_and_handed_out_by_index() -> None:
    class Counting(TensorTokens):
        largest = 0

        def batch(self, indices: Tensor) -> Tensor:
            Counting.largest = max(Counting.largest, len(indices))
            return super().batch(indices)

    found = Summaries.of(Counting(clips().tokens, clips().labels), BANDS, rows=7)
    assert Counting.largest == 7
    assert (len(found), found.nbytes) == (40, 4 * 40 * SIZE)
    assert found.labels.equal(clips().labels)
    order = torch.tensor([39, 0, 3])
    torch.testing.assert_close(found.summaries(order), summarise(clips().tokens, BANDS)[order])


@pytest.mark.parametrize(
    ("encoder", "length", "bands"),
    [
        (EncoderSettings(stride=10), 1214, 12),
        (EncoderSettings(stride=16), 514, 8),
        (EncoderSettings("ast", stride=10), 1214, 12),
        (EncoderSettings("sfx"), 324, 12),
        (EncoderSettings("clap"), 64, 2),
        (EncoderSettings("ast", tokens="cls"), 1, 1),
        (EncoderSettings("clap"), 1, 1),
    ],
    ids=str,
)
def test_bands_are_the_rows_of_the_encoders_map(encoder: EncoderSettings, length: int, bands: int) -> None:
    assert encoder.bands(length) == bands


def test_the_codec_keeps_it() -> None:
    codec, tokens = fitted(), clips(seed=5).tokens
    assert codec.bases.summary_size == SIZE
    assert len(codec.mean) == SIZES.channels * SIZES.positions + SIZE
    wanted = summarise(tokens, BANDS)
    torch.testing.assert_close(codec.summaries(codec.encode(tokens)), wanted, atol=0.05, rtol=0.02)
    features = codec.bases.project(clips(200).tokens)
    energy = features.var(dim=0, correction=0)
    assert energy[-SIZE:].sum() == pytest.approx(9 * float(energy[:-SIZE].sum()), rel=1e-3)
    assert energy[-SIZE:].std() < 1e-3 * energy[-SIZE:].mean()


def test_few_coefficients_keep_it_better_than_tokens_of_so_few_do() -> None:
    tokens, few = clips(seed=5).tokens, 10
    codec, plain = fitted().truncated(few), Codec.fit(clips(200), SIZES)[0].truncated(few)
    wanted = summarise(tokens, BANDS)
    summary = codec.summaries(codec.encode(tokens))
    guessed = summarise(plain.decode(plain.encode(tokens)), BANDS)
    assert (summary - wanted).square().mean() < 0.6 * (guessed - wanted).square().mean()


def test_a_codec_with_a_summary_comes_back_from_its_state() -> None:
    codec, tokens = fitted(), clips(seed=5).tokens
    assert set(Codec.fit(clips(), SIZES)[0].state()) == set(Codec.NAMES)  # without bands there is none
    again = Codec.from_state(codec.state())
    latents = codec.encode(tokens)
    assert again.encode(tokens).equal(latents)
    assert again.to("cpu").summaries(latents).equal(codec.summaries(latents))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bands", None),
        ("spread", None),
        ("spread", torch.ones(SIZE - 1)),
        ("bands", torch.ones(2)),
        ("mean", torch.ones(16)),
    ],
)
def test_a_state_that_does_not_fit_is_refused(name: str, value: Tensor | None) -> None:
    state = fitted().state()
    state.pop(name)
    with pytest.raises(DataError, match="codec"):
        Codec.from_state(state | ({} if value is None else {name: value}))


def test_noise_reaches_it() -> None:
    codec = fitted().truncated(3)
    latents = codec.encode(clips(seed=5).tokens)
    plain, noisy = codec.summaries(latents), codec.summaries(latents, torch.Generator().manual_seed(0))
    assert (noisy - plain).std() > 0.01


def test_samples_and_clips_in_one_pool_have_their_own() -> None:
    codec, source = fitted(), clips()
    samples = SyntheticTokens(codec, codec.encode(clips(seed=5).tokens), torch.zeros(40))
    found = PooledSummaries([Summaries.of(source, BANDS), samples]).summaries(torch.tensor([41, 2, 79]))
    torch.testing.assert_close(found[1], summarise(source.tokens, BANDS)[2])
    wanted = summarise(clips(seed=5).tokens[[1, 39]], BANDS)
    assert (found[[0, 2]] - wanted).abs().max() < 0.1  # but for the residual noise


def test_a_sketch_tells_codecs_with_a_summary_apart() -> None:
    public = clips(200)
    spaces = [PublicSpace.of(public, SIZES, bands=bands) for bands in (BANDS, 0)]
    spaces[0].require_same(spaces[0].sketch())
    with pytest.raises(DataError, match="not the one that this node computes"):
        spaces[0].require_same(spaces[1].sketch())


@pytest.mark.slow
def test_a_federation_learns_of_it(tiny: Callable[..., Config], federate: Federate, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = sfx._shapes().items()
    weights = {
        name: torch.randn(shape, generator=generator) / (4.5 * shape[1]) ** 0.5
        if len(shape) == 4
        else torch.zeros(shape)
        for name, shape in shapes
    }
    save_tensors(tmp_path / sfx.WEIGHTS, weights, {})
    config = tiny("mode=combined", "codec.components=16")
    encoder = EncoderSettings("sfx", model=str(tmp_path), seconds=0.5)
    results = federate(replace(config, encoder=encoder), tmp_path / "run")
    assert results["nodes"]
    run = load_run(tmp_path / "run")
    assert run.adapters.bands == 12
    assert run.codec.bases.summary_size == summary_size(512, 12)
    assert all(torch.isfinite(value).all() for value in run.adapters.state_dict().values())

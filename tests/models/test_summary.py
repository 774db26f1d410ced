"""The summary of a clip: what it is, and that adapters, codec and samples carry it."""

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
from fedgen.data.tokens import FactoredTokens, TensorTokens, summarise
from fedgen.errors import DataError
from fedgen.models.adapters import build_adapters
from fedgen.models.codec import Codec
from fedgen.models.generators.marginals import POINTS, _mapped
from fedgen.models.public import PublicSpace
from fedgen.models.samples import PooledTokens, ProjectedTokens, SyntheticTokens
from fedgen.models.settings import AdapterSettings, CodecSettings, ProjectionSettings

BANDS, COLUMNS, WIDTH = 3, 5, 6
SHAPE = (BANDS * COLUMNS, WIDTH)
SIZES = CodecSettings(channels=4, positions=4, components=64)
SMALL = AdapterSettings(width=8, heads=2, hidden=16, dropout=0.0)
TARGETS: dict[str, tuple[int, ...]] = {"text": (7,), "t5": (3, 9)}


def clips(count: int = 40, seed: int = 0) -> TensorTokens:
    tokens = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed)).relu()
    return TensorTokens(tokens, torch.arange(count) % 4)


def fitted(source: TensorTokens | None = None) -> Codec:
    return Codec.fit(source or clips(200), SIZES, bands=BANDS)[0]


def test_it_is_the_maximum_over_time_of_the_mean_over_bands() -> None:
    tokens = clips().tokens
    wanted = torch.stack([torch.stack([tokens[:, t::COLUMNS].mean(1) for t in range(COLUMNS)]).amax(0)])[0]
    torch.testing.assert_close(summarise(tokens, BANDS), wanted)


def test_tokens_that_stand_for_the_clip_do_not_count() -> None:
    tokens = clips().tokens
    leading = torch.full((len(tokens), 2, WIDTH), 99.0)
    torch.testing.assert_close(summarise(torch.cat([leading, tokens], dim=1), BANDS), summarise(tokens, BANDS))


def test_without_bands_there_is_none() -> None:
    assert summarise(clips().tokens, 0).shape == (40, 0)
    assert EncoderSettings().bands == 0
    codec = Codec.fit(clips(), SIZES)[0]
    assert codec.factors(codec.encode(clips().tokens)).summary is None
    assert set(codec.state()) == set(Codec.NAMES)
    assert not any("summary" in name or "norm" in name.split(".")[0] for name in adapters(0).state_dict())


def adapters(bands: int = BANDS) -> torch.nn.Module:
    return build_adapters(SHAPE, TARGETS, SMALL, seed=0, bands=bands).eval()


def test_adapters_read_it_of_dense_and_of_factored_tokens() -> None:
    source, made = clips(), adapters()
    projected = ProjectedTokens.of(source, ProjectionSettings(SHAPE[0], WIDTH), BANDS, batch_size=7)
    order = torch.tensor([3, 0, 39])
    dense, factored = made(source.batch(order)), made(projected.factors(order))
    torch.testing.assert_close(dense, factored, atol=1e-4, rtol=1e-3)
    without = replace(projected.factors(order), summary=None)
    torch.testing.assert_close(made(without), factored, atol=1e-4, rtol=1e-3)
    other = replace(projected.factors(order), summary=torch.zeros(3, WIDTH))
    assert all(not torch.allclose(made(other)[name], factored[name], atol=1e-3) for name in TARGETS)


def test_narrow_bases_keep_the_summary_of_the_clips_themselves() -> None:
    source = clips()
    projected = ProjectedTokens.of(source, ProjectionSettings(2, 2), BANDS)
    summary = projected.factors(torch.arange(40)).summary
    assert summary is not None
    torch.testing.assert_close(summary, summarise(source.tokens, BANDS))
    assert not torch.allclose(summarise(projected.batch(torch.arange(40)), BANDS), summary, atol=0.1)


def test_the_codec_keeps_it() -> None:
    codec, tokens = fitted(), clips(seed=5).tokens
    assert codec.size == SIZES.channels * SIZES.positions + WIDTH
    summary = codec.factors(codec.encode(tokens)).summary
    torch.testing.assert_close(summary, summarise(tokens, BANDS), atol=1e-3, rtol=1e-3)
    features = codec.bases.project(clips(200).tokens)
    energy = features.var(dim=0, correction=0)
    assert energy[-WIDTH:].sum() == pytest.approx(9 * float(energy[:-WIDTH].sum()), rel=1e-3)
    assert energy[-WIDTH:].std() < 1e-3 * energy[-WIDTH:].mean()


def test_few_coefficients_keep_it_better_than_tokens_of_so_few_do() -> None:
    tokens, few = clips(seed=5).tokens, 5
    codec, plain = fitted().truncated(few), Codec.fit(clips(200), SIZES)[0].truncated(few)
    wanted = summarise(tokens, BANDS)
    summary = codec.factors(codec.encode(tokens)).summary
    assert summary is not None
    guessed = summarise(plain.decode(plain.encode(tokens)), BANDS)
    assert (summary - wanted).square().mean() < 0.3 * (guessed - wanted).square().mean()


def test_a_codec_with_a_summary_comes_back_from_its_state() -> None:
    codec, tokens = fitted(), clips(seed=5).tokens
    again = Codec.from_state(codec.state())
    assert again.encode(tokens).equal(codec.encode(tokens))
    assert again.to("cpu").factors(codec.encode(tokens)).summary is not None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bands", None),
        ("spread", None),
        ("spread", torch.ones(WIDTH - 1)),
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
    plain, noisy = codec.factors(latents).summary, codec.factors(latents, torch.Generator().manual_seed(0)).summary
    assert plain is not None
    assert noisy is not None
    assert (noisy - plain).std() > 0.01


def test_samples_and_clips_in_one_pool_have_their_own() -> None:
    codec, source = fitted(), clips()
    samples = SyntheticTokens(codec, codec.encode(clips(seed=5).tokens), torch.zeros(40))
    pool = PooledTokens([ProjectedTokens.of(source, ProjectionSettings(3, 3), BANDS), samples])
    found = pool.factors(torch.tensor([41, 2, 79]))
    assert isinstance(found, FactoredTokens)
    assert found.summary is not None
    torch.testing.assert_close(found.summary[1], summarise(source.tokens, BANDS)[2])
    wanted = codec.factors(codec.encode(clips(seed=5).tokens[[1, 39]]), torch.Generator()).summary
    assert wanted is not None
    assert (found.summary[[0, 2]] - wanted).abs().max() < 0.1  # but for the residual noise


def test_marginals_leave_it_alone() -> None:
    codec = fitted()
    latents = codec.encode(clips(seed=5).tokens)
    channels, mean = codec.channels.shape[1], latents.mean(0)
    identity = torch.linspace(-1, 1, POINTS).expand(channels, POINTS)
    low, step = torch.full((channels,), -1.0), torch.full((channels,), 2 / (POINTS - 1))
    torch.testing.assert_close(_mapped(codec, latents, mean, low, step, identity), latents, atol=1e-3, rtol=1e-3)
    moved = codec.factors(_mapped(codec, latents, mean, low, step, 3 * identity))
    assert moved.summary is not None
    wanted = codec.factors(latents)
    assert wanted.summary is not None
    assert not torch.allclose(moved.cores, wanted.cores, atol=0.1)
    torch.testing.assert_close(moved.summary, wanted.summary, atol=2e-2, rtol=1e-2)


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
    assert run.adapters.bands == encoder.bands
    assert run.codec.bases.summary_size == 512
    assert all(torch.isfinite(value).all() for value in run.adapters.state_dict().values())

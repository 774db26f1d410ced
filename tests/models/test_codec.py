"""The codec keeps what is low-rank, streams, and holds no clip."""

import pytest
import torch
from torch import Tensor

from fedgen.data.tokens import TensorTokens
from fedgen.errors import ConfigError, DataError
from fedgen.models.bases import resampling, upsampling
from fedgen.models.codec import Codec
from fedgen.models.settings import CodecSettings, Lengths

SETTINGS = CodecSettings(channels=4, positions=3, components=8)


def low_rank(count: int, length: int = 20, width: int = 10, rank: int = 8, seed: int = 0) -> Tensor:
    """Sequences whose cores of 3 x 4 vary in ``rank`` directions: ``(N, S, D)``."""
    generator = torch.Generator().manual_seed(seed)
    positions, channels = torch.randn(length, 3, generator=generator), torch.randn(width, 4, generator=generator)
    directions = torch.randn(rank, 12, generator=generator)
    cores = 1 + torch.randn(count, rank, generator=torch.Generator().manual_seed(seed + count)) @ directions
    return positions @ cores.view(count, 3, 4) @ channels.T


def test_low_rank_sequences_come_back_exactly_also_unseen_ones() -> None:
    train, unseen = low_rank(64), low_rank(5)
    codec = Codec.fit(TensorTokens(train, torch.zeros(64)), SETTINGS, batch_size=16)[0]
    assert codec.size == 8
    for tokens in (train, unseen):
        torch.testing.assert_close(codec.decode(codec.encode(tokens)), tokens, atol=1e-3, rtol=1e-3)


def test_latents_have_unit_mean_variance_and_the_leading_ones_more() -> None:
    source = TensorTokens(torch.randn(64, 20, 10), torch.zeros(64))
    latents = Codec.fit(source, SETTINGS)[0].encode_all(source, batch_size=10)
    torch.testing.assert_close(latents.mean(0), torch.zeros(8), atol=1e-4, rtol=0)
    variance = latents.var(0, correction=0)
    assert variance.mean().item() == pytest.approx(1, rel=1e-3)
    assert variance.tolist() == sorted(variance.tolist(), reverse=True)


def test_noise_gives_back_the_deviation_that_the_components_leave_out() -> None:
    tokens = torch.randn(200, 6, 5)
    source = TensorTokens(tokens, torch.zeros(200))
    codec = Codec.fit(source, CodecSettings(channels=5, positions=6, components=4))[0]
    latents = codec.encode(tokens)
    plain, noisy = codec.decode(latents), codec.decode(latents, torch.Generator().manual_seed(0))
    assert plain.var() < 0.5 * tokens.var()
    assert noisy.var().item() == pytest.approx(tokens.var().item(), rel=0.05)
    torch.testing.assert_close(noisy, codec.decode(latents, torch.Generator().manual_seed(0)))
    silent = Codec.fit(source, CodecSettings(channels=5, positions=6, components=4, noise=False))[0]
    torch.testing.assert_close(silent.decode(latents, torch.Generator()), silent.decode(latents))


@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 1), (5, 4), (100, 6)])
def test_sizes_are_limited_by_clips_and_by_what_a_sequence_has(count: int, size: int) -> None:
    source = TensorTokens(torch.randn(count, 3, 2), torch.zeros(count))
    codec = Codec.fit(source, CodecSettings())[0]
    assert (codec.size, codec.shape) == (size, (3, 2))
    assert codec.decode(codec.encode_all(source)).isfinite().all()


def test_equal_clips_are_no_trouble() -> None:
    source = TensorTokens(torch.ones(4, 3, 2), torch.zeros(4))
    codec = Codec.fit(source, CodecSettings())[0]
    torch.testing.assert_close(codec.decode(codec.encode_all(source)), torch.ones(4, 3, 2), atol=1e-4, rtol=0)


def test_both_ways_to_the_principal_components_agree() -> None:
    tokens = low_rank(40)
    few = Codec.fit(TensorTokens(tokens, torch.zeros(40)), CodecSettings(20, 20, 8))[0]  # 40 clips, core of 10 x 20
    many = Codec.fit(TensorTokens(tokens, torch.zeros(40)), CodecSettings(4, 3, 8))[0]  # 40 clips, core of 12
    torch.testing.assert_close(few.decode(few.encode(tokens)), many.decode(many.encode(tokens)), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [(Lengths(4), 20), (Lengths(4, 4), 4), (Lengths(4, 30, "learned"), 30), (Lengths(20, 6), 6), (Lengths(20), 20)],
)
def test_lengths_decide_what_it_decodes_to(lengths: Lengths, expected: int) -> None:
    source = TensorTokens(low_rank(30), torch.zeros(30))
    codec = Codec.fit(source, SETTINGS, lengths)[0]
    assert codec.shape == (expected, 10)
    assert codec.decode(codec.encode_all(source)).shape == (30, expected, 10)
    assert ("analysis" in codec.state()) == (lengths != Lengths(20))


@pytest.mark.parametrize("kind", ["linear", "nearest", "cubic", "learned"])
def test_a_short_sequence_is_kept_and_up_sampled(kind: str) -> None:
    tokens = low_rank(64)
    lengths = Lengths(5, None, kind)
    short = resampling(20, 5).float() @ tokens
    up = upsampling(lengths, torch.einsum("nsd,ntd->st", tokens, tokens)).float()
    codec = Codec.fit(TensorTokens(tokens, torch.zeros(64)), SETTINGS, lengths)[0]
    torch.testing.assert_close(codec.decode(codec.encode(tokens)), up @ short, atol=5e-3, rtol=1e-2)


def test_only_sequences_of_the_encoder_are_encoded() -> None:
    source = TensorTokens(low_rank(30), torch.zeros(30))
    for lengths in (Lengths(), Lengths(4, 12)):
        codec = Codec.fit(source, SETTINGS, lengths)[0]
        with pytest.raises(DataError, match=r"encodes sequences \(20, 10\), got \(12, 10\)"):
            codec.encode(torch.zeros(2, 12, 10))


def test_state_rebuilds_the_codec_and_is_small() -> None:
    source = TensorTokens(torch.randn(30, 9, 8), torch.zeros(30))
    codec = Codec.fit(source, SETTINGS)[0]
    twin = Codec.from_state(codec.state())
    torch.testing.assert_close(twin.encode_all(source), codec.encode_all(source), atol=0, rtol=0)
    assert sum(value.numel() for value in codec.state().values()) < 9 * 3 + 8 * 4 + (8 + 2) * 12 + 8 + 1


WHOLE = Codec.fit(TensorTokens(torch.randn(30, 9, 8), torch.zeros(30)), SETTINGS, Lengths(5))[0].state()
NATIVE = Codec.fit(TensorTokens(torch.randn(30, 9, 8), torch.zeros(30)), SETTINGS)[0].state()


@pytest.mark.parametrize(("state", "name"), [(state, name) for state in (WHOLE, NATIVE) for name in state])
def test_a_state_that_does_not_fit_together_is_refused(state: dict[str, Tensor], name: str) -> None:
    assert Codec.from_state(state).state().keys() == state.keys()
    with pytest.raises(DataError, match=r"codec|state"):
        Codec.from_state({**state, name: state[name][None]})
    if name == "positions":
        with pytest.raises(DataError, match=r"codec\.\w+ is \(.*expected shape"):
            Codec.from_state({**state, name: state[name][:, :0]})
    if name != "analysis":
        with pytest.raises(DataError, match=name):
            Codec.from_state({key: value for key, value in state.items() if key != name})


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(DataError, match="at least 1 clip"):
        Codec.fit(TensorTokens(torch.zeros(0, 3, 2), torch.zeros(0)), SETTINGS)
    source = TensorTokens(torch.randn(5, 3, 2), torch.zeros(5))
    with pytest.raises(ConfigError, match=r"generator\.training_length=4 is longer than the encoder's"):
        Codec.fit(source, SETTINGS, Lengths(4))


def test_a_truncated_codec_is_that_of_fewer_components() -> None:
    source = TensorTokens(torch.randn(60, 9, 8), torch.zeros(60))
    whole = Codec.fit(source, CodecSettings(4, 3, 12))[0]
    for noise in (True, False):
        few, cut = Codec.fit(source, CodecSettings(4, 3, 5, noise))[0], whole.truncated(5, noise)
        for name, value in few.state().items():
            torch.testing.assert_close(cut.state()[name], value, atol=1e-4, rtol=1e-4)
    assert whole.truncated(100).size == 12

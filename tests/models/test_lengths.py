"""Sequences get shorter by averaging and longer as torch interpolates, or as the clips themselves teach."""

import logging

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fedgen.errors import ConfigError
from fedgen.models.bases import learned, resampling, upsampling
from fedgen.models.settings import UPSAMPLING, Lengths


def clips(count: int = 200, length: int = 24, width: int = 6) -> Tensor:
    """Sequences that swing in two ways, each clip with its own strengths: ``(N, S, D)``."""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(length) / length
    waves = torch.stack([(2 * torch.pi * time).sin(), (6 * torch.pi * time).cos()], dim=1)  # (S, 2)
    strengths = torch.randn(count, 2, width, generator=generator)
    return 1 + waves @ strengths + 0.1 * torch.randn(count, length, width, generator=generator)


def moments(tokens: Tensor) -> Tensor:
    return torch.einsum("nsd,ntd->st", tokens.double(), tokens.double())


def test_nothing_said_means_the_encoders_own_length() -> None:
    assert Lengths().resolve(1214) == (1214, 1214)
    assert Lengths(training=4).resolve(1214) == (4, 1214)
    assert Lengths(output=30).resolve(20) == (20, 30)


def test_shorter_is_the_mean_of_neighbours() -> None:
    tokens = torch.randn(2, 10, 3, dtype=torch.float64)
    expected = functional.adaptive_avg_pool1d(tokens.transpose(1, 2), 4).transpose(1, 2)
    torch.testing.assert_close(resampling(10, 4) @ tokens, expected)
    torch.testing.assert_close(resampling(10, 4, "nearest") @ tokens, expected)
    pairs = resampling(10, 5)
    assert pairs[0].tolist() == [0.5, 0.5, 0, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(("short", "long"), [(4, 10), (7, 31), (1, 5)])
def test_longer_is_what_torch_interpolates(short: int, long: int) -> None:
    tokens = torch.randn(2, short, 3)
    channels_first = tokens.transpose(1, 2)
    expected = {
        "linear": functional.interpolate(channels_first, long, mode="linear", align_corners=False).transpose(1, 2),
        "nearest": functional.interpolate(channels_first, long, mode="nearest").transpose(1, 2),
        "cubic": functional.interpolate(tokens[:, None], (long, 3), mode="bicubic", align_corners=False)[:, 0],
    }
    for kind, wanted in expected.items():
        up = upsampling(Lengths(short, long, kind), torch.eye(long)).float()
        torch.testing.assert_close(up @ tokens, wanted, msg=lambda text, kind=kind: f"{kind}: {text}")


def test_equal_lengths_change_nothing() -> None:
    for kind in UPSAMPLING:
        up = upsampling(Lengths(8, 8, kind), moments(clips(length=8)))
        torch.testing.assert_close(up, torch.eye(8, dtype=torch.float64), atol=1e-4, rtol=0)


def error(up: Tensor, tokens: Tensor, length: int) -> float:
    """Mean squared error of shortened and up-sampled clips."""
    down = resampling(tokens.shape[1], length, "linear")
    return float((up @ (down @ tokens.double()) - tokens.double()).square().mean())


def test_learned_beats_every_fixed_way_also_on_unseen_clips() -> None:
    train, unseen = clips().split(100)
    own = upsampling(Lengths(6, None, "learned"), moments(train))
    for tokens in (train, unseen):
        for kind in ("linear", "nearest", "cubic"):
            assert error(own, tokens, 6) < 0.9 * error(upsampling(Lengths(6, 24, kind), moments(train)), tokens, 6)


def test_learned_is_the_optimum_that_gradient_descent_looks_for() -> None:
    tokens, down = clips(), resampling(24, 6, "linear")
    own = learned(moments(tokens), 6, 24)
    trained = resampling(6, 24, "linear").clone().requires_grad_()
    optimizer = torch.optim.LBFGS([trained], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (trained @ (down @ tokens.double()) - tokens.double()).square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    best = error(trained.detach(), tokens, 6)
    assert error(own, tokens, 6) <= best * (1 + 1e-6)
    assert best < error(resampling(6, 24, "linear"), tokens, 6) * 0.9  # descent did get somewhere


def test_learned_aims_at_the_clips_resampled_to_the_wanted_length() -> None:
    tokens = clips().double()
    short = resampling(24, 6, "linear") @ tokens
    for output in (12, 48):
        wanted = resampling(24, output, "linear") @ tokens
        own = learned(moments(tokens), 6, output)
        linear = resampling(6, output, "linear")
        assert (own @ short - wanted).square().mean() < 0.9 * (linear @ short - wanted).square().mean()


@pytest.mark.parametrize("tokens", [torch.zeros(3, 24, 2), torch.ones(3, 24, 2), clips(count=1, width=2)])
def test_learned_exists_where_clips_say_little(tokens: Tensor) -> None:
    own = learned(moments(tokens), 6, 24)
    linear = resampling(6, 24, "linear")
    assert own.isfinite().all()
    assert own.abs().max() < 100
    assert error(own, tokens, 6) <= error(linear, tokens, 6) + 1e-9
    if not tokens.any():
        torch.testing.assert_close(own, linear)


def test_large_factors_are_warned_of_by_value_and_keys(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        upsampling(Lengths(4, 64), torch.eye(64))
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        upsampling(Lengths(4, None), torch.eye(70))
    (record,) = caplog.records
    assert "generator.output_length=70 is 17.5 times generator.training_length=4" in record.getMessage()


def test_lengths_that_cannot_be_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"generator\.training_length=0 must be at least 1"):
        Lengths(training=0)
    with pytest.raises(ConfigError, match=r"generator\.upsampling='lerned'.*Did you mean 'learned'"):
        Lengths(upsampling="lerned")
    with pytest.raises(ConfigError, match=r"generator\.training_length=20 is longer than the encoder's .* 10 tokens"):
        Lengths(training=20).resolve(10)

"""Second moments of token sequences, and the bases that follow from them."""

import pytest
import torch
from torch import Tensor

from fedgen.data.tokens import TensorTokens
from fedgen.errors import ConfigError
from fedgen.models.bases import Bases, resampling, upsampling
from fedgen.models.moments import Moments
from fedgen.models.settings import CodecSettings, Lengths


def source(tokens: Tensor) -> TensorTokens:
    return TensorTokens(tokens, torch.zeros(len(tokens)))


def test_moments_are_sums_over_clips() -> None:
    tokens = torch.randn(32, 7, 80)  # wider than the sketch
    halves = [Moments.measure(source(part), batch_size=8) for part in tokens.split(16)]
    whole = Moments.measure(source(tokens), batch_size=8)
    assert whole.count == 32
    torch.testing.assert_close(halves[0].channels + halves[1].channels, whole.channels)
    torch.testing.assert_close(halves[0].positions + halves[1].positions, whole.positions)
    torch.testing.assert_close(
        whole.channels.float(), torch.einsum("nsd,nse->de", tokens, tokens), atol=1e-3, rtol=1e-4
    )


def test_native_bases_are_leading_eigenvectors() -> None:
    tokens = torch.randn(30, 9, 8).cumsum(1)
    moments = Moments.measure(source(tokens))
    bases = Bases.from_moments(moments, CodecSettings(4, 3), Lengths())
    assert (bases.positions.shape, bases.channels.shape) == ((9, 3), (8, 4))
    assert bases.analysis is bases.positions
    largest = torch.linalg.eigvalsh(moments.positions)[-3:].sum()
    kept = (bases.positions.double().T @ moments.positions @ bases.positions.double()).trace()
    torch.testing.assert_close(kept, largest)


def test_other_lengths_are_in_the_bases() -> None:
    tokens = torch.randn(30, 9, 8)
    lengths = Lengths(3, 12, "cubic")
    bases = Bases.from_moments(Moments.measure(source(tokens)), CodecSettings(8, 9), lengths)
    cores = bases.project(tokens).view(30, 3, 8)
    down, up = resampling(9, lengths.resolve(9)[0]).float(), upsampling(lengths, torch.eye(9)).float()
    torch.testing.assert_close(bases.positions @ cores @ bases.channels.T, up @ down @ tokens, atol=1e-4, rtol=1e-4)


def test_sizes_that_cannot_be_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"^codec\.positions=0"):
        CodecSettings(positions=0)

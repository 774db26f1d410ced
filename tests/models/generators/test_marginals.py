"""Samples get the distribution of single values that the clips have, and lose nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedgen.data.tokens import TensorTokens
from fedgen.errors import DataError
from fedgen.models.codec import NATIVE, Codec
from fedgen.models.generators.density import FEW, ClassGaussians
from fedgen.models.generators.marginals import POINTS, Marginals
from fedgen.models.settings import CodecSettings, Lengths

SHAPE = (40, 6)  # tokens of a clip


def clips(count: int, seed: int, event: float) -> Tensor:
    """Noise with a strong event at one place of each clip, in the direction of ones."""
    generator = torch.Generator().manual_seed(seed)
    tokens = 0.1 * torch.randn(count, *SHAPE, generator=generator)
    places = torch.randint(SHAPE[0], (count,), generator=generator)
    tokens[torch.arange(count), places] += event
    return tokens


def fitted(
    event: float, lengths: Lengths = NATIVE, count: int = 60
) -> tuple[Codec, Tensor, Tensor, ClassGaussians, Marginals]:
    tokens = clips(count, 0, event)
    labels = torch.full((count,), 3)
    source = TensorTokens(tokens, labels)
    codec = Codec.fit(source, CodecSettings(channels=6, positions=40, components=240), lengths)[0]
    latents = codec.encode_all(source)
    density = ClassGaussians.fit(latents, labels, shrinkage=0.0)
    return codec, latents, labels, density, Marginals.fit(codec, latents, labels, density.sample, seed=0)


def kurtosis(codec: Codec, latents: Tensor) -> float:
    """Of the leading channel's deviations from the mean clip; 3 for a Gaussian."""
    values = codec.positions @ (codec.cores(latents) - codec.cores(latents.mean(0, keepdim=True)))
    leading = values[..., 0]
    return float(leading.pow(4).mean() / leading.square().mean().square())


@pytest.mark.parametrize("lengths", [NATIVE, Lengths(training=20)])
def test_rare_events_are_as_rare_and_as_strong_as_in_the_clips(lengths: Lengths) -> None:
    codec, latents, _, density, marginals = fitted(5.0, lengths)
    drawn = density.sample(3, 400, torch.Generator().manual_seed(1))
    matched = marginals.match(codec, 3, drawn)
    real, before, after = (kurtosis(codec, values) for values in (latents, drawn, matched))
    assert before < 0.5 * real
    assert after == pytest.approx(real, rel=0.35)  # where lengths differ, what lies between two tokens blurs it


def test_coefficients_keep_their_mean_and_deviation() -> None:
    codec, _, _, density, marginals = fitted(5.0)
    drawn = density.sample(3, 2000, torch.Generator().manual_seed(1))
    matched = marginals.match(codec, 3, drawn)
    spread = drawn.std(0)
    assert ((matched.mean(0) - drawn.mean(0)).abs() / spread).mean() < 0.1
    assert (matched.std(0) / spread - 1).abs().mean() < 0.1


def test_gaussian_clips_leave_gaussian_samples_nearly_as_they_are() -> None:
    codec, _, _, density, marginals = fitted(0.0, count=400)
    drawn = density.sample(3, 100, torch.Generator().manual_seed(1))
    matched = marginals.match(codec, 3, drawn)
    assert (matched - drawn).square().mean() < 0.01 * drawn.var(0).mean()


def test_a_sample_does_not_depend_on_the_others() -> None:
    codec, _, _, density, marginals = fitted(5.0)
    drawn = density.sample(3, 150, torch.Generator().manual_seed(1))
    torch.testing.assert_close(marginals.match(codec, 3, drawn)[70:75], marginals.match(codec, 3, drawn[70:75]))


def test_a_class_of_few_clips_has_none() -> None:
    codec, latents, _, density, _ = fitted(5.0)
    rows = latents[: FEW + FEW - 1]
    labels = torch.tensor([3] * FEW + [8] * (FEW - 1))
    two = ClassGaussians.fit(rows, labels)
    marginals = Marginals.fit(codec, rows, labels, two.sample, seed=0)
    assert marginals.classes.tolist() == [3]
    drawn = two.sample(8, 5, torch.Generator().manual_seed(1))
    assert marginals.match(codec, 8, drawn).equal(drawn)
    none = Marginals.fit(codec, rows[:3], labels[:3], density.sample, seed=0)
    assert Marginals.from_state(none.state(), codec).match(codec, 3, drawn).equal(drawn)


def test_a_state_gives_the_same_again_and_holds_no_clip() -> None:
    codec, latents, _, density, marginals = fitted(5.0)
    again = Marginals.from_state(marginals.state(), codec)
    drawn = density.sample(3, 20, torch.Generator().manual_seed(1))
    assert again.match(codec, 3, drawn).equal(marginals.match(codec, 3, drawn))
    rows = torch.cat([marginals.state()[name] for name in ("means", "shifts", "gains")])
    assert torch.cdist(rows, latents).min() > 0.1 * torch.pdist(latents).min()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("tables", torch.zeros(1, 6, POINTS - 1), "tables"),
        ("gains", torch.zeros(2, 240), "gains"),
        ("lows", None, "lows"),
        ("classes", torch.tensor([[3]]), "classes"),
    ],
)
def test_a_state_of_another_shape_is_refused(name: str, value: Tensor | None, told: str) -> None:
    codec, *_, marginals = fitted(5.0)
    state = marginals.state()
    if value is None:
        del state[name]
    else:
        state[name] = value
    with pytest.raises(DataError, match=told):
        Marginals.from_state(state, codec)


def test_classes_that_do_not_ascend_are_refused() -> None:
    codec, *_, marginals = fitted(5.0)
    state = {name: torch.cat([value, value]) for name, value in marginals.state().items()}
    with pytest.raises(DataError, match=r"\[3, 3\], which do not ascend"):
        Marginals.from_state(state, codec)

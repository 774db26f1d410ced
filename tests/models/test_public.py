"""The public codec: the same on every machine, told from any other by a few numbers, and whole again from its state."""

from dataclasses import replace

import pytest
import torch
from spaces import SMALL, toy_space, toy_tokens

from fedgen.data.tokens import TensorTokens
from fedgen.errors import DataError
from fedgen.models.codec import Codec
from fedgen.models.public import TOLERANCE, PublicSpace
from fedgen.models.settings import CodecSettings, Lengths

SHAPE = (40, 24)
SIZES = CodecSettings(channels=8, positions=6, components=16)


def sounds(seed: int = 1, count: int = 120) -> TensorTokens:
    """Return sequences whose energy falls off as in sounds: no two directions are as strong as each other."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(SHAPE[0], SHAPE[0], generator=generator) * 0.8 ** torch.arange(SHAPE[0])
    columns = torch.randn(SHAPE[1], SHAPE[1], generator=generator) * 0.8 ** torch.arange(SHAPE[1])
    cores = torch.randn(count, SHAPE[0], SHAPE[1], generator=generator)
    return TensorTokens(rows @ cores @ columns.T, torch.arange(count) % 4)


def space(source: TensorTokens, sizes: CodecSettings = SIZES, lengths: Lengths = Lengths()) -> PublicSpace:  # noqa: B008
    return PublicSpace.of(source, sizes, lengths)


def with_codec(own: PublicSpace, **changed: torch.Tensor) -> PublicSpace:
    return replace(own, codec=Codec.from_state(own.codec.state() | changed))


def test_a_space_knows_the_public_clips_and_nothing_else() -> None:
    source = toy_tokens((7, 5))
    own = PublicSpace.of(source, SMALL)
    torch.testing.assert_close(own.latents, own.codec.encode_all(source))
    assert own.labels.equal(source.labels)
    assert own.within.shape == (6, 6)


@pytest.mark.parametrize("lengths", [Lengths(), Lengths(8), Lengths(8, 60, "learned")])
def test_more_threads_and_what_processors_round_differently_make_the_same_codec(lengths: Lengths) -> None:
    source = sounds()
    one = space(source, lengths=lengths)
    torch.set_num_threads(2)
    try:
        other = space(source, lengths=lengths)
    finally:
        torch.set_num_threads(1)
    one.require_same(other.sketch())
    noise = torch.randn(source.tokens.shape, generator=torch.Generator().manual_seed(5))
    one.require_same(space(TensorTokens(source.tokens * (1 + 1e-5 * noise), source.labels), lengths=lengths).sketch())


@pytest.mark.parametrize(
    "other",
    [
        space(sounds(seed=2)),
        space(sounds(count=60)),
        space(sounds(), replace(SIZES, channels=9)),
        space(sounds(), replace(SIZES, positions=5)),
        space(sounds(), replace(SIZES, components=15)),
        space(sounds(), lengths=Lengths(8)),
    ],
    ids=["other sounds", "half of them", "channels", "positions", "components", "training length"],
)
def test_another_codec_is_refused_with_how_far_apart_they_are(other: PublicSpace) -> None:
    own = space(sounds())
    own.require_same(own.sketch())
    for one, two in ((own, other), (other, own)):
        with pytest.raises(DataError, match=rf"codec is not the one .* apart, {TOLERANCE} at most"):
            one.require_same(two.sketch())


def test_how_samples_are_decoded_is_no_other_codec() -> None:
    """Latents do not depend on it; nodes of one run have the same configuration, later runs may have another."""
    own = space(sounds(), lengths=Lengths(8, 8))
    for lengths in (Lengths(8), Lengths(8, 60, "cubic"), Lengths(8, 60, "learned")):
        own.require_same(space(sounds(), lengths=lengths).sketch())


@pytest.mark.parametrize("row", [0, 3, 15])
def test_a_component_of_the_other_sign_is_refused(row: int) -> None:
    """Two such codecs span the same space, and yet samples of one are nonsense in the other."""
    own = space(sounds())
    components = own.codec.components.clone()
    components[row] *= -1
    with pytest.raises(DataError, match="codec is not the one"):
        own.require_same(with_codec(own, components=components).sketch())


def test_swapped_components_and_another_scale_or_mean_are_refused() -> None:
    own = space(sounds())
    codec = own.codec
    changes = [
        {"components": codec.components.flip(0)},
        {"scale": 1.2 * codec.scale},
        {"mean": codec.mean + 2 * codec.scale.mean() * codec.components.sum(0)},
    ]
    for change in changes:
        with pytest.raises(DataError, match="codec is not the one"):
            own.require_same(with_codec(own, **change).sketch())


@pytest.mark.parametrize("sketch", [[], [0.0], [float("nan")] * 68, [float("inf")] * 68])
def test_what_is_no_sketch_is_refused(sketch: list[float]) -> None:
    own = space(sounds())
    assert len(own.sketch()) == 68
    with pytest.raises(DataError, match="codec is not the one"):
        own.require_same(sketch)


def test_a_state_gives_the_same_space_again() -> None:
    own = toy_space(lengths=Lengths(4, 9))
    again = PublicSpace.from_state(own.state())
    torch.testing.assert_close(again.state(), own.state(), atol=0, rtol=0)
    again.require_same(own.sketch())


@pytest.mark.parametrize(
    ("name", "value"),
    [("latents", torch.zeros(60, 5)), ("labels", torch.zeros(59)), ("latents", None), ("codec.scale", None)],
)
def test_a_state_that_does_not_fit_together_is_refused(name: str, value: torch.Tensor | None) -> None:
    state = toy_space().state()
    if value is None:
        del state[name]
    else:
        state[name] = value
    with pytest.raises(DataError):
        PublicSpace.from_state(state)

"""Sums over clips survive the wire; whatever no clips can have is refused by name."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from fedgen.data.tokens import TensorTokens
from fedgen.errors import ConfigError, PayloadError
from fedgen.exchange.moments import (
    core_moments_from_record,
    core_moments_to_record,
    moments_from_record,
    moments_to_record,
)
from fedgen.models.bases import Bases
from fedgen.models.codec import Codec, CodecSettings
from fedgen.models.cores import CoreMoments
from fedgen.models.lengths import Lengths
from fedgen.models.moments import Moments

SHAPE = (9, 8)
SETTINGS = CodecSettings(4, 5, 6)
FLAT = CodecSettings(name="flat")


def node(count: int = 10, seed: int = 0) -> TensorTokens:
    tokens = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return TensorTokens(5 + tokens.cumsum(1), torch.zeros(count))


@pytest.mark.parametrize("settings", [SETTINGS, FLAT], ids=lambda settings: settings.name)
def test_a_codec_fitted_over_the_wire_is_the_one_of_all_clips(settings: CodecSettings) -> None:
    nodes, lengths = [node(10, seed) for seed in range(3)], Lengths(6, None, "learned")
    first = [moments_from_record(moments_to_record(Moments.measure(own)), SHAPE, limit=10) for own in nodes]
    bases = Bases.from_moments(first[0] + first[1] + first[2], settings, lengths)
    size = bases.project(nodes[0].tokens[:1]).shape[1]
    sent = [core_moments_to_record(CoreMoments.measure(own, bases)) for own in nodes]
    second = [core_moments_from_record(record, size, 10, flat=settings is FLAT) for record in sent]
    shared = Codec.from_moments(bases, second[0] + second[1] + second[2], settings)
    tokens = torch.cat([own.tokens for own in nodes])
    alone = Codec.fit(TensorTokens(tokens, torch.zeros(30)), settings, lengths)
    torch.testing.assert_close(shared.scale, alone.scale, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        shared.decode(shared.encode(tokens)), alone.decode(alone.encode(tokens)), atol=1e-3, rtol=1e-3
    )


def test_triangles_save_half_the_bytes() -> None:
    record = moments_to_record(Moments.measure(node()))
    assert {name: array.shape for name, array in record.items()} == {
        "count": (1,),
        "channels": (8 * 9 // 2,),
        "positions": (9 * 10 // 2,),
    }


@pytest.mark.parametrize("clips", [1, 2])
def test_a_node_with_too_few_clips_sends_nothing(clips: int) -> None:
    with pytest.raises(ConfigError, match="choose sharing=local"):
        moments_to_record(Moments.measure(node(clips)))
    with pytest.raises(ConfigError, match="choose sharing=local"):
        core_moments_to_record(CoreMoments(clips, torch.zeros(3), torch.zeros(3, 3)))


def first_is(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.flat[0] = value
        return array

    return change


def second_is(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.flat[1] = value
        return array

    return change


def read_first(record: ArrayRecord) -> Moments:
    return moments_from_record(record, SHAPE, limit=10)


def read_second(record: ArrayRecord) -> CoreMoments:
    return core_moments_from_record(record, 20, limit=10)


@pytest.mark.parametrize(
    ("array", "change", "says"),
    [
        ("count", first_is(11), "sums over 11 clips, expected 3 to 10"),
        ("count", first_is(2), "sums over 2 clips, expected 3 to 10"),
        ("count", lambda a: a.astype(np.float64), "count is float64"),
        ("channels", lambda a: a[:-1].copy(), r"channels .*\(35,\), expected float32 of shape \(36\)"),
        ("channels", first_is(-1), "channels holds sums of squares from -1 to"),
        ("channels", first_is(1e30), "channels holds sums of squares from .* to 1e.30, expected 0 to 1e.13"),
        ("channels", second_is(1e6), "channels holds products that exceed what its squares allow"),
        ("positions", first_is(np.nan), "positions has 1 values that are NaN or infinite"),
        ("positions", lambda a: a.astype(np.float64), "positions is float64"),
    ],
)
def test_moments_that_no_clips_have_are_refused(
    array: str, change: Callable[[np.ndarray], np.ndarray], says: str
) -> None:
    record = moments_to_record(Moments.measure(node()))
    read_first(record)
    record[array] = Array(change(record[array].numpy()))
    with pytest.raises(PayloadError, match=says):
        read_first(record)


@pytest.mark.parametrize(
    ("array", "change", "says"),
    [
        ("count", first_is(0), "sums over 0 clips"),
        ("mean", first_is(1e7), "mean holds 1e.07, expected at most 1e.06"),
        ("mean", lambda a: a[:-1].copy(), r"mean .*\(19,\), expected float32 of shape \(20\)"),
        ("scatter", first_is(-1), "scatter holds sums of squares from -1"),
        ("scatter", second_is(1e9), "scatter holds products that exceed"),
        ("scatter", first_is(np.inf), "scatter has 1 values that are NaN or infinite"),
    ],
)
def test_core_moments_that_no_clips_have_are_refused(
    array: str, change: Callable[[np.ndarray], np.ndarray], says: str
) -> None:
    bases = Bases.from_moments(Moments.measure(node()), SETTINGS, Lengths())
    record = core_moments_to_record(CoreMoments.measure(node(), bases))
    read_second(record)
    record[array] = Array(change(record[array].numpy()))
    with pytest.raises(PayloadError, match=says):
        read_second(record)


def test_a_flat_codecs_sums_are_checked_too() -> None:
    bases = Bases.from_moments(Moments.measure(node()), FLAT, Lengths(2))
    record = core_moments_to_record(CoreMoments.measure(node(), bases))
    assert core_moments_from_record(record, 16, 10, flat=True).scatter.shape == (16,)
    with pytest.raises(PayloadError, match=r"scatter .*\(16,\), expected float32 of shape \(136\)"):
        core_moments_from_record(record, 16, 10)
    record["scatter"] = Array(first_is(-1)(record["scatter"].numpy()))
    with pytest.raises(PayloadError, match="sums of squares from -1"):
        core_moments_from_record(record, 16, 10, flat=True)


def test_missing_and_unexpected_arrays_are_refused() -> None:
    record = moments_to_record(Moments.measure(node()))
    record["extra"] = record.pop("channels")
    with pytest.raises(PayloadError, match=r"missing arrays \['channels'\], unexpected arrays \['extra'\]"):
        read_first(record)

"""Samples survive the wire; whatever is wrong with a message is refused by name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from spaces import toy_space

from fedgen.errors import PayloadError
from fedgen.messages.samples import SAMPLES, samples_from_record, samples_to_record
from fedgen.models.codec import NATIVE, Codec
from fedgen.models.samples import SyntheticTokens
from fedgen.models.settings import CodecSettings, Lengths

SHAPE = (9, 8)


@cache
def codec(lengths: Lengths = NATIVE) -> Codec:
    return toy_space(SHAPE, CodecSettings(4, 5, 6), lengths).codec


def samples(count: int = 12, lengths: Lengths = NATIVE) -> SyntheticTokens:
    latents = torch.randn(count, 6, generator=torch.Generator().manual_seed(0))
    return SyntheticTokens(codec(lengths), latents, torch.arange(count) % 3 + 2, seed=0)


def receive(record: ArrayRecord, own: Codec | None = None, limit: int = 10) -> SyntheticTokens:
    return samples_from_record(record, own or codec(), classes=[2, 3, 4], limit=limit)


@pytest.mark.parametrize("lengths", [NATIVE, Lengths(3, 20, "learned")])
def test_samples_arrive_ordered_by_class_and_almost_unchanged(lengths: Lengths) -> None:
    sent = samples(lengths=lengths)
    received = receive(samples_to_record(sent), codec(lengths))
    assert received.shape == sent.shape
    order = sent.labels.argsort(stable=True)
    assert received.labels.tolist() == sent.labels[order].tolist()
    torch.testing.assert_close(received.latents, sent.latents[order], atol=0.02, rtol=0)
    torch.testing.assert_close(
        received.codec.decode(received.latents), sent.codec.decode(sent.latents[order]), atol=0.05, rtol=0
    )


def record_bytes(record: ArrayRecord) -> int:
    return sum(len(array.data) for array in record.values())


def test_a_sample_costs_a_byte_a_coefficient() -> None:
    small, large = (record_bytes(samples_to_record(samples(count))) for count in (12, 1012))
    assert large - small == 1000 * 6


def test_nothing_of_the_codec_travels() -> None:
    assert set(samples_to_record(samples())) == set(SAMPLES) == {"classes", "counts", "latents", "latent-scale"}


def test_no_samples_are_a_valid_message() -> None:
    assert len(receive(samples_to_record(samples(0)))) == 0


@dataclass
class Broken:
    array: str
    change: Callable[[np.ndarray], np.ndarray]
    says: str


def first(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.flat[0] = value
        return array

    return change


BROKEN = {
    "class not allowed": Broken("classes", first(9), r"class id 9 is not allowed here; allowed: \[2, 3, 4\]"),
    "class twice": Broken("classes", first(3), "names a class twice"),
    "labels of floats": Broken("classes", lambda a: a.astype(np.float32), "classes is float32.*expected int32"),
    "too many": Broken("counts", first(11), "11 samples of class id 2, expected 0 to 10"),
    "negative count": Broken("counts", first(-1), "-1 samples of class id 2"),
    "counts short": Broken("counts", lambda a: a[:2], r"counts .*shape \(2,\), expected int32 of shape \(3\)"),
    "latents missing": Broken("latents", lambda a: a[:-1], r"latents .*\(11, 6\), expected int8 of shape \(12x6\)"),
    "latents of floats": Broken("latents", lambda a: a.astype(np.float16), "latents is float16"),
    "latents flat": Broken("latents", np.ravel, r"latents .*\(72,\)"),
    "latents narrow": Broken("latents", lambda a: a[:, :5].copy(), r"latents .*\(12, 5\), expected .*\(12x6\)"),
    "scale NaN": Broken("latent-scale", first(np.nan), "latent-scale has 1 values that are NaN or infinite"),
    "scale huge": Broken("latent-scale", first(1e30), "core value of"),
    "scale of doubles": Broken("latent-scale", lambda a: a.astype(np.float64), "latent-scale is float64"),
    "scale short": Broken("latent-scale", lambda a: a[:5].copy(), r"latent-scale .*\(5,\), expected .*\(6\)"),
    "scale of dates": Broken("latent-scale", lambda a: a.astype("datetime64[s]"), "latent-scale is datetime64"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_arrays_are_refused_by_name(name: str) -> None:
    broken = BROKEN[name]
    record = samples_to_record(samples())
    record[broken.array] = Array(broken.change(record[broken.array].numpy()))
    with pytest.raises(PayloadError, match=broken.says):
        receive(record)


def test_missing_and_unexpected_arrays_are_refused() -> None:
    record = samples_to_record(samples())
    record["extra"] = record.pop("latents")
    with pytest.raises(PayloadError, match=r"missing arrays \['latents'\], unexpected arrays \['extra'\]"):
        receive(record)


def test_a_codec_that_comes_with_samples_is_refused() -> None:
    record = samples_to_record(samples())
    for name, value in codec().state().items():
        record[f"codec.{name}"] = Array(value.numpy())
    with pytest.raises(PayloadError, match=r"unexpected arrays \['codec\.channels', 'codec\.components'"):
        receive(record)


def test_samples_in_a_codec_of_another_size_are_refused() -> None:
    with pytest.raises(PayloadError, match=r"latents .*\(12, 6\), expected .*\(12x4\)"):
        receive(samples_to_record(samples()), toy_space(SHAPE, CodecSettings(4, 5, 4)).codec)


def test_headers_are_not_believed() -> None:
    record = samples_to_record(samples())
    good = record["latents"]
    lies = {
        "has 10 bytes of values": good.data[: -(12 * 6 - 10)],
        "is not a NumPy array": b"cos\nsystem\n(S'true'\ntR.",
        "has 72 bytes of values": good.data.replace(b"'shape': (12, 6), }      ", b"'shape': (12, 600000), } "),
    }
    for says, data in lies.items():
        record["latents"] = Array("int8", (12, 6), "numpy.ndarray", data)
        with pytest.raises(PayloadError, match=says):
            receive(record)
    record["latents"] = Array("int8", (12, 6), "pickle", good.data)
    with pytest.raises(PayloadError, match=r"'pickle', expected 'numpy\.ndarray'"):
        receive(record)

"""Samples survive the wire; whatever is wrong with a message is refused by name."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from fedgen.data.tokens import TensorTokens
from fedgen.errors import PayloadError
from fedgen.exchange.payload import codec_fingerprint, samples_from_record, samples_to_record
from fedgen.models.codec import Codec, CodecSettings
from fedgen.models.lengths import Lengths
from fedgen.models.samples import SyntheticTokens

SHAPE = (9, 8)


def samples(count: int = 12) -> SyntheticTokens:
    return synthetic(CodecSettings(4, 5, 6), Lengths(), count)


def flat_samples(count: int = 12) -> SyntheticTokens:
    return synthetic(CodecSettings(name="flat"), Lengths(3), count)


def synthetic(settings: CodecSettings, lengths: Lengths, count: int) -> SyntheticTokens:
    generator = torch.Generator().manual_seed(0)
    source = TensorTokens(torch.randn(40, *SHAPE, generator=generator), torch.zeros(40))
    codec = Codec.fit(source, settings, lengths)
    latents = torch.randn(count, codec.size, generator=generator)
    return SyntheticTokens(codec, latents, torch.arange(count) % 3 + 2, seed=0)


def receive(record: ArrayRecord, shape: tuple[int, int] = SHAPE, limit: int = 10) -> SyntheticTokens:
    return samples_from_record(record, shape, classes=[2, 3, 4], limit=limit)


@pytest.mark.parametrize("make", [samples, flat_samples])
def test_samples_arrive_ordered_by_class_and_almost_unchanged(make: Callable[[], SyntheticTokens]) -> None:
    sent = make()
    received = receive(samples_to_record(sent))
    order = sent.labels.argsort(stable=True)
    assert received.labels.tolist() == sent.labels[order].tolist()
    torch.testing.assert_close(received.latents, sent.latents[order], atol=0.02, rtol=0)
    torch.testing.assert_close(
        received.codec.decode(received.latents), sent.codec.decode(sent.latents[order]), atol=0.05, rtol=0
    )


def record_bytes(record: ArrayRecord) -> int:
    return sum(len(array.data) for array in record.values())


@pytest.mark.parametrize(("make", "size"), [(samples, 6), (flat_samples, 3 * 8)])
def test_a_sample_costs_a_byte_a_coefficient(make: Callable[[int], SyntheticTokens], size: int) -> None:
    small, large = (record_bytes(samples_to_record(make(count))) for count in (12, 1012))
    assert large - small == 1000 * size


@pytest.mark.parametrize("settings", [CodecSettings(4, 5, 6), CodecSettings(name="flat")])
def test_of_the_codec_only_what_decodes_travels(settings: CodecSettings) -> None:
    sent = synthetic(settings, Lengths(3, 20, "learned"), 12)
    record = samples_to_record(sent)
    assert "analysis" in sent.codec.state()
    assert not [name for name in record if "analysis" in name]
    received = receive(record, shape=(20, 8))
    assert received.shape == (20, 8)
    assert codec_fingerprint(received.codec) == codec_fingerprint(sent.codec)
    with pytest.raises(PayloadError, match=r"codec\.positions .*\(20, 3\).*\(9xany\)"):
        receive(record)


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
    "latents missing": Broken("latents", lambda a: a[:-1], r"latents .*\(11, 6\), expected int8 of shape \(12xany\)"),
    "latents of floats": Broken("latents", lambda a: a.astype(np.float16), "latents is float16"),
    "latents flat": Broken("latents", np.ravel, r"latents .*\(72,\)"),
    "latents narrow": Broken("latents", lambda a: a[:, :5].copy(), r"latent-scale .*\(6,\).*expected .*\(5\)"),
    "scale NaN": Broken("latent-scale", first(np.nan), "latent-scale has 1 values that are NaN or infinite"),
    "scale huge": Broken("latent-scale", first(1e30), "core value of"),
    "codec infinite": Broken("codec.channels", first(np.inf), "codec.channels has 1 values"),
    "codec wider": Broken("codec.channels", lambda a: a[:7].copy(), r"codec.channels .*\(7, 4\).*\(8xany\)"),
    "codec longer": Broken("codec.positions", lambda a: np.vstack([a, a]), r"codec.positions .*\(18, 5\).*\(9xany\)"),
    "codec of doubles": Broken("codec.mean", lambda a: a.astype(np.float64), "codec.mean is float64"),
    "no positions": Broken("codec.positions", lambda a: a[:, :0].copy(), r"codec.positions .*\(9, 0\), and so no"),
    "core differs": Broken("codec.mean", lambda a: a[:-1].copy(), r"codec.mean has shape \(19,\), expected \(20,\)"),
    "pickled": Broken("codec.scale", lambda a: a.astype("datetime64[s]"), "codec.scale is datetime64"),
}


BROKEN_FLAT = {
    "longer": Broken("codec.positions", lambda a: np.vstack([a, a]), r"codec.positions .*\(18, 3\).*\(9xany\)"),
    "more tokens": Broken("codec.positions", lambda a: np.hstack([a, a]), r"codec.mean .*\(24,\), expected .*\(48\)"),
    "no tokens": Broken("codec.positions", lambda a: a[:, :0].copy(), r"codec.mean .*\(24,\), expected .*\(0\)"),
    "mean short": Broken("codec.mean", lambda a: a[:-1].copy(), r"codec.mean .*\(23,\), expected .*\(24\)"),
    "values missing": Broken("latents", lambda a: a[:, :5].copy(), r"latent-scale .*\(24,\).*expected .*\(5\)"),
    "deviation huge": Broken("codec.scale", first(1e30), "core value of"),
}


@pytest.mark.parametrize("name", [*BROKEN, *BROKEN_FLAT])
def test_broken_arrays_are_refused_by_name(name: str) -> None:
    broken = BROKEN[name] if name in BROKEN else BROKEN_FLAT[name]
    record = samples_to_record(samples() if name in BROKEN else flat_samples())
    record[broken.array] = Array(broken.change(record[broken.array].numpy()))
    with pytest.raises(PayloadError, match=broken.says):
        receive(record)


def test_missing_and_unexpected_arrays_are_refused() -> None:
    record = samples_to_record(samples())
    record["extra"] = record.pop("latents")
    with pytest.raises(PayloadError, match=r"missing arrays \['latents'\], unexpected arrays \['extra'\]"):
        receive(record)


def test_half_a_codec_is_no_flat_one() -> None:
    record = samples_to_record(samples())
    for name in ("codec.channels", "codec.components"):
        del record[name]
    with pytest.raises(PayloadError, match=r"missing arrays \['codec\.channels', 'codec\.components'\]"):
        receive(record)


def test_another_sequence_shape_is_refused() -> None:
    with pytest.raises(PayloadError, match=r"codec\.channels .*\(8, 4\).*\(5xany\)"):
        receive(samples_to_record(samples()), shape=(9, 5))


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

"""Synthetic samples on the wire: latents as bytes, class counts, and the codec once.

A sample of k coefficients costs k bytes, whatever the length of its token sequence; a codec about 0.45 MB, and it
travels only to a receiver that does not have it. A ``flat`` codec has a coefficient for each value of its short
sequence, and of its arrays only ``positions``, ``mean`` and ``scale``. What a codec encodes with (``analysis``) stays
on the node: the receiver only decodes.

=================  =======  ============  ==============================================================
array              type     shape         meaning
=================  =======  ============  ==============================================================
``classes``        int32    (C,)          global class ids, ascending
``counts``         int32    (C,)          samples of each class; the rows of ``latents`` lie in this order
``latents``        int8     (N, k)        latents divided by ``latent-scale``, rounded
``latent-scale``   float32  (k,)          step of each coefficient
``codec.*``        float16  see `Codec`   bases and components (matrices); float32 for the vectors
=================  =======  ============  ==============================================================
"""

from __future__ import annotations

from collections.abc import Collection
from io import BytesIO
from math import prod

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fedgen.errors import DataError, PayloadError
from fedgen.models.codec import Codec
from fedgen.models.samples import SyntheticTokens
from fedgen.models.states import exact_digest

LARGEST = 1e6  # no core value of sane tokens is near this
SAMPLES = ("classes", "counts", "latents", "latent-scale")
TUCKER, FLAT = (tuple(f"codec.{name}" for name in names) for names in (Codec.NAMES, Codec.FLAT))


def codec_fingerprint(codec: Codec) -> str:
    """Return a digest of ``codec`` as it travels: both sides compute the same."""
    return exact_digest({name: torch.from_numpy(array) for name, array in _codec_arrays(codec).items()})


def as_it_travels(codec: Codec) -> Codec:
    """Return ``codec`` as a receiver has it: matrices rounded to half precision, except what it encodes with."""
    state = codec.state()
    rounded = {name: value.half().float() for name, value in state.items() if value.dim() == 2 and name != "analysis"}
    return Codec.from_state(state | rounded)


def samples_to_record(samples: SyntheticTokens, known: Collection[str] = ()) -> ArrayRecord:
    """Return ``samples`` as arrays for a message, ordered by class.

    Parameters
    ----------
    samples : SyntheticTokens
    known : Collection[str]
        Fingerprints of codecs that the receiver has: such a codec does not travel again.
    """
    order = samples.labels.argsort(stable=True)
    latents = samples.latents.cpu()[order]  # (N, k)
    peaks = latents.abs().amax(dim=0) if len(latents) else torch.zeros(samples.codec.size)
    scale = torch.where(peaks > 0, peaks / 127, torch.ones_like(peaks))  # (k,)
    counts = samples.counts()
    arrays = {
        "classes": np.array(list(counts), dtype=np.int32),
        "counts": np.array(list(counts.values()), dtype=np.int32),
        "latents": (latents / scale).round().to(torch.int8).numpy(),
        "latent-scale": scale.numpy(),
    }
    if codec_fingerprint(samples.codec) not in known:
        arrays |= _codec_arrays(samples.codec)
    return ArrayRecord({name: Array(value) for name, value in arrays.items()})


def samples_from_record(
    record: ArrayRecord,
    shape: tuple[int, int],
    classes: Collection[int],
    limit: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    codec: Codec | None = None,
) -> SyntheticTokens:
    """Read samples from a node's message; nothing in it is believed.

    Parameters
    ----------
    record : ArrayRecord
        What `samples_to_record` made.
    shape : tuple[int, int]
        ``(S, D)`` that the samples must decode to.
    classes : Collection[int]
        Global class ids that the node may send.
    limit : int
        Most samples of a class.
    seed : int
        Seed of the residual noise in decoding.
    device : torch.device or str
        Where the samples are decoded.
    codec : Codec, optional
        What the samples were made in, if it came with an earlier message; it must not come again then.

    Raises
    ------
    PayloadError
        Names the array or value that is missing, unknown, of a wrong type or shape, not allowed or not finite.
    """
    flat = not set(record) & (set(TUCKER) - set(FLAT))
    names = {*SAMPLES, *(() if codec else FLAT if flat else TUCKER)}
    missing, unknown = sorted(names - set(record)), sorted(set(record) - names)
    if missing or unknown:
        raise PayloadError(f"samples: missing arrays {missing}, unexpected arrays {unknown}")
    labels = _read_labels(record, classes, limit)
    latents = _read(record, "latents", np.int8, (len(labels), None))  # (N, k)
    scale = _read(record, "latent-scale", np.float32, (latents.shape[1],))
    if codec is None:
        codec = _read_codec(record, shape, latents.shape[1], Codec.FLAT if flat else Codec.NAMES)
    elif latents.shape[1] != codec.size:
        raise PayloadError(f"samples: latents have {latents.shape[1]} coefficients, their codec has {codec.size}")
    samples = SyntheticTokens(codec, torch.from_numpy(latents), labels, seed, device, torch.from_numpy(scale))
    _check_size(samples)
    return samples


def _codec_arrays(codec: Codec) -> dict[str, np.ndarray]:
    """Return ``codec`` in the types that travel, by array name."""
    state = {f"codec.{name}": value for name, value in codec.state().items() if name != "analysis"}
    return {name: value.cpu().contiguous().numpy().astype(_codec_type(value.dim())) for name, value in state.items()}


def _read_labels(record: ArrayRecord, classes: Collection[int], limit: int) -> Tensor:
    """Return the label of each sample ``(N,)``, int64."""
    ids = _read(record, "classes", np.int32, (None,))
    counts = _read(record, "counts", np.int32, (len(ids),))
    if len(np.unique(ids)) != len(ids):
        raise PayloadError(f"samples: classes {ids.tolist()} names a class twice")
    for label, count in zip(ids.tolist(), counts.tolist(), strict=True):
        if label not in classes:
            raise PayloadError(f"samples: class id {label} is not allowed here; allowed: {sorted(classes)}")
        if not 0 <= count <= limit:
            raise PayloadError(f"samples: {count} samples of class id {label}, expected 0 to {limit}")
    return torch.from_numpy(np.repeat(ids, counts)).long()


def _read_codec(record: ArrayRecord, shape: tuple[int, int], size: int, names: tuple[str, ...]) -> Codec:
    """Return the codec of the message; its first sizes must be those of ``shape`` and of the latents."""
    first: dict[str, int | None] = {"channels": shape[1], "positions": shape[0], "components": size, "scale": size}
    state: dict[str, Tensor] = {}
    for name in names:
        if name == "mean" and "channels" not in names:  # a flat codec's short sequence is as wide as the tokens
            first["mean"] = state["positions"].shape[1] * shape[1]
        dimensions = 2 if name in Codec.MATRICES else 1
        expected = (first.get(name), None)[:dimensions]
        state[name] = torch.from_numpy(_read(record, f"codec.{name}", _codec_type(dimensions), expected))
    try:
        return Codec.from_state(state)
    except DataError as error:
        raise PayloadError(f"samples: {error}") from error


def _check_size(samples: SyntheticTokens) -> None:
    """Refuse finite values that would still decode to infinity."""
    for rows in torch.arange(len(samples)).split(4096):
        cores = samples.codec.cores(samples.latents_at(rows))
        peak = float(cores.abs().max()) if cores.numel() else 0.0
        if not peak <= LARGEST:
            raise PayloadError(f"samples: latents decode to a core value of {peak:g}, expected at most {LARGEST:g}")


def _codec_type(dimensions: int) -> type[np.float16] | type[np.float32]:
    """Orthonormal matrices are safe in half precision; means and deviations can be of any size."""
    return np.float16 if dimensions == 2 else np.float32


def read_array(array: Array, name: str, dtype: np.dtype, shape: tuple[int | None, ...]) -> np.ndarray:
    """Return the values of an array that somebody sent, without trusting its header.

    Parameters
    ----------
    array : Array
    name : str
        What errors call it.
    dtype : np.dtype
        The type that it must have.
    shape : tuple[int or None, ...]
        The shape that it must have; None: any size.

    Raises
    ------
    PayloadError
        It is no NumPy array, of another type or shape, or holds values that are NaN or infinite.
    """
    values = read_values(array, name)
    expected = "x".join("any" if size is None else str(size) for size in shape)
    fits = len(values.shape) == len(shape) and all(
        wanted in (None, size) for size, wanted in zip(values.shape, shape, strict=True)
    )
    if values.dtype != dtype or not fits:
        raise PayloadError(f"{name} is {values.dtype} of shape {values.shape}, expected {dtype} of shape ({expected})")
    return values


def read_values(array: Array, name: str) -> np.ndarray:
    """Return the values of an array that somebody sent, of whatever type and shape, without trusting its header.

    Raises
    ------
    PayloadError
        It is no NumPy array of numbers, or holds values that are NaN or infinite.
    """
    shape, dtype, body = _parse(array, name)
    if dtype.kind not in "biuf":
        raise PayloadError(f"{name} is {dtype}, expected numbers")
    if len(body) != prod(shape) * dtype.itemsize:
        raise PayloadError(f"{name} has {len(body)} bytes of values, expected {dtype} {shape}")
    values = np.frombuffer(body, dtype=dtype).reshape(shape)
    if dtype.kind == "f" and not np.isfinite(values).all():
        raise PayloadError(f"{name} has {int((~np.isfinite(values)).sum())} values that are NaN or infinite")
    return values.copy()


def _read(record: ArrayRecord, name: str, dtype: type[np.generic], shape: tuple[int | None, ...]) -> np.ndarray:
    return read_array(record[name], f"samples: {name}", np.dtype(dtype), shape)


def _parse(array: Array, name: str) -> tuple[tuple[int, ...], np.dtype, bytes]:
    """Split a serialised NumPy array into shape, type and bytes, without allocating what its header claims."""
    if array.stype != "numpy.ndarray":
        raise PayloadError(f"{name} is serialised as {array.stype!r}, expected 'numpy.ndarray'")
    stream = BytesIO(array.data)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("not version 1.0 of the NumPy format")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except ValueError as error:
        raise PayloadError(f"{name} is not a NumPy array: {error}") from error
    if fortran and len(shape) > 1:
        raise PayloadError(f"{name} is in column order, expected row order")
    return shape, dtype, stream.read()

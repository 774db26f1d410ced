"""Synthetic samples in a message: latents as bytes, and class counts.

A sample of k coefficients costs k bytes, whatever the length of its token sequence. The codec is public and does not
travel.

=================  =======  ============  ==============================================================
array              type     shape         meaning
=================  =======  ============  ==============================================================
``classes``        int32    (C,)          global class ids, ascending
``counts``         int32    (C,)          samples of each class; the rows of ``latents`` lie in this order
``latents``        int8     (N, k)        latents divided by ``latent-scale``, rounded
``latent-scale``   float32  (k,)          step of each coefficient
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

from fedgen.errors import PayloadError
from fedgen.models.codec import Codec
from fedgen.models.samples import SyntheticTokens

MAX_CORE = 1e6  # no core value of sane tokens is near this
SAMPLES = ("classes", "counts", "latents", "latent-scale")


def samples_to_record(samples: SyntheticTokens) -> ArrayRecord:
    """Return ``samples`` as arrays for a message, ordered by class."""
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
    return ArrayRecord({name: Array(value) for name, value in arrays.items()})


def samples_from_record(
    record: ArrayRecord,
    codec: Codec,
    classes: Collection[int],
    limit: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> SyntheticTokens:
    """Read and validate samples.

    Parameters
    ----------
    record : ArrayRecord
        What `samples_to_record` made.
    codec : Codec
        The public one, in which the samples were made.
    classes : Collection[int]
        Global class ids that the sender may use.
    limit : int
        Most samples of a class.
    seed : int
        Seed of the residual noise in decoding.
    device : torch.device or str
        Where the samples are decoded.

    Raises
    ------
    PayloadError
        Names the array or value that is missing, unknown, of a wrong type or shape, not allowed or not finite.
    """
    missing, unknown = sorted(set(SAMPLES) - set(record)), sorted(set(record) - set(SAMPLES))
    if missing or unknown:
        raise PayloadError(f"samples: missing arrays {missing}, unexpected arrays {unknown}")
    labels = _read_labels(record, classes, limit)
    latents = _read(record, "latents", np.int8, (len(labels), codec.size))  # (N, k)
    scale = _read(record, "latent-scale", np.float32, (codec.size,))
    samples = SyntheticTokens(codec, torch.from_numpy(latents), labels, seed, device, torch.from_numpy(scale))
    for rows in torch.arange(len(samples)).split(4096):  # finite values may still decode to infinity
        cores = samples.codec.features(samples.latents_at(rows))
        peak = float(cores.abs().max()) if cores.numel() else 0.0
        if not peak <= MAX_CORE:
            raise PayloadError(f"samples: latents decode to a core value of {peak:g}, expected at most {MAX_CORE:g}")
    return samples


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


def _read(record: ArrayRecord, name: str, dtype: type[np.generic], shape: tuple[int | None, ...]) -> np.ndarray:
    return read_array(record[name], f"samples: {name}", np.dtype(dtype), shape)


def read_array(array: Array, name: str, dtype: np.dtype, shape: tuple[int | None, ...]) -> np.ndarray:
    """Return the values of a received array of this type and shape; a size of None is any size.

    Raises
    ------
    PayloadError
        It is no NumPy array, of another type or shape, or holds values that are NaN or infinite.
    """
    values = read_values(array, name)
    expected = "x".join("any" if size is None else str(size) for size in shape)
    fits = values.ndim == len(shape) and all(
        wanted in (None, size) for size, wanted in zip(values.shape, shape, strict=True)
    )
    if values.dtype != dtype or not fits:
        raise PayloadError(f"{name} is {values.dtype} of shape {values.shape}, expected {dtype} of shape ({expected})")
    return values


def read_values(array: Array, name: str) -> np.ndarray:
    """Return the values of a received array of any type and shape, without allocating what its header claims.

    Raises
    ------
    PayloadError
        It is no NumPy array of numbers, or holds values that are NaN or infinite.
    """
    if array.stype != "numpy.ndarray":
        raise PayloadError(f"{name} is serialised as {array.stype!r}, expected 'numpy.ndarray'")
    stream = BytesIO(array.data)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("not version 1.0 of the NumPy format")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except ValueError as error:
        raise PayloadError(f"{name} is not a NumPy array: {error}") from error
    body = stream.read()
    if fortran and len(shape) > 1:
        raise PayloadError(f"{name} is in column order, expected row order")
    if dtype.kind not in "biuf":
        raise PayloadError(f"{name} is {dtype}, expected numbers")
    if len(body) != prod(shape) * dtype.itemsize:
        raise PayloadError(f"{name} has {len(body)} bytes of values, expected {dtype} {shape}")
    values = np.frombuffer(body, dtype=dtype).reshape(shape)
    if dtype.kind == "f" and not np.isfinite(values).all():
        raise PayloadError(f"{name} has {int((~np.isfinite(values)).sum())} values that are NaN or infinite")
    return values.copy()

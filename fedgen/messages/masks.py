"""Adapters as whole numbers under masks that cancel in the sum.

A node's vector has a number of 32 bits for each weight, and a last one that is 1: in the sum it counts the nodes, and a
residual mask changes it. Sums wrap around, so that a masked number is uniform, whatever it hides.

The masks are not Flower's: ``flwr.common.secure_aggregation.secaggplus_utils.pseudo_rand_gen`` folds a seed of 256 bits
into 32 bits for NumPy's Mersenne Twister, and 2^32 seeds can be tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import shake_256

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key

from fedgen.errors import DataError

WORD = np.dtype("<u4")
LONG = np.dtype("<u8")  # of sums that are whole numbers themselves, and are not rounded
SUMS = "sums"  # the array of these


def mask(seed: bytes, size: int, word: np.dtype = WORD) -> np.ndarray:
    """Return ``size`` pseudo-random numbers (unsigned): SHAKE-256 (FIPS 202) of ``seed``, as a stream."""
    return np.frombuffer(shake_256(b"fedgen mask" + seed).digest(word.itemsize * size), word)


def pair_mask(secret: bytes, public: bytes, own: int, other: int, size: int, word: np.dtype = WORD) -> np.ndarray:
    """Return the mask that node ``own`` adds for node ``other``, which adds its negative, ``(size,)`` unsigned.

    ``secret`` is the private key of one of them, ``public`` the public key of the other one (PEM).
    """
    values = mask(generate_shared_key(bytes_to_private_key(secret), bytes_to_public_key(public)), size, word)
    return values if own > other else np.negative(values)


def encode(record: ArrayRecord, share: float, clipping_range: float, quantization: int) -> np.ndarray:
    """Return the weights in ``record`` times ``share``, as whole numbers and a 1, ``(P + 1,)`` uint32.

    Parameters
    ----------
    record : ArrayRecord
        Adapters of P weights in all, taken in the order of their names.
    share : float
        Above 0 and at most 1: the node's weight in the average over the largest.
    clipping_range : float
        Largest absolute value of a weight.
    quantization : int
        Steps from one end of the range to the other; values are rounded to the nearest.

    Raises
    ------
    DataError
        A weight is not finite or outside the range: clipped in silence, it would spoil the average.
    """
    values = np.concatenate([record[name].numpy().astype(np.float64).ravel() for name in sorted(record)])
    peak = float(np.abs(values).max(initial=0.0))
    if not peak <= clipping_range:
        raise DataError(f"adapters have a weight of {peak:g}, above strategy.secure.clipping_range={clipping_range:g}")
    steps = np.rint((values * share + clipping_range) * (quantization / (2 * clipping_range)))
    return np.append(steps, 1).astype(WORD)


def decode(total: np.ndarray, share: float, clipping_range: float, quantization: int) -> np.ndarray:
    """Return the average ``(P,)``, float64, of the sum ``total`` ``(P + 1,)`` of encoded vectors of these shares."""
    steps, nodes = total[:-1].astype(np.float64), int(total[-1])
    return (steps * (2 * clipping_range / quantization) - nodes * clipping_range) / share


def to_record(values: np.ndarray, like: Mapping[str, Array]) -> ArrayRecord:
    """Return ``values`` ``(P,)`` as arrays of the names, shapes and types of ``like``."""
    sizes = [int(np.prod(like[name].shape)) for name in sorted(like)]
    parts = dict(zip(sorted(like), np.split(values, np.cumsum(sizes)[:-1]), strict=True))
    return ArrayRecord({n: Array(parts[n].reshape(a.shape).astype(a.dtype)) for n, a in like.items()})

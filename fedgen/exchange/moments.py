"""What nodes send so that all of them can share a codec: two rounds of sums over their clips, never a clip.

The server adds up what every node sends in the first exchange, and answers with the bases that follow; in these the
nodes measure the second. A symmetric matrix travels as its upper triangle, row by row.

=============  =======  ==============  ==================================================================
array          type     shape           meaning
=============  =======  ==============  ==================================================================
first exchange (`Moments`: 1.2 MB for 768 channels and 2.9 MB for 1214 positions)
----------------------------------------------------------------------------------------------------------
``count``      int64    (1,)            clips of the node
``channels``   float32  (D(D+1)/2,)     second moments of channels
``positions``  float32  (S(S+1)/2,)     second moments of positions
-------------  -------  --------------  ------------------------------------------------------------------
second exchange (`CoreMoments`: 2.7 MB for cores of 48 x 24)
----------------------------------------------------------------------------------------------------------
``count``      int64    (1,)            clips of the node
``mean``       float32  (n,)            mean core
``scatter``    float32  (n(n+1)/2,)     scatter of cores about the mean; of a flat codec its diagonal (n,)
=============  =======  ==============  ==================================================================
"""

from __future__ import annotations

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fedgen.errors import PayloadError
from fedgen.exchange.payload import LARGEST, read_array
from fedgen.models.cores import FEWEST_CLIPS, CoreMoments, check_shareable
from fedgen.models.moments import Moments

ROUNDING = 1e-3  # how far float32 sums may be from what real sums obey


def moments_to_record(moments: Moments) -> ArrayRecord:
    """Return a node's moments as arrays for a message.

    Raises
    ------
    ConfigError
        The node has so few clips that its moments would give them away.
    """
    check_shareable(moments.count)
    return _record(moments.count, channels=_triangle(moments.channels), positions=_triangle(moments.positions))


def moments_from_record(record: ArrayRecord, shape: tuple[int, int], limit: int) -> Moments:
    """Read a node's moments; nothing in the message is believed.

    Parameters
    ----------
    record : ArrayRecord
        What `moments_to_record` made.
    shape : tuple[int, int]
        ``(S, D)`` of the encoder's sequences.
    limit : int
        Most clips that the node can have.

    Raises
    ------
    PayloadError
        Names the array that is missing, unknown, of a wrong type or shape, or cannot be a sum over so many clips.
    """
    count = _read_count(record, {"channels", "positions"}, limit)
    channels = _read_symmetric(record, "channels", shape[1], count)
    return Moments(channels, _read_symmetric(record, "positions", shape[0], count), count)


def core_moments_to_record(moments: CoreMoments) -> ArrayRecord:
    """Return a node's core moments as arrays for a message.

    Raises
    ------
    ConfigError
        The node has so few clips that its moments would give them away.
    """
    check_shareable(moments.count)
    scatter = moments.scatter
    return _record(moments.count, mean=moments.mean, scatter=_triangle(scatter) if scatter.dim() == 2 else scatter)


def core_moments_from_record(record: ArrayRecord, size: int, limit: int, flat: bool = False) -> CoreMoments:
    """Read a node's core moments; nothing in the message is believed.

    Parameters
    ----------
    record : ArrayRecord
        What `core_moments_to_record` made.
    size : int
        Values ``n`` of a core.
    limit : int
        Most clips that the node can have.
    flat : bool
        Whether the run's codec is ``flat``.

    Raises
    ------
    PayloadError
        Names the array that is missing, unknown, of a wrong type or shape, or cannot be a sum over so many clips.
    """
    count = _read_count(record, {"mean", "scatter"}, limit)
    mean = _read(record, "mean", np.float32, size)
    if mean.abs().max() > LARGEST:
        raise PayloadError(f"moments: mean holds {float(mean.abs().max()):g}, expected at most {LARGEST:g}")
    if not flat:
        return CoreMoments(count, mean, _read_symmetric(record, "scatter", size, count))
    scatter = _read(record, "scatter", np.float32, size)
    _check_squares(scatter, "scatter", count)
    return CoreMoments(count, mean, scatter)


def _record(count: int, **sums: Tensor) -> ArrayRecord:
    arrays = {"count": np.array([count], dtype=np.int64)}
    arrays |= {name: value.float().cpu().numpy() for name, value in sums.items()}
    return ArrayRecord({name: Array(value) for name, value in arrays.items()})


def _read_count(record: ArrayRecord, sums: set[str], limit: int) -> int:
    """Return the number of clips of a message that must hold ``count`` and ``sums``, nothing else."""
    names = {"count", *sums}
    missing, unknown = sorted(names - set(record)), sorted(set(record) - names)
    if missing or unknown:
        raise PayloadError(f"moments: missing arrays {missing}, unexpected arrays {unknown}")
    count = int(_read(record, "count", np.int64, 1)[0])
    if not FEWEST_CLIPS <= count <= limit:
        raise PayloadError(f"moments: sums over {count} clips, expected {FEWEST_CLIPS} to {limit}")
    return count


def _read_symmetric(record: ArrayRecord, name: str, size: int, count: int) -> Tensor:
    """Return the symmetric matrix ``(size, size)``, float64, of second moments whose upper triangle came."""
    triangle = _read(record, name, np.float32, size * (size + 1) // 2)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    rows, columns = torch.triu_indices(size, size)
    matrix[rows, columns] = triangle
    matrix[columns, rows] = triangle
    squares = matrix.diagonal()
    _check_squares(squares, name, count)
    roots = squares.sqrt()
    if (matrix.abs() > torch.outer(roots, roots) * (1 + ROUNDING) + ROUNDING * squares.mean()).any():
        raise PayloadError(f"moments: {name} holds products that exceed what its squares allow")
    return matrix


def _check_squares(squares: Tensor, name: str, count: int) -> None:
    """Refuse sums of squares over ``count`` clips that are negative or that no sane tokens give."""
    low, high = float(squares.min()), float(squares.max())
    if low < 0 or high > count * LARGEST**2:
        raise PayloadError(
            f"moments: {name} holds sums of squares from {low:g} to {high:g}, expected 0 to {count * LARGEST**2:g}"
        )


def _triangle(matrix: Tensor) -> Tensor:
    """Return the upper triangle ``(n(n+1)/2,)`` of ``matrix`` ``(n, n)``, row by row."""
    rows, columns = torch.triu_indices(*matrix.shape, device=matrix.device)
    return matrix[rows, columns]


def _read(record: ArrayRecord, name: str, dtype: type[np.generic], size: int) -> Tensor:
    """Return the array ``name`` ``(size,)``; numbers that are not whole as float64."""
    values = torch.from_numpy(read_array(record[name], f"moments: {name}", np.dtype(dtype), (size,)))
    return values.double() if values.is_floating_point() else values

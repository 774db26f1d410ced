"""Adapters in closed form, from sums over clips that add up over nodes.

A clip's summary and a 1, as whole numbers, are a vector ``z``; the sums are the outer products ``z z'`` and ``z`` times
the clip's class. They are whole numbers too, so that they are the same for every order and partition of the clips, to
the last bit, and the solution is that of all clips in one place.

References
----------
He et al., "AFL: A single-round analytic approach for federated learning with pre-trained models", 2405.16240.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedgen.data.tokens import SummarySource
from fedgen.errors import require
from fedgen.models.adapters import Adapters, TargetHead

STEPS = 2**16  # a value of a summary is rounded to so many parts of 1
LARGEST = 2**21  # steps of a value: products of two of them are exact in float64, and sums of 1024 of these
ROWS = 1024
RIDGE = 0.1  # penalty over the squared length of a standardised summary, chosen on folds 1 to 4 of ESC-10
SHIFT = 6.0  # moves scores to where GELU is the identity, to float32's precision


def sums_size(features: int, classes: int) -> int:
    """Return how many numbers the sums of summaries of ``features`` numbers and of ``classes`` are."""
    return (features + 1) * (features + 2) // 2 + (features + 1) * classes


def clip_sums(source: SummarySource, classes: int) -> Tensor:
    """Return the sums over the clips of ``source``: ``(sums_size,)``, int64, on the CPU.

    They are the upper triangle of ``z z'``, row by row, then ``z`` by class.
    """
    parts = [_exact(source.summaries(rows), source.labels[rows], classes) for rows in _rows(len(source))]
    return torch.stack(parts).sum(dim=0)


def _rows(count: int) -> tuple[Tensor, ...]:
    return torch.arange(count).split(ROWS)


def _exact(summaries: Tensor, labels: Tensor, classes: int) -> Tensor:
    steps = (summaries.double() * STEPS).round().clamp(-LARGEST, LARGEST).cpu()
    z = F.pad(steps, (0, 1), value=1.0)  # (B, F + 1), whole numbers: their products and sums are exact
    by_class = z.T @ F.one_hot(labels, classes).double()
    gram = (z.T @ z)[_triangle(z.shape[1])]
    return torch.cat([gram, by_class.flatten()]).long()


def _triangle(size: int) -> tuple[Tensor, Tensor]:
    rows, columns = torch.triu_indices(size, size)
    return rows, columns


def solve(sums: Tensor, features: int, classes: int) -> tuple[Tensor, Tensor]:
    """Return weights ``(F, C)`` and offsets ``(C,)``, float64, of ridge regression from summaries to classes.

    A clip's scores are its summary times the weights plus the offsets; they sum to 1.
    """
    split = (features + 1) * (features + 2) // 2
    gram = torch.zeros(features + 1, features + 1, dtype=torch.float64)
    rows, columns = _triangle(features + 1)
    gram[rows, columns] = gram[columns, rows] = sums[:split].double()
    by_class = sums[split:].view(features + 1, classes).double()
    clips = gram[-1, -1].clamp(min=1.0)
    mean, shares = gram[-1, :-1] / clips, by_class[-1] / clips
    scatter = gram[:-1, :-1] - clips * mean[:, None] * mean
    spread = (scatter.diagonal() / clips).sqrt().clamp(min=1.0)  # of a step at least
    standard = scatter / (spread[:, None] * spread)
    standard.diagonal().add_(RIDGE * features)
    wanted = (by_class[:-1] - clips * mean[:, None] * shares) / spread[:, None]
    weights = torch.cholesky_solve(wanted, torch.linalg.cholesky(standard)) / spread[:, None]
    return weights * STEPS, shares - mean @ weights


@torch.no_grad()
def set_adapters(adapters: Adapters, weights: Tensor, offsets: Tensor, targets: dict[str, Tensor]) -> None:
    """Write a solution into ``adapters``: the nearest target of a clip is that of its highest score.

    The scores take the first numbers of the narrow view and of every hidden layer; the numbers that are not needed are
    cut off from the output, and training may use them again.

    Raises
    ------
    ConfigError
        ``adapter.width`` or ``adapter.hidden`` is too small for the classes, and the targets' tokens.
    """
    classes, device = weights.shape[1], adapters.narrow.weight.device
    _need(classes, adapters.narrow.out_features, "width")
    adapters.narrow.weight[:classes] = weights.T.to(device, torch.float32)
    adapters.narrow.bias[:classes] = offsets.to(device, torch.float32)
    for name, head in adapters.heads.items():
        assert isinstance(head, TargetHead)
        target = targets[name].double().cpu()
        _write(head, target.unsqueeze(1) if target.dim() == 2 else target)


def _write(head: TargetHead, targets: Tensor) -> None:
    """Let ``head`` map the scores of C classes to a mixture of ``targets`` ``(C, T, d)``.

    An output is the mean target and, at every token, the same combination of C directions. With unit targets ``u``,
    ``u y = a s + b`` for all classes: cosines to targets rise with scores. A score of 1 in one class gets a cosine as
    far above the others as that of its target.
    """
    classes = len(targets)
    lengths = targets.flatten(1).norm(dim=1)
    unit, mean = targets / lengths[:, None, None], targets.mean(dim=0)  # (C, T, d), (T, d)
    alike = unit.flatten(1) @ unit.flatten(1).T
    common = (alike.sum() - classes) / max(1, classes * (classes - 1))  # mean cosine of two targets
    directions = torch.linalg.pinv(unit.sum(dim=1))  # (d, C): of these, each moves the product with one target alone
    products = (unit * mean).sum(dim=(1, 2))
    left, sizes, right = torch.linalg.svd(mean, full_matrices=False)  # mean = left @ diag(sizes) @ right
    rank = max(1, int((sizes > 1e-9 * sizes[0]).sum()))
    _need(classes + rank, head.inner.out_features, "hidden")
    used = slice(classes, classes + rank)
    columns = torch.cat([directions * (1 - common) * lengths.mean(), (sizes[:rank, None] * right[:rank]).T], dim=1)
    head.inner.weight[: classes + rank], head.inner.bias[: classes + rank] = 0.0, SHIFT
    head.inner.weight[:classes, :classes] = torch.eye(classes)
    head.query_bias.zero_()
    head.query_bias[:, used] = left[:, :rank].to(head.query_bias)
    head.outer.weight.zero_()
    head.outer.weight[:, : classes + rank] = columns.to(head.outer.weight)
    constant = directions @ (products.mean() - products) - SHIFT * columns.sum(dim=1)
    head.outer.bias.copy_(constant.to(head.outer.bias))


def _need(least: int, there: int, name: str) -> None:
    require(there >= least, f"adapter.{name}={there} is too small for mode=analytic, which needs {least} here")

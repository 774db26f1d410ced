"""Zero-shot accuracy: is an adapter's output nearest, among all classes' targets, to its own class's?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fedgen.data.batching import in_batches
from fedgen.data.tokens import SummarySource
from fedgen.models.adapters import Adapters


@dataclass(frozen=True)
class Scores:
    """Scores of adapters on held-out clips."""

    accuracy: float  # share of clips whose output is nearest (cosine, mean over heads) to their own class's target
    balanced_accuracy: float  # mean over classes of per_class
    per_class: dict[str, float]  # share of right clips of each class that has clips
    heads: dict[str, dict[str, float]]  # of each head: cosine to the own class's target, and mse per element
    confusion: list[list[int]]  # clips of class `row` whose nearest target is class `column`


@torch.no_grad()
def zero_shot(
    adapters: Adapters, source: SummarySource, targets: dict[str, Tensor], classes: list[str], batch_size: int = 64
) -> Scores:
    """Evaluate ``adapters`` on every clip of ``source``.

    Parameters
    ----------
    adapters : Adapters
    source : SummarySource
        Held-out clips; `ValueError` if there is none.
    targets : dict[str, Tensor]
        ``{head: (C, *shape)}``.
    classes : list[str]
        Names of the ``C`` classes by id.
    batch_size : int
        Clips at once; fewer where memory runs out.
    """
    if not len(source):
        raise ValueError("zero-shot accuracy needs at least one held-out clip")
    device = next(adapters.parameters()).device
    targets = {name: value.to(device) for name, value in targets.items()}
    unit = {name: F.normalize(value.flatten(1), dim=1) for name, value in targets.items()}
    adapters.eval()

    def measure(indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines to every target ``(H, B, C)`` and the summed error of each head ``(H,)``."""
        labels = source.labels[indices].to(device)
        outputs = {name: value.float().flatten(1) for name, value in adapters(source.summaries(indices)).items()}
        cosines = [F.normalize(outputs[name], dim=1) @ unit[name].T for name in targets]
        errors = [(outputs[name] - targets[name].flatten(1)[labels]).square().mean(dim=1).sum() for name in targets]
        return torch.stack(cosines), torch.stack(errors)

    parts = in_batches(torch.arange(len(source)), batch_size, measure)
    similarity = torch.cat([cosines for cosines, _ in parts], dim=1).cpu()  # (H, N, C)
    errors = torch.stack([error for _, error in parts]).sum(dim=0) / len(source)  # (H,)
    return _scores(similarity, source.labels, dict(zip(targets, errors.tolist(), strict=True)), classes)


def _scores(similarity: Tensor, labels: Tensor, errors: dict[str, float], classes: list[str]) -> Scores:
    predicted = similarity.mean(dim=0).argmax(dim=1)  # (N,)
    confusion = torch.zeros(len(classes), len(classes), dtype=torch.int64)
    confusion.index_put_((labels, predicted), torch.ones_like(labels), accumulate=True)
    own = similarity.gather(2, labels.expand(len(similarity), -1)[..., None]).mean(dim=(1, 2))  # (H,)
    heads = {name: {"cosine": float(own[i]), "mse": errors[name]} for i, name in enumerate(errors)}
    return scores_of(confusion.tolist(), heads, classes)


def scores_of(confusion: list[list[int]], heads: dict[str, dict[str, float]], classes: list[str]) -> Scores:
    """Return the scores of a confusion matrix and the heads' own figures."""
    counts = torch.tensor(confusion)
    present = counts.sum(dim=1) > 0
    recall = counts.diagonal() / counts.sum(dim=1).clamp(min=1)
    return Scores(
        accuracy=float(counts.diagonal().sum() / counts.sum()),
        balanced_accuracy=float(recall[present].mean()),
        per_class={name: float(recall[i]) for i, name in enumerate(classes) if present[i]},
        heads=heads,
        confusion=confusion,
    )


def pooled_scores(scores: Sequence[Scores], classes: list[str]) -> Scores:
    """Return the scores of one model on all clips from its scores on parts of them, at least one."""
    clips = [sum(map(sum, part.confusion)) for part in scores]
    heads = {
        head: {
            name: sum(part.heads[head][name] * n for part, n in zip(scores, clips, strict=True)) / sum(clips)
            for name in values
        }
        for head, values in scores[0].heads.items()
    }
    return scores_of(torch.tensor([part.confusion for part in scores]).sum(dim=0).tolist(), heads, classes)


def mean_scores(scores: list[Scores]) -> Scores:
    """Return the mean of several models' scores on the same clips; their confusions are summed."""
    count = len(scores)
    first = scores[0]
    return Scores(
        accuracy=sum(s.accuracy for s in scores) / count,
        balanced_accuracy=sum(s.balanced_accuracy for s in scores) / count,
        per_class={name: sum(s.per_class[name] for s in scores) / count for name in first.per_class},
        heads={
            head: {name: sum(s.heads[head][name] for s in scores) / count for name in values}
            for head, values in first.heads.items()
        },
        confusion=torch.tensor([s.confusion for s in scores]).sum(dim=0).tolist(),
    )

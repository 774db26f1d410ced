"""Probes: the accuracy of classifiers that are trained on synthetic records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from fedgen.data.tokens import SummarySource
from fedgen.evaluation.features import Records
from fedgen.evaluation.zero_shot import zero_shot
from fedgen.models.adapters import Adapters
from fedgen.models.training import TrainingSettings, train_adapters

STRENGTH = 0.01  # inverse penalty of the logistic regressions; features have unit deviation
DIRECTIONS = 256  # principal ones that they see: as good as all that a linear codec's samples have, at a tenth the time


@dataclass(frozen=True)
class Utility:
    """Accuracy on held-out real records after training on synthetic (``tstr``) and on real ones (``trtr``).

    ``per_class`` is the former of each class id that has held-out records.

    References
    ----------
    Esteban et al., "Real-valued (medical) time series generation with recurrent conditional GANs", 2017 (TSTR).
    """

    tstr: float
    trtr: float
    per_class: dict[int, float]


def linear_probe(train: Records, held_out: Records, synthetic: Records, pooled: bool) -> Utility:
    """Measure utility by logistic regression: on the mean token, or on segments in order, which know what came when."""
    features = [records.pooled if pooled else records.segments.flatten(1) for records in (train, synthetic, held_out)]
    real, made, test = (x.float().numpy() for x in features)
    wanted = held_out.labels.numpy()
    right = _classify(made, synthetic.labels.numpy(), test) == wanted
    reference = _classify(real, train.labels.numpy(), test) == wanted
    classes = {int(label): float(right[wanted == label].mean()) for label in np.unique(wanted)}
    return Utility(float(right.mean()), float(reference.mean()), classes)


@dataclass(frozen=True)
class AdapterTask:
    """Inputs of the adapter probe: targets ``{head: (C, *shape)}``, equal untrained adapters, and settings."""

    targets: dict[str, Tensor]
    new_adapters: Callable[[], Adapters]
    settings: TrainingSettings


def adapter_probe(
    train: SummarySource,
    held_out: SummarySource,
    synthetic: SummarySource,
    task: AdapterTask,
    classes: list[str],
    seed: int,
) -> Utility:
    """Measure utility by the project's own task: adapters trained from the same start, and their zero-shot accuracy.

    ``seed`` is that of the order of the batches. Epochs count passes over the larger source: either makes as many
    steps.
    """
    largest = max(len(train), len(synthetic))
    scores = []
    for source in (synthetic, train):
        adapters = task.new_adapters()
        epochs = max(1, round(task.settings.epochs * largest / len(source)))
        train_adapters(adapters, source, task.targets, replace(task.settings, epochs=epochs), seed)
        scores.append(zero_shot(adapters, held_out, task.targets, classes))
    numbers = {name: number for number, name in enumerate(classes)}
    per_class = {numbers[name]: share for name, share in scores[0].per_class.items()}
    return Utility(scores[0].accuracy, scores[1].accuracy, per_class)


def _classify(features: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return the predicted class of each row of ``test``."""
    from sklearn.decomposition import PCA  # takes a second to import: only where it is needed

    if len(np.unique(labels)) == 1:
        return np.full(len(test), labels[0])
    kept = min(DIRECTIONS, len(features) - 1, features.shape[1])
    reduction = PCA(kept, svd_solver="randomized", iterated_power=1, random_state=0)
    return np.asarray(_fitted(features, labels, reduction).predict(test))


def _fitted(features: np.ndarray, labels: np.ndarray, *steps: Any) -> Any:
    """Return a fitted pipeline of standardisation, ``steps`` and logistic regression."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), *steps, LogisticRegression(C=STRENGTH, max_iter=1000, tol=1e-3)).fit(
        features, labels
    )

"""The clips of one node, and what this process computes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fedgen.config.settings import Config, NodeConfig
from fedgen.data.plain import check_names
from fedgen.data.tokens import LazyTokens, Summaries, TokenSource
from fedgen.errors import DataError, choose
from fedgen.models.generators.bank import slots
from fedgen.task import Task

Value = TypeVar("Value", Tensor, Summaries)

LIMIT = 2**29  # bytes that a process keeps
_cache: dict[Hashable, Any] = {}  # in the order of use, the latest last


def cached(key: Hashable, compute: Callable[[], Value]) -> Value:
    """Return ``compute()``, or its earlier value for ``key``; values that were used longest ago make room."""
    value: Value = _cache.pop(key) if key in _cache else compute()
    _cache[key] = value
    while len(_cache) > 1 and sum(other.nbytes for other in _cache.values()) > LIMIT:
        del _cache[next(iter(_cache))]
    return value


@dataclass(eq=False)
class NodeData:
    """The clips of one node.

    Raises
    ------
    DataError
        The node has no clips to train on, or none of a class that it is told to use.
    ConfigError
        A class of its clips has a name that is no line of visible text.
    """

    task: Task
    partition_id: int  # the node's place in the partition, from 0
    own_store: bool = False  # whether every training clip of the store is this node's, rather than a share of them
    own: NodeConfig = field(default_factory=NodeConfig)  # the node's own settings; they go before those of the run

    def __post_init__(self) -> None:
        task = self.task
        set_here = {name: value for name, value in vars(self.own).items() if value is not None}
        self.settings = replace(task.config.nodes.get(str(self.partition_id), NodeConfig()), **set_here)
        # clips of the store that the node trains on, and those that it keeps out of that for the audit
        self.indices, self.controls = task.split_controls(self._clips())
        self.counts = self.class_counts(self.indices)  # training clips of each global class id
        test = task.store.test_indices(self.config.data.test_fold)
        self.held_out = test[np.isin(task.store.labels[test], list(self.counts))]  # of the classes that it trains on
        run = task.granularity
        name, groups = self.settings.granularity or run.name, self.settings.groups or run.groups
        self.granularity = replace(run, name=name, groups=groups)  # the node's own, else the run's

    @property
    def config(self) -> Config:
        """The run's configuration."""
        return self.task.config

    @property
    def class_names(self) -> list[str]:
        """Names of the classes that the node trains on, in the order of their ids."""
        return [self.task.classes[label] for label in self.counts]

    @property
    def named_counts(self) -> dict[str, int]:
        """Training clips of each class by its name."""
        return dict(zip(self.class_names, self.counts.values(), strict=True))

    @property
    def slots(self) -> dict[str, list[str]]:
        """Which of the node's classes each generator serves, by the generator's key."""
        return slots(self.granularity, self.class_names)

    @property
    def samples_per_class(self) -> int:
        """How many samples of each class the node draws."""
        asked = self.settings.samples_per_class or self.config.synthesis.samples_per_class
        return max(1, round(len(self.indices) / len(self.counts))) if asked == "auto" else int(asked)

    @cached_property
    def source(self) -> TokenSource:
        """The node's own clips, on the device; they are read when they are first needed."""
        task, indices = self.task, self.indices  # the function must not hold the node: that would keep clips for long
        return LazyTokens(torch.from_numpy(task.store.labels[indices]), task.store.shape, lambda: task.tokens(indices))

    @property
    def summaries(self) -> Summaries:
        """The summaries of the node's own clips, on the device."""
        bands = self.task.bands
        return cached((*self._key, bands), lambda: Summaries.of(self.source, bands))

    def latents(self) -> Tensor:
        """Return the latents of the node's clips in the public codec, ``(N, k)``."""
        chosen = self.config.encoder, self.config.generator.lengths, self.config.codec
        return cached((*self._key, *chosen), lambda: self.task.space.codec.encode_all(self.source))

    def class_counts(self, indices: np.ndarray) -> dict[int, int]:
        """Return the clips at ``indices`` of each global class id."""
        return dict(sorted(Counter(self.task.store.labels[indices].tolist()).items()))

    def _clips(self) -> np.ndarray:
        task, node = self.task, f"node {self.partition_id}"
        if not self.own_store and self.partition_id >= len(task.shares):
            raise DataError(f"{node} has no part: partition.nodes={len(task.parts)}")
        indices = task.train_indices if self.own_store else task.shares[self.partition_id]
        if self.settings.classes is not None:
            indices = self._of_classes(indices, self.settings.classes)
        elif unknown := task.store.unknown:
            check_names(unknown, f"classes of {node}")
            raise DataError(
                f"{node} has clips of {', '.join(unknown)}, which data.classes={task.classes} lacks: leave them out "
                f"with nodes.{self.partition_id}.classes, or classes in the node configuration"
            )
        if not len(indices):
            raise DataError(f"{node} has no clip to train on: check partition and data.test_fold")
        check_names([task.classes[label] for label in np.unique(task.store.labels[indices])], f"classes of {node}")
        return indices

    def _of_classes(self, indices: np.ndarray, names: list[str]) -> np.ndarray:
        key, classes = f"nodes.{self.partition_id}.classes", self.task.classes
        labels = self.task.store.labels[indices]
        wanted = [classes.index(choose(name, classes, key)) for name in names]
        if missing := [classes[label] for label in wanted if label not in labels]:
            there = ", ".join(classes[label] for label in np.unique(labels))
            raise DataError(f"{key} names {', '.join(missing)}, of which the node has no clip; it has {there}")
        return indices[np.isin(labels, wanted)]

    @property
    def _key(self) -> tuple[Hashable, ...]:
        """Tells the node's clips from all others that this process reads."""
        store = self.task.store
        labels = store.labels[self.indices]  # a class has another id where other classes are agreed on
        return store.path, len(store), self.indices.tobytes(), labels.tobytes(), self.task.device

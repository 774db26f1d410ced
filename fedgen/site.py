"""What one site has: its clips, its classes, and what it does otherwise than the rest. No Flower here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgen.data.tokens import LazyTokens, TokenSource
from fedgen.errors import DataError, choose
from fedgen.models.kept import kept
from fedgen.models.projected import ProjectedTokens
from fedgen.plain import check_names
from fedgen.settings import Config, NodeConfig
from fedgen.task import Task
from fedgen.training.granularity import GranularitySettings, slots


class Site:
    """The clips of one node.

    Attributes
    ----------
    indices, controls : np.ndarray
        Clips of the store that the node trains on, and those that it keeps out of that for the audit.

    Parameters
    ----------
    task : Task
    number : int
        The node's place in the partition, from 0.
    own_store : bool
        Whether every training clip of the store belongs to this node, rather than its share of the partition.
    own : NodeConfig, optional
        What the node itself says that it does otherwise than the rest; goes before ``nodes.{number}``.

    Raises
    ------
    DataError
        If the node has no clips to train on, or none of a class that it is told to use.
    ConfigError
        If a class of its clips has a name that is no line of visible text.
    """

    def __init__(self, task: Task, number: int, own_store: bool = False, own: NodeConfig | None = None) -> None:
        self.task, self.number = task, number
        self.own = _overlaid(task.config.nodes.get(str(number), NodeConfig()), own or NodeConfig())
        self.indices, self.controls = task.split_controls(self._clips(own_store))

    def _clips(self, own_store: bool) -> np.ndarray:
        """Return the clips of the store that the node has."""
        if not own_store and self.number >= len(self.task.shares):
            raise DataError(f"node {self.number} has no part: partition.nodes={len(self.task.parts)}")
        indices = self.task.train_indices if own_store else self.task.shares[self.number]
        if self.own.classes is not None:
            indices = self._restricted(indices, self.own.classes)
        elif unknown := self.task.store.unknown:
            check_names(unknown, f"classes of node {self.number}")
            raise DataError(
                f"node {self.number} has clips of {', '.join(unknown)}, which data.classes={self.task.classes} lacks: "
                f"leave them out with nodes.{self.number}.classes, or classes in the node configuration"
            )
        if not len(indices):
            raise DataError(f"node {self.number} has no clip to train on: check partition and data.test_fold")
        names = [self.task.classes[label] for label in np.unique(self.task.store.labels[indices])]
        check_names(names, f"classes of node {self.number}")
        return indices

    @property
    def held_out(self) -> np.ndarray:
        """Clips of the node's store that it may test on: those of the test fold, of the classes that it trains on."""
        test = self.task.store.test_indices(self.config.data.test_fold)
        return test[np.isin(self.task.store.labels[test], list(self.counts))]

    def _restricted(self, indices: np.ndarray, names: list[str]) -> np.ndarray:
        """Return the clips of the classes ``names`` alone."""
        key = f"nodes.{self.number}.classes"
        labels = self.task.store.labels[indices]
        wanted = [self.task.classes.index(choose(name, self.task.classes, key)) for name in names]
        missing = [self.task.classes[label] for label in wanted if label not in labels]
        if missing:
            there = ", ".join(self.task.classes[label] for label in np.unique(labels))
            raise DataError(f"{key} names {', '.join(missing)}, of which the node has no clip; it has {there}")
        return indices[np.isin(labels, wanted)]

    @property
    def config(self) -> Config:
        """The run's configuration."""
        return self.task.config

    @cached_property
    def source(self) -> TokenSource:
        """The node's own clips, on the device; they are read when they are first needed."""
        task, indices = self.task, self.indices  # the function must not hold the node: that would keep clips for long
        return LazyTokens(torch.from_numpy(task.store.labels[indices]), task.store.shape, lambda: task.tokens(indices))

    @property
    def projected(self) -> ProjectedTokens:
        """The node's own clips in bases of their own, on the device; this process computes them once."""
        settings = self.config.adapter.projection
        return kept((*self._key, settings), lambda: ProjectedTokens.of(self.source, settings))

    @property
    def _key(self) -> tuple[Hashable, ...]:
        """What tells the node's clips from any others that this process reads."""
        store = self.task.store
        labels = store.labels[self.indices]  # a class has another id where other classes are agreed on
        return store.path, len(store), self.indices.tobytes(), labels.tobytes(), self.task.device

    def _encoded(self) -> Tensor:
        """Return the latents of the node's clips in the public codec, ``(N, k)``; this process computes them once."""
        chosen = self.config.encoder, self.config.generator.lengths
        return kept(
            (*self._key, *chosen, self.task.config.codec), lambda: self.task.space.codec.encode_all(self.source)
        )

    @property
    def counts(self) -> dict[int, int]:
        """The node's clips of each global class id."""
        return dict(sorted(Counter(self.task.store.labels[self.indices].tolist()).items()))

    @property
    def granularity(self) -> GranularitySettings:
        """The node's own granularity and groups where it has any, else the run's."""
        chosen, own = self.task.granularity, self.own
        return replace(chosen, name=own.granularity or chosen.name, groups=own.groups or chosen.groups)

    @property
    def slots(self) -> dict[str, list[str]]:
        """Which of the node's classes each generator serves, by the generator's key."""
        return slots(self.granularity, self._classes())

    @property
    def samples_per_class(self) -> int:
        """How many samples of each class the node draws."""
        asked = self.own.samples_per_class or self.config.synthesis.samples_per_class
        counts = self.counts
        return max(1, round(sum(counts.values()) / len(counts))) if asked == "auto" else int(asked)

    @property
    def held_out_counts(self) -> dict[int, int]:
        """Held-out clips of each global class id."""
        return dict(sorted(Counter(self.task.store.labels[self.held_out].tolist()).items()))

    def _classes(self) -> list[str]:
        return [self.task.classes[label] for label in self.counts]


def _overlaid(general: NodeConfig, own: NodeConfig) -> NodeConfig:
    """Return ``own`` with what it leaves open taken from ``general``."""
    said: Mapping[str, Any] = {name: value for name, value in vars(own).items() if value is not None}
    return replace(general, **said)

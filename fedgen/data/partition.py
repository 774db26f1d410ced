"""Partition of the training clips over the nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fedgen.data.seeds import stream
from fedgen.data.settings import PartitionSettings
from fedgen.errors import DataError, choose, require

DRAWS = 100


@dataclass(frozen=True)
class Labels:
    """Classes of the clips, and groups of the classes."""

    ids: np.ndarray  # global class id of each clip (N,)
    classes: list[str]  # class names by id
    groups: dict[str, list[str]]  # the data set's named groups of classes, possibly none

    def assigned(self, assignment: list[list[str]], rng: np.random.RandomState) -> list[np.ndarray]:
        """Return each node's clips of its classes; a class of several nodes is shuffled and shared out."""
        parts: list[list[np.ndarray]] = [[np.empty(0, dtype=np.int64)] for _ in assignment]
        for label, name in enumerate(self.classes):
            owners = [node for node, names in enumerate(assignment) if name in names]
            clips = rng.permutation(np.flatnonzero(self.ids == label))
            for owner, piece in zip(owners, np.array_split(clips, max(len(owners), 1)), strict=False):
                parts[owner].append(piece)
        return [np.concatenate(part) for part in parts]


def partition(labels: Labels, settings: PartitionSettings, seed: int) -> list[np.ndarray]:
    """Return for each node the ascending positions of its clips in ``labels.ids``, int64: disjoint and seeded.

    Raises
    ------
    ConfigError
        There are fewer classes or clips than nodes, or ``partition.assignment`` names unknown classes.
    DataError
        A node would have no clip.
    """
    parts = PARTITIONERS[settings.name](labels, settings, stream("partition", settings.name, seed))
    for node, part in enumerate(parts):
        if len(part) == 0:
            chosen = f"partition={settings.name} partition.nodes={settings.nodes}"
            raise DataError(
                f"node {node} has no clip with {chosen}: fewer nodes, other classes or more clips are needed"
            )
    return [np.sort(part).astype(np.int64) for part in parts]


def by_class(labels: Labels, settings: PartitionSettings, rng: np.random.RandomState) -> list[np.ndarray]:
    """Give each node classes of its own: its group if there are as many groups as nodes, else neighbours in order.

    Ten classes on three nodes are dealt 3, 3 and 4: the last nodes get the extra ones.
    """
    nodes, classes, groups = settings.nodes, labels.classes, labels.groups
    require(nodes <= len(classes), f"partition.nodes={nodes} is more than the {len(classes)} classes to deal by_class")
    grouped = len(groups) == nodes and sorted(name for names in groups.values() for name in names) == sorted(classes)
    edges = [node * len(classes) // nodes for node in range(nodes + 1)]
    ordered = [classes[low:high] for low, high in pairwise(edges)]
    return labels.assigned(list(groups.values()) if grouped else ordered, rng)


def explicit(labels: Labels, settings: PartitionSettings, rng: np.random.RandomState) -> list[np.ndarray]:
    """Give each node the classes that ``partition.assignment`` lists for it; classes that no node lists are left out.

    A class that several nodes list is shared: each of them gets clips that no other one has, as evenly as possible.
    """
    nodes, listed = settings.nodes, len(settings.assignment)
    require(listed == nodes, f"partition.assignment lists the classes of {listed} nodes, partition.nodes={nodes}")
    for node, names in enumerate(settings.assignment):
        for name in names:
            choose(name, labels.classes, f"partition.assignment[{node}]")
        require(len(set(names)) == len(names), f"partition.assignment[{node}]={names} names a class twice")
    return labels.assigned(settings.assignment, rng)


def dirichlet(labels: Labels, settings: PartitionSettings, rng: np.random.RandomState) -> list[np.ndarray]:
    """Share each class over the nodes in proportions drawn from Dirichlet(alpha), drawn again while a node has none.

    Source: Hsu et al., Measuring the Effects of Non-Identical Data Distribution, 2019 (1909.06335).
    """
    nodes = settings.nodes
    require(nodes <= len(labels.ids), f"partition.nodes={nodes} is more than the {len(labels.ids)} clips to deal")
    for _ in range(DRAWS):
        parts: list[list[np.ndarray]] = [[] for _ in range(nodes)]
        for label in np.unique(labels.ids):
            clips = rng.permutation(np.flatnonzero(labels.ids == label))
            shares = rng.dirichlet(np.full(nodes, settings.alpha))
            cuts = np.round(np.cumsum(shares)[:-1] * len(clips)).astype(int)
            for part, piece in zip(parts, np.split(clips, cuts), strict=True):
                part.append(piece)
        dealt = [np.concatenate(part) for part in parts]
        if all(len(part) for part in dealt):
            return dealt
    raise DataError(
        f"{DRAWS} draws with partition.alpha={settings.alpha} and partition.nodes={nodes} all left a node without a "
        f"clip of the {len(labels.ids)}: raise partition.alpha or lower partition.nodes"
    )


def iid(labels: Labels, settings: PartitionSettings, rng: np.random.RandomState) -> list[np.ndarray]:
    """Deal all clips at random, as evenly as possible, whatever their class."""
    nodes = settings.nodes
    require(nodes <= len(labels.ids), f"partition.nodes={nodes} is more than the {len(labels.ids)} clips to deal")
    return np.array_split(rng.permutation(len(labels.ids)), nodes)


Partitioner = Callable[[Labels, PartitionSettings, np.random.RandomState], list[np.ndarray]]
PARTITIONERS: dict[str, Partitioner] = {"by_class": by_class, "dirichlet": dirichlet, "iid": iid, "explicit": explicit}

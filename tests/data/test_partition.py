import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fedgen.data.partition import Labels, partition
from fedgen.data.settings import PartitionSettings
from fedgen.errors import ConfigError, DataError

CLASSES = [f"class_{letter}" for letter in "abcdefghij"]


def deal(
    labels: np.ndarray, settings: PartitionSettings, seed: int = 0, groups: dict | None = None
) -> list[np.ndarray]:
    return partition(Labels(labels, CLASSES, groups or {}), settings, seed)


def assert_disjoint_and_complete(parts: list[np.ndarray], expected: np.ndarray) -> None:
    together = np.concatenate(parts)
    assert len(together) == len(set(together.tolist()))
    assert sorted(together.tolist()) == expected.tolist()
    assert all(len(part) and part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


labelled = st.lists(st.integers(0, 9), min_size=0, max_size=80).map(
    lambda more: np.array([*range(10), *range(10), *more])
)
seeds = st.integers(0, 2**31)


@given(labels=labelled, nodes=st.integers(1, 10), seed=seeds, name=st.sampled_from(["by_class", "iid", "dirichlet"]))
def test_every_clip_has_one_node_and_the_seed_decides(labels: np.ndarray, nodes: int, seed: int, name: str) -> None:
    settings = PartitionSettings(name=name, nodes=nodes, alpha=1.0)
    parts = deal(labels, settings, seed)
    assert len(parts) == nodes
    assert_disjoint_and_complete(parts, np.arange(len(labels)))
    assert same(parts, deal(labels, settings, seed))


@given(
    labels=labelled,
    owners=st.lists(st.sets(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=2),
    seed=seeds,
)
def test_explicit_nodes_hold_their_classes_and_share_without_overlap(
    labels: np.ndarray, owners: list[set[int]], seed: int
) -> None:
    settings = PartitionSettings("explicit", len(owners), assignment=[[CLASSES[i] for i in own] for own in owners])
    parts = deal(labels, settings, seed)
    assert_disjoint_and_complete(parts, np.flatnonzero(np.isin(labels, list(set().union(*owners)))))
    for part, own in zip(parts, owners, strict=True):
        assert set(labels[part].tolist()) == own
    assert same(parts, deal(labels, settings, seed))


@given(labels=labelled, nodes=st.integers(2, 10), seed=seeds)
def test_by_class_nodes_hold_whole_classes(labels: np.ndarray, nodes: int, seed: int) -> None:
    parts = deal(labels, PartitionSettings(nodes=nodes), seed)
    held = [set(labels[part].tolist()) for part in parts]
    assert sum(len(classes) for classes in held) == 10
    sizes = [len(classes) for classes in held]
    assert max(sizes) - min(sizes) <= 1


def test_ten_classes_on_three_nodes_are_dealt_3_3_4() -> None:
    labels = np.repeat(np.arange(10), 4)
    parts = deal(labels, PartitionSettings(nodes=3))
    assert [sorted(set(labels[part].tolist())) for part in parts] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]


def test_as_many_groups_as_nodes_are_dealt_by_group() -> None:
    labels = np.repeat(np.arange(10), 4)
    groups = {"odd": CLASSES[1::2], "even": CLASSES[0::2]}
    parts = deal(labels, PartitionSettings(nodes=2), groups=groups)
    assert set(labels[parts[0]].tolist()) == {1, 3, 5, 7, 9}
    assert len(deal(labels, PartitionSettings(nodes=3), groups=groups)) == 3


@given(seed=seeds)
def test_a_small_alpha_skews_more_than_a_large_one(seed: int) -> None:
    labels = np.repeat(np.arange(10), 40)

    def skew(alpha: float) -> float:
        parts = deal(labels, PartitionSettings("dirichlet", 4, alpha), seed)
        counts = np.array([np.bincount(labels[part], minlength=10) for part in parts])
        return float(counts.max(0).mean())

    assume(seed >= 0)
    assert skew(0.05) > skew(100.0)


def test_another_seed_deals_otherwise() -> None:
    labels = np.repeat(np.arange(10), 4)
    for name in ("iid", "dirichlet"):
        assert not same(deal(labels, PartitionSettings(name), 0), deal(labels, PartitionSettings(name), 1))


def test_fewer_classes_or_clips_than_nodes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"partition\.nodes=11 is more than the 10 classes"):
        deal(np.arange(10), PartitionSettings(nodes=11))
    for name in ("iid", "dirichlet"):
        with pytest.raises(ConfigError, match=r"partition\.nodes=4 is more than the 3 clips"):
            deal(np.arange(3), PartitionSettings(name, nodes=4))


def test_a_node_without_a_clip_is_named() -> None:
    with pytest.raises(DataError, match=r"node 2 has no clip with partition=by_class partition\.nodes=3"):
        deal(np.array([0, 1, 4]), PartitionSettings(nodes=3))
    shared = PartitionSettings("explicit", 3, assignment=[["class_a"]] * 3)
    with pytest.raises(DataError, match=r"node 2 has no clip with partition=explicit"):
        deal(np.array([0, 0, 1]), shared)
    with pytest.raises(DataError, match=r"partition\.alpha=0\.01 and partition\.nodes=8 all left a node without"):
        deal(np.arange(8), PartitionSettings("dirichlet", 8, 0.01))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ([["class_a"]], r"partition\.assignment lists the classes of 1 nodes, partition\.nodes=2"),
        ([["class_a"], ["clas_b"]], r"partition\.assignment\[1\]='clas_b'.*Did you mean 'class_b'"),
        ([["class_a", "class_a"], ["class_b"]], "names a class twice"),
    ],
)
def test_bad_assignments_are_named(assignment: list[list[str]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        deal(np.arange(10), PartitionSettings("explicit", 2, assignment=assignment))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"name": "byclass"}, "Did you mean 'by_class'"),
        ({"nodes": 0}, r"partition\.nodes=0"),
        ({"alpha": 0.0}, r"partition\.alpha=0\.0"),
    ],
)
def test_bad_settings_name_value_and_key(bad: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PartitionSettings(**bad)

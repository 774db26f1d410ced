from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgen.data.datasets import deal, recording_of


@pytest.mark.parametrize(
    ("stem", "recording"),
    [
        ("1-100032-A-0", "100032"),
        ("5-100032-B-0", "100032"),
        ("100032-3-0-7", "100032"),
        ("farm_seg3", "dog/farm"),
        ("farm-part12", "dog/farm"),
        ("tape7-2", "dog/tape7"),
        ("rain-2", "dog/rain-2"),
        ("bark", "dog/bark"),
    ],
)
def test_recording_is_read_from_the_name(stem: str, recording: str) -> None:
    assert recording_of(f"dog/{stem}.wav") == recording


@given(
    clips=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=1, max_size=60),
    folds=st.integers(2, 5),
    seed=st.integers(0, 99),
)
def test_recordings_stay_together_and_the_seed_decides(clips: list[tuple[int, int]], folds: int, seed: int) -> None:
    labels, recordings = [label for label, _ in clips], [f"r{recording}" for _, recording in clips]
    dealt = deal(labels, recordings, folds, seed)
    assert set(dealt) <= set(range(1, folds + 1))
    assert len({(r, f) for r, f in zip(recordings, dealt, strict=True)}) == len(set(recordings))
    assert dealt == deal(labels, recordings, folds, seed)


@given(counts=st.lists(st.integers(5, 23), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_classes_are_spread_evenly(counts: list[int], seed: int) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    dealt = deal(labels, [f"r{i}" for i in range(len(labels))], 5, seed)
    for label, count in enumerate(counts):
        sizes = Counter(fold for own, fold in zip(labels, dealt, strict=True) if own == label)
        assert set(sizes.values()) <= {count // 5, -(-count // 5)}


def test_another_seed_deals_otherwise() -> None:
    names = [f"r{i}" for i in range(40)]
    assert deal([0] * 40, names, 5, 0) != deal([0] * 40, names, 5, 1)

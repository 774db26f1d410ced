"""What a process keeps: computed once, and no more of it than it may."""

import pytest
import torch

from fedgen.node.data import LIMIT, cached


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> dict[object, object]:
    memory: dict[object, object] = {}
    monkeypatch.setattr("fedgen.node.data._cache", memory)
    return memory


def test_a_value_is_computed_once_for_its_key() -> None:
    computed: list[str] = []

    def compute(name: str) -> torch.Tensor:
        computed.append(name)
        return torch.zeros(3)

    first = cached(("a", 1), lambda: compute("a1"))
    assert cached(("a", 1), lambda: compute("again")) is first
    assert cached(("a", 2), lambda: compute("a2")) is not first
    assert computed == ["a1", "a2"]


def test_what_was_used_longest_ago_is_forgotten(
    monkeypatch: pytest.MonkeyPatch, nothing_kept: dict[object, object]
) -> None:
    monkeypatch.setattr("fedgen.node.data.LIMIT", 3 * 40)
    for key in "abcabd":
        cached(key, lambda: torch.zeros(10))
    assert list(nothing_kept) == ["a", "b", "d"]
    cached("large", lambda: torch.zeros(1000))
    assert list(nothing_kept) == ["large"]
    assert LIMIT == 2**29

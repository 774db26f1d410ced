"""Token sources: held or read batch by batch, the values are the same."""

import logging

import numpy as np
import pytest
import torch

from fedgen.data.batching import in_batches
from fedgen.data.tokens import FLOAT_LIMIT, MappedTokens, TensorTokens, batches, held_as, rows_at_once
from fedgen.models.codec import Codec
from fedgen.models.settings import CodecSettings
from fedgen.task import Task

CPU = torch.device("cpu")


@pytest.fixture
def clips(task: Task) -> np.ndarray:
    """Some clips of the store, across shards and out of order."""
    return np.random.default_rng(0).permutation(len(task.store))[:20]


@pytest.fixture
def held(task: Task, clips: np.ndarray) -> TensorTokens:
    return TensorTokens(task.store.tokens(clips), torch.from_numpy(task.store.labels[clips]))


@pytest.fixture
def mapped(task: Task, clips: np.ndarray) -> MappedTokens:
    return MappedTokens(task.store, clips, rows=3)


def test_mapped_tokens_are_the_held_ones_bit_for_bit(held: TensorTokens, mapped: MappedTokens) -> None:
    assert (len(mapped), mapped.shape) == (len(held), held.shape)
    assert torch.equal(mapped.labels, held.labels)
    for indices in torch.randperm(20).split(7):
        batch = mapped.batch(indices)
        assert batch.dtype == torch.float32
        assert torch.equal(batch, held.batch(indices))


def test_mapped_tokens_hold_nothing(mapped: MappedTokens) -> None:
    """Labels and clip numbers alone; a batch is the caller's."""
    held = [value for value in vars(mapped).values() if isinstance(value, torch.Tensor)]
    assert sum(value.nbytes for value in held) <= 2 * 8 * len(mapped)
    mapped.batch(torch.arange(3)).zero_()
    assert mapped.batch(torch.arange(3)).abs().sum() > 0


def test_a_loop_reads_fewer_mapped_sequences_at_once(held: TensorTokens, mapped: MappedTokens, task: Task) -> None:
    assert [len(batch) for batch in batches(held, 16)] == [16, 4]
    assert [len(batch) for batch in batches(mapped, 16)] == [3, 3, 3, 3, 3, 3, 2]
    assert torch.equal(torch.cat(list(batches(mapped, 16))), torch.cat(list(batches(held, 16))))
    assert rows_at_once(mapped, 2) == 2
    assert rows_at_once(MappedTokens(task.store, mapped.indices.numpy()), 16) == 16


def test_a_codec_is_fitted_in_such_batches_and_is_the_same(
    held: TensorTokens, mapped: MappedTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, batch = [], mapped.batch
    monkeypatch.setattr(mapped, "batch", lambda indices: (read.append(len(indices)), batch(indices))[1])
    settings = CodecSettings(channels=4, positions=4, components=3, noise=False)
    codecs = [Codec.fit(source, settings)[0] for source in (held, mapped)]
    assert max(read) == 3
    expected, found = (codec.decode(codec.encode(held.batch(torch.arange(4)))) for codec in codecs)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_the_cpu_holds_few_tokens_in_float32_and_many_in_half_precision() -> None:
    assert held_as(FLOAT_LIMIT // 4, CPU) == torch.float32
    assert held_as(FLOAT_LIMIT // 4 + 1, CPU) == torch.float16
    assert held_as(1, torch.device("cuda")) == torch.float16
    assert TensorTokens(torch.zeros(1, 2, 3).half(), torch.zeros(1)).tokens.dtype == torch.float32


def test_a_pass_in_batches_goes_over_everything_once() -> None:
    assert in_batches(list(range(10)), 4, list) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert torch.cat(in_batches(torch.arange(5), 2, torch.neg)).tolist() == [0, -1, -2, -3, -4]
    assert in_batches(torch.arange(0), 4, torch.neg) == []


def test_a_pass_halves_its_batches_when_memory_runs_out(caplog: pytest.LogCaptureFixture) -> None:
    tried = []

    def scarce(items: list[int]) -> list[int]:
        tried.append(len(items))
        if len(items) > 3:
            raise torch.OutOfMemoryError
        return items

    with caplog.at_level(logging.WARNING):
        assert in_batches(list(range(9)), 8, scarce) == [[0, 1], [2, 3], [4, 5], [6, 7], [8]]
    assert tried == [8, 4, 2, 2, 2, 2, 1]  # smaller from then on
    assert "out of memory with 8 items in a batch: going on with 4" in caplog.text


def test_a_pass_gives_up_where_one_item_does_not_fit() -> None:
    def full(items: list[int]) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        in_batches([1, 2, 3], 2, full)


def test_other_errors_of_a_pass_are_not_repeated() -> None:
    def broken(items: list[int]) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        in_batches([1, 2], 2, broken)

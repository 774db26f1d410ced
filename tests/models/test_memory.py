"""The memory plan: what low, high and auto choose, and that the choice changes nothing but rounding."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedgen.config.settings import Config
from fedgen.data.tokens import MappedTokens, TensorTokens
from fedgen.evaluation.zero_shot import zero_shot
from fedgen.models import memory
from fedgen.models.memory import LOW, BatchLimit, MemoryPlan, free_bytes, plan_memory
from fedgen.models.training import TrainingOptions, train_adapters
from fedgen.task import Task, prepare_task

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MIB = 2**20


@pytest.fixture(autouse=True)
def fresh_plans() -> Iterator[None]:
    """A process plans once; each test is a process of its own."""
    plan_memory.cache_clear()
    yield
    plan_memory.cache_clear()


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many bytes every device has free."""
    return lambda value: monkeypatch.setattr(memory, "free_bytes", lambda device: value)


def test_high_holds_tokens_and_takes_whole_batches() -> None:
    plan = plan_memory("high", CPU, 10**18)
    assert plan == MemoryPlan("high", mapped=False, rows=None, generator_rows=None, clips=None)
    assert (plan.rows, plan.generator_rows) == (None, None)


def test_low_reads_tokens_batch_by_batch_and_takes_small_batches() -> None:
    for device in (CPU, CUDA):
        plan = plan_memory("low", device, 1)
        assert plan.mapped
        assert (plan.rows, plan.generator_rows, plan.clips) == (8, 32, 8)


def test_each_training_starts_with_a_limit_of_its_own() -> None:
    limit = BatchLimit(LOW.rows)
    limit.rows = 1  # as after running out of memory
    assert BatchLimit(LOW.rows).rows == 8


def test_auto_is_low_where_the_run_needs_more_than_its_share(
    free: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    free(1000 * MIB)
    with caplog.at_level(logging.INFO):
        assert plan_memory("auto", CPU, 600 * MIB).level == "high"
        assert caplog.text == ""
        assert plan_memory("auto", CPU, 601 * MIB).level == "low"
    assert "memory=low: all tokens need 0.6 GiB where cpu has 1.0 GiB free" in caplog.text


def test_a_process_plans_once(free: Callable[[int], None], caplog: pytest.LogCaptureFixture) -> None:
    """What it has taken itself since then must not change its mind."""
    free(10)
    with caplog.at_level(logging.INFO):
        first = plan_memory("auto", CPU, 7)
        free(1000)
        assert plan_memory("auto", CPU, 7) is first
    assert caplog.text.count("memory=low") == 1


def test_free_memory_is_what_the_system_calls_available() -> None:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert free_bytes(CPU) == pytest.approx(1024 * int(lines["MemAvailable"].split()[0]), rel=0.2)


def test_a_task_holds_or_reads_its_tokens_as_the_plan_says(tiny: Callable[..., Config]) -> None:
    high, low = (prepare_task(tiny(f"memory={level}")) for level in ("high", "low"))
    clips = high.parts[0]
    assert isinstance(high.tokens(clips), TensorTokens)
    assert isinstance(low.tokens(clips), MappedTokens)
    assert isinstance(low.tokens(low.test_indices), MappedTokens)
    whole = torch.arange(len(clips))
    assert torch.equal(high.tokens(clips).batch(whole), low.tokens(clips).batch(whole))


def test_a_small_run_on_a_large_machine_is_high(tiny: Callable[..., Config], free: Callable[[int], None]) -> None:
    task = prepare_task(tiny("memory=auto"))
    free(2**40)
    assert task.memory.level == "high"


def test_low_learns_what_high_learns(tiny: Callable[..., Config]) -> None:
    """Gradients of small batches add up to those of large ones: losses and scores agree to four digits."""
    losses, scores = {}, {}
    for level in ("high", "low"):
        config = tiny(f"memory={level}", "adapter.dropout=0.0", "adapter.training.epochs=2")
        task = prepare_task(config)
        adapters = task.adapters()
        source, heads = task.summaries(task.parts[0]), task.targets.heads
        training = replace(config.adapter.training, batch_size=10)  # parts of 8 and 2
        losses[level], _ = train_adapters(
            adapters, source, heads, training, 0, options=TrainingOptions(limit=BatchLimit(task.memory.rows))
        )
        scores[level] = zero_shot(adapters, task.summaries(task.test_indices), heads, task.classes)
    assert losses["low"] == pytest.approx(losses["high"], rel=1e-4)
    assert scores["low"].accuracy == scores["high"].accuracy
    for head, values in scores["high"].heads.items():
        assert scores["low"].heads[head] == pytest.approx(values, rel=1e-3)


def test_an_encoder_is_built_only_to_encode(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def built(*arguments: object) -> None:
        pytest.fail("nothing is to be encoded")

    monkeypatch.setattr("fedgen.data.patches._orthonormal", built)
    monkeypatch.setattr("fedgen.data.patches.LogMel", built)
    prepare_task(task.config)


def test_a_run_folder_is_made_absolute_once(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert prepare_task(replace(task.config, run_dir="runs/first")).config.run_dir == str(tmp_path / "runs/first")
    assert prepare_task(replace(task.config, run_dir=None)).config.run_dir is None

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
from fedgen.models.memory import LOW, MemoryPlan, batch_bytes, free_bytes, plan_memory
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
    plan = plan_memory("high", CPU, 10**18, 10**18)
    assert plan == MemoryPlan("high", mapped=False, rows=None, generator_rows=None, clips=None)
    assert (plan.batch_limit().rows, plan.generator_limit().rows) == (None, None)


def test_low_reads_tokens_batch_by_batch_and_takes_small_batches() -> None:
    for device in (CPU, CUDA):
        plan = plan_memory("low", device, 1, 1)
        assert plan.mapped
        assert (plan.batch_limit().rows, plan.generator_limit().rows, plan.clips) == (8, 32, 8)


def test_each_training_starts_with_a_limit_of_its_own() -> None:
    limit = LOW.batch_limit()
    limit.rows = 1  # as after running out of memory
    assert LOW.batch_limit().rows == 8


def test_auto_is_low_where_the_run_needs_more_than_its_share(
    free: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    free(1000 * MIB)
    with caplog.at_level(logging.INFO):
        assert plan_memory("auto", CPU, 500 * MIB, 100 * MIB).level == "high"
        assert caplog.text == ""
        assert plan_memory("auto", CPU, 500 * MIB, 101 * MIB).level == "low"
    assert "memory=low: the run needs about 0.6 GiB where cpu has 1.0 GiB free" in caplog.text


def test_a_process_plans_once(free: Callable[[int], None], caplog: pytest.LogCaptureFixture) -> None:
    """What it has taken itself since then must not change its mind."""
    free(10)
    with caplog.at_level(logging.INFO):
        first = plan_memory("auto", CPU, 7, 0)
        free(1000)
        assert plan_memory("auto", CPU, 7, 0) is first
    assert caplog.text.count("memory=low") == 1


@pytest.mark.parametrize(("heads", "queries"), [("flux", 18), ("sd", 77), ("small", 1)])
def test_the_estimate_counts_a_batch_of_adapters_or_two_of_a_codec(heads: str, queries: int) -> None:
    shape, width, maps = (1214, 768), 64, 8 * queries
    few, many = (batch_bytes(shape, size, width, maps) for size in (1, 1000))
    assert few == 2 * 64 * 4 * 1214 * 768  # two batches of 64 clips in float32
    each = {"flux": 8.6, "sd": 17.3, "small": 6.1}[heads]  # MiB a clip; 7.8, 16.5 and 5.1 were measured
    assert many / 1000 / MIB == pytest.approx(each, rel=0.02)


def test_free_memory_is_what_the_system_calls_available() -> None:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert free_bytes(CPU) == pytest.approx(1024 * int(lines["MemAvailable"].split()[0]), rel=0.2)


def test_a_task_holds_or_reads_its_tokens_as_the_plan_says(tiny: Callable[..., Config]) -> None:
    high, low = (prepare_task(tiny(f"memory={level}")) for level in ("high", "low"))
    clips = high.parts[0]
    assert isinstance(high.tokens(clips), TensorTokens)
    assert isinstance(low.tokens(clips), MappedTokens)
    assert isinstance(low.test_tokens(), MappedTokens)
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
        source, heads = task.tokens(task.parts[0]), task.targets.heads
        training = replace(config.adapter.training, batch_size=10)  # parts of 8 and 2
        losses[level], _ = train_adapters(
            adapters, source, heads, training, 0, options=TrainingOptions(limit=task.memory.batch_limit())
        )
        scores[level] = zero_shot(adapters, task.test_tokens(), heads, task.classes)
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

"""Every kind of generator with every granularity and target: fits, samples, repeats, is saved, loaded and shared."""

import math
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import small_banks
import torch
from small_banks import COMBINATIONS, base_name, draw, open_bank, source

from fedgen.data.tensors import load_tensors
from fedgen.models.generators import KINDS
from fedgen.models.generators.bank import Bank
from fedgen.models.settings import GRANULARITIES, Schedule
from fedgen.runs.checkpoint import save_bank

Losses = list[dict[str, float | str]]
KEYS = {"unified": ["unified"], "per_class": ["cow", "dog", "rain"], "per_group": ["animals", "weather"]}

every = pytest.mark.parametrize(
    ("kind", "granularity", "target"), COMBINATIONS, ids=["-".join(chosen) for chosen in COMBINATIONS]
)
every_bank = pytest.mark.parametrize(
    ("kind", "granularity"), [(kind, granularity) for kind in sorted(KINDS) for granularity in GRANULARITIES]
)


@cache
def fitted(kind: str, granularity: str, target: str) -> tuple[Bank, Losses]:
    """Return a bank and its losses; nobody may change it."""
    bank = open_bank(kind, granularity, target)
    return bank, bank.fit(source(), seed=0)


def numbers(row: dict[str, float | str]) -> dict[str, float]:
    return {name: value for name, value in row.items() if not isinstance(value, str)}


@every
def test_losses_come_by_generator_epoch_and_component(kind: str, granularity: str, target: str) -> None:
    bank, losses = fitted(kind, granularity, target)
    assert list(bank.generators) == KEYS[granularity]
    epochs = {"gaussian": 1}.get(kind, small_banks.TRAINING.epochs)
    assert [(row["generator"], row["epoch"]) for row in losses] == [
        (key, epoch) for key in KEYS[granularity] for epoch in range(epochs)
    ]
    for row in losses:
        assert "loss" in row
        assert all(math.isfinite(value) for value in numbers(row).values())


@every
def test_samples_have_their_shape_and_follow_from_their_seed(kind: str, granularity: str, target: str) -> None:
    bank, _ = fitted(kind, granularity, target)
    samples = draw(bank)
    assert samples.shape == (6, 7, 5)
    assert samples.isfinite().all()
    assert torch.equal(samples, draw(bank))
    assert not torch.equal(samples, draw(bank, seed=2))


@every
def test_training_follows_from_its_seed(kind: str, granularity: str, target: str) -> None:
    bank, losses = fitted(kind, granularity, target)
    twin = open_bank(kind, granularity, target)
    assert twin.fit(source(), seed=0) == losses
    assert torch.equal(draw(twin), draw(bank))


@every
def test_a_state_makes_a_twin(kind: str, granularity: str, target: str) -> None:
    bank, _ = fitted(kind, granularity, target)
    for key, generator in bank.generators.items():
        twin = bank.new_generator()
        twin.load_state(generator.state())
        label = bank.class_names.index(bank.classes[key][0])
        one, other = (each.sample(label, 3, torch.Generator().manual_seed(2)) for each in (generator, twin))
        assert torch.equal(one, other)


def test_a_new_process_loads_every_bank_and_draws_the_same_samples(tmp_path: Path) -> None:
    for chosen in COMBINATIONS:
        bank, _ = fitted(*chosen)
        save_bank(tmp_path / "saved", base_name(*chosen), 0, bank, {"round": 1})
    script, drawn = Path(small_banks.__file__), tmp_path / "drawn.safetensors"
    ended = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "saved"), str(drawn)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(script.parents[1]), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    samples, _ = load_tensors(drawn)
    assert len(samples) == len(COMBINATIONS)
    for chosen in COMBINATIONS:
        assert torch.equal(samples[base_name(*chosen)], draw(fitted(*chosen)[0])), chosen


@every_bank
def test_banks_share_generators(kind: str, granularity: str) -> None:
    """A round of a node: train what all share, pass it on, take over what comes back, then save and sample."""
    bank, other = (open_bank(kind, granularity, "flux") for _ in range(2))
    losses = bank.fit_shared(source(), {}, init_seed=3, seed=0, schedule=Schedule(0, 2))
    assert {row["generator"] for row in losses} == set(KEYS[granularity])
    states = bank.shared_states()
    assert list(states) == KEYS[granularity]
    merged = {key: KINDS[kind].merge([state, state], [1, 1]) for key, state in states.items()}
    other.adopt(source(), merged)
    assert draw(other).isfinite().all()
    if not KINDS[kind].restarts:
        other.fit_shared(source(), merged, init_seed=3, seed=1, schedule=Schedule(1, 2))
        bank.fit_shared(source(), states, init_seed=9, seed=1, schedule=Schedule(1, 2))
        for key, state in other.shared_states().items():
            torch.testing.assert_close(state, bank.shared_states()[key], atol=0, rtol=0)

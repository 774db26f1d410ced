"""One small bank for every kind, granularity and target; as a script, a new process that loads them all and samples.

PYTHONPATH=tests python tests/models/generators/small_banks.py FOLDER FILE
"""

import sys
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import torch
from spaces import toy_space

from fedgen.data.settings import TARGETS, TargetSettings
from fedgen.data.targets import Conditions, open_targets
from fedgen.data.tensors import save_tensors
from fedgen.data.tokens import TensorTokens
from fedgen.models.generators import KINDS
from fedgen.models.generators.bank import Bank
from fedgen.models.settings import GRANULARITIES, GeneratorSettings, GeneratorTraining, GranularitySettings
from fedgen.runs.checkpoint import load_bank

NAMES = ["cow", "dog", "rain", "wind"]
PRESENT = [0, 1, 2]  # ids of the classes that the node has
GROUPS = {"animals": ["dog", "cow"], "weather": ["rain", "wind"]}
COMBINATIONS = list(product(sorted(KINDS), GRANULARITIES, TARGETS))
TRAINING = GeneratorTraining(epochs=2, batch_size=8, validation=0.2)
SETTINGS = GeneratorSettings(width=8, latents=3, embedding=4, training=TRAINING)
SPACE = toy_space()


@cache
def conditions(target: str) -> Conditions:
    """What generators are conditioned on, of the target's true widths."""
    return open_targets(NAMES, TargetSettings(target, t5_tokens=3)).conditions()


def source() -> TensorTokens:
    """Forty clips of 7 tokens of width 5, not the same number of each class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 20 + [1] * 13 + [2] * 7)
    return TensorTokens(torch.randn(40, 7, 5, generator=generator) + labels[:, None, None], labels)


def open_bank(kind: str, granularity: str, target: str) -> Bank:
    """Return an unfitted bank."""
    chosen, granularities = replace(SETTINGS, kind=kind), GranularitySettings(granularity, GROUPS)
    return Bank(chosen, granularities, NAMES, SPACE, conditions(target))


def draw(bank: Bank, seed: int = 1) -> torch.Tensor:
    """Return samples ``(6, 7, 5)`` of two classes."""
    return bank.sample({0: 4, 2: 2}, seed).batch(torch.arange(6))


def base_name(kind: str, granularity: str, target: str) -> str:
    """Return the first part of the names of a bank's files."""
    return f"{kind}_{granularity}_{target}"


if __name__ == "__main__":
    samples = {}
    for chosen in COMBINATIONS:
        loaded = open_bank(*chosen)
        load_bank(Path(sys.argv[1]), f"{base_name(*chosen)}_node0", loaded, NAMES[: len(PRESENT)], {})
        samples[base_name(*chosen)] = draw(loaded)
    save_tensors(Path(sys.argv[2]), samples, {})

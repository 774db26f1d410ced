"""Small banks for the tests of checkpoints."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from spaces import toy_space

from fedgen.data.targets import Conditions
from fedgen.data.tokens import TensorTokens
from fedgen.models.generators.bank import Bank
from fedgen.models.public import PublicSpace
from fedgen.models.settings import GeneratorSettings, GeneratorTraining, GranularitySettings, Lengths
from fedgen.runs.checkpoint import load_bank

NAMES = ["rain", "train", "sea waves", "dog/cat"]
FIFTEEN = [f"class{number}" for number in range(15)]
SETTINGS = GeneratorSettings(width=16, latents=4, training=GeneratorTraining(epochs=2, validation=0.0))
ENCODER = {"name": "patches", "stride": 10}
METADATA = {
    "round": 3,
    "encoder": ENCODER,
    "target": "sd",
    "dataset": {"name": "sounds", "seed": 0},
    "split": {"test_fold": 5},
    "counts": dict.fromkeys(NAMES, 15),
    "seed": 7,
    "mode": "train_generators",
    "metrics": {"loss": 0.25},
}
EXPECTED = {name: METADATA[name] for name in ("encoder", "target", "dataset", "split")}


@cache
def _space(lengths: Lengths) -> PublicSpace:
    return toy_space(lengths=lengths)


def source(classes: int = 4, seed: int = 0) -> TensorTokens:
    """Sixty clips of 7 tokens of width 5."""
    tokens = torch.randn(60, 7, 5, generator=torch.Generator().manual_seed(seed))
    return TensorTokens(tokens, torch.arange(60) % classes)


def bank(
    granularity: str = "per_class",
    kind: str = "gaussian",
    fitted: bool = True,
    names: Sequence[str] = NAMES,
    width: int = 4,
    seed: int = 0,
    **settings: Any,
) -> Bank:
    """A bank of ``names``, whose condition vectors have ``width`` values."""
    groups = {"first": list(names[::2]), "second": list(names[1::2])}
    chosen = GranularitySettings(granularity, groups)
    conditions = Conditions({"text": torch.eye(len(names), width)})
    changed = replace(SETTINGS, kind=kind, **settings)
    made = Bank(changed, chosen, list(names), _space(changed.lengths), conditions)
    if fitted:
        made.fit(source(len(names), seed), seed=seed)
    return made


def load(folder: Path, into: Bank, node: int = 0, **changes: Any) -> dict[str, Any]:
    """Load ``vae_node{node}`` into a bank: all of its classes, nothing differing."""
    asked: dict[str, Any] = {"classes": into.class_names, "expected": EXPECTED, **changes}
    return load_bank(folder, f"vae_node{node}", into, **asked)


def draw(made: Bank) -> torch.Tensor:
    """What a bank draws with a fixed seed, of its first and last class."""
    return made.sample({0: 3, len(made.class_names) - 1: 2}, seed=1).latents

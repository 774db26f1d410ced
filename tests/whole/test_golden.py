"""Golden runs: tiny seeded runs of every mode, kind and option of training, held against figures that are stored.

After a change that is meant to change figures::

    FEDGEN_GOLDEN=write pytest tests/whole/test_golden.py
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from federations import Federate

from fedgen import load_run
from fedgen.config.settings import Config
from fedgen.data.tensors import load_tensors

FILE = Path(__file__).with_name("golden.json")
ADAPTERS = "checkpoints/adapters.safetensors"
WRITE = os.environ.get("FEDGEN_GOLDEN") == "write"
MODES = {
    "combined": ["mode=combined", "rounds=2"],
    "one_shot": ["mode=one_shot"],
    "federate": ["mode=federate", "rounds=2"],
    "analytic": ["mode=analytic"],
    "standalone": ["mode=standalone", "rounds=2"],
    "centralised": ["mode=centralised", "rounds=2"],
    "generators, then samples": ["phases=[{mode: train_generators, rounds: 2}, {mode: generate, rounds: 1}]"],
}
KINDS = {kind: ["mode=combined", f"generator={kind}"] for kind in ("vae", "conditioned_vae", "multimodal_vae", "gan")}
PARTS = {
    "public covariance": ["generator.covariance=public"],
    "shared": ["sharing=shared", "generator=vae", "partition=iid"],
    "distilled": ["global_training=distil"],
    "private": ["privacy.name=dp", "privacy.epsilon=8", "privacy.delta=0.01", "privacy.seed=1"],
    "samples alone": ["strategy.send=samples"],
    "longer": ["generator.output_length=12"],
}
BATCHES = ["adapter.training.batch_size=2", "adapter.training.epochs=2"]  # enough steps for a schedule
TRAINING = {  # each option alone changes figures
    "temperature": ["adapter.training.temperature=0.5"],
    "weight decay": ["adapter.training.weight_decay=1"],
    "mean squared error": ["adapter.training.mse_weight=0"],
    "warm-up": ["adapter.training.warmup=0.5"],
    "clipping": ["adapter.training.clip=0.01"],
}
RUNS = MODES | KINDS | {name: ["mode=combined", *options] for name, options in PARTS.items()}
RUNS |= {name: ["mode=federate", *BATCHES, *options] for name, options in {"batches": [], **TRAINING}.items()}


def summary(folder: Path, results: dict[str, Any]) -> dict[str, float]:
    """Return numbers that change with every step of a run: scores, losses, weights, samples by node and class."""
    found = {"accuracy": results["accuracy"]}
    for head, scores in results["heads"].items():
        found |= {f"{head} {name}": value for name, value in scores.items()}
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        metrics = json.loads(line)
        found |= {f"round {metrics['round']} {name}": metrics[name] for name in metrics if name.endswith("loss")}
    if (folder / ADAPTERS).is_file():
        weights, _ = load_tensors(folder / ADAPTERS)
        found |= {f"norm of {name}": float(value.double().norm()) for name, value in weights.items() if value.ndim > 1}
    pool = load_run(folder).pool if (folder / ADAPTERS).is_file() else {}
    for node, samples in pool.items():
        for label in samples.labels.unique().tolist():
            latents = samples.latents[samples.labels == label].double()
            found[f"node {node}, class {label}: mean"] = float(latents.mean(0).abs().mean())
            found[f"node {node}, class {label}: deviation"] = float(latents.std(0).mean())
    return found


@pytest.fixture(scope="module")
def stored() -> Iterator[dict[str, dict[str, float]]]:
    figures = json.loads(FILE.read_text(encoding="utf-8"))
    yield figures
    if WRITE:
        FILE.write_text(json.dumps({name: figures[name] for name in RUNS}, indent=1) + "\n", encoding="utf-8")


@pytest.mark.parametrize("name", RUNS)
def test_figures_of_a_seed_stay(
    name: str, tiny: Callable[..., Config], federate: Federate, tmp_path: Path, stored: dict[str, dict[str, float]]
) -> None:
    found = summary(tmp_path, federate(tiny(*RUNS[name]), tmp_path))
    if WRITE:
        stored[name] = {key: float(f"{value:.6g}") for key, value in found.items()}
    assert found == pytest.approx(stored[name], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", TRAINING)
def test_every_option_of_training_does_something(name: str, stored: dict[str, dict[str, float]]) -> None:
    assert stored[name] != pytest.approx(stored["batches"], rel=1e-3, abs=1e-5)

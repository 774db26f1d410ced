"""What it costs to give every class a generator of its own: per-class generators against a unified one.

For each kind, at equal clips and epochs: one generator for all classes (the baseline), and one for each class. Wall
time of everything from first weights to settled densities; repeats take turns, the fastest counts. Per-class generators
must take at most 1.1 times as long as the unified one.

    python benchmarks/bank.py                       # 15 classes of 64 clips: about ten minutes on one core
    python benchmarks/bank.py --kinds vae

With 64 clips a class, batches of 32 and nothing held out, both take the same number of steps on the same clips.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from typing import Any

import torch
from figures import parser, save, show

from fedgen.data.settings import TargetSettings
from fedgen.data.targets import open_targets
from fedgen.models.generators import KINDS, Part, open_generator
from fedgen.models.settings import GeneratorSettings, GeneratorTraining

logger = logging.getLogger(__name__)

TARGET = 1.1  # times the unified generator's wall time
WAYS = ("unified", "per class")


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    times: dict[tuple[str, str], list[float]] = {(kind, way): [] for kind in arguments.kinds for way in WAYS}
    for kind in arguments.kinds:
        run(arguments, kind, WAYS[-1], device, epochs=1)  # start threads and libraries
    for _ in range(arguments.repeats):
        for kind, way in times:
            times[kind, way].append(run(arguments, kind, way, device, arguments.epochs))
    results = [row(kind, times) for kind in arguments.kinds]
    table(results, arguments, device)
    save(arguments, results, device=device)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__, "bank")
    made.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    made.add_argument("--classes", type=int, default=15)
    made.add_argument("--clips", type=int, default=64, help="of each class")
    made.add_argument("--components", type=int, default=128, help="coefficients of a latent vector")
    made.add_argument("--width", type=int, default=512)
    made.add_argument("--batch-size", type=int, default=32)
    made.add_argument("--epochs", type=int, default=20)
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--threads", type=int, default=1)
    return made.parse_args(words)


def run(arguments: argparse.Namespace, kind: str, way: str, device: str, epochs: int) -> float:
    """Fit generators of ``kind`` to all classes and return the seconds that it took."""
    training = GeneratorTraining(epochs=epochs, batch_size=arguments.batch_size, validation=0.0)
    settings = GeneratorSettings(kind=kind, width=arguments.width, training=training)
    classes, size = arguments.classes, arguments.components
    conditions = open_targets([f"class {number}" for number in range(classes)], TargetSettings()).conditions()
    labels = torch.arange(classes).repeat_interleave(arguments.clips)
    random = torch.Generator().manual_seed(0)
    latents = (torch.randn(len(labels), size, generator=random) + 0.1 * labels[:, None]).to(device)
    groups = [labels >= 0] if way == "unified" else [labels == label for label in range(classes)]
    parts = [Part(latents[rows.to(device)], labels[rows], seed) for seed, rows in enumerate(groups)]
    started = time.perf_counter()
    generators = [open_generator(settings, size, conditions if KINDS[kind].conditioned else None) for _ in parts]
    for generator, part in zip(generators, parts, strict=True):
        generator.fit(part)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def row(kind: str, times: dict[tuple[str, str], list[float]]) -> dict[str, Any]:
    """Return the fastest seconds of each way and their ratio."""
    seconds = {way: min(times[kind, way]) for way in WAYS}
    ratio = seconds["per class"] / seconds["unified"]
    return {"kind": kind, "seconds": seconds, "ratio": ratio, "met": ratio <= TARGET}


def table(results: list[dict[str, Any]], arguments: argparse.Namespace, device: str) -> None:
    show(
        f"{arguments.classes} classes of {arguments.clips} clips, {arguments.epochs} epochs, {device}",
        ["kind", *WAYS, "per class / unified", "target"],
        [[row["kind"], *row["seconds"].values(), row["ratio"], row["met"]] for row in results],
        f"seconds, and times the unified generator's; target {TARGET}",
    )


if __name__ == "__main__":
    main()

"""How fast generators train: clips a second in the codec against the predecessor's loop (the baseline).

Both learn the same clips on the same threads. The predecessor's loop (see ``predecessor.py``) takes clips shortened to
4 tokens one by one; fedgen takes batches of codec latents of all tokens. Timed is the training: of fedgen everything
from first weights to settled densities, of the predecessor whole epochs after the first. What comes before, codec and
latents or shortened clips, is told apart. Repeats take turns; the fastest counts.

    python benchmarks/throughput.py                       # 240 synthesised sounds of 1214 tokens: two minutes
    python benchmarks/throughput.py encoder.stride=16     # of 514 tokens
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from figures import parser, save, show
from predecessor import Recipe, Training, resized
from torch import Tensor

from fedgen.config.compose import load_config
from fedgen.data.targets import Conditions
from fedgen.models.generators import KINDS, Part, open_generator
from fedgen.models.settings import GeneratorSettings
from fedgen.task import prepare_task

TARGET = 100.0  # times the predecessor's clips a second
KIND = "vae"  # that the target is for: the predecessor's own
BASELINE = "predecessor"


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse(words)
    task = prepare_task(load_config([f"threads={arguments.threads}", *arguments.overrides]))
    train = task.tokens(task.store.train_indices(task.config.data.test_fold))
    codec = task.space.codec
    started = time.perf_counter()
    latents = codec.encode_all(train)
    encoding = time.perf_counter() - started
    clips = train.batch(torch.arange(len(train)))
    started = time.perf_counter()
    resized(clips, Recipe().tokens)
    shortening = time.perf_counter() - started
    ways = {BASELINE: Way(shortening, predecessor(arguments, clips), arguments.old_epochs)}
    for kind in arguments.kinds:
        fit = generator(arguments, kind, task.config.generator, latents, train.labels, task.targets.conditions())
        ways[kind] = Way(encoding, fit, arguments.epochs)
    for _ in range(arguments.repeats):
        for way in ways.values():
            way.measure()
    rows = [row(name, way, ways[BASELINE], len(train)) for name, way in ways.items()]
    title = f"{len(train)} clips of {train.shape[0]} x {train.shape[1]}, {arguments.threads} thread(s), {task.device}"
    show(title, list(rows[0]), [list(found.values()) for found in rows], f"target {TARGET:g} times, for {KIND}")
    save(arguments, rows, clips=len(train), shape=train.shape, device=str(task.device), target=TARGET)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__, "throughput")
    neural = [kind for kind in KINDS if kind != "gaussian"]
    made.add_argument("--kinds", nargs="+", choices=neural, default=neural)
    made.add_argument("--epochs", type=int, default=20, help="of fedgen's generators")
    made.add_argument("--old-epochs", type=int, default=1, help="of the predecessor's, after a first that is not timed")
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("overrides", nargs="*", help="of the configuration")
    return made.parse_intermixed_args(words)


@dataclass
class Way:
    """One way of training: ``preparation`` and ``seconds``, the fastest of all repeats, for ``epochs`` epochs."""

    preparation: float
    run: Callable[[], None]
    epochs: int
    seconds: float = field(default=float("inf"))

    def measure(self) -> None:
        started = time.perf_counter()
        self.run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = min(self.seconds, time.perf_counter() - started)

    @property
    def epoch(self) -> float:
        return self.seconds / self.epochs


def predecessor(arguments: argparse.Namespace, clips: Tensor) -> Callable[[], None]:
    """Return what trains the predecessor's generator further; its first epoch is over."""
    training = Training(clips, Recipe(), seed=0)
    training.epoch(0)

    def run() -> None:
        for number in range(1, arguments.old_epochs + 1):
            training.epoch(number)

    return run


def generator(
    arguments: argparse.Namespace,
    kind: str,
    settings: GeneratorSettings,
    latents: Tensor,
    labels: Tensor,
    conditions: Conditions,
) -> Callable[[], None]:
    """Return what trains a new generator of ``kind`` on every clip; libraries are warm."""
    seen = conditions if KINDS[kind].conditioned else None

    def run(epochs: int = arguments.epochs) -> None:
        training = replace(settings.training, epochs=epochs, validation=0.0)
        chosen = replace(settings, kind=kind, training=training)
        open_generator(chosen, latents.shape[1], seen).fit(Part(latents, labels, seed=0))

    run(epochs=1)
    return run


def row(name: str, way: Way, baseline: Way, clips: int) -> dict[str, Any]:
    times = baseline.epoch / way.epoch
    return {
        "generator": name,
        "clips/s": clips / way.epoch,
        "times": times,
        "target": times >= TARGET if name == KIND else None,
        "s before training": way.preparation,
        "s in all, 100 epochs": way.preparation + 100 * way.epoch,
    }


if __name__ == "__main__":
    main()

"""What a synthetic sample costs on the wire, and what travelling costs in accuracy.

Bytes are of serialised messages (Flower's own protobuf): samples of all classes, against the same samples as raw tokens
in half precision (the baseline); nothing of the codec travels. For the accuracy, adapters learn from the samples of all
nodes as they were drawn, and from what arrives of them: latents rounded to 8 bits. Both have the same seed, and so the
same noise, first weights and order; the difference is paired by seed, and its error is that of the mean over seeds.
Fold 5 is left out altogether: training on folds 1 to 3, accuracy on fold 4.

    python benchmarks/wire.py ../shared/data/esc10            # ESC-10 at 1214 tokens, 8 seeds: three minutes
    python benchmarks/wire.py sounds encoder.stride=16        # the synthesised sounds, 514 tokens
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from figures import data, mean_and_error, parser, save, show
from flwr.app import ArrayRecord, RecordDict
from flwr.common.serde import recorddict_to_proto

from fedgen.config.compose import load_config
from fedgen.data.tokens import SummarySource
from fedgen.evaluation.zero_shot import zero_shot
from fedgen.messages.samples import samples_from_record, samples_to_record
from fedgen.models.generators.bank import Bank
from fedgen.models.samples import PooledSummaries, SyntheticTokens
from fedgen.models.training import train_adapters
from fedgen.task import Task, prepare_task

TARGETS = {"sample": 128.0, "accuracy": 0.01}
FOLDS = ["data.test_fold=4", "data.leave_out=[5]"]


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse(words)
    task = prepare_task(
        load_config([*data(arguments.data), f"threads={arguments.threads}", *arguments.overrides, *FOLDS])
    )
    banks = [fitted(task, part) for part in task.parts]
    everyone = fitted(task, np.concatenate(task.parts))
    drawn = everyone.sample(dict.fromkeys(own_labels(task, everyone), arguments.samples), seed=0)
    rows = [{"what": name, **found} for name, found in sizes(drawn).items()]
    test = task.summaries(task.test_indices)
    tasks = [replace(task, config=replace(task.config, seed=seed)) for seed in range(arguments.seeds)]
    accuracies = [accuracy(arguments, seeded, banks, test) for seeded in tasks]
    losses = mean_and_error([before - after for before, after in accuracies])
    assert losses is not None
    rows.append({"what": "accuracy lost", "measured": losses[0], "error": losses[1], "target": TARGETS["accuracy"]})
    for found in rows:
        found["met"] = found["measured"] <= found["target"] if "target" in found else None
    shape = task.store.shape
    title = (
        f"{len(drawn)} samples of {shape[0]} x {shape[1]} tokens; accuracy: {len(banks)} nodes, {arguments.seeds} seeds"
    )
    columns = ("what", "measured", "error", "target", "met")
    means = [sum(found) / len(found) for found in zip(*accuracies, strict=True)]
    caption = f"accuracy {means[0]:.3f} from samples as drawn, {means[1]:.3f} from what arrived"
    show(title, columns, [[found.get(name) for name in columns] for found in rows], caption)
    save(arguments, rows, shape=shape, accuracies=accuracies, folds=FOLDS)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__, "wire")
    made.add_argument("data", help="folder in the ESC-50 layout, or sounds")
    made.add_argument("--samples", type=int, default=64, help="of each class")
    made.add_argument("--epochs", type=int, default=8, help="of adapters on the samples")
    made.add_argument("--seeds", type=int, default=8)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("overrides", nargs="*", help="of the configuration")
    return made.parse_intermixed_args(words)


def fitted(task: Task, part: np.ndarray) -> Bank:
    """Return a node's generators, fitted to its clips."""
    bank = Bank(task.config.generator, task.granularity, task.classes, task.space, task.targets.conditions())
    bank.fit(task.tokens(part), seed=0)
    return bank


def own_labels(task: Task, bank: Bank) -> list[int]:
    return [task.classes.index(name) for names in bank.classes.values() for name in names]


def sizes(samples: SyntheticTokens) -> dict[str, dict[str, Any]]:
    """Return bytes of serialised messages of ``samples``."""
    count, (length, width) = len(samples), samples.shape
    whole = message_bytes(samples_to_record(samples))
    few = SyntheticTokens(samples.codec, samples.latents[::2], samples.labels[::2])
    rest = message_bytes(samples_to_record(few))
    return {
        "bytes a sample": {"measured": (whole - rest) / (count - len(few)), "target": TARGETS["sample"]},
        "bytes a sample, all of the message": {"measured": whole / count},
        "bytes a sample, raw half precision": {"measured": 2.0 * length * width},
        "times smaller, all of the message": {"measured": 2.0 * length * width * count / whole},
        "squared error of arrived tokens, share": {"measured": lost(samples)},
    }


def lost(samples: SyntheticTokens, count: int = 64) -> float:
    """Return the squared error of samples that travelled, noise left out, as a share of their squared values."""
    other = sent(samples)
    order = samples.labels.argsort(stable=True)[:count]
    before = samples.codec.decode(samples.latents[order])
    return float((other.codec.decode(other.latents[:count]) - before).square().sum() / before.square().sum())


def message_bytes(record: ArrayRecord) -> int:
    return len(recorddict_to_proto(RecordDict({"samples": record})).SerializeToString())


def accuracy(arguments: argparse.Namespace, task: Task, banks: list[Bank], test: SummarySource) -> tuple[float, float]:
    """Return the accuracy of adapters that learn from samples as they were drawn, and from what arrives of them."""
    drawn = [
        bank.sample(dict.fromkeys(own_labels(task, bank), arguments.samples), task.seed("wire", number))
        for number, bank in enumerate(banks)
    ]
    return learnt(arguments, task, drawn, test), learnt(arguments, task, [sent(samples) for samples in drawn], test)


def sent(samples: SyntheticTokens) -> SyntheticTokens:
    """Return what arrives of ``samples``, with their noise from its start."""
    counts = samples.counts()
    return samples_from_record(samples_to_record(samples), samples.codec, counts, max(counts.values()), samples.seed)


def learnt(arguments: argparse.Namespace, task: Task, samples: list[SyntheticTokens], test: SummarySource) -> float:
    """Return the accuracy on ``test`` of adapters that were trained on ``samples`` alone."""
    adapters, heads = task.adapters(), task.targets.heads
    settings = replace(task.config.global_training, epochs=arguments.epochs)
    train_adapters(adapters, PooledSummaries(samples), heads, settings, task.seed("train"))
    return zero_shot(adapters, test, heads, task.classes).accuracy


if __name__ == "__main__":
    main()

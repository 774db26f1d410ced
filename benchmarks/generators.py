"""Quality of the samples of every kind of generator, against baselines, at several training lengths.

Each held-out fold and seed is a block. In a block the training clips are dealt to nodes as in a federation, by class by
default; each node fits a generator of its own to its clips, and everyone's samples together are measured by
`fedgen.evaluation.quality` against all training clips and the held-out ones, at the encoder's own length:
shorter ones are up-sampled. Baselines: Gaussian mixtures in the codec; class Gaussians of flat short sequences and of
mean tokens; the predecessor's recipe, a generator a class; points between clips. The first row is what real clips
score: training against held-out ones. What samples tell of clips, `privacy.py` measures: useful samples may be copies.

The targets: with samples, a probe has 0.97 of the accuracy that it has with real clips, at every length; and a neural
kind is better than `gaussian` in precision, density and coverage (as good, where there is no more to have) and worse in
no other measure. Kinds are compared within blocks: a mean difference counts that is more than two of its errors.

    python benchmarks/generators.py ../shared/data/esc10 encoder.stride=16       # ESC-10, 514 tokens
    python benchmarks/generators.py ../shared/data/esc10                         # ESC-10, 1214 tokens
    python benchmarks/generators.py sounds encoder.stride=16                     # the synthesised sounds
    python benchmarks/generators.py ../shared/data/esc10 --folds 1 2 3 4 'data.leave_out=[5]' generator.shrinkage=0.5

Every finished cell is kept in ``--out``: interrupted, the benchmark goes on where it was. At 514 tokens a block takes
some five minutes of one core, and the predecessor's recipe eight more.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from baselines import class_gaussian, interpolations, mixture, predecessor
from comparison import REFERENCE, TARGET, summary, tables
from figures import data, parser, save
from predecessor import Recipe
from torch import Tensor

from fedgen.config.compose import load_config
from fedgen.config.settings import Config
from fedgen.data.seeds import seeded
from fedgen.data.tokens import Summaries, TokenSource
from fedgen.evaluation.features import Records, read_records
from fedgen.evaluation.quality import AdapterTask, Site, fidelity_report, segments_of, utility_report
from fedgen.models.generators import KINDS
from fedgen.models.generators.bank import Bank
from fedgen.models.public import PublicSpace
from fedgen.models.samples import PooledSummaries, SyntheticTokens, class_counts
from fedgen.models.settings import GeneratorSettings
from fedgen.task import Task, prepare_task

logger = logging.getLogger(__name__)

BASELINES = ("mixture", "flat gaussian", "pooled gaussian", "interpolation", "predecessor")
FLAT = 64  # tokens above which flat sequences are left out
FEW = 4  # tokens of the predecessor's sequences
OWN = ("data", "data.test_fold", "generator", "generator.kind", "generator.training_length")  # options say these
HONOURED = ("data", "encoder", "target", "codec", "generator", "granularity", "partition", "adapter", "evaluation")


def main(words: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("fedgen").setLevel(logging.ERROR)  # how far sequences are up-sampled is in the table
    arguments = parse(words)
    benchmark = Benchmark(arguments)
    cells: list[dict[str, Any]] = []
    for fold in arguments.folds:
        for seed in arguments.seeds:
            block = Block(benchmark, fold, seed)
            cells += [benchmark.cell(block, way, length) for way, length in benchmark.rows]
    found = summary(cells, benchmark.rows, [kind for kind in KINDS if kind != REFERENCE])
    tables(found, f"{benchmark.native} tokens, folds {arguments.folds}, seeds {arguments.seeds}")
    arguments.out = arguments.out / "generators.json"
    save(arguments, found, setup=benchmark.setup, target=TARGET)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__, "generators")
    made.set_defaults(out=Path("runs/benchmarks/generators"))
    made.add_argument("data", help="folder in the ESC-50 layout, or sounds")
    made.add_argument("--folds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="held out in turn")
    made.add_argument("--seeds", type=int, nargs="+", default=[0])
    made.add_argument("--lengths", nargs="+", default=["4", "64", "256", "native"], help="training lengths in tokens")
    made.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    made.add_argument("--baselines", nargs="*", choices=BASELINES, default=list(BASELINES))
    made.add_argument("--samples", type=int, default=128, help="of each class")
    made.add_argument("--adapter", action="store_true", help="also the adapter's probe, which takes minutes a row")
    made.add_argument("--epochs", type=int, default=100, help="of the predecessor's recipe")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("overrides", nargs="*", help=f"of the configuration: {', '.join(HONOURED)}")
    arguments = made.parse_intermixed_args(words)
    for override in arguments.overrides:
        key = override.lstrip("+").split("=")[0]
        if key.split(".")[0] not in HONOURED or key in OWN:
            made.error(f"{override} is no override here; what may be: {', '.join(HONOURED)}, but not {', '.join(OWN)}")
    return arguments


class Benchmark:
    """The data, the settings and the rows of the tables."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.overrides = (
            arguments,
            [*data(arguments.data), f"threads={arguments.threads}", *arguments.overrides],
        )
        self.native = self.task(arguments.folds[0], 0).store.shape[0]
        kinds = {REFERENCE, *arguments.kinds}
        self.generators = {kind: self.config(arguments.folds[0], 0, f"generator={kind}").generator for kind in kinds}
        self.setup = {"overrides": self.overrides, "samples": arguments.samples, "adapter": arguments.adapter}

    def task(self, fold: int, seed: int) -> Task:
        """Return the clips of a block, dealt to nodes, with everything that is the same for all ways."""
        return prepare_task(self.config(fold, seed))

    def config(self, fold: int, seed: int, *more: str) -> Config:
        """Return the configuration of a block; a fold that is left out cannot be held out."""
        return load_config([*more, *self.overrides, f"data.test_fold={fold}", f"seed={seed}"])

    @cached_property
    def rows(self) -> list[tuple[str, int]]:
        """Ways of making samples, with the tokens that each models."""
        given = self.arguments
        lengths = [self.native if length == "native" else int(length) for length in given.lengths]
        chosen = [(way, length) for length in lengths for way in (*given.kinds, "mixture")]
        chosen += [("flat gaussian", length) for length in lengths if 1 < length <= FLAT]
        chosen += [("pooled gaussian", 1), ("predecessor", FEW), ("interpolation", self.native)]
        return sorted((row for row in chosen if row[0] in (*given.kinds, *given.baselines)), key=lambda row: row[1])

    def settings(self, way: str, length: int) -> GeneratorSettings:
        """Return a kind's settings at a training length; of baselines those of `REFERENCE`."""
        found = self.generators.get(way, self.generators[REFERENCE])
        return replace(found, training_length=None if length == self.native else length)

    def cell(self, block: Block, way: str, length: int) -> dict[str, Any]:
        """Make samples in one way and measure them, or read what was measured before."""
        folder = self.arguments.out / f"fold{block.fold}_seed{block.seed}"
        path = folder / f"{way.replace(' ', '_')}_{length}.json"
        setup = self.setup | {"generator": asdict(self.settings(way, length))}
        setup |= {"epochs": self.arguments.epochs} if way == "predecessor" else {}
        if path.is_file():
            known: dict[str, Any] = json.loads(path.read_text())
            if known["setup"] != setup:
                raise SystemExit(f"{path} was measured with other settings: choose another --out")
            return known
        started = time.process_time()
        made = block.samples(way, length)
        seconds = time.process_time() - started
        report = block.measure(made)
        found = {"fold": block.fold, "seed": block.seed, "way": way, "length": length, "setup": setup}
        found |= {"seconds": seconds, "report": report}
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
        logger.info("fold %d, seed %d: %s at %d tokens, %.0f s", block.fold, block.seed, way, length, seconds)
        return found


class Block:
    """The clips of one held-out fold, dealt to nodes with one seed."""

    def __init__(self, benchmark: Benchmark, fold: int, seed: int) -> None:
        self.benchmark, self.fold, self.seed = benchmark, fold, seed
        self.task = benchmark.task(fold, seed)
        self.encoded: dict[int, list[Tensor]] = {}  # by length, of each node

    @cached_property
    def train(self) -> TokenSource:
        """The training clips."""
        return self.task.tokens(self.task.train_indices)

    @cached_property
    def held_out(self) -> TokenSource:
        """The held-out clips."""
        return self.task.tokens(self.task.test_indices)

    @cached_property
    def nodes(self) -> list[TokenSource]:
        """The training clips of each node."""
        return [self.task.tokens(part) for part in self.task.parts]

    def samples(self, way: str, length: int) -> list[TokenSource]:
        """Return samples of all classes, those of each node or of all together."""
        given = self.benchmark.arguments
        if way in ("flat gaussian", "pooled gaussian"):
            shrinkage = self.benchmark.settings(REFERENCE, length).shrinkage
            return [class_gaussian(self.train, length, given.samples, shrinkage, self.seed)]
        if way == "interpolation":
            return [interpolations(self.train, given.samples, self.seed)]
        if way == "predecessor":
            return [predecessor(self.train, Recipe(length, given.epochs), given.samples, self.seed)]
        return self._in_codec(way, length)

    def _in_codec(self, way: str, length: int) -> list[TokenSource]:
        """Return the samples of every node's own generators, or mixtures, in the public codec."""
        settings = self.benchmark.settings(way, length)
        count = self.benchmark.arguments.samples
        parts: list[TokenSource] = []
        space = self._space(settings)
        for number, (node, latents) in enumerate(zip(self.nodes, self._encoded(length), strict=True)):
            seed = seeded(self.seed, "generators", number).initial_seed()
            if way == "mixture":
                drawn, labels = mixture(latents, node.labels, count, seed)
                parts.append(SyntheticTokens(space.codec, drawn, labels, seed, self.task.device))
            else:
                bank = self._bank(settings, node, latents, seed)
                parts.append(bank.sample(dict.fromkeys(class_counts(node.labels), count), seed, self.task.device))
        return parts

    def _space(self, settings: GeneratorSettings) -> PublicSpace:
        """Return the public codec at the lengths of ``settings``."""
        return replace(self.task, config=replace(self.task.config, generator=settings)).space

    def _bank(self, settings: GeneratorSettings, node: TokenSource, latents: Tensor, seed: int) -> Bank:
        """Return a node's generators, fitted to its clips, of which ``latents`` are known."""
        task, space = self.task, self._space(settings)
        conditions = task.targets.conditions()
        bank = Bank(settings, task.granularity, task.classes, space, conditions)
        bank.encode = lambda: latents
        bank.fit(node, seed)
        return bank

    def _encoded(self, length: int) -> list[Tensor]:
        """Return each node's latents, which all ways in the codec have in common."""
        if length not in self.encoded:
            codec = self._space(self.benchmark.settings(REFERENCE, length)).codec
            self.encoded[length] = [codec.encode_all(node) for node in self.nodes]
        return self.encoded[length]

    def summaries(self, *sources: TokenSource) -> PooledSummaries:
        """Return what adapters read of ``sources``: samples in the codec have summaries of their own."""
        bands = self.task.bands
        return PooledSummaries([s if isinstance(s, SyntheticTokens) else Summaries.of(s, bands) for s in sources])

    def measure(self, made: list[TokenSource]) -> dict[str, Any]:
        """Return every measure of ``made``."""
        probes, probing = ["pooled", "segments"], None
        if self.benchmark.arguments.adapter:
            probes.append("adapter")
            training = self.task.config.adapter.training
            probing = AdapterTask(self.task.targets.heads, self.task.adapters, training)
        classes, count = self.task.classes, segments_of(self.train, self.held_out, *made)
        own = [read_records(part, count) for part in made]
        synthetic = Records(torch.cat([r.segments for r in own]), torch.cat([r.labels for r in own]))
        site = Site(read_records(self.train, count), read_records(self.held_out, count), synthetic)
        sources = self.summaries(self.train), self.summaries(self.held_out), self.summaries(*made)
        found = utility_report(site, classes, probes, sources, probing, self.seed)
        return found | {"fidelity": fidelity_report(site, classes, self.seed)}


if __name__ == "__main__":
    main()

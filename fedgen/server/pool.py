"""The pool of synthetic samples: collected from nodes, sent to other nodes, and trained on by the server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import ArrayRecord, Message, RecordDict

from fedgen.config.phases import Phase
from fedgen.config.settings import Config
from fedgen.data.progress import show_step
from fedgen.data.seeds import seeded
from fedgen.errors import PayloadError
from fedgen.messages.checks import NodeInfo, check_records
from fedgen.messages.samples import samples_from_record, samples_to_record
from fedgen.models.codec import Codec
from fedgen.models.memory import BatchLimit
from fedgen.models.samples import PooledSummaries, SyntheticTokens
from fedgen.models.training import Teachers, TrainingOptions, train_adapters
from fedgen.runs.folder import RunState, pool_from_state
from fedgen.server.federation import Federation
from fedgen.task import Task

MAX_SOURCES = 4  # nodes whose samples of a class one node gets

Learn = Callable[[int, ArrayRecord, PooledSummaries, Mapping[int, ArrayRecord]], tuple[ArrayRecord, dict[str, float]]]
"""``(round, adapters, samples, teachers) -> (adapters, losses)``; ``teachers``: the nodes' adapters by partition id."""


@dataclass(eq=False)
class SamplePool:
    """The latest samples of the nodes.

    Averaged adapters forget the classes that single nodes do not have: each node pulls them towards its own. With some
    of the others' samples beside its clips, every node trains for the same task. Only synthetic samples travel.

    """

    codec: Codec  # the public one, in which samples are
    config: Config
    device: torch.device | str = "cpu"  # where samples are decoded
    learn: Learn | None = None  # trains the averaged adapters on the pool; by default they stay as they are
    samples: dict[int, SyntheticTokens] = field(default_factory=dict)  # by partition id; the oldest come first

    def shares(self, phase: Phase) -> bool:
        """Return whether nodes train adapters on each other's samples, and there are any."""
        return phase.mode.trains_adapters and self.config.synthesis.fill > 0 and bool(self.samples)

    def share(self, federation: Federation) -> None:
        """Send each active node the other nodes' samples that fill its classes up.

        Raises
        ------
        AggregationError
            Too few nodes have taken them.
        """
        contents = {}
        for node_id, node in federation.active.items():
            chosen = self.chosen(node, federation.report.round)
            contents[node_id] = RecordDict({f"samples.{n}": samples_to_record(own) for n, own in chosen.items()})
        federation.ask("query.fill", contents, lambda node, reply: None)

    def chosen(self, node: NodeInfo, round_number: int) -> dict[int, SyntheticTokens]:
        """Return what ``node`` gets of each other node: of each class, random samples of a few nodes."""
        ids = sorted(n for n in self.samples if n != node.partition_id and len(self.samples[n]))
        others = {n: self.samples[n] for n in ids}
        if not others:
            return {}
        seed, per_class = self.config.seed, self.config.synthesis.fill
        labels = torch.cat([samples.labels for samples in others.values()])  # (N,)
        owners = torch.cat([torch.full((len(samples),), number) for number, samples in others.items()])
        order = torch.randperm(len(labels), generator=seeded(seed, "fill", round_number, node.partition_id))
        taken = torch.zeros(len(labels), dtype=torch.bool)
        for label in labels.unique().tolist():
            holders = owners[labels == label].unique()
            mixed = torch.randperm(len(holders), generator=seeded(seed, "donors", node.partition_id, label))
            allowed = (labels == label) & torch.isin(owners, holders[mixed[:MAX_SOURCES]])
            missing = max(0, per_class - node.counts.get(label, 0))
            taken[order[allowed[order]][:missing]] = True
        parts = taken.split([len(samples) for samples in others.values()])
        pairs = zip(others.items(), parts, strict=True)
        return {number: samples.at(part) for (number, samples), part in pairs if part.any()}

    def train(self, federation: Federation, arrays: ArrayRecord, teachers: Mapping[int, ArrayRecord]) -> ArrayRecord:
        """Collect samples, and return the adapters ``arrays`` trained on the pool."""
        samples = self.collect(federation)
        if self.learn is None:
            return arrays
        show_step("training on the server")
        arrays, federation.report.global_losses = self.learn(federation.report.round, arrays, samples, teachers)
        return arrays

    def collect(self, federation: Federation) -> PooledSummaries:
        """Ask the active nodes for samples, and return the whole pool, on the device.

        Raises
        ------
        AggregationError
            Too few nodes have sent any.
        """
        active = federation.active
        seed = seeded(self.config.seed, "decode", federation.report.round).initial_seed()
        fresh = federation.ask(
            "query.synthesize", dict.fromkeys(active, RecordDict()), lambda node, reply: self._read(node, reply, seed)
        )
        for number, samples in fresh.items():
            self.samples.pop(number, None)
            self.samples[number] = samples
            federation.report.statistics[number] = samples.statistics()
        for number in list(self.samples)[: -max(self.config.strategy.pool_nodes, len(active))]:
            del self.samples[number]
        # the noise of each part starts anew, so that samples of a node that is missing are decoded as after a restart
        pool = PooledSummaries([self.samples[number].to(self.device) for number in sorted(self.samples)])
        federation.report.samples = pool.counts()
        return pool

    def _read(self, node: NodeInfo, reply: Message, seed: int) -> SyntheticTokens:
        """Return a node's validated samples, and empty the reply."""
        check_records(reply, samples=ArrayRecord)
        limit, record = self.config.synthesis.max_samples, reply.content.array_records["samples"]
        own_seed = seed + node.partition_id
        samples = samples_from_record(record, self.codec, node.counts.keys(), limit, own_seed, self.device)
        if not 1 <= len(samples) <= limit:
            raise PayloadError(f"{len(samples)} samples, expected 1 to synthesis.max_samples={limit}")
        reply.content = RecordDict()
        return samples

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the samples of each node, by the name of their file, and the seeds of their noise."""
        tensors = {f"samples_node{number}": samples.state() for number, samples in self.samples.items()}
        return tensors, {"seeds": {number: samples.seed for number, samples in self.samples.items()}}

    def load(self, state: RunState) -> None:
        """Go on from what `state` returned."""
        self.samples = pool_from_state(state, self.codec)


def train_on_pool(
    task: Task,
    phase: Phase,
    nodes: Mapping[int, NodeInfo],
    round_number: int,
    arrays: ArrayRecord,
    pool: PooledSummaries,
    teachers: Mapping[int, ArrayRecord],
) -> tuple[ArrayRecord, dict[str, float]]:
    """Train the averaged adapters on all synthetic samples, on the server's device.

    With ``global_training=distil``, the nodes' adapters teach. As on the nodes, the rounds of a phase share one
    learning-rate schedule.
    """
    adapters, settings, teaching = task.adapters(), task.config.global_training, None
    adapters.load_state_dict(arrays.to_torch_state_dict())
    if settings.name == "distil":
        states = {number: record.to_torch_state_dict() for number, record in teachers.items()}
        counts = {node.partition_id: node.counts for node in nodes.values()}
        teaching = Teachers(adapters, states, counts, len(task.classes), settings.teacher_weight)
    options = TrainingOptions(phase.schedule(round_number), limit=BatchLimit(task.memory.rows), teachers=teaching)
    seed = task.seed("global", round_number)
    losses, _ = train_adapters(adapters, pool, task.targets.heads, settings, seed, options=options)
    return ArrayRecord(adapters.state_dict()), losses

"""What one node does in a round: train adapters, fit generators, and sample. No Flower here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fedgen.config.phases import Phase
from fedgen.errors import DataError, require
from fedgen.evaluation.audit import Clips, Sent, audit_run, named, verdict_of
from fedgen.evaluation.zero_shot import zero_shot
from fedgen.messages.states import States
from fedgen.models.analytic import clip_sums
from fedgen.models.generators.bank import History
from fedgen.models.memory import BatchLimit
from fedgen.models.samples import SyntheticTokens
from fedgen.models.states import join
from fedgen.models.training import TrainingOptions, train_adapters
from fedgen.node.data import NodeData
from fedgen.node.generators import FittedGenerators
from fedgen.node.private import PrivateRelease
from fedgen.node.state import NodeState

Weights = dict[str, Tensor]


@dataclass(eq=False)
class Node:
    """One node of the federation."""

    data: NodeData  # its clips
    generators: FittedGenerators  # fitted to its clips, or a private release of them
    state: NodeState  # what it remembers on its disk

    def __post_init__(self) -> None:
        self.task, self.config, self.partition_id = self.data.task, self.data.config, self.data.partition_id

    @classmethod
    def open(cls, data: NodeData, home: Path, load: Path | None = None, checkpoints: Path | None = None) -> Node:
        """Open a node with its folders.

        Parameters
        ----------
        data : NodeData
        home : Path
            Where the node keeps its state (``state/node{i}``) and its generators' checkpoints (``checkpoints``).
        load : Path, optional
            The same of the run that this one goes on from.
        checkpoints : Path, optional
            Folder of checkpoints in place of those in ``home`` and ``load``.
        """
        name = Path("state") / f"node{data.partition_id}"
        state = NodeState(home / name)
        earlier = (NodeState(load / name), checkpoints or load / "checkpoints") if load else None
        source = PrivateRelease if data.config.privacy.used else FittedGenerators
        return cls(data, source(data, state, checkpoints or home / "checkpoints", earlier), state)

    def prepare(self, finished: int = 0, rejoins: bool = False) -> None:
        """Start afresh, or from the run that this one goes on from, and find out whether every phase can be done.

        Parameters
        ----------
        finished : int
            Rounds that are finished before this run's first.
        rejoins : bool
            Whether the node has been in this run before: then it goes on from what it remembers.

        Raises
        ------
        ConfigError, CheckpointError
            The granularity does not cover the node's classes; a checkpoint that is to be loaded is missing or unfit;
            the privacy budget is none for so few clips.
        """
        if self.config.privacy.used:
            self.config.privacy.check_clips(len(self.data.indices))
        if not self.config.resume and not rejoins:
            self.state.clear()
            if self.generators.earlier:
                self.generators.inherit(finished)
        self.generators.check()

    def train(
        self, weights: Weights, round_number: int, phase: Phase, proximal_mu: float = 0.0, filled: bool = False
    ) -> tuple[Weights, dict[str, float]]:
        """Train the global adapters, and return their state and the losses of the last epoch.

        Parameters
        ----------
        weights : dict[str, Tensor]
            State of the global adapters.
        round_number : int
            Counted over the whole run, from 1.
        phase : Phase
            Its rounds share one learning-rate schedule.
        proximal_mu : float
            FedProx's weight of the distance to the global adapters.
        filled : bool
            Whether the other nodes' samples that came for this round fill up the classes.
        """
        adapters = self.task.adapters()
        adapters.load_state_dict(weights)
        losses, optimizer_state = train_adapters(
            adapters,
            self.generators.training_set(round_number, self._others(round_number) if filled else []),
            self.task.targets.heads,
            self.config.adapter.training,
            seed=self.task.seed("train", round_number, self.partition_id),
            optimizer_state=self.state.load("optimizer", before=round_number),
            options=TrainingOptions(phase.schedule(round_number), proximal_mu, BatchLimit(self.task.memory.rows)),
        )
        self.task.memory.release()
        trained = {name: value.detach().cpu() for name, value in adapters.state_dict().items()}
        self.state.save("optimizer", round_number, optimizer_state)
        self.state.save("adapters", round_number, join({"before": weights, "after": trained}))
        return trained, losses

    def sums(self, round_number: int) -> Tensor:
        """Return sums over the node's clips, or over samples of its private release, and keep them to be forgotten by.

        Raises
        ------
        ConfigError
            Neither secure aggregation nor differential privacy hides them.
        """
        hidden = self.config.strategy.secure.used or self.config.privacy.used
        require(
            hidden, f"node {self.partition_id} does not send its own sums in the clear: they tell each of its clips"
        )
        found = clip_sums(self.generators.training_set(round_number, []), len(self.task.classes))
        self.state.save("sums", round_number, {"sums": found})
        return found

    def synthesize(self, round_number: int) -> SyntheticTokens:
        """Draw samples of each of the node's classes from the generators that it had at the end of ``round_number``."""
        seed = self.task.seed("synthesize", round_number, self.partition_id)
        counts = dict.fromkeys(self.data.counts, self.data.samples_per_class)
        return self.generators.load(before=round_number + 1).sample(counts, seed, absent=self.config.synthesis.absent)

    def fit_shared(self, states: States, round_number: int, phase: Phase) -> tuple[States, History]:
        """Train generators that all nodes share on the node's clips; `DataError` from a private node."""
        self._refuse_private("training of shared generators on clips")
        return self.generators.fit_shared(states, round_number, phase)

    def adopt(self, states: States, round_number: int) -> None:
        """Keep what all nodes have trained together as the node's own; `DataError` from a private node."""
        self._refuse_private("generators that were fitted to clips")
        self.generators.adopt(states, round_number)

    def scores(self, weights: Weights) -> dict[str, Any]:
        """Return the scores of adapters on the node's held-out clips, as JSON values.

        Raises
        ------
        DataError
            The node has no held-out clip, or is private: its budget does not cover scores.
        """
        self._refuse_private("scores on its held-out clips")
        held_out = self.data.held_out
        if not len(held_out):
            fold = self.config.data.test_fold
            raise DataError(f"node {self.partition_id} has no clip in data.test_fold={fold} to test on")
        adapters = self.task.adapters()
        adapters.load_state_dict(weights)
        return asdict(zero_shot(adapters, self.task.summaries(held_out), self.task.targets.heads, self.task.classes))

    def audit(self, round_number: int) -> dict[str, Any]:
        """Return what the node's samples of a round and its last adapters tell of its clips, as JSON values.

        Raises
        ------
        DataError
            The node is private: its budget does not cover the audit.
        """
        self._refuse_private("an audit by its clips")
        samples, strategy = self.synthesize(round_number), self.config.strategy
        seen = strategy.send == "all" and not strategy.secure.used  # masked adapters are not seen
        sent = Sent(samples.latents.cpu(), samples.labels, self.state.adapters() if seen else [])
        clips = Clips(self.data.indices, self.data.controls)
        report = audit_run(self.task, {self.partition_id: sent}, {self.partition_id: clips})
        found = None if report is None else named(report, self.task.classes)
        return {"audit": found, **verdict_of(self.task, report)}

    def _others(self, round_number: int) -> list[SyntheticTokens]:
        samples, came = self.state.others(self.task.space.codec)
        if came != round_number:
            raise DataError(f"node {self.partition_id} has not got the others' samples that synthesis.fill needs")
        return [own.to(self.task.device) for own in samples.values()]

    def _refuse_private(self, what: str) -> None:
        if self.config.privacy.used:
            raise DataError(f"node {self.partition_id} does not send {what}: privacy=dp")

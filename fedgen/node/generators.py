"""A node's generators: fitted to its clips, kept on its disk by round, and saved as checkpoints for its user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgen.config.phases import Generators, Phase, plan
from fedgen.data.tokens import SummarySource
from fedgen.errors import CheckpointError
from fedgen.messages.states import States
from fedgen.models.generators.bank import Bank, History, last_losses
from fedgen.models.samples import PooledSummaries, SyntheticTokens
from fedgen.node.data import NodeData
from fedgen.node.state import PARTS, NodeState
from fedgen.runs.checkpoint import checkpoint_name, has_bank, load_bank, save_bank

BASE_NAMES = {"unified": "vae_unified", "per_class": "vae_perclass", "per_group": "vae_group"}


@dataclass(eq=False)
class FittedGenerators:
    """Generators that are fitted to the node's clips."""

    data: NodeData
    state: NodeState  # where generators are kept by round
    checkpoints: Path  # folder of the checkpoints for the node's user
    earlier: tuple[NodeState, Path] | None = None  # state and checkpoints of the run that this one goes on from

    @property
    def base_name(self) -> str:
        """How the names of checkpoints begin."""
        return self.data.config.checkpoint.base_name or BASE_NAMES[self.data.granularity.name]

    def check(self) -> None:
        """Find out whether every phase of the run has the generators that it needs.

        Raises
        ------
        ConfigError, CheckpointError
            The granularity does not cover the node's classes; a checkpoint that is to be loaded is missing or unfit.
        """
        first = next(iter(self._uses()), None)
        if first is Generators.LOAD:
            self.load()
        elif first is Generators.TRAIN:
            self._to_train()
            assert self.data.slots

    def inherit(self, finished: int) -> None:
        """Copy the state of the earlier run as that of round ``finished``: optimisers, and generators, used or not."""
        assert self.earlier is not None
        state, published = self.earlier
        self.state.inherit(state, finished)
        chosen, partition_id = self.data.config.checkpoint, self.data.partition_id
        if has_bank(published, self.base_name, partition_id, chosen.round) or chosen.round is not None:
            if self._uses():
                bank = self.new_bank()
                metadata = self._fill(bank, published, chosen.round)
                save_bank(self.state.generators(finished), self.base_name, partition_id, bank, metadata)
        elif not any(map(self.state.latest, PARTS)):
            raise CheckpointError(
                f"{state.folder.parents[1]} knows nothing of node {partition_id}: checkpoint.load={chosen.load} must "
                "name a run in which it took part, such as `fedgen run mode=train_generators` makes"
            )

    def fit(self, round_number: int) -> History:
        """Fit the generators, keep them, and return their losses by generator and epoch."""
        bank = self._to_train(before=round_number)
        seed = self.data.task.seed("generators", round_number, self.data.partition_id)
        losses = bank.fit(self.data.source, seed)
        self.keep(bank, round_number, losses)
        return losses

    def fit_shared(self, states: States, round_number: int, phase: Phase) -> tuple[States, History]:
        """Train generators that all nodes share, from ``states`` on; return their new states and their losses.

        A generator without a state starts anew, with the same weights on every node. The rounds of a phase share one
        learning-rate schedule.
        """
        bank, task = self.new_bank(), self.data.task
        seeds = task.seed("shared generators"), task.seed("generators", round_number, self.data.partition_id)
        losses = bank.fit_shared(self.data.source, states, *seeds, phase.schedule(round_number))
        return bank.shared_states(), losses

    def adopt(self, states: States, round_number: int) -> None:
        """Keep generators that all nodes have trained together as the node's own."""
        bank = self.new_bank()
        bank.adopt(self.data.source, states)
        self.keep(bank, round_number, [])

    def load(self, before: int | None = None) -> Bank:
        """Return the generators as they were before round ``before`` (None: the latest).

        Raises
        ------
        CheckpointError
            They are missing (and which command makes them), damaged, or of another configuration.
        """
        bank = self.new_bank()
        self._fill(bank, self.state.latest("generators", before) or self.checkpoints)
        return bank

    def training_set(self, round_number: int, others: Sequence[SyntheticTokens]) -> SummarySource:
        """Return what adapters are trained on: the node's clips, and the samples of ``others``."""
        return PooledSummaries([self.data.summaries, *others])

    def spent(self) -> dict[str, Any]:
        """Return what was spent of a privacy budget: there is none."""
        return {}

    def new_bank(self) -> Bank:
        """Return a bank without generators."""
        split_seed = self.data.task.seed("split", self.data.partition_id)
        bank = self.data.task.new_bank(self.data.granularity, split_seed)
        bank.encode = self.data.latents
        return bank

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint must agree on: encoder, target, codec, data set and split."""
        task, data = self.data.task, self.data.config.data
        split = {"test_fold": data.test_fold, **({"leave_out": list(data.leave_out)} if data.leave_out else {})}
        found = {"codec": task.codec_identity(), "dataset": task.store.identity["data"], "split": split}
        return {**task.identity(), **found}

    def keep(self, bank: Bank, round_number: int, losses: History) -> None:
        """Keep generators for the rounds to come and, if the run says so, as checkpoints for its user."""
        data, chosen = self.data, self.data.config.checkpoint
        metadata = {
            **self.identity(),
            "tokens": list(data.task.store.shape),
            "counts": data.named_counts,
            "round": round_number,
            "seed": data.config.seed,
            "mode": "+".join(phase.mode for phase in data.config.phase_list),
            "metrics": last_losses(losses),
        }
        named = self.base_name, data.partition_id, bank, metadata
        save_bank(self.state.generators(round_number), *named)
        self.state.prune("generators", round_number)
        data.task.memory.release()
        if chosen.save:
            save_bank(self.checkpoints, *named, chosen.frequency, chosen.keep_last)

    def _to_train(self, before: int | None = None) -> Bank:
        """Return the generators to go on training, or untrained ones."""
        folder = self.state.latest("generators", before)
        there = folder is not None and has_bank(folder, self.base_name, self.data.partition_id)
        return self.load(before) if there else self.new_bank()

    def _fill(self, bank: Bank, folder: Path, round_number: int | None = None) -> dict[str, Any]:
        names, check = self.data.class_names, self.data.config.checkpoint.check
        name = checkpoint_name(self.base_name, self.data.partition_id)
        return load_bank(folder, name, bank, names, self.identity(), round_number, check)

    def _uses(self) -> list[Generators]:
        """Return what the phases do with generators, in order, without those that have none."""
        uses = [phase.mode.generators for phase in plan(self.data.config.phase_list)]
        return [use for use in uses if use is not Generators.NONE]

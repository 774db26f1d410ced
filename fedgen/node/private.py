"""Generators under differential privacy: all that the node sends follows from one private release of its clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

from fedgen.data.plain import mismatches
from fedgen.data.seeds import seeded
from fedgen.data.tokens import SummarySource
from fedgen.errors import CheckpointError
from fedgen.models.generators.bank import Bank, History
from fedgen.models.samples import PooledSummaries, SyntheticTokens
from fedgen.node.generators import FittedGenerators
from fedgen.privacy.release import Release, release


class PrivateRelease(FittedGenerators):
    """The Gaussians of a release: clips are read once, behind noise, and the release serves all rounds.

    Adapters are trained on samples of it, never on clips. See ``docs/privacy.md``.
    """

    @cached_property
    def release(self) -> Release:
        """The release of the node's clips; the first time, the clips are read and the budget is spent.

        Raises
        ------
        CheckpointError
            The kept release is of other clips, or of another budget.
        """
        task, settings = self.data.task, self.data.config.privacy
        if (kept := self.state.release()) is not None:
            tensors, facts = kept
            self._compare(facts)
            return Release.from_state(tensors, facts["spent"], task.space.codec.size)
        partition_id = self.data.partition_id
        seed = None if settings.seed is None else seeded(settings.seed, "release", partition_id).initial_seed()
        made = release(self.data.source, task.space, settings, seed)
        self.state.save_release(made.state(), {**self._made_for(), "spent": made.spent.facts()})
        return made

    def inherit(self, finished: int) -> None:
        """Copy the release of the earlier run: it was paid for."""
        assert self.earlier is not None
        self.state.inherit(self.earlier[0], finished)
        if (kept := self.state.release()) is None:
            self.state.clear()
            raise CheckpointError(
                f"checkpoint.load={self.data.config.checkpoint.load}: node {self.data.partition_id} has no private "
                "release there, and what was learnt without privacy=dp is not private"
            )
        self._compare(kept[1])

    def fit(self, round_number: int) -> History:
        """Keep the release's Gaussians; there are no losses, which would tell of clips."""
        self.keep(self._bank(), round_number, [])
        return []

    def load(self, before: int | None = None) -> Bank:
        """Return the release's Gaussians.

        Raises
        ------
        CheckpointError
            There is no release yet.
        """
        if self.state.release() is None:
            raise CheckpointError(
                f"node {self.data.partition_id} has no private release to draw samples from; make one with `fedgen run "
                "mode=train_generators privacy=dp privacy.epsilon=... privacy.delta=...`"
            )
        return self._bank()

    def training_set(self, round_number: int, others: Sequence[SyntheticTokens]) -> SummarySource:
        """Return samples of the release, as many of each class as there are clips, and those of ``others``."""
        task, least = self.data.task, self.data.config.synthesis.fill
        counts = {label: max(count, least) for label, count in self.data.counts.items()}
        own = self._bank().sample(counts, task.seed("private", round_number, self.data.partition_id))
        return PooledSummaries([own.to(task.device), *others])

    def spent(self) -> dict[str, Any]:
        """Return what the release has spent, as JSON values."""
        return self.release.spent.facts()

    def _bank(self) -> Bank:
        bank, made, classes = self.new_bank(), self.release, self.data.task.classes
        bank.classes = self.data.slots
        for key, names in bank.classes.items():
            bank.generators[key] = bank.new_generator()
            bank.generators[key].load_state(made.generator_state([classes.index(name) for name in names]))
        return bank

    def _made_for(self) -> dict[str, Any]:
        """Return what a kept release must agree on: of a checkpoint's identity all but the target, and the clips."""
        own = {name: value for name, value in self.identity().items() if name != "target"}
        clips, privacy = self.data.indices.tolist(), asdict(self.data.config.privacy)
        return {**own, "counts": self.data.named_counts, "clips": clips, "privacy": privacy}

    def _compare(self, facts: dict[str, Any]) -> None:
        if differ := mismatches(facts, self._made_for()):
            node = self.data.partition_id
            raise CheckpointError(f"the private release of node {node} is not this run's: {'; '.join(differ)}")

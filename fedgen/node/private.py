"""A site under differential privacy: all that it sends follows from one private release of its clips."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from typing import Any

from fedgen.data.seeds import seeded
from fedgen.data.tokens import TokenSource
from fedgen.errors import CheckpointError, DataError
from fedgen.models.generators.bank import Bank, History
from fedgen.models.samples import PooledTokens
from fedgen.node.node import Node
from fedgen.privacy.release import Release, release

MADE_FOR = ("encoder", "codec", "dataset", "split", "counts", "clips", "privacy")  # what a kept release must agree on


class PrivateNode(Node):
    """A node that reads its clips once, behind noise, and keeps that release on its disk for all rounds.

    Its generators are the release's Gaussians, and its adapters are trained on samples of these, never on clips. See
    ``docs/privacy.md``.
    """

    @cached_property
    def release(self) -> Release:
        """What was released of the node's clips; the first time, the clips are read and the budget is spent.

        Raises
        ------
        CheckpointError
            What is kept was released of other clips, or with another budget.
        """
        kept = self.state.release()
        if kept is not None:
            tensors, facts = kept
            self._compare(facts)
            return Release.from_state(tensors, facts["spent"], self.task.space.codec.size)
        settings = self.config.privacy
        seed = None if settings.seed is None else seeded(settings.seed, "release", self.number).initial_seed()
        made = release(self.source, self.task.space, settings, seed)
        self.state.save_release(made.state(), {**self._made_for(), "spent": made.spent.facts()})
        return made

    def check(self, finished: int = 0, back: bool = False) -> None:
        """As any node; besides, refuse a budget that is none for so few clips, before anything is trained."""
        self.config.privacy.check_clips(len(self.indices))
        super().check(finished, back)

    def spent(self) -> dict[str, Any]:
        """Return what the release has spent, as JSON has it."""
        return self.release.spent.facts()

    def fit_generators(self, round_number: int) -> History:
        """Keep the release's Gaussians as the node's generators; there are no losses, which would tell of clips."""
        self._keep(self._private_bank(), round_number, [])
        return []

    def load_bank(self, before: int | None = None) -> Bank:
        """Return the release's Gaussians.

        Raises
        ------
        CheckpointError
            There is no release yet.
        """
        if not self.state.has_release:
            raise CheckpointError(
                f"node {self.number} has no private release to draw samples from; make one with `fedgen run "
                "mode=train_generators privacy=dp privacy.epsilon=... privacy.delta=...`"
            )
        return self._private_bank()

    def fit_shared(self, *arguments: Any) -> Any:
        """Refuse: this is training on clips."""
        raise self._refusal("training of shared generators on clips")

    def _training_source(self, round_number: int, filled: bool) -> TokenSource:
        """Return samples of the release, as many of each class as there are clips, and others' where they fill up."""
        least = self.config.synthesis.fill
        counts = {label: max(count, least) for label, count in self.counts.items()}
        own = self._private_bank().sample(counts, self.task.seed("private", round_number, self.number))
        others = self._others(round_number).values() if filled else ()
        return PooledTokens([own.to(self.task.device), *others])

    def _private_bank(self) -> Bank:
        bank, made = self._new_bank(), self.release
        bank.classes = self.slots
        for key, names in self.slots.items():
            generator = bank.new_generator()
            generator.load_state(made.generator_state([self.task.classes.index(name) for name in names]))
            bank.generators[key] = generator
        return bank

    def _inherit(self, finished: int) -> None:
        """Take over the release of the run that this one goes on from: it was paid for."""
        if self.load is None:
            return
        self.state.inherit(self._earlier(), finished)
        kept = self.state.release()
        if kept is None:
            self.state.clear()
            raise CheckpointError(
                f"checkpoint.load={self.config.checkpoint.load}: node {self.number} has no private release there, and "
                "what was learnt without privacy=dp is not private"
            )
        self._compare(kept[1])

    def _made_for(self) -> dict[str, Any]:
        counts = {self.task.classes[label]: count for label, count in self.counts.items()}
        made = {"counts": counts, "clips": self.indices.tolist(), "privacy": asdict(self.config.privacy)}
        facts = {**self.task.identity(), "codec": self.task.codec_identity(), **self._split(), **made}
        return {name: facts[name] for name in MADE_FOR}

    def _compare(self, facts: dict[str, Any]) -> None:
        here = self._made_for()
        other = [name for name in MADE_FOR if facts.get(name) != here[name]]
        if other:
            differ = "; ".join(f"{name} was {facts.get(name)}, is {here[name]}" for name in other)
            raise CheckpointError(f"the private release of node {self.number} is not this run's: {differ}")

    def _refusal(self, what: str) -> DataError:
        return DataError(f"node {self.number} does not send {what}: privacy=dp")

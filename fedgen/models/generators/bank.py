"""A node's generators, fitted and sampled together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedgen.data.seeds import seeded
from fedgen.data.targets import Conditions
from fedgen.data.tokens import TokenSource
from fedgen.errors import ConfigError, DataError, choose, require
from fedgen.models.codec import Codec
from fedgen.models.generators import KINDS, Generator, Part, open_generator
from fedgen.models.memory import BatchLimit
from fedgen.models.public import PublicSpace
from fedgen.models.samples import SyntheticTokens
from fedgen.models.settings import GeneratorSettings, GranularitySettings, Schedule


def slots(granularity: GranularitySettings, classes: list[str]) -> dict[str, list[str]]:
    """Return the classes of each generator, by its key: ``unified``, a class name or a group name.

    ``classes`` are those of which the node has clips. Raises `ConfigError` for ``per_group`` without groups, or with
    classes in no group.
    """
    if granularity.name == "unified":
        return {"unified": list(classes)}
    if granularity.name == "per_class":
        return {name: [name] for name in classes}
    require(bool(granularity.groups), "granularity=per_group needs granularity.groups, which is empty")
    known = {name for names in granularity.groups.values() for name in names}
    missing = [name for name in classes if name not in known]
    require(not missing, f"granularity=per_group: in no group of granularity.groups: {', '.join(missing)}")
    chosen = {group: [name for name in classes if name in names] for group, names in granularity.groups.items()}
    return {group: names for group, names in chosen.items() if names}


History = list[dict[str, float | str]]
"""Entries with ``generator`` (its key), ``epoch`` and the losses by component."""


def last_losses(history: History) -> dict[str, dict[str, Any]]:
    """Return the last epoch of each generator, by its key."""
    return {str(epoch["generator"]): {k: v for k, v in epoch.items() if k != "generator"} for epoch in history}


def generator_loss(history: History) -> dict[str, float]:
    """Return the mean over generators of the last epoch's loss, by its metric name; empty without generators."""
    last = [float(epoch["loss"]) for epoch in last_losses(history).values()]
    return {"generator_loss": sum(last) / len(last)} if last else {}


@dataclass(eq=False)
class Bank:
    """The generators of one node.

    Raises
    ------
    ConfigError
        Unknown kind; or conditions that are missing, not one for each class, not of the target, or not for this kind.
    """

    settings: GeneratorSettings  # kind, sizes and training of every generator
    granularity: GranularitySettings  # which generator serves which class
    class_names: list[str]  # of each global class id
    space: PublicSpace  # the codec that the generators work in
    conditions: Conditions | None = None  # of each global class id; conditioned kinds see `settings.conditions` of them
    limit: BatchLimit = field(default_factory=BatchLimit)  # largest batch; halved when memory runs out
    split_seed: int = 0  # of the choice of held-out clips: the same in every round, so that they stay held out
    # returns the latents of all clips that the bank is fitted to (N, k); `Codec.encode_all` by default
    encode: Callable[[], Tensor] | None = None
    generators: dict[str, Generator] = field(default_factory=dict)
    classes: dict[str, list[str]] = field(default_factory=dict)  # what each generator was fitted to

    def __post_init__(self) -> None:
        self.kind = KINDS[choose(self.settings.kind, KINDS, "generator.kind")]
        self.conditions = self.kind.select(self.settings, self.conditions)
        if self.conditions is not None and len(self.conditions) != len(self.class_names):
            raise ConfigError(
                f"generator.kind={self.settings.kind} needs a condition for each of {len(self.class_names)} classes, "
                f"got {len(self.conditions)}"
            )

    @property
    def condition_sizes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each embedding that the generators are conditioned on, by name; empty for unconditioned kinds."""
        return self.conditions.sizes if self.conditions else {}

    @property
    def codec(self) -> Codec:
        """The public codec."""
        return self.space.codec

    def of_state(self, state: Mapping[str, Tensor]) -> Generator:
        """Rebuild a generator; `DataError` if a tensor is missing, unknown, misshapen or not finite."""
        generator = self.new_generator()
        generator.load_state(dict(state))
        return generator

    def new_generator(self) -> Generator:
        """Return an unfitted generator of the bank's settings."""
        return open_generator(self.settings, self.codec.size, self.conditions, self.space.within)

    def fit(self, source: TokenSource, seed: int) -> list[dict[str, float | str]]:
        """Fit every generator to its classes' clips of ``source``, on the source's device; a later call goes on.

        Returns one entry for each generator and epoch: ``generator``, ``epoch`` and the losses by component. Raises
        `ConfigError` if the granularity does not cover the classes present.
        """
        classes, parts = self._parts(source, seed)
        chosen = {key: self.generators.get(key) or self.new_generator() for key in classes}
        losses = self._train(chosen, parts)
        self.generators |= chosen
        self.classes |= classes
        return losses

    def fit_shared(
        self,
        source: TokenSource,
        states: Mapping[str, dict[str, Tensor]],
        init_seed: int,
        seed: int,
        schedule: Schedule,
    ) -> list[dict[str, float | str]]:
        """Train generators that all nodes share on this node's clips; `shared_states` then returns the new state.

        Parameters
        ----------
        source : TokenSource
            The node's clips.
        states : Mapping[str, dict[str, Tensor]]
            Shared or merged state by key. A key without one starts from ``init_seed``.
        init_seed, seed : int
            Seeds of first weights, the same on every node, and of the order and the noise.
        schedule : Schedule
            Place of this call in the training of all rounds.

        Raises
        ------
        ConfigError
            The granularity does not cover the classes present, or a class has too few clips to share.
        DataError
            A state is not one of these settings.
        """
        classes, parts = self._parts(source, seed)
        chosen = {key: self._shared(states.get(key), _slot_seed(init_seed, key)) for key in classes}
        losses = self._train(chosen, parts, schedule)
        self.generators, self.classes = chosen, classes
        return losses

    def shared_states(self) -> dict[str, dict[str, Tensor]]:
        """Return what nodes that share generators exchange, by the generators' keys."""
        return {key: generator.shared_state() for key, generator in self.generators.items()}

    def adopt(self, source: TokenSource, states: Mapping[str, dict[str, Tensor]]) -> None:
        """Load shared generators and fit the node's own parts to them: the bank can then sample and be saved.

        Raises `ConfigError` if the granularity does not cover the classes present. Raises `DataError`, and leaves the
        bank as before, if a generator of the node's classes has no state, or one of other settings.
        """
        classes, parts = self._parts(source, seed=0)
        missing = [key for key in classes if key not in states]
        if missing:
            raise DataError(f"no shared state for {', '.join(missing)}; there is one for {', '.join(sorted(states))}")
        chosen = {key: self._shared(states[key], 0) for key in classes}
        for key, part in parts.items():
            chosen[key].finalize(part.latents, part.labels)
        self.generators, self.classes = chosen, classes

    def sample(
        self,
        counts: Mapping[int, int],
        seed: int,
        device: torch.device | str = "cpu",
        absent: Sequence[str] = (),
    ) -> SyntheticTokens:
        """Draw ``counts`` samples of each global class id, to be decoded on ``device``.

        A class's samples depend on its generator, the seed and its id alone. ``absent`` are conditions to do without,
        such as ``t5``, for kinds that can. Raises `DataError` for a class without generator, `ConfigError` for a
        condition that the kind cannot do without.
        """
        owners = {name: key for key, names in self.classes.items() for name in names}
        drawn, labels = [torch.zeros(0, self.codec.size)], [torch.zeros(0, dtype=torch.long)]
        for label, count in sorted(counts.items()):
            key = self._owner(owners, label)
            drawn.append(self.generators[key].sample(label, count, seeded(seed, label), absent).cpu())
            labels.append(torch.full((count,), label))
        return SyntheticTokens(self.codec, torch.cat(drawn), torch.cat(labels), seed, device)

    def _parts(self, source: TokenSource, seed: int) -> tuple[dict[str, list[str]], dict[str, Part]]:
        """Return the classes of each generator, and its training data."""
        classes = slots(self.granularity, [self.class_names[label] for label in source.labels.unique().tolist()])
        latents, parts = self.encode() if self.encode else self.codec.encode_all(source), {}
        for key, names in classes.items():
            wanted = torch.tensor([self.class_names.index(name) for name in names])
            rows = torch.isin(source.labels, wanted).nonzero().squeeze(1)
            seeds = _slot_seed(seed, key), _slot_seed(self.split_seed, key)
            parts[key] = Part(latents[rows.to(latents.device)], source.labels[rows], *seeds)
        return classes, parts

    def _train(
        self, generators: Mapping[str, Generator], parts: Mapping[str, Part], schedule: Schedule | None = None
    ) -> list[dict[str, float | str]]:
        """Train one generator after the other, each on its part, and return their losses."""
        losses: list[dict[str, float | str]] = []
        for key, part in parts.items():
            epochs = generators[key].fit(part, schedule, self.limit)
            losses += [{"generator": key, "epoch": number, **epoch} for number, epoch in enumerate(epochs)]
        return losses

    def _shared(self, state: dict[str, Tensor] | None, init_seed: int) -> Generator:
        generator = self.new_generator()
        if state is None:
            generator.initialise(init_seed)
        else:
            generator.load_shared_state(state)
        return generator

    def _owner(self, owners: Mapping[str, str], label: int) -> str:
        name = self.class_names[label] if 0 <= label < len(self.class_names) else f"class id {label}"
        if name not in owners:
            known = ", ".join(sorted(owners)) or "no class"
            raise DataError(f"no generator for {name}; this node has generators for {known}")
        return owners[name]


def _slot_seed(seed: int, key: str) -> int:
    return seeded(seed, key).initial_seed()

"""What one site does in a round: train adapters on its clips, fit generators to them, and sample. No Flower here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from fedgen.config.phases import Generators, Phase, plan
from fedgen.config.settings import Config, NodeConfig
from fedgen.data.plain import check_names
from fedgen.data.tokens import LazyTokens, TokenSource
from fedgen.errors import CheckpointError, DataError, choose
from fedgen.models.generators.bank import Bank, History, last_losses, slots
from fedgen.models.samples import PooledTokens, ProjectedTokens, SyntheticTokens
from fedgen.models.settings import GranularitySettings
from fedgen.models.training import Schedule, TrainingOptions, train_adapters
from fedgen.node.state import NodeState
from fedgen.runs.checkpoint import has_bank, load_bank, save_bank
from fedgen.task import Task


class Sized(Protocol):
    """Something that says how many bytes it takes."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        ...


Value = TypeVar("Value", bound=Sized)

LIMIT = 2**29  # bytes that a process keeps
_kept: dict[Hashable, Any] = {}  # what was used last is last


def kept(key: Hashable, compute: Callable[[], Value]) -> Value:
    """Return what ``compute`` gave for ``key``; what was used longest ago is forgotten where it is too much."""
    value: Value = _kept.pop(key) if key in _kept else compute()
    _kept[key] = value
    while len(_kept) > 1 and sum(other.nbytes for other in _kept.values()) > LIMIT:
        del _kept[next(iter(_kept))]
    return value


class Site:
    """The clips of one node.

    Attributes
    ----------
    indices, controls : np.ndarray
        Clips of the store that the node trains on, and those that it keeps out of that for the audit.

    Parameters
    ----------
    task : Task
    number : int
        The node's place in the partition, from 0.
    own_store : bool
        Whether every training clip of the store belongs to this node, rather than its share of the partition.
    own : NodeConfig, optional
        What the node itself says that it does otherwise than the rest; goes before ``nodes.{number}``.

    Raises
    ------
    DataError
        If the node has no clips to train on, or none of a class that it is told to use.
    ConfigError
        If a class of its clips has a name that is no line of visible text.
    """

    def __init__(self, task: Task, number: int, own_store: bool = False, own: NodeConfig | None = None) -> None:
        self.task, self.number = task, number
        self.own = _overlaid(task.config.nodes.get(str(number), NodeConfig()), own or NodeConfig())
        self.indices, self.controls = task.split_controls(self._clips(own_store))

    def _clips(self, own_store: bool) -> np.ndarray:
        """Return the clips of the store that the node has."""
        if not own_store and self.number >= len(self.task.shares):
            raise DataError(f"node {self.number} has no part: partition.nodes={len(self.task.parts)}")
        indices = self.task.train_indices if own_store else self.task.shares[self.number]
        if self.own.classes is not None:
            indices = self._restricted(indices, self.own.classes)
        elif unknown := self.task.store.unknown:
            check_names(unknown, f"classes of node {self.number}")
            raise DataError(
                f"node {self.number} has clips of {', '.join(unknown)}, which data.classes={self.task.classes} lacks: "
                f"leave them out with nodes.{self.number}.classes, or classes in the node configuration"
            )
        if not len(indices):
            raise DataError(f"node {self.number} has no clip to train on: check partition and data.test_fold")
        names = [self.task.classes[label] for label in np.unique(self.task.store.labels[indices])]
        check_names(names, f"classes of node {self.number}")
        return indices

    @property
    def held_out(self) -> np.ndarray:
        """Clips of the node's store that it may test on: those of the test fold, of the classes that it trains on."""
        test = self.task.store.test_indices(self.config.data.test_fold)
        return test[np.isin(self.task.store.labels[test], list(self.counts))]

    def _restricted(self, indices: np.ndarray, names: list[str]) -> np.ndarray:
        """Return the clips of the classes ``names`` alone."""
        key = f"nodes.{self.number}.classes"
        labels = self.task.store.labels[indices]
        wanted = [self.task.classes.index(choose(name, self.task.classes, key)) for name in names]
        missing = [self.task.classes[label] for label in wanted if label not in labels]
        if missing:
            there = ", ".join(self.task.classes[label] for label in np.unique(labels))
            raise DataError(f"{key} names {', '.join(missing)}, of which the node has no clip; it has {there}")
        return indices[np.isin(labels, wanted)]

    @property
    def config(self) -> Config:
        """The run's configuration."""
        return self.task.config

    @cached_property
    def source(self) -> TokenSource:
        """The node's own clips, on the device; they are read when they are first needed."""
        task, indices = self.task, self.indices  # the function must not hold the node: that would keep clips for long
        return LazyTokens(torch.from_numpy(task.store.labels[indices]), task.store.shape, lambda: task.tokens(indices))

    @property
    def projected(self) -> ProjectedTokens:
        """The node's own clips in bases of their own, on the device; this process computes them once."""
        settings = self.config.adapter.projection
        return kept((*self._key, settings), lambda: ProjectedTokens.of(self.source, settings))

    @property
    def _key(self) -> tuple[Hashable, ...]:
        """What tells the node's clips from any others that this process reads."""
        store = self.task.store
        labels = store.labels[self.indices]  # a class has another id where other classes are agreed on
        return store.path, len(store), self.indices.tobytes(), labels.tobytes(), self.task.device

    def _encoded(self) -> Tensor:
        """Return the latents of the node's clips in the public codec, ``(N, k)``; this process computes them once."""
        chosen = self.config.encoder, self.config.generator.lengths
        return kept(
            (*self._key, *chosen, self.task.config.codec), lambda: self.task.space.codec.encode_all(self.source)
        )

    @property
    def counts(self) -> dict[int, int]:
        """The node's clips of each global class id."""
        return dict(sorted(Counter(self.task.store.labels[self.indices].tolist()).items()))

    @property
    def granularity(self) -> GranularitySettings:
        """The node's own granularity and groups where it has any, else the run's."""
        chosen, own = self.task.granularity, self.own
        return replace(chosen, name=own.granularity or chosen.name, groups=own.groups or chosen.groups)

    @property
    def slots(self) -> dict[str, list[str]]:
        """Which of the node's classes each generator serves, by the generator's key."""
        return slots(self.granularity, self._classes())

    @property
    def samples_per_class(self) -> int:
        """How many samples of each class the node draws."""
        asked = self.own.samples_per_class or self.config.synthesis.samples_per_class
        counts = self.counts
        return max(1, round(sum(counts.values()) / len(counts))) if asked == "auto" else int(asked)

    @property
    def held_out_counts(self) -> dict[int, int]:
        """Held-out clips of each global class id."""
        return dict(sorted(Counter(self.task.store.labels[self.held_out].tolist()).items()))

    def _classes(self) -> list[str]:
        return [self.task.classes[label] for label in self.counts]


def _overlaid(general: NodeConfig, own: NodeConfig) -> NodeConfig:
    """Return ``own`` with what it leaves open taken from ``general``."""
    said: Mapping[str, Any] = {name: value for name, value in vars(own).items() if value is not None}
    return replace(general, **said)


BASE_NAMES = {"unified": "vae_unified", "per_class": "vae_perclass", "per_group": "vae_group"}

States = dict[str, dict[str, Tensor]]
"""States of generators by key."""


class Node(Site):
    """One site of the federation, and what it remembers on its disk.

    Parameters
    ----------
    task : Task
    number : int
        The node's place in the partition, from 0.
    home : Path
        Where the node keeps its state (``state/node{i}``) and its generators' checkpoints (``checkpoints``).
    load : Path, optional
        The same of the run that this one goes on from.
    own_store : bool
        Whether every training clip of the store belongs to this node, rather than its share of the partition.
    own : NodeConfig, optional
        What the node itself says that it does otherwise than the rest; goes before ``nodes.{number}``.
    checkpoints : Path, optional
        Folder of checkpoints in place of those in ``home`` and ``load``.

    Raises
    ------
    DataError
        If the node has no clips to train on, or none of a class that it is told to use.
    """

    def __init__(
        self,
        task: Task,
        number: int,
        home: Path,
        load: Path | None = None,
        own_store: bool = False,
        own: NodeConfig | None = None,
        checkpoints: Path | None = None,
    ) -> None:
        super().__init__(task, number, own_store, own)
        self.load = load
        self.state = _state(home, number)
        self.checkpoints = checkpoints or home / "checkpoints"
        self._loaded_checkpoints = checkpoints or (load / "checkpoints" if load else None)

    @property
    def base_name(self) -> str:
        """First part of the names of generator files."""
        return self.config.checkpoint.base_name or BASE_NAMES[self.granularity.name]

    def check(self, finished: int = 0, back: bool = False) -> None:
        """Start afresh, or from the run that this one goes on from, and find out whether every phase can be done.

        Parameters
        ----------
        finished : int
            Rounds that are finished before this run's first.
        back : bool
            Whether the node has been in this run before: then it goes on from what it remembers.

        Raises
        ------
        ConfigError, CheckpointError
            The granularity does not cover the node's classes; a checkpoint that is to be loaded is missing or unfit.
        """
        if not self.config.resume and not back:
            self.state.clear()
            self._inherit(finished)
        first = next(iter(self._uses()), None)
        if first is Generators.LOAD:
            self.load_bank()
        elif first is Generators.TRAIN:
            self._bank_to_train()
            assert self.slots

    def train(
        self,
        weights: dict[str, Tensor],
        round_number: int,
        phase: Phase,
        proximal_mu: float = 0.0,
        filled: bool = False,
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Train the global adapters on the node's clips.

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

        Returns
        -------
        weights, losses : dict
            State of the trained adapters, and the losses of the last epoch.
        """
        adapters = self.task.adapters()
        adapters.load_state_dict(weights)
        losses, moments = train_adapters(
            adapters,
            self._training_source(round_number, filled),
            self.task.targets.heads,
            self.config.adapter.training,
            seed=self.task.seed("train", round_number, self.number),
            optimizer_state=self.state.moments(before=round_number),
            options=TrainingOptions(
                Schedule(round_number - phase.offset - 1, phase.rounds), proximal_mu, self.task.memory.batch_limit()
            ),
        )
        self.task.memory.release()
        trained = {name: value.detach().cpu() for name, value in adapters.state_dict().items()}
        self.state.save_moments(round_number, moments, {"node": self.number})
        self.state.save_adapters(round_number, weights, trained, {"node": self.number})
        return trained, losses

    def _training_source(self, round_number: int, filled: bool) -> TokenSource:
        """Return what adapters are trained on in a round."""
        if not self.config.adapter.projection.used:
            return self.source
        return PooledTokens([self.projected, *self._others(round_number).values()]) if filled else self.projected

    def keep_others(self, samples: Mapping[int, SyntheticTokens], round_number: int) -> None:
        """Keep the samples of other nodes, by their numbers, that the adapters are trained on in ``round_number``."""
        self.state.save_others(samples, {"node": self.number, "round": round_number})

    def _others(self, round_number: int) -> dict[int, SyntheticTokens]:
        samples, came = self.state.others(self.task.space.codec)
        if came != round_number:
            raise DataError(f"node {self.number} has not got the others' samples that synthesis.fill needs")
        return {number: own.to(self.task.device) for number, own in samples.items()}

    def fit_generators(self, round_number: int) -> History:
        """Fit the node's generators to its clips, keep them, and return their losses by generator and epoch."""
        bank = self._bank_to_train(before=round_number)
        losses = bank.fit(self.source, self.task.seed("generators", round_number, self.number))
        self._keep(bank, round_number, losses)
        return losses

    def synthesize(self, round_number: int) -> SyntheticTokens:
        """Draw samples of each of the node's classes from the generators that it had at the end of ``round_number``."""
        seed = self.task.seed("synthesize", round_number, self.number)
        bank = self.load_bank(before=round_number + 1)
        counts = dict.fromkeys(self.counts, self.samples_per_class)
        return bank.sample(counts, seed, absent=self.config.synthesis.absent)

    def spent(self) -> dict[str, Any]:
        """Return what has been spent of a privacy budget: there is none."""
        return {}

    def fit_shared(self, states: States, round_number: int, phase: Phase) -> tuple[States, History]:
        """Train generators that all nodes share on the node's clips.

        Parameters
        ----------
        states : dict
            Weights and optimiser state by the generator's key; a generator without a state starts anew, with the same
            weights on every node.
        round_number : int
            Counted over the whole run, from 1.
        phase : Phase
            Its rounds share one learning-rate schedule.

        Returns
        -------
        states, losses
            The states after the training, and the losses by generator and epoch.
        """
        bank = self._new_bank()
        losses = bank.fit_shared(
            self.source,
            states,
            self.task.seed("shared generators"),
            self.task.seed("generators", round_number, self.number),
            Schedule(round_number - phase.offset - 1, phase.rounds),
        )
        return bank.shared_states(), losses

    def adopt(self, states: States, round_number: int) -> None:
        """Make the node's own what all nodes have trained together, and keep it."""
        bank = self._new_bank()
        bank.adopt(self.source, states)
        self._keep(bank, round_number, [])

    def load_bank(self, before: int | None = None) -> Bank:
        """Return the node's generators as they were before round ``before`` (None: the latest).

        Raises
        ------
        CheckpointError
            They are missing (and which command makes them), damaged, or of another configuration.
        """
        bank = self._new_bank()
        folder = self.state.latest("generators", before) or self.checkpoints
        self._fill(bank, folder)
        return bank

    def _bank_to_train(self, before: int | None = None) -> Bank:
        """Return the generators to go on training: those from before, if there are any, else untrained ones."""
        folder = self.state.latest("generators", before)
        there = folder is not None and has_bank(folder, self.base_name, self.number)
        return self.load_bank(before) if there else self._new_bank()

    def _keep(self, bank: Bank, round_number: int, losses: History) -> None:
        """Keep generators for the rounds to come and, if the run says so, as checkpoints for its user."""
        metadata = {
            **self.task.identity(),
            "codec": self.task.codec_identity(),
            **self._split(),
            "tokens": list(self.task.store.shape),
            "counts": {self.task.classes[label]: count for label, count in self.counts.items()},
            "round": round_number,
            "seed": self.config.seed,
            "mode": "+".join(phase.mode for phase in self.config.phase_list),
            "metrics": last_losses(losses),
        }
        save_bank(self.state.generators(round_number), self.base_name, self.number, bank, metadata)
        self.state.prune("generators", round_number)
        self.task.memory.release()
        chosen = self.config.checkpoint
        if chosen.save:
            frequency, kept = chosen.frequency, chosen.keep_last
            save_bank(self.checkpoints, self.base_name, self.number, bank, metadata, frequency, kept)

    def _fill(self, bank: Bank, folder: Path, round_number: int | None = None) -> dict[str, Any]:
        expected = {**self.task.identity(), "codec": self.task.codec_identity(), **self._split()}
        check = self.config.checkpoint.check
        return load_bank(folder, self.base_name, self.number, bank, self._classes(), expected, round_number, check)

    def _split(self) -> dict[str, Any]:
        """Return which data the generators have seen: what a checkpoint of theirs must agree on."""
        split: dict[str, Any] = {"test_fold": self.config.data.test_fold}
        if self.config.data.leave_out:
            split["leave_out"] = list(self.config.data.leave_out)
        return {"dataset": self.task.store.identity["data"], "split": split}

    def _uses(self) -> list[Generators]:
        """Return what the phases do with generators, in order, without those that have none."""
        uses = [phase.mode.generators for phase in plan(self.config.phase_list)]
        return [use for use in uses if use is not Generators.NONE]

    def _new_bank(self) -> Bank:
        conditions = self.task.targets.conditions()
        return Bank(
            self.config.generator,
            self.granularity,
            self.task.classes,
            self.task.space,
            conditions,
            self.task.memory.generator_limit(),
            split_seed=self.task.seed("split", self.number),
            encode=self._encoded,
        )

    def _earlier(self) -> NodeState:
        """Return what the node remembers of the run that this one goes on from."""
        assert self.load is not None
        return _state(self.load, self.number)

    def _inherit(self, finished: int) -> None:
        """Take over what the run knew that this one goes on from: its optimisers, and its generators, used or not."""
        if self.load is None:
            return
        self.state.inherit(self._earlier(), finished)
        published = self._loaded_checkpoints
        assert published is not None
        wanted = self.config.checkpoint.round
        if has_bank(published, self.base_name, self.number, wanted) or wanted is not None:
            if self._uses():
                bank = self._new_bank()
                metadata = self._fill(bank, published, wanted)
                save_bank(self.state.generators(finished), self.base_name, self.number, bank, metadata)
        elif not self.state.latest("optimizer") and not self.state.latest("generators"):
            raise CheckpointError(
                f"{self.load} knows nothing of node {self.number}: checkpoint.load={self.config.checkpoint.load} must "
                f"name a run in which it took part, such as `fedgen run mode=train_generators` makes"
            )


def _state(home: Path, number: int) -> NodeState:
    return NodeState(home / "state" / f"node{number}")

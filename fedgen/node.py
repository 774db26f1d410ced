"""What one site does in a round: train adapters on its clips, fit generators to them, and sample. No Flower here."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from fedgen.config import Config
from fedgen.data.tokens import TensorTokens
from fedgen.errors import CheckpointError, DataError
from fedgen.exchange.checkpoint import load_bank, load_tensors, save_bank, save_tensors
from fedgen.models.samples import SyntheticTokens
from fedgen.models.schedule import Schedule
from fedgen.phases import Generators, Phase, plan
from fedgen.task import Task
from fedgen.training.adapters import train_adapters
from fedgen.training.bank import Bank, slots

BASE_NAMES = {"unified": "vae_unified", "per_class": "vae_perclass", "per_group": "vae_group"}


class Node:
    """One site of the federation, and what it remembers on its disk.

    Parameters
    ----------
    task : Task
    number : int
        The node's place in the partition, from 0.
    folder : Path
        Where the node keeps its generators and its optimiser's state.
    load : Path, optional
        Folder of an earlier run, read where ``folder`` has nothing yet.
    own_store : bool
        Whether every training clip of the store belongs to this node, rather than its share of the partition.

    Raises
    ------
    DataError
        If the node has no clips to train on.
    """

    def __init__(
        self, task: Task, number: int, folder: Path, load: Path | None = None, own_store: bool = False
    ) -> None:
        self.task, self.number, self.folder, self.load = task, number, folder, load
        train = task.store.train_indices(task.config.data.test_fold)
        if not own_store and number >= len(task.parts):
            raise DataError(f"node {number} has no part: partition.nodes={len(task.parts)}")
        self.indices: np.ndarray = train if own_store else task.parts[number]
        if not len(self.indices):
            raise DataError(f"node {number} has no clip to train on: check partition and data.test_fold")

    @property
    def config(self) -> Config:
        """The run's configuration."""
        return self.task.config

    @cached_property
    def source(self) -> TensorTokens:
        """The node's own clips, on the device."""
        return self.task.tokens(self.indices)

    @property
    def counts(self) -> dict[int, int]:
        """The node's clips of each global class id."""
        return dict(sorted(Counter(self.task.store.labels[self.indices].tolist()).items()))

    @property
    def base_name(self) -> str:
        """First part of the names of generator files."""
        return self.config.checkpoint.base_name or BASE_NAMES[self.config.granularity.name]

    def check(self) -> None:
        """Find out before any training whether this node can do every phase of the run.

        Raises
        ------
        ConfigError, CheckpointError
            The granularity does not cover the node's classes; a checkpoint that is to be loaded is missing or unfit.
        """
        self._inherit_moments()
        uses = [phase.mode.generators for phase in plan(self.config.phase_list)]
        first = next((use for use in uses if use is not Generators.NONE), None)
        if first is Generators.LOAD:
            self.load_bank()
        elif first is Generators.TRAIN:
            self._saved_bank()
            slots(self.task.granularity, self._classes())

    def train(
        self, weights: dict[str, Tensor], round_number: int, phase: Phase, proximal_mu: float = 0.0
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

        Returns
        -------
        weights, losses : dict
            State of the trained adapters, and the losses of the last epoch.
        """
        adapters = self.task.adapters()
        adapters.load_state_dict(weights)
        losses, moments = train_adapters(
            adapters,
            self.source,
            self.task.targets.heads,
            self.config.adapter.training,
            seed=self.task.seed("train", round_number, self.number),
            optimizer_state=self._moments(),
            schedule=Schedule(round_number - phase.offset - 1, phase.rounds),
            proximal_mu=proximal_mu,
        )
        save_tensors(self.folder / self._moments_file, moments, {"node": self.number, "round": round_number})
        return {name: value.detach().cpu() for name, value in adapters.state_dict().items()}, losses

    def fit_generators(self, round_number: int) -> list[dict[str, float | str]]:
        """Fit the node's generators to its clips, save them, and return their losses by generator and epoch."""
        bank = self._saved_bank()
        losses = bank.fit(self.source, self.task.seed("generators", round_number, self.number))
        metadata = {**self.task.identity(), "round": round_number, "seed": self.config.seed, "mode": self.config.mode}
        save_bank(self.folder, self.base_name, self.number, bank, metadata)
        return losses

    def synthesize(self, round_number: int) -> SyntheticTokens:
        """Draw ``synthesis.samples_per_class`` samples of each of the node's classes from its saved generators."""
        asked = self.config.synthesis.samples_per_class
        counts = self.counts
        each = round(sum(counts.values()) / len(counts)) if asked == "auto" else int(asked)
        seed = self.task.seed("synthesize", round_number, self.number)
        return self.load_bank().sample(dict.fromkeys(counts, max(each, 1)), seed)

    def load_bank(self) -> Bank:
        """Return the node's saved generators.

        Raises
        ------
        CheckpointError
            They are missing (and which command makes them), damaged, or of another configuration.
        """
        bank = self._new_bank()
        folder = self.load if self.load is not None and not self._has_bank(self.folder) else self.folder
        load_bank(folder, self.base_name, self.number, bank, self._classes(), self.task.identity())
        return bank

    def _saved_bank(self) -> Bank:
        """Return the generators to go on training: saved ones where there are any, else untrained ones."""
        saved = any(self._has_bank(folder) for folder in (self.folder, self.load) if folder is not None)
        return self.load_bank() if saved else self._new_bank()

    def _has_bank(self, folder: Path) -> bool:
        return (folder / self._codec_file).is_file()

    def _new_bank(self) -> Bank:
        conditions = self.task.targets.conditions()
        return Bank(self.config.generator, self.task.granularity, self.task.classes, conditions)

    def _classes(self) -> list[str]:
        return [self.task.classes[label] for label in self.counts]

    @property
    def _codec_file(self) -> str:
        return f"{self.base_name}_node{self.number}_codec.safetensors"

    @property
    def _moments_file(self) -> str:
        return f"adapters_node{self.number}_optimizer.safetensors"

    def _moments(self) -> dict[str, Tensor] | None:
        for folder in (self.folder, self.load):
            if folder is not None and (folder / self._moments_file).is_file():
                return load_tensors(folder / self._moments_file)[0]
        return None

    def _inherit_moments(self) -> None:
        """Take over the optimiser's state of the run that this one goes on from, also if no phase trains adapters."""
        if self.load is None:
            return
        if (self.load / self._moments_file).is_file():
            moments, metadata = load_tensors(self.load / self._moments_file)
            save_tensors(self.folder / self._moments_file, moments, metadata)
        elif not self._has_bank(self.load):
            raise CheckpointError(
                f"{self.load} has neither {self._moments_file} nor {self._codec_file}: "
                f"checkpoint.load={self.config.checkpoint.load} must name a run in which node {self.number} took part, "
                "such as `fedgen run mode=train_generators` makes"
            )

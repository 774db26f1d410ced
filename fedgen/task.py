"""The task: a configuration with its store, targets and partition; the same in every process."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedgen.config.phases import uses_samples
from fedgen.config.settings import Config
from fedgen.data.audio import Encoder
from fedgen.data.datasets import Dataset, held_back, open_dataset
from fedgen.data.encoders import differences, open_encoder
from fedgen.data.partition import Labels, partition
from fedgen.data.seeds import seeded
from fedgen.data.store import Store, identity_of, open_store, prepare, store_folder, without_clips
from fedgen.data.targets import Targets, check_targets, open_targets, prepare_targets
from fedgen.data.tokens import MappedTokens, Summaries, TensorTokens, TokenSource, held_as
from fedgen.errors import ConfigError, DataError, require
from fedgen.models.adapters import Adapters, build_adapters
from fedgen.models.generators.bank import Bank
from fedgen.models.memory import BatchLimit, MemoryPlan, plan_memory
from fedgen.models.public import PublicSpace, codec_identity, public_space
from fedgen.models.settings import GranularitySettings


@dataclass(frozen=True)
class Task:
    """A configuration with the data it names."""

    config: Config  # with ``data.store`` set
    store: Store  # embeddings of every clip
    targets: Targets  # of the store's classes
    device: torch.device  # where tensors are trained

    @property
    def classes(self) -> list[str]:
        """Class names; a class's index is its global id."""
        return self.store.classes

    @property
    def bands(self) -> int:
        """Bands of frequency in the encoder's map."""
        return self.config.encoder.bands(self.store.shape[0])

    @property
    def train_indices(self) -> np.ndarray:
        """Clips of the store that may be trained on, ``(N,)``, int64."""
        return self.store.train_indices(self.config.data.test_fold, self.config.data.leave_out)

    @cached_property
    def parts(self) -> list[np.ndarray]:
        """Clips of the store that each node trains on; ``centralised`` has one node with all of them."""
        return [self.split_controls(share)[0] for share in self.shares]

    def split_controls(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return those of a node's clips that it trains on, and its controls: see `fedgen.data.datasets.held_back`."""
        chosen = self.config.evaluation
        share = chosen.controls if chosen.gate != "off" and uses_samples(self.config.phase_list) else 0.0
        labels, recordings = self.store.labels[indices].tolist(), [self.store.recordings[i] for i in indices]
        controls = held_back(labels, recordings, share, self.config.seed)
        return indices[~controls], indices[controls]

    @cached_property
    def shares(self) -> list[np.ndarray]:
        """Clips of the store that each node has."""
        train = self.train_indices
        if self.config.phase_list[0].mode == "centralised":
            return [train]
        labels = Labels(self.store.labels[train], self.classes, self.store.groups)
        shares = partition(labels, self.config.partition, self.config.seed)
        return [train[share] for share in shares]

    @property
    def space(self) -> PublicSpace:
        """The codec of public sounds, in which all samples of the run are; this machine computes it once."""
        encoder = json.dumps(self.store.identity["encoder"], sort_keys=True)
        return public_space(self.config.encoder, self.config.codec, self.config.generator.lengths, encoder)

    def codec_identity(self) -> dict[str, Any]:
        """Return what decides the latents of the codec."""
        return codec_identity(self.store.identity["encoder"], self.config.codec, self.config.generator.lengths)

    def new_bank(self, granularity: GranularitySettings, split_seed: int = 0) -> Bank:
        """Return a bank of the run's generators, unfitted."""
        conditions, limit = self.targets.conditions(), BatchLimit(self.memory.generator_rows)
        return Bank(self.config.generator, granularity, self.classes, self.space, conditions, limit, split_seed)

    @property
    def granularity(self) -> GranularitySettings:
        """The granularity; without ``granularity.groups`` the data set's own groups serve."""
        chosen = self.config.granularity
        return chosen if chosen.groups else replace(chosen, groups=self.store.groups)

    @cached_property
    def memory(self) -> MemoryPlan:
        """How much memory this process takes; held tokens are at most those of all clips."""
        values = len(self.store) * math.prod(self.store.shape)
        return plan_memory(self.config.memory, self.device, values * (4 if self.device.type == "cpu" else 2))

    def tokens(self, indices: np.ndarray) -> TokenSource:
        """Return the clips at ``indices`` of the store: on the device, or read batch by batch, as memory allows."""
        if self.memory.mapped:
            return MappedTokens(self.store, indices, self.device, self.memory.clips)
        precision = held_as(len(indices) * math.prod(self.store.shape), self.device)
        tokens = self.store.tokens(indices, precision)
        return TensorTokens(tokens, torch.from_numpy(self.store.labels[indices]), self.device)

    def summaries(self, indices: np.ndarray) -> Summaries:
        """Return the summaries of the clips at ``indices`` of the store, on the device."""
        return Summaries.of(self.tokens(indices), self.bands)

    @property
    def test_indices(self) -> np.ndarray:
        """Held-out clips of the store, ``(N,)``; `DataError` where this machine has none."""
        if not len(self.store):
            raise DataError("data=nodes: this machine has no clips; what the nodes measured is in results.json")
        return self.store.test_indices(self.config.data.test_fold)

    def adapters(self) -> Adapters:
        """Return freshly initialised adapters on the device."""
        shapes = {name: tuple(value.shape[1:]) for name, value in self.targets.heads.items()}
        seed = self.seed("adapters")
        width, bands = self.store.shape[1], self.bands
        return build_adapters(width, shapes, self.config.adapter, seed, bands).to(self.device)

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint must agree on to serve this task."""
        return {"encoder": self.store.identity["encoder"], "target": self.config.target.label}

    def seed(self, *keys: int | str) -> int:
        """Return the seed of the random stream that ``keys`` name, such as a purpose, a round and a node."""
        return seeded(self.config.seed, *keys).initial_seed()


def prepare_task(config: Config) -> Task:
    """Encode the clips and class prompts of ``config`` that this machine misses, and open what they became.

    Raises
    ------
    ConfigError, DataError
        As the data layer says; ``device=cuda`` without a CUDA device.
    """
    if config.data.on_nodes:
        return _without_clips(config)
    store, device = prepare_store(config), use_hardware(config)
    targets = prepare_targets(store.classes, config.target, device)
    root = config.data.root and str(Path(config.data.root).expanduser().absolute())  # so that any folder can go on
    run_dir = config.run_dir and str(Path(config.run_dir).absolute())
    config = replace(config, data=replace(config.data, root=root, store=str(store.path)), run_dir=run_dir)
    return Task(config, store, targets, device)


def prepare_store(config: Config, verify: bool = False) -> Store:
    """Encode the clips of ``config`` that this machine misses, and return their store; the encoder is freed.

    The models of the targets are looked for first: hours of encoding do not end with a missing model. With ``verify``
    every byte of an existing store is read, and damaged parts are encoded again. Raises as `prepare_task`.
    """
    dataset, encoder, folder = embedding_sources(config)
    if not verify:
        with suppress(DataError):  # not there, not complete, or not ours: preparing makes it or says why it cannot
            return open_store(folder, identity_of(dataset, encoder))
    check_targets(dataset.classes, config.target)
    return prepare(dataset, encoder, folder)


def _without_clips(config: Config) -> Task:
    """Return the task of a server whose nodes have the clips; it may have some to test on."""
    chosen = config.data.classes
    require(bool(chosen), "data=nodes: nobody has said which classes there are; start such a run with `flwr run`")
    encoder, device = open_encoder(config.encoder), use_hardware(config)
    store = _opened(config, Path(config.data.store)) if config.data.store else without_clips(chosen, encoder)
    config = replace(config, run_dir=config.run_dir and str(Path(config.run_dir).absolute()))
    return Task(config, store.under(chosen), prepare_targets(chosen, config.target, device), device)


def embedding_sources(config: Config) -> tuple[Dataset, Encoder, Path]:
    """Return what the embeddings of ``config`` are made from and with, and the folder of their store.

    The encoder holds nothing on the device until it encodes its first clip.
    """
    dataset, encoder = open_dataset(config.data), open_encoder(config.encoder, use_hardware(config))
    return dataset, encoder, store_folder(config.data, dataset, encoder).absolute()


def open_task(config: Config, own_store: str | None = None) -> Task:
    """Open a prepared task in another process; nothing is encoded.

    ``own_store`` is the caller's own in place of ``data.store``. With ``data=nodes`` its clips get the ids that
    ``data.classes`` gives their classes.

    Raises
    ------
    DataError
        There is no store, or one of another encoder.
    """
    folder = own_store or (None if config.data.on_nodes else config.data.store)
    if folder is None:
        asked = "the node configuration names no store" if config.data.on_nodes else "data.store is not set"
        raise DataError(f"data={config.data.name}: {asked}, so there is nothing to train on")
    store = _opened(config, Path(folder))
    if config.data.on_nodes and config.data.classes:
        store = store.under(config.data.classes)
    return Task(config, store, open_targets(store.classes, config.target), use_hardware(config))


def _opened(config: Config, folder: Path) -> Store:
    """Return the store in ``folder``, which must be of the run's encoder."""
    store = open_store(folder)
    if wanted := differences(config.encoder, store.encoder):
        raise DataError(f"{store.path} was made by encoder {store.encoder}, the run's encoder is {wanted}")
    return store


def use_hardware(config: Config) -> torch.device:
    """Set the number of CPU threads and return the device that ``config`` asks for.

    Raises
    ------
    ConfigError
        ``device=cuda`` where torch sees no CUDA device. Nothing falls back to the CPU without a word.
    """
    torch.set_num_threads(config.threads or available_cores())
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda, but torch sees no CUDA device here; choose device=cpu or device=auto")
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(automatic if config.device == "auto" else config.device)


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

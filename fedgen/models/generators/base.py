"""The interface of every generator of latents: fit, sample, state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedgen.data.targets import Conditions
from fedgen.errors import ConfigError, require
from fedgen.models.memory import BatchLimit
from fedgen.models.settings import GeneratorSettings, Schedule


class Part(NamedTuple):
    """Training data of one generator."""

    latents: Tensor  # (N, k), on the device to train on
    labels: Tensor  # global class ids (N,), on the CPU
    seed: int  # of weights, order and noise
    split_seed: int = 0  # of the choice of rows that are held out: the same in every call


@dataclass(eq=False, repr=False)
class Generator(ABC):
    """A model of codec latents given their class; one instance serves one class or many.

    Raises
    ------
    ConfigError
        A conditioned kind gets no conditions, or lacks one of ``settings.conditions``; or an unconditioned kind gets
        ``settings.conditions``.
    """

    kind: ClassVar[str]
    conditioned: ClassVar[bool] = False
    restarts: ClassVar[bool] = False  # whether a shared round starts from nothing, as closed forms do

    settings: GeneratorSettings  # sizes and training
    size: int  # coefficients k of a latent vector
    conditions: Conditions | None = None  # of each global class id; fitting and sampling use the same
    within: Tensor | None = None  # covariance of public sounds within classes (k, k): generator.covariance=public

    def __post_init__(self) -> None:
        self.within = self.within if self.settings.covariance == "public" else None
        self.conditions = self.select(self.settings, self.conditions)
        self.forget()

    @classmethod
    def select(cls, settings: GeneratorSettings, conditions: Conditions | None) -> Conditions | None:
        """Return the conditions that generators of this kind see, None for unconditioned ones."""
        if not cls.conditioned:
            names = ", ".join(settings.conditions)
            text = f"generator.conditions=[{names}], but generator.kind={cls.kind} sees none: it must be []"
            require(not names, text)
            return None
        if conditions is None or not conditions.values:
            raise ConfigError(f"generator.kind={cls.kind} needs conditions for each class, got none")
        return conditions.select(settings.conditions)

    @abstractmethod
    def forget(self) -> None:
        """Drop weights, statistics and densities."""

    def initialise(self, seed: int) -> None:
        """Draw fresh weights from ``seed``, if there are any; everything that was learned is dropped."""
        self.forget()

    @abstractmethod
    def fit(
        self, part: Part, schedule: Schedule | None = None, limit: BatchLimit | None = None
    ) -> list[dict[str, float]]:
        """Fit to a node's latents, on their device.

        A generator that was fitted goes on from its weights and its optimiser's state; any other is initialised.
        ``limit`` halves the batch of neural kinds when memory runs out. Returns the losses of each epoch by component.

        With a ``schedule`` nodes share the generator: it goes on from `load_shared_state` or `initialise` as one of
        the calls of ``schedule``, takes latents as they are (a shared codec's are standardised over all nodes), uses
        all of them, and is completed by `finalize`.
        """

    @abstractmethod
    def finalize(self, latents: Tensor, labels: Tensor) -> None:
        """Fit the node's own parts, such as the density of its classes' codes, to the current weights."""

    @abstractmethod
    def sample(self, label: int, count: int, generator: torch.Generator, absent: Sequence[str] = ()) -> Tensor:
        """Draw ``count`` latents ``(count, k)`` of global class id ``label`` with ``generator``, both on the CPU.

        ``absent`` are conditions to do without, for kinds that can.

        Raises
        ------
        DataError
            The generator is not fitted, or not to this class.
        ConfigError
            The kind cannot do without a condition of ``absent``.
        """

    def refuse_absent(self, absent: Sequence[str], names: Sequence[str] = ()) -> None:
        """Raise `ConfigError` unless ``names``, conditions that the kind can do without, hold all of ``absent``."""
        unknown = [name for name in absent if name not in names]
        choices = ", ".join(names) or "nothing"
        require(not unknown, f"absent={unknown}: generator.kind={self.kind} can do without {choices}")

    @abstractmethod
    def shared_state(self) -> dict[str, Tensor]:
        """Return the tensors that nodes with shared generators exchange, by name, on the CPU in float32 and int64."""

    @abstractmethod
    def load_shared_state(self, state: dict[str, Tensor]) -> None:
        """Load `shared_state`; `finalize` completes the generator.

        Raises
        ------
        DataError
            A tensor is missing, unknown, of another shape or not finite; the generator is then as it was before.
        """

    @classmethod
    @abstractmethod
    def merge(cls, states: Sequence[dict[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
        """Return one shared state made of several, weighted by their numbers of clips."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return everything that defines the generator and its training, by name."""

    @abstractmethod
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Load `state`; on any error the generator is as before."""

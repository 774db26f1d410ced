"""What every generator of latents is: fit, sample, state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fedgen.errors import ConfigError, require
from fedgen.models.codec import CodecSettings
from fedgen.models.lengths import Lengths


@dataclass(frozen=True)
class GeneratorTraining:
    """How a generator is trained; shares are of the configured epochs."""

    epochs: int = 100
    batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 1e-2
    warmup: float = 0.05
    clip: float = 1.0
    beta: float = 3e-5
    beta_warmup: float = 0.4
    noise: float = 0.0
    validation: float = 0.1
    patience: int = 50

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            value = getattr(self, name)
            require(value >= 1, f"generator.training.{name}={value} must be at least 1")
        for name in ("lr", "clip"):
            value = getattr(self, name)
            require(value > 0, f"generator.training.{name}={value} must be above 0")
        for name in ("weight_decay", "beta", "noise"):
            value = getattr(self, name)
            require(value >= 0, f"generator.training.{name}={value} must be at least 0")
        for name in ("warmup", "beta_warmup", "validation"):
            value = getattr(self, name)
            require(0 <= value < 1, f"generator.training.{name}={value} must be at least 0 and below 1")


@dataclass(frozen=True)
class GeneratorSettings:
    """Which generator, of what size, in which codec.

    Attributes
    ----------
    kind : str
        See `fedgen.models.generators.KINDS`.
    width, latents : int
        Hidden width and latent size of neural kinds.
    shrinkage : float
        Share of the tied covariance in each class's, from 0 (own) to 1 (tied).
    conditions : list[str]
        Embeddings of the target that conditioned kinds see, such as ``clip``; all of the target's if empty.
    training_length, output_length : int, optional
        Tokens of a sequence that the generator models, and tokens of a sample; the encoder's by default.
    upsampling : str
        How a sample gets from ``training_length`` to ``output_length``: see `fedgen.models.lengths`.
    """

    kind: str = "gaussian"
    width: int = 512
    latents: int = 64
    shrinkage: float = 0.3
    conditions: list[str] = field(default_factory=list)
    training_length: int | None = None
    output_length: int | None = None
    upsampling: str = "linear"
    codec: CodecSettings = field(default_factory=CodecSettings)
    training: GeneratorTraining = field(default_factory=GeneratorTraining)

    def __post_init__(self) -> None:
        require(self.width >= 1, f"generator.width={self.width} must be at least 1")
        require(self.latents >= 1, f"generator.latents={self.latents} must be at least 1")
        require(0 <= self.shrinkage <= 1, f"generator.shrinkage={self.shrinkage} must be between 0 and 1")
        Lengths(self.training_length, self.output_length, self.upsampling)

    @property
    def lengths(self) -> Lengths:
        """Lengths of the sequences that are modelled and made."""
        return Lengths(self.training_length, self.output_length, self.upsampling)


class Generator(ABC):
    """A model of codec latents given their class; one instance serves one class or many.

    Parameters
    ----------
    settings : GeneratorSettings
        Sizes and training.
    size : int
        Coefficients ``k`` of a latent vector.
    conditions : Tensor, optional
        One condition vector for each global class id, ``(C, c)``. Given once: fitting and sampling use the same.

    Raises
    ------
    ConfigError
        The kind is conditioned and there are no conditions.
    """

    kind: ClassVar[str]
    conditioned: ClassVar[bool] = False

    def __init__(self, settings: GeneratorSettings, size: int, conditions: Tensor | None = None) -> None:
        if self.conditioned and conditions is None:
            raise ConfigError(f"generator.kind={self.kind} needs a condition vector for each class, got none")
        self.settings, self.size = settings, size
        self.conditions = conditions if self.conditioned else None

    @abstractmethod
    def fit(self, latents: Tensor, labels: Tensor, seed: int) -> list[dict[str, float]]:
        """Fit to ``latents`` ``(N, k)`` of classes ``labels`` ``(N,)``, on the latents' device.

        A fitted generator goes on from its weights and its optimiser's state. Returns the losses of each epoch by
        component.
        """

    @abstractmethod
    def sample(self, label: int, count: int, generator: torch.Generator) -> Tensor:
        """Draw ``count`` latents ``(count, k)`` of class ``label`` with ``generator``, both on the CPU."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return everything that defines the generator, by name, including what training needs to go on."""

    @abstractmethod
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Become the generator that `state` came from; on any error stay as before."""

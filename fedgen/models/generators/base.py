"""What every generator of latents is: fit, sample, state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedgen.data.targets import Conditions
from fedgen.errors import ConfigError, choose, require
from fedgen.models.bases import Lengths
from fedgen.models.memory import BatchLimit
from fedgen.models.training import Schedule

COVARIANCES = ("clips", "public")


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
    condition_dropout: float = 0.1
    fakes: int = 4
    adversarial: float = 0.1
    feature_matching: float = 1.0
    gradient_penalty: float = 1.0
    validation: float = 0.1
    patience: int = 50

    def __post_init__(self) -> None:
        least = dict.fromkeys(("epochs", "batch_size", "patience"), 1) | {"fakes": 2}
        for name, value in vars(self).items():
            low = least.get(name, 0)
            if name in ("lr", "clip"):
                require(value > 0, f"generator.training.{name}={value} must be above 0")
            elif name in ("warmup", "beta_warmup", "condition_dropout", "validation"):
                require(0 <= value < 1, f"generator.training.{name}={value} must be at least 0 and below 1")
            else:
                require(value >= low, f"generator.training.{name}={value} must be at least {low}")


@dataclass(frozen=True)
class GeneratorSettings:
    """Which generator, of what size.

    Attributes
    ----------
    kind : str
        See `fedgen.models.generators.KINDS`.
    width, latents : int
        Hidden width and latent size of neural kinds.
    embedding : int
        Width of a condition as conditioned kinds see it.
    covariance : str
        Of a class, for `gaussian` and `gan`: ``clips``, or ``public``: that of public sounds within classes, as wide as
        the class's clips in a few bands. Clips are told by the former alone.
    shrinkage : float
        With ``clips``, share of the tied covariance in each class's, from 0 (own) to 1 (tied).
    marginals : bool
        Whether samples are mapped to the distribution of single values in the clips (see `marginals`).
    conditions : list[str]
        Embeddings of the target that conditioned kinds see, such as ``clip``; all of the target's if empty.
    training_length, output_length : int, optional
        Tokens of a sequence that the generator models, and tokens of a sample; the encoder's by default.
    upsampling : str
        How a sample gets from ``training_length`` to ``output_length``: see `fedgen.models.bases`.
    """

    kind: str = "gaussian"
    width: int = 512
    latents: int = 64
    embedding: int = 64
    covariance: str = "clips"
    shrinkage: float = 0.6
    marginals: bool = True
    conditions: list[str] = field(default_factory=list)
    training_length: int | None = None
    output_length: int | None = None
    upsampling: str = "linear"
    training: GeneratorTraining = field(default_factory=GeneratorTraining)

    def __post_init__(self) -> None:
        for name in ("width", "latents", "embedding"):
            value = getattr(self, name)
            require(value >= 1, f"generator.{name}={value} must be at least 1")
        choose(self.covariance, COVARIANCES, "generator.covariance")
        require(0 <= self.shrinkage <= 1, f"generator.shrinkage={self.shrinkage} must be between 0 and 1")

    @property
    def lengths(self) -> Lengths:
        """Lengths of the sequences that are modelled and made."""
        return Lengths(self.training_length, self.output_length, self.upsampling)


class Part(NamedTuple):
    """What one generator learns from."""

    latents: Tensor  # (N, k), on the device to train on
    labels: Tensor  # global class ids (N,), on the CPU
    seed: int  # of weights, order and noise
    split_seed: int = 0  # of the choice of rows that are held out: they stay held out if it is the same in later calls


@dataclass(eq=False, repr=False)
class Generator(ABC):
    """A model of codec latents given their class; one instance serves one class or many.

    Parameters
    ----------
    settings : GeneratorSettings
        Sizes and training.
    size : int
        Coefficients ``k`` of a latent vector.
    conditions : Conditions, optional
        What the target has for each global class id. Given once: fitting and sampling use the same.
    within : Tensor, optional
        Covariance of public sounds within classes ``(k, k)``, for ``generator.covariance=public``.

    Raises
    ------
    ConfigError
        The kind is conditioned and there are no conditions, or lacks one that ``settings.conditions`` names; or the
        kind sees none and ``settings.conditions`` names some.
    """

    kind: ClassVar[str]
    conditioned: ClassVar[bool] = False
    restarts: ClassVar[bool] = False  # whether a shared round starts from nothing, as closed forms do

    settings: GeneratorSettings
    size: int
    conditions: Conditions | None = None
    within: Tensor | None = None

    def __post_init__(self) -> None:
        self.within = self.within if self.settings.covariance == "public" else None
        self.conditions = self.select(self.settings, self.conditions)
        self.forget()

    @classmethod
    def select(cls, settings: GeneratorSettings, conditions: Conditions | None) -> Conditions | None:
        """Return what generators of this kind see of ``conditions``, None for unconditioned ones."""
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
        """Become what a generator is before anything is learned: without weights, statistics and densities."""

    @abstractmethod
    def initialise(self, seed: int) -> None:
        """Become untrained: fresh weights from ``seed``; what was learned, and the optimiser's state, is forgotten."""

    @abstractmethod
    def fit(
        self, latents: Tensor, labels: Tensor, seed: int, split_seed: int = 0, limit: BatchLimit | None = None
    ) -> list[dict[str, float]]:
        """Fit to a node's own ``latents`` ``(N, k)`` of classes ``labels`` ``(N,)``, on the latents' device.

        A generator that was fitted goes on from its weights and its optimiser's state; any other is initialised. See
        `Part` for the seeds; ``limit`` halves the batch of neural kinds when memory runs out. Returns the losses of
        each epoch by component.
        """

    @abstractmethod
    def fit_shared(
        self, latents: Tensor, labels: Tensor, seed: int, schedule: Schedule, limit: BatchLimit | None = None
    ) -> list[dict[str, float]]:
        """Go on from `load_shared_state` or `initialise` with a node's latents, as one of the calls of ``schedule``.

        Every node takes latents as they are (a shared codec's are standardised over all nodes) and uses all of them.
        """

    @abstractmethod
    def settle(self, latents: Tensor, labels: Tensor) -> None:
        """Fit what is the node's own, such as the density of its classes' codes, to the current weights."""

    @abstractmethod
    def sample(self, label: int, count: int, generator: torch.Generator, absent: Sequence[str] = ()) -> Tensor:
        """Draw ``count`` latents ``(count, k)`` of class ``label`` with ``generator``, both on the CPU.

        Parameters
        ----------
        label : int
            Global class id.
        count : int
        generator : torch.Generator
        absent : Sequence[str]
            Conditions to do without, for kinds that can.

        Raises
        ------
        DataError
            The generator is not fitted, or not to this class.
        ConfigError
            The kind cannot do without a condition of that name.
        """

    def refuse_absent(self, absent: Sequence[str], names: Sequence[str] = ()) -> None:
        """Raise `ConfigError` unless ``names``, conditions that the kind can do without, hold all of ``absent``."""
        unknown = [name for name in absent if name not in names]
        choices = ", ".join(names) or "nothing"
        require(not unknown, f"absent={unknown}: generator.kind={self.kind} can do without {choices}")

    @abstractmethod
    def shared_state(self) -> dict[str, Tensor]:
        """Return what nodes that share the generator exchange, by name, on the CPU in float32 and int64."""

    @abstractmethod
    def load_shared_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `shared_state` gave; `settle` makes the generator whole.

        Raises
        ------
        DataError
            A tensor is missing, unknown, of another shape or not finite; the generator is then as it was before.
        """

    @classmethod
    @abstractmethod
    def merge(cls, states: Sequence[dict[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
        """Return one shared state made of several, ``weights`` being their clips."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return everything that defines the generator, by name, including what training needs to go on."""

    @abstractmethod
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Become the generator that `state` came from; on any error stay as before."""

"""What decides how a generator is built and trained: the configuration group ``generator``."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedgen.errors import choose, require
from fedgen.models.lengths import Lengths

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
        Whether samples are mapped to the distribution of single values in the clips: see `fedgen.models.marginals`.
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

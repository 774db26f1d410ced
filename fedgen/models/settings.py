"""Settings of adapters, codec and generators: dataclasses that check their values, each key beside its default.

Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from fedgen.data.plain import check_names
from fedgen.errors import choose, require

GLOBAL_TRAINING = ("none", "supervised", "distil")
UPSAMPLING = ("linear", "nearest", "cubic", "learned")
COVARIANCES = ("clips", "public")
GRANULARITIES = ("unified", "per_class", "per_group")


def check_ranges(
    settings: object,
    key: str,
    least: Mapping[str, float] | None = None,
    positive: Sequence[str] = (),
    shares: Sequence[str] = (),
) -> None:
    """Raise `ConfigError` for the first value of ``settings`` that is out of range.

    ``key`` is the place of the settings in the configuration, ``least`` the lowest value by attribute; attributes of
    ``positive`` must be above 0, those of ``shares`` from 0 to below 1.
    """
    for name, low in (least or {}).items():
        value = getattr(settings, name)
        require(value is None or value >= low, f"{key}.{name}={value} must be at least {low}")
    for name in positive:
        value = getattr(settings, name)
        require(value > 0, f"{key}.{name}={value} must be above 0")
    for name in shares:
        value = getattr(settings, name)
        require(0 <= value < 1, f"{key}.{name}={value} must be at least 0 and below 1")


@dataclass(frozen=True)
class OptimSettings:
    """AdamW (Loshchilov and Hutter, ICLR 2019) on shuffled batches; the rate rises, then falls along a cosine."""

    key: ClassVar[str]  # where the settings stand in the configuration

    epochs: int = 1  # passes over the data in one call
    batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05  # share of all steps with a rising learning rate
    clip: float = 1.0  # largest gradient norm

    def __post_init__(self) -> None:
        least = {"epochs": 1, "batch_size": 1, "weight_decay": 0}
        check_ranges(self, self.key, least, positive=("lr", "clip"), shares=("warmup",))


@dataclass(frozen=True)
class AdapterSettings:
    """Size of the adapters."""

    width: int = 128  # numbers that a clip's summary is projected to
    hidden: int = 256  # width of the layer between them and the output
    dropout: float = 0.1  # on the summary and the hidden layer, in training only

    def __post_init__(self) -> None:
        check_ranges(self, "adapter", dict.fromkeys(("width", "hidden"), 1), shares=["dropout"])


@dataclass(frozen=True)
class TrainingSettings(OptimSettings):
    """How adapters are trained."""

    key: ClassVar[str] = "adapter.training"

    epochs: int = 4
    mse_weight: float = 1.0  # of the squared error, relative to the targets' mean square
    # of the cross-entropy over cosines to all class targets: keeps absent classes apart
    contrastive_weight: float = 1.0
    temperature: float = 0.1  # cosines are divided by it before the cross-entropy

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, self.key, {"mse_weight": 0, "contrastive_weight": 0}, positive=["temperature"])
        weights = self.mse_weight + self.contrastive_weight
        require(weights > 0, f"{self.key}.mse_weight and {self.key}.contrastive_weight are both 0: nothing to learn")


@dataclass(frozen=True)
class GlobalTrainingSettings(TrainingSettings):
    """How the server trains the global adapters on the pool of synthetic samples."""

    key: ClassVar[str] = "global_training"

    # none, supervised (samples to class targets) or distil (also to outputs of nodes' adapters)
    name: str = "supervised"
    epochs: int = 1
    teacher_weight: float = 0.5  # distil: share of the loss that is the distance to the teachers

    def __post_init__(self) -> None:
        choose(self.name, GLOBAL_TRAINING, "global_training")
        weight = self.teacher_weight
        require(0 < weight <= 1, f"global_training.teacher_weight={weight} must be above 0 and at most 1")
        super().__post_init__()


@dataclass(frozen=True)
class CodecSettings:
    """Sizes of the codec, each limited by the public sounds, and which sounds these are."""

    channels: int = 24  # basis vectors of a token
    positions: int = 48  # basis vectors of the sequence
    components: int = 128  # coefficients of a latent vector
    noise: bool = True  # whether samples get the noise that the components leave out
    public: str | None = None  # folder of audio that anybody may know, class/clip.wav; synthesised sounds by default

    def __post_init__(self) -> None:
        check_ranges(self, "codec", dict.fromkeys(("channels", "positions", "components"), 1))


@dataclass(frozen=True)
class Lengths:
    """Tokens of the sequences that are modelled and made; None: as many as the encoder gives.

    A sequence gets shorter by averaging neighbouring tokens, and longer by ``upsampling``.
    """

    training: int | None = None  # tokens of a sequence that the generator models
    output: int | None = None  # tokens of a sample
    upsampling: str = "linear"  # linear, nearest, cubic (as torch.nn.functional.interpolate) or learned

    def __post_init__(self) -> None:
        for name in ("training", "output"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"generator.{name}_length={value} must be at least 1")
        choose(self.upsampling, UPSAMPLING, "generator.upsampling")

    def resolve(self, length: int) -> tuple[int, int]:
        """Return the tokens modelled ``L`` and made ``O`` where the encoder gives ``length`` ``S``.

        Raises `ConfigError` if ``generator.training_length`` is longer than the encoder's sequence.
        """
        training = self.training or length
        require(
            training <= length,
            f"generator.training_length={training} is longer than the encoder's sequence of {length} tokens",
        )
        return training, self.output or length


@dataclass(frozen=True)
class NeuralTraining(OptimSettings):
    """How neural generators of every kind are trained."""

    key: ClassVar[str] = "generator.training"

    epochs: int = 100
    weight_decay: float = 1e-2
    noise: float = 0.0  # deviation of Gaussian noise on the input, never on the target
    validation: float = 0.1  # share of the clips that early stopping is judged by
    patience: int = 50  # epochs without improvement before training stops

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, self.key, {"noise": 0, "patience": 1}, shares=["validation"])


@dataclass(frozen=True)
class VAETraining(NeuralTraining):
    """Training of the variational autoencoders."""

    beta: float = 3e-5  # weight of the divergence from the prior
    beta_warmup: float = 0.4  # share of all steps with a rising beta
    condition_dropout: float = 0.1  # multimodal_vae: share of samples that do without a condition, each apart

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, self.key, {"beta": 0}, shares=("beta_warmup", "condition_dropout"))


@dataclass(frozen=True)
class GANTraining(NeuralTraining):
    """Training of the ``gan`` kind."""

    fakes: int = 4  # samples made of each clip's class, in each of its steps
    adversarial: float = 0.1  # weight of deceiving the discriminator; 0: the distances alone count
    feature_matching: float = 1.0  # weight of distances to the clips, in the discriminator's features and in latents
    gradient_penalty: float = 1.0  # weight of the discriminator's squared slope at the clips (R1)

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = dict.fromkeys(("adversarial", "feature_matching", "gradient_penalty"), 0)
        check_ranges(self, self.key, {"fakes": 2} | weights)


@dataclass(frozen=True)
class GeneratorTraining(VAETraining, GANTraining):
    """``generator.training``: the keys of all kinds; each kind reads its own."""


@dataclass(frozen=True)
class GeneratorSettings:
    """Which generator, of what size."""

    kind: str = "gaussian"  # see fedgen.models.generators.KINDS
    width: int = 512  # hidden width of neural kinds
    latents: int = 64  # latent size of neural kinds
    embedding: int = 64  # width of a condition as conditioned kinds see it
    # of a class, for gaussian and gan; public: that of public sounds, as wide as the clips in a few bands
    covariance: str = "clips"
    shrinkage: float = 0.6  # with clips: share of the tied covariance in each class's, from 0 (own) to 1 (tied)
    conditions: list[str] = field(default_factory=list)  # of the target, for conditioned kinds, such as clip; []: all
    # tokens that the generator models, means of neighbours; the encoder's by default
    training_length: int | None = None
    output_length: int | None = None  # tokens of a sample; the encoder's by default
    upsampling: str = "linear"  # from training_length to output_length: see Lengths
    training: GeneratorTraining = field(default_factory=GeneratorTraining)

    def __post_init__(self) -> None:
        check_ranges(self, "generator", dict.fromkeys(("width", "latents", "embedding"), 1))
        choose(self.covariance, COVARIANCES, "generator.covariance")
        require(0 <= self.shrinkage <= 1, f"generator.shrinkage={self.shrinkage} must be between 0 and 1")

    @property
    def lengths(self) -> Lengths:
        """Lengths of the sequences that are modelled and made."""
        return Lengths(self.training_length, self.output_length, self.upsampling)


@dataclass(frozen=True)
class GranularitySettings:
    """How classes share generators: all in one, one each, or one for each named group of classes."""

    name: str = "unified"
    groups: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choose(self.name, GRANULARITIES, "granularity")
        members = [name for names in self.groups.values() for name in names]
        twice = sorted({name for name in members if members.count(name) > 1})
        check_names([*self.groups, *members], "granularity.groups")
        require(not twice, f"granularity.groups names {', '.join(twice)} more than once")


@dataclass(frozen=True)
class Schedule:
    """Where one call stands in a longer training: call ``index`` (from 0) of ``calls`` of equal length."""

    index: int = 0
    calls: int = 1

    def progress(self, step: int, steps: int) -> float:
        """Return the share of the whole training, from 0, that is done at ``step`` of ``steps`` in this call."""
        return (self.index + step / steps) / self.calls

    def rate(self, step: int, steps: int, warmup: float) -> float:
        """Return the factor on the learning rate at ``step`` of ``steps`` in this call: linear warm-up, then cosine."""
        total = steps * self.calls
        now = self.index * steps + step
        rising = max(1, round(warmup * total))
        if now < rising:
            return (now + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (now - rising) / max(1, total - rising)))

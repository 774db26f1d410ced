"""Settings of adapters, codec and generators: dataclasses that check their values. Nothing here imports torch."""

from __future__ import annotations

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
        require(value >= low, f"{key}.{name}={value} must be at least {low}")
    for name in positive:
        value = getattr(settings, name)
        require(value > 0, f"{key}.{name}={value} must be above 0")
    for name in shares:
        value = getattr(settings, name)
        require(0 <= value < 1, f"{key}.{name}={value} must be at least 0 and below 1")


@dataclass(frozen=True)
class OptimSettings:
    """AdamW (Loshchilov and Hutter, ICLR 2019) on shuffled batches.

    Parameters
    ----------
    epochs, batch_size : int
        Passes over the data in one call, and samples of a batch.
    lr, weight_decay : float
        The learning rate falls along a cosine after a linear warm-up.
    warmup : float
        Share of all steps with a rising learning rate.
    clip : float
        Largest gradient norm.
    """

    key: ClassVar[str]  # where the settings stand in the configuration

    epochs: int = 1
    batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip: float = 1.0

    def __post_init__(self) -> None:
        least = {"epochs": 1, "batch_size": 1, "weight_decay": 0}
        check_ranges(self, self.key, least, positive=("lr", "clip"), shares=("warmup",))


@dataclass(frozen=True)
class AdapterSettings:
    """Size of the adapters.

    Parameters
    ----------
    width : int
        Channels that a token is projected to before pooling.
    heads : int
        Attention maps for each query of a target; each map pools all channels with weights of its own.
    hidden : int
        Width of the layer between pooling and output.
    wide_hidden : int
        Upper limit of ``hidden`` for heads of more than 1024 channels, such as T5's: they hold most of the weights.
    dropout : float
        Dropout on the pooled vector and the hidden layer, in training only.
    """

    width: int = 64
    heads: int = 8
    hidden: int = 512
    wide_hidden: int = 384
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_ranges(self, "adapter", dict.fromkeys(("width", "heads", "hidden", "wide_hidden"), 1), shares=["dropout"])


@dataclass(frozen=True)
class TrainingSettings(OptimSettings):
    """How adapters are trained.

    Parameters
    ----------
    mse_weight : float
        Weight of the squared error, relative to the targets' mean square so that it does not depend on their scale.
    contrastive_weight : float
        Weight of the cross-entropy over the cosines to every class's target. Every node knows all targets, so this
        term keeps classes apart that a node has no clip of.
    temperature : float
        Cosines are divided by it before the cross-entropy.
    """

    key: ClassVar[str] = "adapter.training"

    epochs: int = 4
    mse_weight: float = 1.0
    contrastive_weight: float = 1.0
    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, self.key, {"mse_weight": 0, "contrastive_weight": 0}, positive=["temperature"])
        weights = self.mse_weight + self.contrastive_weight
        require(weights > 0, f"{self.key}.mse_weight and {self.key}.contrastive_weight are both 0: nothing to learn")


@dataclass(frozen=True)
class GlobalTrainingSettings(TrainingSettings):
    """How the server trains the global adapters on the pool of synthetic samples.

    Parameters
    ----------
    name : str
        ``none``, ``supervised`` (synthetic tokens to class targets) or ``distil`` (also to the outputs of the nodes'
        adapters).
    teacher_weight : float
        ``distil``: share of the loss that is the distance to the teachers, the rest is that of ``supervised``.
    """

    key: ClassVar[str] = "global_training"

    name: str = "supervised"
    epochs: int = 1
    teacher_weight: float = 0.5

    def __post_init__(self) -> None:
        choose(self.name, GLOBAL_TRAINING, "global_training")
        weight = self.teacher_weight
        require(0 < weight <= 1, f"global_training.teacher_weight={weight} must be above 0 and at most 1")
        super().__post_init__()


@dataclass(frozen=True)
class ProjectionSettings:
    """Size of the bases that clips are projected on before adapters train on them.

    Parameters
    ----------
    positions, channels : int
        Basis vectors of the sequence and of a token, limited by what the clips have; 0: adapters train on the tokens.
    """

    positions: int = 96
    channels: int = 48

    def __post_init__(self) -> None:
        check_ranges(self, "adapter.projection", {"positions": 0, "channels": 0})

    @property
    def used(self) -> bool:
        """Whether clips are projected at all."""
        return self.positions > 0 and self.channels > 0


@dataclass(frozen=True)
class CodecSettings:
    """Sizes of the codec, each limited by the public sounds, and which sounds these are.

    Parameters
    ----------
    channels, positions, components : int
        Basis vectors of a token and of the sequence, and coefficients of a latent vector.
    noise : bool
        Whether samples get the noise that the components leave out.
    public : str, optional
        Folder of audio that anybody may know, one folder a class; synthesised sounds by default.
    """

    channels: int = 24
    positions: int = 48
    components: int = 128
    noise: bool = True
    public: str | None = None

    def __post_init__(self) -> None:
        check_ranges(self, "codec", dict.fromkeys(("channels", "positions", "components"), 1))


@dataclass(frozen=True)
class Lengths:
    """Tokens of the sequences that are modelled and made; None: as many as the encoder gives.

    A sequence gets shorter by averaging neighbouring tokens, and longer by ``upsampling``.

    Parameters
    ----------
    training, output : int, optional
        Tokens of a sequence that the generator models, and tokens of a sample.
    upsampling : str
        ``linear``, ``nearest``, ``cubic`` (as `torch.nn.functional.interpolate` does them) or ``learned``.
    """

    training: int | None = None
    output: int | None = None
    upsampling: str = "linear"

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
    """How neural generators of every kind are trained.

    Parameters
    ----------
    noise : float
        Deviation of Gaussian noise on the input, never on the target.
    validation : float
        Share of the clips that early stopping is judged by.
    patience : int
        Epochs without improvement before training stops.
    """

    key: ClassVar[str] = "generator.training"

    epochs: int = 100
    weight_decay: float = 1e-2
    noise: float = 0.0
    validation: float = 0.1
    patience: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, self.key, {"noise": 0, "patience": 1}, shares=["validation"])


@dataclass(frozen=True)
class VAETraining(NeuralTraining):
    """What training of the variational autoencoders adds.

    Parameters
    ----------
    beta : float
        Weight of the divergence from the prior.
    beta_warmup : float
        Share of all steps with a rising beta.
    condition_dropout : float
        ``multimodal_vae``: share of samples that do without a condition, each condition apart.
    """

    beta: float = 3e-5
    beta_warmup: float = 0.4
    condition_dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, self.key, {"beta": 0}, shares=("beta_warmup", "condition_dropout"))


@dataclass(frozen=True)
class GANTraining(NeuralTraining):
    """What training of the ``gan`` kind adds.

    Parameters
    ----------
    fakes : int
        Samples made of each clip's class, in each of its steps.
    adversarial : float
        Weight of deceiving the discriminator; 0: the distances alone count.
    feature_matching : float
        Weight of the distances to the clips, in the discriminator's features and in the latents.
    gradient_penalty : float
        Weight of the discriminator's squared slope at the clips (R1).
    """

    fakes: int = 4
    adversarial: float = 0.1
    feature_matching: float = 1.0
    gradient_penalty: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = dict.fromkeys(("adversarial", "feature_matching", "gradient_penalty"), 0)
        check_ranges(self, self.key, {"fakes": 2} | weights)


@dataclass(frozen=True)
class GeneratorTraining(VAETraining, GANTraining):
    """``generator.training``: the keys of all kinds; each kind reads its own."""


@dataclass(frozen=True)
class GeneratorSettings:
    """Which generator, of what size.

    Parameters
    ----------
    kind : str
        See `fedgen.models.generators.KINDS`.
    width, latents : int
        Hidden width and latent size of neural kinds.
    embedding : int
        Width of a condition as conditioned kinds see it.
    covariance : str
        Of a class, for ``gaussian`` and ``gan``: ``clips``, or ``public``: that of public sounds within classes, as
        wide as the class's clips in a few bands. ``public`` hides single clips better.
    shrinkage : float
        With ``clips``, share of the tied covariance in each class's, from 0 (own) to 1 (tied).
    marginals : bool
        Whether samples are mapped to the distribution of single values in the clips (see `marginals`).
    conditions : list[str]
        Embeddings of the target that conditioned kinds see, such as ``clip``; all of the target's if empty.
    training_length, output_length : int, optional
        Tokens of a sequence that the generator models (means of neighbours), and tokens of a sample; the encoder's by
        default.
    upsampling : str
        How a sample gets from ``training_length`` to ``output_length``: see `Lengths`.
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

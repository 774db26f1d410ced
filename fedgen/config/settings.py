"""The typed settings of a run: what there is to choose, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fedgen.config.phases import MODES, PhaseSettings
from fedgen.config.strategy import StrategyConfig
from fedgen.data.plain import check_names
from fedgen.data.settings import DataSettings, EncoderSettings, PartitionSettings, TargetSettings
from fedgen.errors import choose, require
from fedgen.models.settings import (
    GRANULARITIES,
    AdapterSettings,
    CodecSettings,
    GeneratorSettings,
    GlobalTrainingSettings,
    GranularitySettings,
    ProjectionSettings,
    TrainingSettings,
)
from fedgen.privacy.settings import EvaluationSettings, PrivacySettings

TRACKERS = ("none", "tensorboard", "wandb")


@dataclass(frozen=True)
class TrackingSettings:
    """Where a run's metrics go besides its folder; the server's process alone sends them.

    Parameters
    ----------
    name : str
        ``none``, ``tensorboard`` or ``wandb``.
    project : str
        Of Weights & Biases.
    entity : str, optional
        Team or user there; the user's default by default.
    group : str, optional
        What runs are grouped by there; of a sweep its folder by default.
    offline : bool
        Whether the run is kept on this machine until ``wandb sync``; ``WANDB_MODE=offline`` does the same.
    """

    name: str = "none"
    project: str = "fedgen"
    entity: str | None = None
    group: str | None = None
    offline: bool = False

    def __post_init__(self) -> None:
        choose(self.name, TRACKERS, "tracking")
        require(bool(self.project), "tracking.project='' must be a name")


DEVICES = ["auto", "cpu", "cuda"]
MEMORY = ["auto", "low", "high"]
CHECKS = ["strict", "warn"]
SHARING = ["local", "shared"]
SCHEMES = ["cyclic", "average"]


@dataclass(frozen=True)
class AdapterConfig(AdapterSettings):
    """Size of the adapters and how nodes train them."""

    training: TrainingSettings = field(default_factory=TrainingSettings)
    projection: ProjectionSettings = field(default_factory=ProjectionSettings)


@dataclass(frozen=True)
class SynthesisConfig:
    """What nodes send, and what they get of each other's samples.

    Parameters
    ----------
    samples_per_class : str
        A number, or ``auto``: the node's mean number of clips a class.
    max_samples : int
        Most samples that the server takes from one node in one round.
    fill : int
        Clips and others' samples that a node trains its adapters on for every class: where it has fewer clips, the
        other nodes' samples of the round before fill up. 0: its clips alone.
    absent : list[str]
        Embeddings of the target that ``multimodal_vae`` does without when it samples, such as ``t5``.
    """

    samples_per_class: str = "128"
    max_samples: int = 100_000
    fill: int = 32
    absent: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_samples_per_class(self.samples_per_class, "synthesis.samples_per_class")
        require(self.max_samples >= 1, f"synthesis.max_samples={self.max_samples} must be at least 1")
        require(self.fill >= 0, f"synthesis.fill={self.fill} must be at least 0")


def check_samples_per_class(value: str, key: str) -> None:
    """Raise `ConfigError` unless ``value`` is a positive whole number or ``auto``."""
    good = value == "auto" or (value.isdecimal() and int(value) > 0)
    require(good, f"{key}={value!r} must be a positive whole number or auto")


@dataclass(frozen=True)
class CheckpointConfig:
    """Where trained state comes from, and which files of generators are kept.

    Parameters
    ----------
    load : str, optional
        Run folder whose adapters, generators and round number this run goes on from.
    round : int, optional
        Which of its ``_round_{n}`` generators to load; the latest by default.
    check : str
        ``strict`` refuses a checkpoint of another encoder, target, data set or split; ``warn`` lists what differs.
    save : bool
        Whether generators are saved as checkpoints.
    dir : str, optional
        Folder of the generators' files; ``checkpoints`` in the run folder by default.
    base_name : str, optional
        First part of generator file names; by granularity ``vae_unified``, ``vae_perclass`` or ``vae_group``.
    frequency : int
        Every so many rounds, generators are also kept as ``_round_{n}``; 0: never.
    keep_last : int, optional
        How many of these are kept; all by default.
    """

    load: str | None = None
    round: int | None = None
    check: str = "strict"
    save: bool = True
    dir: str | None = None
    base_name: str | None = None
    frequency: int = 0
    keep_last: int | None = None

    def __post_init__(self) -> None:
        choose(self.check, CHECKS, "checkpoint.check")
        require(self.round is None or self.round >= 1, f"checkpoint.round={self.round} must be at least 1")
        require(self.frequency >= 0, f"checkpoint.frequency={self.frequency} must be at least 0")
        require(
            self.keep_last is None or self.keep_last >= 1, f"checkpoint.keep_last={self.keep_last} must be at least 1"
        )
        name = self.base_name
        check_names([name] if name else [], "checkpoint.base_name")
        require(not name or Path(name).name == name, f"checkpoint.base_name={name!r} must be a name, not a path")


@dataclass(frozen=True)
class SharingConfig:
    """Whether each node has generators of its own, or all nodes train the same ones.

    Parameters
    ----------
    name : str
        ``local`` or ``shared``.
    scheme : str
        ``cyclic``: node after node, each going on where the one before stopped; ``average``: all at once from the same
        state, then averaged by their clips.
    reset_on_class_change : bool
        Whether a shared generator starts anew, weights and optimiser, when it meets classes that it was not trained on.
    """

    name: str = "local"
    scheme: str = "cyclic"
    reset_on_class_change: bool = False

    def __post_init__(self) -> None:
        choose(self.name, SHARING, "sharing")
        choose(self.scheme, SCHEMES, "sharing.scheme")


@dataclass(frozen=True)
class NodeConfig:
    """What one node does otherwise than the rest; None: as the rest.

    Parameters
    ----------
    granularity : str, optional
    groups : dict[str, list[str]], optional
        The node's own groups of classes.
    classes : list[str], optional
        The only classes of its data that the node uses.
    samples_per_class : str, optional
        As ``synthesis.samples_per_class``.
    """

    granularity: str | None = None
    groups: dict[str, list[str]] | None = None
    classes: list[str] | None = None
    samples_per_class: str | None = None

    def __post_init__(self) -> None:
        if self.granularity is not None:
            choose(self.granularity, GRANULARITIES, "nodes.*.granularity")
        if self.samples_per_class is not None:
            check_samples_per_class(self.samples_per_class, "nodes.*.samples_per_class")
        check_names([*(self.groups or {}), *(self.classes or ())], "nodes.*.groups and .classes")
        check_names((name for names in (self.groups or {}).values() for name in names), "nodes.*.groups")
        require(self.classes is None or bool(self.classes), "nodes.*.classes=[] leaves a node without classes")


@dataclass(frozen=True)
class Config:
    """Everything that decides a run; ``phases`` overrules ``mode`` and ``rounds`` where it is not empty."""

    data: DataSettings = field(default_factory=DataSettings)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    target: TargetSettings = field(default_factory=TargetSettings)
    partition: PartitionSettings = field(default_factory=PartitionSettings)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    codec: CodecSettings = field(default_factory=CodecSettings)
    generator: GeneratorSettings = field(default_factory=GeneratorSettings)
    granularity: GranularitySettings = field(default_factory=GranularitySettings)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    global_training: GlobalTrainingSettings = field(default_factory=GlobalTrainingSettings)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    sharing: SharingConfig = field(default_factory=SharingConfig)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    nodes: dict[str, NodeConfig] = field(default_factory=dict)
    mode: str = "one_shot"
    rounds: int = 10
    phases: list[PhaseSettings] = field(default_factory=list)
    resume: str | None = None
    seed: int = 0
    device: str = "auto"
    memory: str = "auto"
    threads: int | None = None
    run_dir: str | None = None
    record: str | None = None

    def __post_init__(self) -> None:
        require(self.seed >= 0, f"seed={self.seed} must be at least 0")
        PhaseSettings(self.mode, self.rounds)
        choose(self.device, DEVICES, "device")
        choose(self.memory, MEMORY, "memory")
        require(self.threads is None or self.threads >= 1, f"threads={self.threads} must be at least 1")
        require(
            not self.synthesis.fill or self.adapter.projection.used,
            f"synthesis.fill={self.synthesis.fill} needs adapter.projection: set synthesis.fill=0, or both of "
            "adapter.projection.positions and adapter.projection.channels above 0",
        )
        self.privacy.check(self.generator, self.sharing.name)
        modes = [phase.mode for phase in self.phase_list]
        references = [mode for mode in modes if not MODES[mode].federated]
        require(
            not (self.privacy.used and references),
            f"privacy=dp means nothing with mode={''.join(references[:1])}: nothing leaves a node there",
        )
        remote = self.data.on_nodes
        require(not (remote and references), f"mode={''.join(references[:1])} needs everyone's clips: not data=nodes")
        require(
            not (remote and self.privacy.used) or self.data.store is not None,
            "privacy=dp with data=nodes needs data.store, clips that the server tests on: scores of the nodes' own "
            "held-out clips are not covered by epsilon",
        )
        nodes = self.partition.nodes
        self.strategy.check(nodes, modes, self.global_training.name)
        for number in self.nodes:
            good = number.isdecimal() and int(number) < nodes
            require(good, f"nodes.{number} is no node: partition.nodes={nodes}, they are 0 to {nodes - 1}")

    @property
    def phase_list(self) -> list[PhaseSettings]:
        """The phases, or the single one that ``mode`` and ``rounds`` describe."""
        return list(self.phases) or [PhaseSettings(self.mode, self.rounds)]

    @property
    def gate(self) -> str:
        """What a leak does: ``evaluation.gate``, or what ``auto`` means in this run."""
        chosen = self.evaluation.gate
        return ("fail" if self.privacy.used else "warn") if chosen == "auto" else chosen

    @property
    def min_nodes(self) -> int:
        """Good replies that a round needs."""
        return self.strategy.min_nodes or self.strategy.nodes_per_round or self.partition.nodes

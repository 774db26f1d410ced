"""The typed settings of a run: what there is to choose, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fedgen.config.phases import PhaseSettings
from fedgen.config.rules import rules
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
    TrainingSettings,
    check_ranges,
)
from fedgen.privacy.settings import EvaluationSettings, PrivacySettings

DEVICES = ["auto", "cpu", "cuda"]


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
        Under which runs are grouped there, such as those of a sweep.
    offline : bool
        Whether the run is kept on this machine until ``wandb sync``; ``WANDB_MODE=offline`` does the same.
    """

    name: str = "none"
    project: str = "fedgen"
    entity: str | None = None
    group: str | None = None
    offline: bool = False

    def __post_init__(self) -> None:
        choose(self.name, ["none", "tensorboard", "wandb"], "tracking")
        require(bool(self.project), "tracking.project='' must be a name")


@dataclass(frozen=True)
class AdapterConfig(AdapterSettings):
    """Size of the adapters and how nodes train them."""

    training: TrainingSettings = field(default_factory=TrainingSettings)


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
        check_ranges(self, "synthesis", {"max_samples": 1, "fill": 0})


def check_samples_per_class(value: str | None, key: str) -> None:
    """Raise `ConfigError` unless ``value`` is a positive whole number, ``auto`` or None."""
    good = value in ("auto", None) or (str(value).isdecimal() and int(str(value)) > 0)
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
        choose(self.check, ["strict", "warn"], "checkpoint.check")
        check_ranges(self, "checkpoint", {"round": 1, "frequency": 0, "keep_last": 1})
        if self.base_name:
            check_names([self.base_name], "checkpoint.base_name")
            good = Path(self.base_name).name == self.base_name
            require(good, f"checkpoint.base_name={self.base_name!r} must be a name, not a path")


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
        choose(self.name, ["local", "shared"], "sharing")
        choose(self.scheme, ["cyclic", "average"], "sharing.scheme")


@dataclass(frozen=True)
class NodeConfig:
    """Settings of one node that differ from the run's; None: as the run's.

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
        check_samples_per_class(self.samples_per_class, "nodes.*.samples_per_class")
        check_names([*(self.groups or {}), *(self.classes or ())], "nodes.*.groups and .classes")
        check_names((name for names in (self.groups or {}).values() for name in names), "nodes.*.groups")
        require(self.classes != [], "nodes.*.classes=[] leaves a node without classes")


@dataclass(frozen=True)
class Config:
    """Everything that decides a run; these defaults hold where no file of ``conf/`` and no override says otherwise.

    Parameters
    ----------
    nodes : dict[str, NodeConfig]
        Settings of single nodes that differ, such as ``{0: {granularity: per_class, samples_per_class: 64}}``.
    mode, rounds : str, int
        A row of the mode table, and how long it lasts.
    phases : list[PhaseSettings]
        Overrules ``mode`` and ``rounds``: ``[{mode: train_generators, rounds: 2}, {mode: generate, rounds: 1}]``.
    resume : str, optional
        A run folder: the run goes on there as if it had never stopped; its own configuration counts.
    seed : int
    device : str
        ``auto``, ``cpu`` or ``cuda``.
    memory : str
        ``auto``, ``low`` or ``high``: ``low`` trades time for memory, ``auto`` picks from what is free.
    threads : int, optional
        CPU threads of torch; one for each core by default.
    run_dir : str, optional
        The run folder; Hydra's by default.
    record : str, optional
        A folder: the server writes every message to it, as an attacker there would see it.
    """

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
    mode: str = "combined"
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
        PhaseSettings(self.mode, self.rounds)
        choose(self.device, DEVICES, "device")
        choose(self.memory, ["auto", "low", "high"], "memory")
        require(self.seed >= 0, f"seed={self.seed} must be at least 0")
        require(self.threads is None or self.threads >= 1, f"threads={self.threads} must be at least 1")
        for holds, message in rules(self):
            require(holds, message)

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

"""Settings of data, encoder, targets and partition, and the names that they accept; nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fedgen.data.plain import check_names
from fedgen.errors import choose, require

DATASETS = ("sounds", "esc50", "folder")  # opened by `fedgen.data.datasets.READERS`
NODES = "nodes"  # the choice of `data` for which each node reads a store of its own
ENCODERS = ("patches", "sfx", "ast", "clap")  # classes in `fedgen.data.encoders`
PRETRAINED = ("ast", "clap")  # the encoders of these that are models of Hugging Face
TOKENS = ("all", "cls")
STRIDE, PATCH = 10, 16  # step and side of a patch of AST, in mel bins and frames
SECONDS, LEAST_SECONDS, MOST_SECONDS = 5.0, 0.2, 60  # of a clip of `sfx`: 60 s are 3,876 tokens
MELS = 128  # rows of the picture that patches and AST cut into patches
BANDS = {"sfx": 12, "clap": 2}  # rows of the last map of networks
TARGETS = ("sd", "flux", "small")
SOURCES = ("words", "clip_t5")
PRECISIONS = ("float32", "bfloat16")
PIPELINES = {"sd": "stable-diffusion-v1-5/stable-diffusion-v1-5", "flux": "black-forest-labs/FLUX.1-schnell"}
PARTITIONS = ("by_class", "dirichlet", "iid", "explicit")  # functions of `fedgen.data.partition`


@dataclass(frozen=True)
class DataSettings:
    """Which audio is learned from, and which fold of it is held out.

    The choices are ``sounds`` (synthesised), ``esc50`` (``audio/`` and ``meta/esc50.csv``), ``folder``
    (``class/clip.wav``), and ``nodes``: each node has a store of its own, and the server none.
    """

    name: str = "sounds"
    root: str | None = None  # folder of the audio; needed by esc50 and folder
    test_fold: int = 5  # the fold that is held out, from 1
    folds: int = 5  # number of folds of sounds and folder; esc50 has its own folds
    seed: int = 0  # decides the folds of folder, and the folds and the audio of sounds
    clips_per_class: int = 20  # of sounds
    store: str | None = None  # embedding store; None: below $FEDGEN_HOME. With nodes: the server's own test clips
    classes: list[str] = field(default_factory=list)  # only these; empty: all. With nodes: the ids of all classes
    leave_out: list[int] = field(default_factory=list)  # folds that are never read, to measure chosen settings on later

    def __post_init__(self) -> None:
        choose(self.name, (*DATASETS, NODES), "data")
        check_names(self.classes, "data.classes")
        require(self.name != NODES or self.root is None, f"data.root={self.root} means nothing with data=nodes")
        reason = f"holds data.test_fold={self.test_fold}, which would then have no clip"
        require(self.test_fold not in self.leave_out, f"data.leave_out={self.leave_out} {reason}")
        for key, least in {"test_fold": 1, "folds": 2, "seed": 0, "clips_per_class": 2}.items():
            value = getattr(self, key)
            require(value >= least, f"data.{key}={value} is not at least {least}")

    @property
    def on_nodes(self) -> bool:
        """Whether the nodes alone hold the training clips."""
        return self.name == NODES


@dataclass(frozen=True)
class EncoderSettings:
    """Which encoder turns audio into tokens.

    The choices are ``patches`` (AST's front end without weights), ``sfx`` (a network for sound effects, which
    ``fedgen get sfx`` fetches), and ``ast`` and ``clap`` of Hugging Face (extra ``encoders``). ``stride`` is for
    ``patches`` alone, ``seconds`` for ``sfx``, ``revision`` and ``tokens`` for ``ast`` and ``clap``.
    """

    name: str = "patches"
    stride: int = STRIDE  # between patches in mel bins and frames, 1 to 16: 10 gives 1214 tokens, 16 gives 514
    batch_size: int = 32  # clips encoded at once; fewer when memory runs out
    seconds: float = SECONDS  # of a clip for sfx: longer ones are cut, shorter ones padded with silence
    model: str | None = None  # a folder, a name at Hugging Face, or sfx's wheel; None: the encoder's usual model
    revision: str | None = None  # branch, tag or commit at Hugging Face; None: main
    tokens: str = "all"  # all of the last hidden state; cls: the one that stands for the clip

    def __post_init__(self) -> None:
        choose(self.name, ENCODERS, "encoder")
        choose(self.tokens, TOKENS, "encoder.tokens")
        require(1 <= self.stride <= PATCH, f"encoder.stride={self.stride} is not between 1 and {PATCH}")
        require(self.batch_size >= 1, f"encoder.batch_size={self.batch_size} is not at least 1")
        require(
            self.name == "patches" or self.stride == STRIDE,
            f"encoder.stride={self.stride} is for encoder=patches: {self.name} has its own",
        )
        if self.name == "sfx":
            good = LEAST_SECONDS <= self.seconds < float("inf")
            require(good, f"encoder.seconds={self.seconds} is not a length of at least {LEAST_SECONDS} s")
            require(self.seconds <= MOST_SECONDS, f"encoder.seconds={self.seconds} is above {MOST_SECONDS} s")
        else:
            reason = f"is for encoder=sfx: {self.name} has its own length"
            require(self.seconds == SECONDS, f"encoder.seconds={self.seconds} {reason}")
        if self.name not in PRETRAINED:
            model, needed = self.model if self.name == "patches" else None, f"encoder={' or '.join(PRETRAINED)}"
            require(model is None, f"encoder.model={model} means nothing: encoder={self.name} has no model")
            require(self.revision is None, f"encoder.revision={self.revision} needs {needed}")
            require(self.tokens == "all", f"encoder.tokens={self.tokens} needs {needed}")

    def bands(self, length: int) -> int:
        """Return the bands of frequency, a row each, of the encoder's map of ``length`` tokens; 1 if it has no map."""
        patches = (MELS - PATCH) // self.stride + 1
        rows = {"patches": patches, "ast": patches, **BANDS}.get(self.name, 1)
        return rows if length >= rows else 1


@dataclass(frozen=True)
class TargetSettings:
    """Which text-conditioning targets the adapters learn.

    The choices are ``sd`` (Stable Diffusion 1.5: ``clip`` 77 x 768), ``flux`` (``clip`` 768 and ``t5`` tokens x 4096)
    and ``small`` (``text`` 384). The source ``words`` embeds the prompt's words deterministically, without weights;
    ``clip_t5`` takes the text encoders of a pipeline (extra ``encoders``), with their shapes.
    """

    name: str = "small"
    source: str = "words"
    template: str = "the sound of {}"  # the class prompt; {} is replaced by the class name
    t5_tokens: int = 17  # of the t5 target
    model: str | None = None  # of clip_t5: a folder or a name at Hugging Face, as diffusers has it; None: the usual one
    revision: str | None = None  # branch, tag or commit at Hugging Face; None: main
    precision: str = "float32"  # of clip_t5: text encoders compute in float32, or in bfloat16 with half the memory

    def __post_init__(self) -> None:
        choose(self.name, TARGETS, "target")
        choose(self.source, SOURCES, "target.source")
        choose(self.precision, PRECISIONS, "target.precision")
        require(self.template.count("{}") == 1, f"target.template={self.template!r} has not exactly one {{}}")
        require(self.t5_tokens >= 1, f"target.t5_tokens={self.t5_tokens} is not at least 1")
        for key in ("model", "revision"):
            value = getattr(self, key) if self.source == "words" else None
            require(value is None, f"target.{key}={value} needs target.source=clip_t5: words have no model")
        good = self.source == "words" or self.name in PIPELINES
        require(good, f"target={self.name} has no target.source={self.source}: choose target={' or '.join(PIPELINES)}")

    @property
    def pipeline(self) -> str:
        """The pipeline whose text encoders make the targets: ``model``, or the usual one; not of ``target=small``."""
        return self.model or PIPELINES[self.name]

    @property
    def label(self) -> str:
        """The target as checkpoints know it: its name, and the pipeline of ``clip_t5``."""
        return self.name if self.source == "words" else f"{self.name} of {name_of(self.pipeline)}"

    def prompts(self, classes: list[str]) -> list[str]:
        """Return the prompt of each class, with spaces for underscores."""
        return [self.template.replace("{}", name.replace("_", " ")) for name in classes]


@dataclass(frozen=True)
class PartitionSettings:
    """How training clips are dealt to nodes: ``by_class``, ``dirichlet``, ``iid`` or ``explicit``."""

    name: str = "by_class"
    nodes: int = 3
    alpha: float = 0.5  # concentration of dirichlet: 0.1 leaves most nodes a few classes, 100 is close to iid
    assignment: list[list[str]] = field(default_factory=list)  # of explicit: the classes of each node

    def __post_init__(self) -> None:
        choose(self.name, PARTITIONS, "partition")
        require(self.nodes >= 1, f"partition.nodes={self.nodes} is not at least 1")
        require(self.alpha >= 0.01, f"partition.alpha={self.alpha} is not at least 0.01")


def name_of(model: str) -> str:
    """Return a model's own name: the last part of a path (also in the library's cache) or of a name at Hugging Face."""
    path = Path(model).expanduser()  # in the cache: models--ORGANISATION--NAME/snapshots/COMMIT
    return path.parent.parent.name.rpartition("--")[2] if path.parent.name == "snapshots" else path.name

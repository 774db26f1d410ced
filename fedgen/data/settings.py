"""Settings of data, encoder, targets and partition, and the names that they accept; nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fedgen.data.plain import check_names
from fedgen.errors import choose, require

DATASETS = ("sounds", "esc50", "folder")  # opened by `fedgen.data.datasets.READERS`
NODES = "nodes"  # the choice of `data` for which each node reads a store of its own
ENCODERS = ("patches", "ast", "clap")  # classes in `fedgen.data.encoders`
PRETRAINED = ("ast", "clap")  # the encoders of these that have a model
TOKENS = ("all", "cls")
STRIDE, PATCH = 10, 16  # step and side of a patch of AST, in mel bins and frames
TARGETS = ("sd", "flux", "small")
SOURCES = ("words", "clip_t5")
PRECISIONS = ("float32", "bfloat16")
PIPELINES = {"flux": "black-forest-labs/FLUX.1-schnell", "sd": "stable-diffusion-v1-5/stable-diffusion-v1-5"}
PARTITIONS = ("by_class", "dirichlet", "iid", "explicit")  # functions of `fedgen.data.partition`


@dataclass(frozen=True)
class DataSettings:
    """Which audio is learned from, and which fold of it is held out.

    Attributes
    ----------
    name : str
        ``sounds`` (synthesised), ``esc50`` (``audio/`` and ``meta/esc50.csv``), ``folder`` (``class/clip.wav``), or
        ``nodes``: each node has a store of its own, and the server none.
    root : str, optional
        Folder of the audio; needed by ``esc50`` and ``folder``.
    test_fold : int
        The fold that is held out, from 1.
    folds : int
        Number of folds of ``sounds`` and ``folder``; ``esc50`` has its own folds.
    seed : int
        Decides the folds of ``folder``, and the folds and the audio of ``sounds``.
    clips_per_class : int
        Clips of each class that ``sounds`` synthesises.
    store : str, optional
        Folder of the embedding store; by default one below ``$FEDGEN_HOME``, named after data and encoder. With
        ``nodes``, the server's own test clips, if it has any.
    classes : list[str]
        Only these classes; empty means all. With ``nodes``, the ids of all classes; empty means the nodes' classes.
    leave_out : list[int]
        Folds that are not read at all: settings that are chosen without them can be measured on them afterwards.
    """

    name: str = "sounds"
    root: str | None = None
    test_fold: int = 5
    folds: int = 5
    seed: int = 0
    clips_per_class: int = 20
    store: str | None = None
    classes: list[str] = field(default_factory=list)
    leave_out: list[int] = field(default_factory=list)

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

    Attributes
    ----------
    name : str
        ``patches``: AST's front end without weights; ``ast`` and ``clap``: pretrained models (extra ``encoders``).
    stride : int
        ``patches``: step between patches in mel bins and in frames, 1 to 16; 10 gives 1214 tokens, 16 gives 514.
    batch_size : int
        Clips encoded at once; fewer when memory runs out.
    model : str, optional
        Of a pretrained encoder: a folder, or a name at Hugging Face; by default the encoder's usual model.
    revision : str, optional
        Branch, tag or commit at Hugging Face; ``main`` by default.
    tokens : str
        Of a pretrained encoder: ``all`` of the last hidden state, or one that stands for the clip (``cls``).
    """

    name: str = "patches"
    stride: int = STRIDE
    batch_size: int = 32
    model: str | None = None
    revision: str | None = None
    tokens: str = "all"

    def __post_init__(self) -> None:
        choose(self.name, ENCODERS, "encoder")
        choose(self.tokens, TOKENS, "encoder.tokens")
        require(1 <= self.stride <= PATCH, f"encoder.stride={self.stride} is not between 1 and {PATCH}")
        require(self.batch_size >= 1, f"encoder.batch_size={self.batch_size} is not at least 1")
        require(
            self.name == "patches" or self.stride == STRIDE,
            f"encoder.stride={self.stride} is for encoder=patches: {self.name} has its own",
        )
        if self.name not in PRETRAINED:
            model = self.model or self.revision
            require(
                model is None, f"encoder={self.name} has no model: encoder.model and .revision={model} mean nothing"
            )
            require(self.tokens == "all", f"encoder.tokens={self.tokens} needs encoder={' or '.join(PRETRAINED)}")


@dataclass(frozen=True)
class TargetSettings:
    """Which text-conditioning targets the adapters learn.

    Attributes
    ----------
    name : str
        ``sd`` (Stable Diffusion 1.5: ``clip`` 77 x 768), ``flux`` (``clip`` 768 and ``t5`` tokens x 4096) or ``small``
        (``text`` 384).
    source : str
        ``words``: deterministic embeddings of the prompt's words; needs no weights. ``clip_t5``: the text encoders of
        the pipeline (extra ``encoders``), with the shapes that they have.
    template : str
        The class prompt; ``{}`` is replaced by the class name.
    t5_tokens : int
        Tokens of the ``t5`` target.
    model : str, optional
        ``clip_t5``: the pipeline, a folder or a name at Hugging Face in the layout of ``diffusers``; by default the
        usual one of the target.
    revision : str, optional
        Branch, tag or commit at Hugging Face; ``main`` by default.
    precision : str
        ``clip_t5``: what text encoders compute in, ``float32`` or ``bfloat16``, which takes half the memory.
    """

    name: str = "small"
    source: str = "words"
    template: str = "the sound of {}"
    t5_tokens: int = 17
    model: str | None = None
    revision: str | None = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        choose(self.name, TARGETS, "target")
        choose(self.source, SOURCES, "target.source")
        choose(self.precision, PRECISIONS, "target.precision")
        require(self.template.count("{}") == 1, f"target.template={self.template!r} has not exactly one {{}}")
        require(self.t5_tokens >= 1, f"target.t5_tokens={self.t5_tokens} is not at least 1")
        if self.source == "words":
            for key in ("model", "revision"):
                value = getattr(self, key)
                require(value is None, f"target.{key}={value} needs target.source=clip_t5: words have no model")
        else:
            known = " or ".join(sorted(PIPELINES, reverse=True))
            require(
                self.name in PIPELINES, f"target={self.name} has no target.source={self.source}: choose target={known}"
            )

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
    """How training clips are dealt to nodes.

    Attributes
    ----------
    name : str
        ``by_class``, ``dirichlet``, ``iid`` or ``explicit``.
    nodes : int
        Number of nodes.
    alpha : float
        Concentration of ``dirichlet``: 0.1 leaves most nodes a few classes, 100 is close to iid.
    assignment : list[list[str]]
        The classes of each node, for ``explicit``.
    """

    name: str = "by_class"
    nodes: int = 3
    alpha: float = 0.5
    assignment: list[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        choose(self.name, PARTITIONS, "partition")
        require(self.nodes >= 1, f"partition.nodes={self.nodes} is not at least 1")
        require(self.alpha >= 0.01, f"partition.alpha={self.alpha} is not at least 0.01")


def name_of(model: str) -> str:
    """Return a model's own name: the last part of a path (also in the library's cache) or of a name at Hugging Face."""
    path = Path(model).expanduser()  # in the cache: models--ORGANISATION--NAME/snapshots/COMMIT
    return path.parent.parent.name.rpartition("--")[2] if path.parent.name == "snapshots" else path.name

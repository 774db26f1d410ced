"""The data sets by name: sound files, and the synthesised default."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from fedgen.data.clips import Clip, Dataset, chosen, digest
from fedgen.data.readers import read_esc50, read_folder
from fedgen.data.sounds import GROUPS, TAKES, synthesise
from fedgen.data.synthesis import RATE
from fedgen.errors import ConfigError, DataError, choose, require
from fedgen.plain import check_names

__all__ = ["DATASETS", "Clip", "DataSettings", "Dataset", "SoundsDataset", "open_dataset"]


NODES = "nodes"  # the data set that has no clips here: each node reads its own


@dataclass(frozen=True)
class DataSettings:
    """Which audio is learned from, and which fold of it is held out.

    Attributes
    ----------
    name : str
        ``sounds`` (synthesised), ``esc50`` (``audio/`` and ``meta/esc50.csv``), ``folder`` (``class/clip.wav``), or
        ``nodes``: each node has a store of its own, and the server none.
    root : str, optional
        Where the audio lies; needed by ``esc50`` and ``folder``.
    test_fold : int
        The fold that is held out, from 1.
    folds : int
        How many folds ``sounds`` and ``folder`` are split into; ``esc50`` has its own.
    seed : int
        Decides the folds of ``folder``, and the folds and the audio of ``sounds``.
    clips_per_class : int
        Clips of each class that ``sounds`` synthesises.
    store : str, optional
        Folder of the embedding store; by default one below ``$FEDGEN_HOME``, named after data and encoder. With
        ``nodes``, the server's own clips to test on, if it has any.
    classes : list[str]
        Only these classes; empty means all. With ``nodes``, the ids of all classes; empty means those that nodes have.
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
        choose(self.name, [*DATASETS, NODES], "data")
        check_names(self.classes, "data.classes")
        require(self.name != NODES or self.root is None, f"data.root={self.root} means nothing with data=nodes")
        require(self.test_fold >= 1, f"data.test_fold={self.test_fold} is not at least 1")
        reason = f"holds data.test_fold={self.test_fold}, which would then have no clip"
        require(self.test_fold not in self.leave_out, f"data.leave_out={self.leave_out} {reason}")
        require(self.folds >= 2, f"data.folds={self.folds} is not at least 2")
        require(self.seed >= 0, f"data.seed={self.seed} is not at least 0")
        require(self.clips_per_class >= 2, f"data.clips_per_class={self.clips_per_class} is not at least 2")

    @property
    def on_nodes(self) -> bool:
        """Whether the clips that are trained on are the nodes' alone."""
        return self.name == NODES


class SoundsDataset:
    """The synthesised default: `fedgen.data.sounds`, with recordings dealt to the folds in turn."""

    name = "sounds"

    def __init__(self, settings: DataSettings) -> None:
        self.seed = settings.seed
        self.classes = chosen([name for names in GROUPS.values() for name in names], settings.classes)
        kept = {group: [name for name in names if name in self.classes] for group, names in GROUPS.items()}
        self.groups = {group: names for group, names in kept.items() if names}
        self.clips = [
            Clip(f"{name}/{i}", label, i // TAKES % settings.folds + 1, f"{name}/{i // TAKES}")
            for label, name in enumerate(self.classes)
            for i in range(settings.clips_per_class)
        ]

    def load(self, clip: Clip) -> tuple[np.ndarray, int]:
        """Return the clip, synthesised anew: mono, ``(samples,)``, float32, 16 kHz."""
        name, index = clip.name.split("/")
        return synthesise(name, int(index), self.seed), RATE

    def identity(self) -> dict[str, str | int]:
        """Return name, seed, number of clips, a digest of names and folds, and the version of the recipe."""
        return {"name": self.name, "seed": self.seed, "version": 2, **digest(self.classes, self.clips)}


DATASETS: dict[str, Callable[[DataSettings], Dataset]] = {
    "sounds": SoundsDataset,
    "esc50": read_esc50,
    "folder": read_folder,
}


def open_dataset(settings: DataSettings) -> Dataset:
    """Return the data set that ``settings`` describe, checked to have training and test clips of every class.

    Raises
    ------
    ConfigError
        ``data.root`` is needed and missing, or ``data.classes`` or ``data.test_fold`` name what there is not; or
        ``data=nodes``; a class has a name that is no line of visible text.
    DataError
        A file, a column or a folder is missing, or a class has no clip to test or to train on.
    """
    if settings.on_nodes:
        raise ConfigError("data=nodes names no audio: make a store on each node, with data=folder or data=esc50")
    dataset = DATASETS[settings.name](settings)
    check_names(dataset.classes, f"classes of data={dataset.name}")
    _check_split(dataset, settings.test_fold)
    return dataset


def _check_split(dataset: Dataset, test_fold: int) -> None:
    folds = sorted({clip.fold for clip in dataset.clips})
    require(test_fold in folds, f"data.test_fold={test_fold} is not one of the folds {folds} of data={dataset.name}")
    for held_out, purpose in ((True, "test on"), (False, "train on")):
        present = {clip.label for clip in dataset.clips if (clip.fold == test_fold) == held_out}
        lost = [name for label, name in enumerate(dataset.classes) if label not in present]
        if lost:
            raise DataError(
                f"no clip to {purpose} for class {', '.join(lost)} with data.test_fold={test_fold}: "
                "choose another fold, lower data.folds, or leave the class out with data.classes"
            )

"""The data sets by name: sound files, and the synthesised default."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedgen.data.clips import Clip, Dataset, DataSettings, chosen, digest
from fedgen.data.readers import read_esc50, read_folder
from fedgen.data.sounds import GROUPS, TAKES, synthesise
from fedgen.data.synthesis import RATE
from fedgen.errors import ConfigError, DataError, require

__all__ = ["Clip", "DataSettings", "Dataset", "SoundsDataset", "open_dataset"]


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


def open_dataset(settings: DataSettings) -> Dataset:
    """Return the data set that ``settings`` describe, checked to have training and test clips of every class.

    Raises
    ------
    ConfigError
        ``data.root`` is needed and missing, or ``data.classes`` or ``data.test_fold`` name what there is not; or
        ``data=nodes``.
    DataError
        A file, a column or a folder is missing, or a class has no clip to test or to train on.
    """
    if settings.on_nodes:
        raise ConfigError("data=nodes names no audio: make a store on each node, with data=folder or data=esc50")
    openers: dict[str, Callable[[DataSettings], Dataset]] = {
        "sounds": SoundsDataset,
        "esc50": read_esc50,
        "folder": read_folder,
    }
    dataset = openers[settings.name](settings)
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

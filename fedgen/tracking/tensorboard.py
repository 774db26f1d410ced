"""Event files of TensorBoard in the run folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from matplotlib.image import imread
from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


class TensorBoardTracker:
    """Writes event files into ``tensorboard/`` of the run folder; ``tensorboard --logdir`` of a sweep shows all runs.

    Parameters
    ----------
    folder : Path
        Of the run.
    config : str
        The configuration as YAML, shown as text.
    finished : int, optional
        Rounds that the run had finished when it was interrupted; what was written after them is hidden. None: a run
        that starts afresh, whose folder may hold the events of an earlier one.
    """

    def __init__(self, folder: Path, config: str, finished: int | None) -> None:
        path = folder / FOLDER
        if finished is None and path.is_dir():
            shutil.rmtree(path)
        self._writer = SummaryWriter(str(path), purge_step=None if finished is None else finished + 1)
        self._writer.add_text("config", _code(config))

    def log(self, values: Mapping[str, float], round_number: int) -> None:
        """Add a point to each chart."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, round_number)
        self._writer.flush()

    def results(self, values: Mapping[str, float | str], pictures: Mapping[str, Path], round_number: int) -> None:
        """Add final numbers as single points, words as one text, and pictures."""
        self._writer.add_text("result", _code("\n".join(f"{name}: {value}" for name, value in values.items())))
        for name, value in values.items():
            if not isinstance(value, str):
                self._writer.add_scalar(name, value, round_number)
        for name, file in pictures.items():
            self._writer.add_image(name, imread(file)[..., :3], round_number, dataformats="HWC")

    def close(self, finished: bool) -> None:
        """Write what is left."""
        self._writer.close()


def _code(text: str) -> str:
    """Return ``text`` as code in Markdown, which is what TensorBoard reads."""
    return "".join(f"    {line}\n" for line in text.splitlines())

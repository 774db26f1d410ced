"""What `fedgen render` is asked for."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path

from fedgen.errors import choose, require
from fedgen.render.options import DEVICES, PRECISIONS, SOURCES


@dataclass(frozen=True)
class RenderSettings:
    """Which pictures, and how they are made; None is the usual of the run or of the pipeline.

    Attributes
    ----------
    classes : list[str], optional
        All by default.
    sources : list[str], optional
        Of `SOURCES`; by default the classes' targets, and synthetic samples where there are some.
    count : int
        Pictures of each class from each source.
    seed : int
        Seed of the noise that pictures start from.
    steps, guidance : int, float, optional
        Denoising steps, and the guidance scale.
    size : list[int], optional
        Height and width in pixels.
    pipeline, revision : str, optional
        A folder, or a name at Hugging Face, and the branch, tag or commit there.
    precision, device : str
        What the pipeline computes in, and on.
    offload : bool
        Whether a GPU holds only the model that is at work.
    out : Path, optional
        Where pictures go; ``render`` in the run's folder by default.
    """

    classes: list[str] | None = None
    sources: list[str] | None = None
    count: int = 2
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    size: list[int] | None = None
    pipeline: str | None = None
    revision: str | None = None
    precision: str = "auto"
    device: str = "auto"
    offload: bool = False
    out: Path | None = None

    def __post_init__(self) -> None:
        for source in self.sources or []:
            choose(source, SOURCES, "--from")
        choose(self.precision, PRECISIONS, "--precision")
        choose(self.device, DEVICES, "--device")
        require(self.count >= 1, f"--count={self.count} is not at least 1")
        require(self.steps is None or self.steps >= 1, f"--steps={self.steps} is not at least 1")
        require(self.guidance is None or self.guidance >= 0, f"--guidance={self.guidance} is negative")


def settings_of(options: argparse.Namespace) -> RenderSettings:
    """Return the settings that a parsed command line gives; `ConfigError` for values that cannot be."""
    return RenderSettings(**{field.name: getattr(options, field.name) for field in fields(RenderSettings)})

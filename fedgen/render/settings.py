"""What ``fedgen render`` is asked for; nothing heavy is imported to know its options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from fedgen.errors import choose, require

SOURCES = ["text", "real", "synthetic"]
UNASKED = ["text", "synthetic"]  # what is made of real sound, somebody has to ask for
PRECISIONS = ["auto", "float32", "bfloat16", "float16"]
DEVICES = ["auto", "cpu", "cuda"]
STEP = 16  # pixels of a picture's height and width are multiples of it


def add_options(add: Callable[..., object]) -> None:
    """Declare the run's folder and the options with a parser's ``add_argument``; `settings_of` reads their values."""
    add("folder", type=Path, metavar="RUN", help="run folder")
    add("--class", dest="classes", nargs="+", action="extend", metavar="NAME", help="classes; all by default")
    about = "text (the class's own targets), synthetic (samples), real (held-out clips); text and synthetic by default"
    add("--from", dest="sources", nargs="+", action="extend", metavar="SOURCE", help=about)
    add("--count", type=int, default=2, metavar="N", help="pictures of each class from each source; 2")
    add("--seed", type=int, default=0, help="of the pictures' noise; 0")
    add("--steps", type=int, help="denoising steps; the pipeline's usual by default")
    add("--guidance", type=float, help="guidance scale; the pipeline's usual by default")
    add("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="in pixels; the pipeline's usual by default")
    add("--pipeline", metavar="MODEL", help="folder or name at Hugging Face; that of the run's targets by default")
    add("--revision", help="branch, tag or commit at Hugging Face")
    add("--precision", default="auto", help=", ".join(PRECISIONS))
    add("--device", default="auto", help=", ".join(DEVICES))
    add("--offload", action="store_true", help="on CUDA: keep in its memory only the model that is at work")
    add("--out", type=Path, metavar="FOLDER", help="where pictures go; RUN/render by default")


@dataclass(frozen=True)
class RenderSettings:
    """Which pictures, and how they are made, as `add_options` says; None is the usual of the run or the pipeline."""

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
        good = all(side > 0 and side % STEP == 0 for side in self.size or ())
        require(good, f"--size={' '.join(map(str, self.size or ()))}: both must be multiples of {STEP}")


def settings_of(options: argparse.Namespace) -> RenderSettings:
    """Return the settings that a parsed command line gives; `ConfigError` for values that cannot be."""
    return RenderSettings(**{field.name: getattr(options, field.name) for field in fields(RenderSettings)})

"""The options of ``fedgen render``; nothing heavy is imported to know them."""

from __future__ import annotations

import argparse
from pathlib import Path

SOURCES = ["text", "real", "synthetic"]
UNASKED = ["text", "synthetic"]  # what is made of real sound, somebody has to ask for
PRECISIONS = ["auto", "float32", "bfloat16", "float16"]
DEVICES = ["auto", "cpu", "cuda"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` the run's folder and the options; `settings_of` makes settings of what it finds."""
    add = parser.add_argument
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
    add("--precision", default="auto", help=f"{', '.join(PRECISIONS)}")
    add("--device", default="auto", help=f"{', '.join(DEVICES)}")
    add("--offload", action="store_true", help="on CUDA: keep in its memory only the model that is at work")
    add("--out", type=Path, metavar="FOLDER", help="where pictures go; RUN/render by default")

"""A picture on the disk, and the JSON beside it that says what made it."""

from __future__ import annotations

import hashlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fedgen.files import write_atomically
from fedgen.render.conditioning import Condition

LONGEST = 50  # characters of a class in a folder's name: up to 4 bytes each
ASIDE = ("pipeline", "revision", "run")
"""Entries of a JSON that may change while the picture stays: a digest says which pipeline it was."""


@dataclass(frozen=True)
class Picture:
    """A picture that is asked for.

    Attributes
    ----------
    file : Path
    label, source, index : int, str, int
        The class's id, where it comes from, and its number.
    condition : Condition
    facts : dict
        What makes it, plain JSON.
    """

    file: Path
    label: int
    source: str
    index: int
    condition: Condition
    facts: dict[str, Any]

    def noted(self) -> dict[str, Any]:
        """Return what the JSON beside it says, if the picture is there, made as it is asked for; else nothing."""
        try:
            found = dict(json.loads(self.file.with_suffix(".json").read_text(encoding="utf-8")))
            with Image.open(self.file) as there:
                there.verify()
        except (OSError, ValueError, TypeError, SyntaxError):
            return {}
        return found if _making(found) == _making(self.facts) else {}

    def save(self, picture: Image.Image) -> None:
        """Write picture and JSON, in an order that never leaves one beside what says otherwise."""
        self.file.with_suffix(".json").unlink(missing_ok=True)
        write_atomically(self.file, png(picture))
        save_json(self.file.with_suffix(".json"), self.facts)

    def opened(self) -> Image.Image:
        """Return the picture as it is on the disk."""
        with Image.open(self.file) as there:
            return there.convert("RGB")


def folder_name(name: str) -> str:
    """Return a folder's name for a class, whatever a data set or a node calls it."""
    plain = re.sub(r"[^\w.-]", "_", name).lstrip(".")[:LONGEST]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _making(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key not in ASIDE}


def png(picture: Image.Image) -> bytes:
    """Return a picture as a PNG file."""
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def save_json(file: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    write_atomically(file, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())

"""The style sheet: everything that is written in it can be read, in the light and in the dark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from fedgen.report import page

STYLE = (Path(page.__file__).parent / "style.css").read_text(encoding="utf-8")
LIGHT, DARK = (dict(re.findall(r"--(\w+): #(\w{6});", block)) for block in re.findall(r":root \{(.*?)\}", STYLE, re.S))
THEMES = {"light": LIGHT, "dark": {**LIGHT, **DARK}}
LEGIBLE = 4.5  # WCAG 2 AA, of text that is not large
WORDS = ["ink", "soft", "good", "bad", "open", "c0"]


def levels(colour: str) -> list[int]:
    return [int(colour[place : place + 2], 16) for place in (0, 2, 4)]


def contrast(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the contrast ratio of WCAG 2."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: Sequence[float]) -> float:
    shares = [level / 255 for level in colour]
    red, green, blue = (x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", THEMES)
def test_every_word_can_be_read(theme: str) -> None:
    for word in WORDS:
        for ground in ("paper", "raised"):
            assert contrast(levels(THEMES[theme][word]), levels(THEMES[theme][ground])) >= LEGIBLE, (
                f"{word} on {ground}"
            )

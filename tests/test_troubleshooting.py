"""The page on errors quotes messages that there are."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^\| \*([^*]+)\*", PAGE, re.MULTILINE)


def joined_strings() -> str:
    """All sources, with texts that go over several lines put together, and fields of f-strings left out."""
    texts = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "fedgen").rglob("*.py")))
    return re.sub(r'"\s*\n\s*f?"', "", texts)


SOURCES = joined_strings()


def test_there_are_messages() -> None:
    assert len(QUOTED) > 25


@pytest.mark.parametrize("words", QUOTED)
def test_the_message_exists(words: str) -> None:
    assert words in re.sub(r"\{[^{}]*\}", "", SOURCES) or words in SOURCES

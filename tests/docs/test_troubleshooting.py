"""Every message on docs/troubleshooting.md is in the code, with `…` for what varies."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^\| \*(.+?)\* \|", PAGE, re.MULTILINE)


def texts() -> Iterator[str]:
    """Every string of the package, with `…` for the values of f-strings."""
    for path in (ROOT / "fedgen").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


TEXTS = [re.sub(r"%[-.\d]*[a-z]", "…", text) for text in texts()]


def test_there_are_messages() -> None:
    assert 25 <= len(QUOTED) <= 40


@pytest.mark.parametrize("quoted", QUOTED)
def test_the_message_is_in_the_code(quoted: str) -> None:
    pattern = re.compile(re.escape(quoted.strip("… ")).replace("…", ".*"))
    assert any(pattern.search(text) for text in TEXTS)

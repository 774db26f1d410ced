"""The code is linted, formatted and typed."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]


@pytest.mark.slow  # `make check` calls them itself
@pytest.mark.parametrize(
    "command", ["ruff check --no-cache .", "ruff format --check --no-cache .", "mypy"], ids=["lint", "format", "types"]
)
def test_tool_finds_nothing(command: str):
    ended = subprocess.run([sys.executable, "-m", *command.split()], cwd=CHECKOUT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr[-2000:]

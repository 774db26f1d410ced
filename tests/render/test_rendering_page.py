"""The page on pictures: its commands, and its figures."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from fedgen.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "rendering.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(?:python)?\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines() if line.startswith("fedgen ")]
ELSEWHERE = ("download", "GPU")  # what a comment says that a command needs


def here() -> list[str]:
    commands = [line.partition("#") for line in LINES]
    return [words.strip() for words, _, comment in commands if not any(word in comment for word in ELSEWHERE)]


@pytest.fixture(scope="module")
def folder(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    return shutil.copytree(runs, folder / "runs", ignore=shutil.ignore_patterns("render")).parent


def test_the_page_has_commands_that_need_nothing() -> None:
    assert len(here()) >= 6


@pytest.mark.parametrize("command", here())
def test_the_command_works(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    words = shlex.split(command)[1:]
    if words[0] == "render":
        words += ["--device=cpu"]
        words += [] if "--size" in command else ["--size", "16", "16"]
        words += [] if "--steps" in command else ["--steps", "1"]
    assert main(words) == 0

"""The commands of the README and of the documentation of generators and privacy, on a small data set."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedgen.cli import main

ROOT = Path(__file__).parents[1]
SMALL = [
    "data.clips_per_class=5",
    "data.test_fold=3",
    "encoder.stride=16",
    "adapter.width=8",
    "adapter.heads=1",
    "adapter.hidden=16",
    "adapter.training.epochs=1",
    "generator.width=16",
    "generator.latents=4",
    "generator.training.epochs=2",
    "synthesis.samples_per_class=4",
    "evaluation.quality=false",
    "threads=1",
]  # after what the command says, unless it says otherwise
ELSEWHERE = ("experiment=", "path/to", "OLD.json", "make ")  # the demo and real sound have tests of their own


def commands() -> list[str]:
    """Every ``fedgen run`` of the pages, in order, without comments."""
    found = []
    for page in ("README.md", "docs/generators.md", "docs/privacy.md"):
        text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
        found += re.findall(r"(?:`|^)(fedgen (?:run|checkpoints) [^`\n]*?)(?: +#[^\n]*)?(?:`|$)", text, re.MULTILINE)
    return [command for command in dict.fromkeys(found) if not any(word in command for word in ELSEWHERE)]


@pytest.fixture(scope="module")
def folder(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the commands are run, with the run that some of them go on from."""
    folder = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("fedgen.recorder.draw_run", lambda results, folder: [])
        run("fedgen run mode=train_generators hydra.run.dir=runs/run1")
        yield folder


def test_the_pages_have_commands() -> None:
    assert len(commands()) > 25
    assert "fedgen run mode=train_generators hydra.run.dir=runs/run1" in commands()


@pytest.mark.slow
@pytest.mark.parametrize("command", commands())
def test_the_command_works(command: str, folder: Path) -> None:
    run(command)


def run(command: str) -> None:
    words = shlex.split(command)[1:]
    if words[0] == "run" and not any(word.startswith("resume=") for word in words):
        given = [word.split("=")[0] for word in words]
        rounds = [] if any(key == "phases" for key in given) else ["rounds=1"]
        words += [text for text in [*SMALL, *rounds] if text.split("=")[0] not in given]
    assert main(words) == 0, f"{command} with {words}"

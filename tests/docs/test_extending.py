"""docs/extending.md: its code, put into a copy of the package block by block, works."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from fedgen.data.sounds import RATE, synthesise

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
CLASSES = ["dog", "cow", "rain", "crickets", "siren", "engine"]
SMALL = [
    "adapter.width=16",
    "adapter.hidden=32",
    "adapter.training.epochs=1",
    "global_training.epochs=1",
    "synthesis.samples_per_class=6",
    "evaluation.quality=false",
    "rounds=1",
    "threads=1",
]


def blocks() -> list[tuple[str, str, str]]:
    """Language, file and text of each block of the page; the file is the last one named before it."""
    found = []
    for match in re.finditer(r"^```(python|yaml|diff)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE):
        files = re.findall(r"`((?:fedgen|conf)/[\w/]+\.(?:py|yaml))`", PAGE[: match.start()])
        found.append((match[1], files[-1], match[2]))
    return found


def apply(language: str, file: Path, text: str) -> None:
    """Write a new file, or change one as a diff without line numbers says."""
    if language != "diff":
        assert not file.exists()
        file.write_text(text)
        return
    content = file.read_text()
    for hunk in re.split(r"^@@\n", text, flags=re.MULTILINE):
        lines = hunk.splitlines(keepends=True)
        old, new = ("".join(line[1:] for line in lines if line[0] != mark) for mark in "+-")
        assert content.count(old) == 1, f"{file.name} does not hold once: {old}"
        content = content.replace(old, new)
    file.write_text(content)


def write_urbansound8k(folder: Path) -> None:
    """Two clips of each class in each of three folds, in the layout that the page reads."""
    (folder / "metadata").mkdir(parents=True)
    lines = ["slice_file_name,fsID,start,end,salience,fold,classID,class"]
    for target, name in enumerate(CLASSES):
        for clip in range(6):
            fold, file = (1, 2, 10)[clip % 3], f"{target * 10 + clip}-{target}-0-0.wav"
            (folder / "audio" / f"fold{fold}").mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / "audio" / f"fold{fold}" / file, synthesise(name, clip, 0), RATE)
            lines.append(f"{file},{target * 10 + clip},0,4,1,{fold},{target},{name}")
    (folder / "metadata" / "UrbanSound8K.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with all that the page adds."""
    folder = tmp_path_factory.mktemp("extended")
    for part in ("fedgen", "conf"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for language, file, text in blocks():
        apply(language, folder / file, text)
    return folder


def test_everything_takes_three_steps() -> None:
    assert re.findall(r"^\*\*(\d)\.\*\*", PAGE, re.MULTILINE) == ["1", "2", "3"] * 4
    assert len(blocks()) == 13


@pytest.mark.slow
def test_a_federation_with_all_four(extended: Path) -> None:
    write_urbansound8k(extended / "sounds")
    lines = re.findall(r"^fedgen run (.*)$", PAGE.split("## All of it")[1], re.MULTILINE)
    given = [word for line in lines for word in shlex.split(line) if not word.startswith("mode=")]
    assert len(lines) == 4
    words = [word.replace("path/to/UrbanSound8K", str(extended / "sounds")) for word in given]
    words += ["hydra.run.dir=run", *SMALL]
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from fedgen.cli import main; sys.exit(main(sys.argv[1:]))", "run", *words],
        cwd=extended,
        env=os.environ | {"PYTHONPATH": str(extended), "FEDGEN_HOME": str(extended / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = extended / "run"
    results = json.loads((run / "results.json").read_text())
    assert results["classes"] == CLASSES
    assert sum(results["samples"].values()) == 36
    (manifest,) = (run / "checkpoints").glob("vae_perclass_node0_*/manifest.json")
    saved = json.loads(manifest.read_text())
    assert (saved["kind"], saved["metadata"]["tokens"]) == ("diagonal", [128, 128])
    assert saved["metadata"]["dataset"]["name"] == "urbansound8k"
    assert "step: 0.7" in (run / "config.yaml").read_text()


def test_the_code_of_the_page_is_clean(extended: Path) -> None:
    files = [file for language, file, _ in blocks() if language != "yaml"]
    settings = ["--config", str(ROOT / "pyproject.toml")]
    for command in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *settings, *files], cwd=extended, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout

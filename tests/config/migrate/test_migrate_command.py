"""``fedgen migrate`` and its documentation: every command in it works, the output is the real one."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import soundfile

from fedgen.cli import main
from fedgen.config.migrate import Entry, gather
from fedgen.data.sounds import synthesise

DOCS = (Path(__file__).parents[3] / "docs" / "migrating.md").read_text(encoding="utf-8")
BLOCKS = [block.split("\n", 1)[1] for block in DOCS.split("```")[1::2]]  # what stands between fences


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["fedgen"])
    return tmp_path


@pytest.fixture
def old() -> None:
    Path("old.json").write_text('{"feda2v": {"generator_type": "vae", "rounds": 3, "foo_bar": 1}}')


@pytest.mark.usefixtures("old")
def test_the_command_alone_is_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "old.json"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "fedgen run generator=vae mode=federate rounds=3\n"
    for word in ("feda2v.foo_bar=1", "generator=vae", "data=sounds"):
        assert word in shown.err


@pytest.mark.usefixtures("old")
def test_an_experiment_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "old.json", "--experiment", "mine"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# @package _global_\n# fedgen run experiment=mine\n")


@pytest.mark.usefixtures("old")
def test_wrong_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "old.json", "--outt"]) == 1
    assert "unknown arguments: --outt" in capsys.readouterr().err


def test_what_cannot_be_translated_ends_with_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    Path("old.json").write_text('{"rounds": 0, "device": "tpu"}')
    assert main(["migrate", "old.json"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "rounds=0 would be rounds=0: rounds=0 of mode=federate must be at least 1" in shown.err
    last = shown.err.splitlines()[-1]
    assert last.startswith('error: old.json cannot be translated: device="tpu" is not one of cpu, cuda, auto')
    assert last.endswith("(1 more of this kind: see above)")


def mode_of(old: dict[str, Any]) -> Any:
    return gather([Entry(name, name, value) for name, value in old.items()]).settings.get("mode")


def rows_of(title: str) -> list[list[str]]:
    """The cells of the table below a heading of the documentation."""
    section = DOCS.split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def test_the_documented_modes_are_the_real_ones() -> None:
    rows = rows_of("Which mode")
    assert len(rows) >= 9
    for keys, mode in rows:
        old = {} if keys == "none of them" else json.loads("{" + keys.replace("`", "") + "}")
        assert f"`{mode_of(old)}`" == mode


def test_the_documented_output_is_the_real_one(capsys: pytest.CaptureFixture[str]) -> None:
    Path("old.json").write_text(BLOCKS[0])
    assert main(["migrate", "old.json"]) == 0
    shown = capsys.readouterr()
    assert shown.out == BLOCKS[2]
    assert [line.rstrip() for line in shown.err.strip().splitlines()] == BLOCKS[3].splitlines()


def write_esc50(folder: Path, classes: list[str]) -> None:
    """Write a small data set in the ESC-50 layout: two clips of each class in each of five folds, a second each."""
    (folder / "audio").mkdir(parents=True)
    (folder / "meta").mkdir()
    lines = ["filename,fold,target,category"]
    for target, name in enumerate(classes):
        for clip in range(10):
            file = f"{clip % 5 + 1}-{name}-{clip}.wav"
            soundfile.write(folder / "audio" / file, synthesise(name, clip, 0)[:16000], 16000)
            lines.append(f"{file},{clip % 5 + 1},{target},{name}")
    (folder / "meta" / "esc50.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.usefixtures("no_plots")
def test_every_documented_command_works(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("old.json").write_text(BLOCKS[0])
    write_esc50(Path("data/ESC-50"), ["dog", "cow", "rain", "crickets"])
    small = ["rounds=1", "encoder.stride=16", "generator.training.epochs=2", "adapter.training.epochs=1", "threads=1"]
    small += ["adapter.width=16", "adapter.hidden=32", "generator.width=16", "generator.latents=4"]
    commands = [line for text in BLOCKS for line in text.splitlines() if line.startswith("fedgen ")]
    assert [line.split()[1] for line in commands] == ["migrate", "run", "migrate", "run"]
    for number, line in enumerate(commands):
        words, _, target = line.partition(" > ")
        name, *arguments = shlex.split(words)[1:]
        capsys.readouterr()
        assert main([name, *arguments, *([*small, f"hydra.run.dir=run{number}"] if name == "run" else [])]) == 0
        if target:
            Path(target).parent.mkdir()
            Path(target).write_text(capsys.readouterr().out)
    assert len(list(folder.glob("run*/results.json"))) == 2

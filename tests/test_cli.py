"""The command: what it does, what it prints, and how it exits."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedgen.cli import main
from fedgen.runs.folder import RunFolder

Fedgen = Callable[..., int]


@pytest.fixture
def fedgen(tiny_overrides: list[str], no_plots: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fedgen:
    """Run a command in an empty folder; ``run`` and ``prepare`` get the small configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fedgen"])

    def start(command: str, *arguments: str) -> int:
        return main([command, *(tiny_overrides if command in ("run", "prepare") else []), *arguments])

    return start


@pytest.fixture(scope="module")
def done(tiny_overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("done") / "federate"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        patch.setattr(sys, "argv", ["fedgen"])
        assert main(["run", *tiny_overrides, "mode=federate", "rounds=1", f"hydra.run.dir={folder}"]) == 0
    return folder


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_run_fills_its_folder(done: Path) -> None:
    names = {path.name for path in done.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "results.json", "partition.json", "checkpoints"} <= names
    assert {"accuracy.png", "confusion.png", "partition.png"} <= names
    assert RunFolder(done).config().run_dir == str(done)


def test_a_run_folder_of_its_own_by_default(fedgen: Fedgen, tmp_path: Path) -> None:
    assert fedgen("run", "mode=federate", "rounds=1") == 0
    assert len(list((tmp_path / "runs").glob("*/*/results.json"))) == 1


def test_a_relative_run_folder(fedgen: Fedgen, tmp_path: Path) -> None:
    assert fedgen("run", "mode=train_generators", "hydra.run.dir=runs/first") == 0
    assert fedgen("run", "mode=generate", "checkpoint.load=runs/first", "hydra.run.dir=runs/second") == 0
    assert sum(RunFolder(tmp_path / "runs" / "second").results()["samples"].values()) == 36


def test_a_sweep_over_granularities(fedgen: Fedgen, tmp_path: Path) -> None:
    sweep = ["-m", "granularity=unified,per_class,per_group", "hydra.sweep.dir=sweep"]
    assert fedgen("run", *sweep, "hydra.sweep.subdir=${granularity.name}") == 0
    for name in ("unified", "per_class", "per_group"):
        folder = RunFolder(tmp_path / "sweep" / name)
        assert folder.config().granularity.name == name
        assert sum(folder.results()["samples"].values()) == 36


def test_groups_on_the_command_line(fedgen: Fedgen, tmp_path: Path) -> None:
    groups = "granularity.groups={one: [dog, cow, rain], two: [crickets, siren, engine]}"
    assert fedgen("run", "granularity=per_group", groups, "hydra.run.dir=run") == 0
    names = {path.name for path in (tmp_path / "run" / "checkpoints").glob("*/*_node?_group_*")}
    assert names == {
        "vae_group_node0_group_one.safetensors",
        "vae_group_node1_group_one.safetensors",
        "vae_group_node1_group_two.safetensors",
        "vae_group_node2_group_two.safetensors",
    }


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sed=1"], "unknown configuration key 'sed'. Did you mean 'seed'?"),
        (["granularity=per_clas"], "Did you mean 'per_class'?"),
        (["partition.nodes=99"], "partition.nodes=99 is more than the 6 classes"),
        (["rounds=0"], "rounds=0"),
        (["mode=generate", "checkpoint.load=nowhere"], "fedgen run mode=train_generators"),
        (["data=esc50", "data.root=nowhere", "data.classes=[]"], "nowhere"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_errors_are_one_last_line(
    overrides: list[str], words: str, fedgen: Fedgen, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedgen("run", *overrides) == 1
    line = last_line(capsys)
    assert line.startswith("error: ")
    assert words in line


def test_a_run_whose_nodes_all_fail(
    fedgen: Fedgen, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr("fedgen.node.node.train_adapters", fail)
    assert fedgen("run", "mode=federate", "hydra.run.dir=run") == 1
    line = last_line(capsys)
    assert line.startswith("error: round 1: 0 good replies")
    assert "node 2: RuntimeError: disk full" in line
    assert not Path("run/results.json").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sed=1"], "unknown configuration key 'sed'. Did you mean 'seed'?"),
        (["run_dir=runs/first"], "run_dir=runs/first must be an absolute path, on the server"),
        (["checkpoint.load=runs/first", "mode=generate"], "checkpoint.load=runs/first must be an absolute path"),
        (["resume=runs/first"], "resume=runs/first must be an absolute path"),
        (["encoder=ast", "encoder.model=."], "encoder.model=. must be an absolute path"),
        (["resume='/srv/a run'"], "connection 'hospitals' not found in the Flower configuration"),
        (["run_dir=/srv/runs/first"], "connection 'hospitals' not found in the Flower configuration"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_submitting_what_cannot_run(
    overrides: list[str],
    words: str,
    fedgen: Fedgen,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    assert fedgen("submit", "hospitals", *overrides) == 1
    assert words in last_line(capsys)


def test_prepare_twice(fedgen: Fedgen, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with caplog.at_level("INFO"):
        assert fedgen("prepare", f"data.store={tmp_path / 'store'}", "data.classes=[dog, rain]") == 0
        assert "12 clips of 2 classes, tokens (514, 768)" in caplog.text
        caplog.clear()
        assert fedgen("prepare", f"data.store={tmp_path / 'store'}", "data.classes=[dog, rain]") == 0
    assert "nothing to do" in caplog.text


def test_compare(fedgen: Fedgen, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = f"{done}/../federate"  # the same folder by another name
    assert fedgen("compare", str(done), again) == 0
    shown = capsys.readouterr().out
    assert str(done) in shown
    assert again in shown
    assert shown.count(f"{RunFolder(done).results()['accuracy']:.3f}") >= 2


def test_compare_passes_over_files_of_a_sweep(fedgen: Fedgen, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (done.parent / "multirun.yaml").touch()
    assert fedgen("compare", str(done), str(done.parent / "multirun.yaml")) == 0
    assert "multirun" not in capsys.readouterr().out
    assert fedgen("compare", str(done.parent / "multirun.yaml")) == 1
    assert "no run folder among" in last_line(capsys)


@pytest.mark.parametrize("command", ["compare", "evaluate", "report"])
@pytest.mark.parametrize("name", ["nowhere", "nowhere.json"])
def test_folders_of_no_run(command: str, name: str, fedgen: Fedgen, capsys: pytest.CaptureFixture[str]) -> None:
    assert fedgen(command, name) == 1
    assert name in last_line(capsys)


def test_evaluate_gives_the_same_scores(fedgen: Fedgen, done: Path) -> None:
    assert fedgen("evaluate", str(done)) == 0
    evaluation, results = json.loads((done / "evaluation.json").read_text()), RunFolder(done).results()
    assert evaluation.pop("test_fold") == 3
    assert evaluation == {key: results[key] for key in evaluation}


def test_evaluate_goes_on_after_a_run_that_it_cannot_evaluate(
    fedgen: Fedgen, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, sound = tmp_path / "broken", tmp_path / "sound"
    for folder in (broken, sound):
        shutil.copytree(done, folder)
        (folder / "evaluation.json").unlink(missing_ok=True)
    (broken / "checkpoints" / "adapters.safetensors").unlink()
    assert fedgen("evaluate", str(tmp_path / "nowhere"), str(broken), str(sound)) == 1
    assert last_line(capsys).startswith(f"error: {broken}: ")
    assert not (broken / "evaluation.json").exists()
    assert (sound / "evaluation.json").is_file()


def test_evaluate_on_another_fold(fedgen: Fedgen, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fedgen("evaluate", str(done), "--fold", "1") == 0
    assert json.loads((done / "evaluation.json").read_text())["test_fold"] == 1
    assert fedgen("evaluate", str(done), "--fold", "8") == 1
    assert "data.test_fold=8" in last_line(capsys)


@pytest.fixture(scope="module")
def generators(tiny_overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that has trained generators."""
    folder = tmp_path_factory.mktemp("done") / "generators"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        patch.setattr(sys, "argv", ["fedgen"])
        patch.setattr("fedgen.report.recorder.draw_run", lambda results, folder: [])
        assert main(["run", *tiny_overrides, "mode=train_generators", "rounds=1", f"hydra.run.dir={folder}"]) == 0
    return folder


def test_checkpoints_of_a_run(fedgen: Fedgen, generators: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fedgen("checkpoints", str(generators)) == 0
    lines = capsys.readouterr().out.splitlines()
    nodes = [line for line in lines if "vae_unified_node" in line]
    expected = [f"vae_unified_node{number}_round_1" for number in range(3)]
    assert [line.split("│")[1].strip() for line in nodes] == expected
    assert all(word in nodes[0] for word in ("gaussian", "unified", "dog, cow", "patches", "small"))
    assert fedgen("checkpoints", str(generators / "checkpoints"), "vae_unified_node1") == 0
    assert "vae_unified_node0" not in capsys.readouterr().out


def test_checkpoints_where_there_are_none(fedgen: Fedgen, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fedgen("checkpoints", str(done)) == 1
    assert "federate holds no checkpoints of generators" in last_line(capsys)
    assert fedgen("checkpoints", "nowhere") == 1
    assert last_line(capsys) == "error: there is no folder nowhere"


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["run", "sed=1"], ["run", "mode=onee_shot"], ["rnu"]])
def test_nothing_heavy_is_imported_for_help_and_typing_errors(words: list[str]) -> None:
    """A second of CPU is double what it takes; with torch it would be three."""
    code = f"""
import sys, time
from fedgen.cli import main
try:
    main({words})
except SystemExit:
    pass
heavy = {{"torch", "flwr", "sklearn", "scipy", "transformers"}} & set(sys.modules)
print("HEAVY", sorted(heavy), time.process_time() < 1)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "HEAVY [] True" in shown.stdout, shown.stdout + shown.stderr
    assert len(shown.stderr.splitlines()) == (0 if "--help" in words else 1)


def test_unknown_arguments_and_commands(fedgen: Fedgen, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fedgen("compare", str(done), "--colour") == 1
    assert "unknown arguments: --colour" in last_line(capsys)
    for words, message in (
        (["rum"], r"error: 'rum' is not one of run, prepare, info.* Did you mean 'run'\?"),
        (["compare"], "error: the following arguments are required: RUN"),
        (["evaluate", "x", "--fold=one"], "error: argument --fold: invalid int value: 'one'"),
    ):
        with pytest.raises(SystemExit) as raised:
            main(words)
        assert raised.value.code == 2
        assert re.fullmatch(message, capsys.readouterr().err.strip())


def test_exit_codes_of_the_installed_command(tiny_overrides: list[str], tmp_path: Path) -> None:
    def fedgen(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fedgen.cli", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    good = fedgen("run", *tiny_overrides, "mode=standalone", "rounds=1", "hydra.run.dir=good")
    assert good.returncode == 0, good.stderr
    assert "accuracy" in good.stdout
    assert (tmp_path / "good" / "results.json").is_file()
    bad = fedgen("run", "mode=onee_shot", "hydra.run.dir=bad")
    assert bad.returncode == 1
    assert bad.stderr.startswith("error: ")
    assert "onee_shot" in bad.stderr
    assert "Traceback" not in bad.stderr

"""Each file of conf/experiment runs, made small; those on real sound where it is."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedgen.cli import main
from fedgen.config.compose import config_dir, load_config
from fedgen.runs.folder import RunFolder

EXPERIMENTS = sorted(path.stem for path in (config_dir() / "experiment").glob("*.yaml"))

# What makes an experiment small without taking its data, partition or choices from it.
SMALL = [
    "encoder.stride=16",
    "adapter.width=16",
    "adapter.hidden=32",
    "adapter.training.epochs=1",
    "generator.width=16",
    "generator.latents=4",
    "codec.channels=8",
    "codec.positions=6",
    "codec.components=16",
    "generator.training.epochs=2",
    "global_training.epochs=1",
    "synthesis.samples_per_class=6",
    "evaluation.quality=false",  # which no experiment asks for; tests/evaluation does
    "device=cpu",
    "threads=1",
]


def test_there_is_an_experiment() -> None:
    assert "esc10" in EXPERIMENTS


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_runs_small(
    name: str, request: pytest.FixtureRequest, no_plots: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config([f"experiment={name}"])
    if config.data.name == "sounds":
        overrides = ["data.clips_per_class=6", "data.folds=3", "data.test_fold=3"]
    else:
        root = request.getfixturevalue("esc10")
        overrides = [f"data.root={_thinned(root, tmp_path / 'audio')}"]
    monkeypatch.setattr(sys, "argv", ["fedgen"])
    run = ["run", f"experiment={name}", *SMALL, *overrides, "rounds=1", f"hydra.run.dir={tmp_path / 'run'}"]
    assert main(run) == 0
    results = RunFolder(tmp_path / "run").results()
    assert len(results["nodes"]) == config.partition.nodes
    assert set(results["per_class"]) == set(results["classes"])


def test_folds_are_swept_and_compared(
    esc10: Path,
    no_plots: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = ["mode=federate,standalone", "data.test_fold=4,5", "seed=0", "rounds=1"]
    root = f"data.root={_thinned(esc10, tmp_path / 'audio')}"
    assert main(["run", "-m", "experiment=esc10_folds", *SMALL, root, *chosen]) == 0
    folders = sorted(map(str, (tmp_path / "runs" / "esc10_folds").glob("*_fold*_seed0")))
    assert len(folders) == 4
    capsys.readouterr()
    assert main(["compare", *folders, "--over", "seed,data.test_fold"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("±") == 2
    assert {"federate_fold*", "standalone_fold*"} <= {word.split("/")[-1] for word in shown.split()}


def test_each_starts_with_the_command_that_uses_it() -> None:
    for name in EXPERIMENTS:
        package, command, *_ = (config_dir() / "experiment" / f"{name}.yaml").read_text().splitlines()
        assert package == "# @package _global_"
        assert command.startswith("# fedgen run ")
        assert f" experiment={name} " in f"{command} "


def _thinned(root: Path, folder: Path) -> Path:
    """Link two folds of real sound, a few clips of each class, into a data set of their own."""
    (folder / "meta").mkdir(parents=True)
    (folder / "audio").mkdir()
    header, *rows = (root / "meta" / "esc50.csv").read_text().splitlines()
    columns = header.split(",")
    file, fold, label = (columns.index(name) for name in ("filename", "fold", "target"))
    chosen: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        values = row.split(",")
        if values[fold] in ("4", "5"):
            chosen.setdefault((values[label], values[fold]), []).append(row)
    kept = [row for key, group in chosen.items() for row in group[: 3 if key[1] == "4" else 1]]
    (folder / "meta" / "esc50.csv").write_text("\n".join([header, *kept]) + "\n")
    for row in kept:
        (folder / "audio" / row.split(",")[file]).symlink_to(root / "audio" / row.split(",")[file])
    return folder


def test_the_real_one_deals_three_three_and_four_classes(
    esc10: Path, get_parts: Callable[[list[str]], list[int]]
) -> None:
    assert get_parts([f"data.root={esc10}"]) == [3, 3, 4]


@pytest.fixture
def get_parts() -> Callable[[list[str]], list[int]]:
    from fedgen.data.datasets import open_dataset
    from fedgen.data.partition import Labels, partition

    def classes_of_parts(overrides: list[str]) -> list[int]:
        import numpy as np

        config = load_config(["experiment=esc10", *overrides])
        dataset = open_dataset(config.data)
        labels = np.array([clip.label for clip in dataset.clips if clip.fold != config.data.test_fold])
        parts = partition(Labels(labels, dataset.classes, dataset.groups), config.partition, config.seed)
        return [len(set(labels[part])) for part in parts]

    return classes_of_parts

"""A run folder: made afresh, read back, and never the run that it loads."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedgen.config.settings import Config
from fedgen.errors import CheckpointError, ConfigError
from fedgen.runs.folder import ADAPTERS, RunFolder

IDENTITY = {"encoder": {"name": "patches", "stride": 16}, "target": "small"}


@pytest.fixture
def folder(tiny: Callable[..., Config], tmp_path: Path) -> RunFolder:
    return RunFolder.create(replace(tiny(), run_dir=str(tmp_path / "run")))


def test_the_configuration_comes_back(folder: RunFolder, tiny: Callable[..., Config]) -> None:
    assert folder.config() == replace(tiny(), run_dir=str(folder.path))


def test_a_run_starts_afresh(folder: RunFolder) -> None:
    folder.log_metrics({"round": 1})
    folder.save_json("results.json", {"accuracy": 1})
    folder.save_json("partition.json", {})
    folder.save_adapters({"w": torch.zeros(2)}, {**IDENTITY, "round": 1})
    (folder.path / "notes.txt").write_text("mine")
    RunFolder.create(folder.config())
    assert sorted(path.name for path in folder.path.iterdir()) == ["config.yaml", "notes.txt"]


def test_metrics_are_lines(folder: RunFolder) -> None:
    folder.log_metrics({"round": 1, "server/accuracy": 0.5})
    folder.log_metrics({"round": 2})
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2]


def test_adapters_come_back_with_their_round(folder: RunFolder) -> None:
    folder.save_adapters({"w": torch.arange(3.0)}, {**IDENTITY, "round": 7})
    weights, finished = folder.load_adapters(IDENTITY)
    assert (weights["w"].tolist(), finished) == ([0, 1, 2], 7)


def test_adapters_of_another_encoder_or_target(folder: RunFolder) -> None:
    folder.save_adapters({"w": torch.arange(3.0)}, {**IDENTITY, "round": 7})
    with pytest.raises(CheckpointError, match=r"adapters\.safetensors: target is small, this run has sd"):
        folder.load_adapters({**IDENTITY, "target": "sd"})
    with pytest.raises(CheckpointError, match=r"encoder is .*'stride': 16.*, this run has .*'stride': 10"):
        folder.load_adapters({**IDENTITY, "encoder": {"name": "patches", "stride": 10}})


def test_missing_and_damaged_adapters(folder: RunFolder) -> None:
    with pytest.raises(CheckpointError, match=rf"{ADAPTERS} is missing.*fedgen run mode=train_generators"):
        folder.load_adapters(IDENTITY)
    folder.save_adapters({"w": torch.arange(3.0)}, {**IDENTITY, "round": 7})
    file = folder.checkpoints / ADAPTERS
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=ADAPTERS):
        folder.load_adapters(IDENTITY)


def test_a_run_does_not_erase_what_it_loads(folder: RunFolder) -> None:
    folder.save_adapters({"w": torch.zeros(1)}, {**IDENTITY, "round": 1})
    config = folder.config()
    roundabout = str(folder.path / ".." / folder.path.name)
    config = replace(config, checkpoint=replace(config.checkpoint, load=roundabout))
    with pytest.raises(ConfigError, match=r"checkpoint\.load=.* is this run's own folder; set hydra\.run\.dir"):
        RunFolder.create(config)
    assert (folder.checkpoints / ADAPTERS).is_file()


def test_folders_of_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{tmp_path} is no run folder: it has no config\.yaml"):
        RunFolder(tmp_path).config()
    with pytest.raises(ConfigError, match=rf"{tmp_path} has no results\.json"):
        RunFolder(tmp_path).results()

"""``fedgen checkpoints``: a line for each checkpoint of a folder."""

import os
from pathlib import Path

import pytest
import torch
from banks import METADATA, bank
from rich.console import Console, RenderableType

from fedgen.data.tensors import save_tensors
from fedgen.errors import CheckpointError, ConfigError
from fedgen.report.listing import checkpoint_folder, overview
from fedgen.runs.checkpoint import save_bank


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of two nodes; of the first, rounds 9 and 10 are kept."""
    for number in (9, 10):
        save_bank(tmp_path, "vae", 0, bank(kind="vae"), METADATA | {"round": number}, frequency=1)
    save_bank(tmp_path, "vae", 1, bank("unified", names=["[bold]", *map(str, range(14))]), METADATA)
    return tmp_path


def shown(*tables: RenderableType) -> list[str]:
    """The lines that a wide terminal shows."""
    console = Console(width=400, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    for table in tables:
        console.print(table)
    return console.export_text().splitlines()


def row(lines: list[str], first: str) -> list[str]:
    """The cells of the line that begins with ``first``."""
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    return next(line for line in cells if line[0] == first)


class TestFolder:
    def test_a_run_or_its_checkpoints(self, tmp_path: Path) -> None:
        save_bank(tmp_path / "run" / "checkpoints", "vae", 0, bank(), METADATA)
        for path in (tmp_path / "run", tmp_path / "run" / "checkpoints"):
            assert checkpoint_folder(path) == tmp_path / "run" / "checkpoints"

    def test_without_checkpoints(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"there is no folder .*nowhere"):
            checkpoint_folder(tmp_path / "nowhere")
        save_tensors(tmp_path / "checkpoints" / "adapters.safetensors", {"a": torch.zeros(1)}, {})
        with pytest.raises(CheckpointError, match=r"holds no checkpoints of generators.*mode=train_generators"):
            checkpoint_folder(tmp_path)


class TestOverview:
    def test_one_line_for_each(self, folder: Path) -> None:
        lines = shown(overview(folder))
        names = [line.split("│")[1].strip() for line in lines if line.startswith("│")]
        assert names == ["vae_node0_round_9", "vae_node0_round_10", "vae_node1_round_3"]  # 9 before 10
        found = row(lines, "vae_node0_round_9")
        size = sum(path.stat().st_size for path in folder.glob("vae_node0_round_9/*.safetensors")) / 1e3
        assert found[1:-1] == [
            *("0", "vae", "per_class", "9", "rain, train, sea waves, dog/cat", "4", f"{size:.1f} kB", "patches", "sd")
        ]
        assert len(found[-1]) == len("2025-12-31 23:59")

    def test_many_classes_are_counted_and_shown_as_they_are(self, folder: Path) -> None:
        assert row(shown(overview(folder)), "vae_node1_round_3")[5] == "[bold], 0, 1, 2, 3 and 10 more"

    def test_only_some(self, folder: Path) -> None:
        lines = shown(overview(folder, ["vae_node1"]))
        assert sum(line.startswith("│") for line in lines) == 1
        with pytest.raises(ConfigError, match=r"'vae_node2' is not one of vae_node0.*Did you mean"):
            overview(folder, ["vae_node2"])

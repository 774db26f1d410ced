"""Checkpoints: what is saved, under which names, and that it comes back."""

import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import torch
from banks import METADATA, NAMES, bank, draw, load, source
from savers import PROCESSES, save_five_times

from fedgen.data.tensors import load_tensors, save_tensors
from fedgen.errors import CheckpointError
from fedgen.models.generators import KINDS
from fedgen.models.settings import GRANULARITIES
from fedgen.runs.checkpoint import FORMAT, checkpoints, has_bank, save_bank


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"manifest.json", ".lock"}


def rounds(folder: Path, node: int = 0) -> list[int]:
    return [checkpoint.round for checkpoint in checkpoints(folder, f"vae_node{node}").values()]


def round_(number: int) -> dict[str, object]:
    return {**METADATA, "round": number}


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_loaded_bank_draws_the_same_samples(tmp_path: Path, kind: str, granularity: str) -> None:
    saved = bank(granularity, kind)
    save_bank(tmp_path, "vae", 0, saved, METADATA)
    loaded = bank(granularity, kind, fitted=False)
    assert load(tmp_path, loaded) == METADATA
    assert torch.equal(draw(saved), draw(loaded))
    counts, everything = {0: 3, 3: 2}, torch.arange(5)
    assert torch.equal(saved.sample(counts, 1).batch(everything), loaded.sample(counts, 1).batch(everything))
    assert saved.fit(source(), seed=2) == loaded.fit(source(), seed=2)  # optimiser state came along


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_no_basis_and_no_latents_of_public_clips_are_saved(tmp_path: Path, kind: str) -> None:
    """The codec is everybody's: a checkpoint is the generators alone, whatever the file is called."""
    made = bank("unified", kind)
    save_bank(tmp_path, "vae", 0, made, METADATA, frequency=1)
    public = [*made.space.state().values()]
    for file in tmp_path.glob("*/*.safetensors"):
        tensors, _ = load_tensors(file)
        assert not [name for name in tensors if "codec" in name or "positions" in name or "channels" in name]
        same = [name for name, value in tensors.items() for own in public if _alike(value, own)]
        assert same == []


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dim() > 1 and one.shape == other.shape and torch.allclose(one.float(), other.float(), atol=1e-3)


class TestNames:
    def test_files_are_named_as_users_know_them(self, tmp_path: Path) -> None:
        for node, granularity in enumerate(GRANULARITIES):
            save_bank(tmp_path, "vae", node, bank(granularity), METADATA)
        assert names(tmp_path) == {f"vae_node{node}_round_3" for node in range(3)}
        assert {file for folder in checkpoints(tmp_path) for file in names(folder)} == {
            "vae_node0.safetensors",
            "vae_node1_class_rain.safetensors",
            "vae_node1_class_train.safetensors",
            "vae_node1_class_sea waves.safetensors",
            "vae_node1_class_dog%2Fcat.safetensors",
            "vae_node2_group_first.safetensors",
            "vae_node2_group_second.safetensors",
        }

    def test_rain_is_not_train_and_node_1_is_not_node_11(self, tmp_path: Path) -> None:
        for node, seed in ((11, 0), (1, 1)):
            save_bank(tmp_path, "vae", node, bank(seed=seed), METADATA)
        loaded = bank(fitted=False)
        load(tmp_path, loaded, node=1)
        assert torch.equal(draw(loaded), draw(bank(seed=1)))
        assert loaded.classes == {name: [name] for name in NAMES}
        assert not has_bank(tmp_path, "vae", 111)

    def test_a_checkpoint_is_there_when_it_has_a_manifest(self, tmp_path: Path) -> None:
        assert not has_bank(tmp_path / "nowhere", "vae", 0)
        save_bank(tmp_path, "vae", 0, bank(), round_(4), frequency=2)
        save_bank(tmp_path, "vae", 0, bank(), round_(5), frequency=2)
        there = {number: has_bank(tmp_path, "vae", 0, number) for number in (3, 4, 5, 6)}
        assert there == {3: False, 4: True, 5: True, 6: False}
        assert has_bank(tmp_path, "vae", 0)
        assert not has_bank(tmp_path, "vae", 1)
        assert not has_bank(tmp_path, "gan", 0)


class TestRounds:
    def test_every_so_many_rounds_are_kept(self, tmp_path: Path) -> None:
        for number in range(1, 8):
            save_bank(tmp_path, "vae", 0, bank("unified", seed=number), round_(number), frequency=3)
        assert names(tmp_path) == {"vae_node0_round_3", "vae_node0_round_6", "vae_node0_round_7"}
        for chosen, expected in ((None, 7), (3, 3), (6, 6), (7, 7)):
            loaded = bank("unified", fitted=False)
            assert load(tmp_path, loaded, round=chosen)["round"] == expected
            assert torch.equal(draw(loaded), draw(bank("unified", seed=expected)))

    def test_a_round_that_was_not_kept(self, tmp_path: Path) -> None:
        for number in (8, 9, 10, 11):
            save_bank(tmp_path, "vae", 0, bank("unified"), round_(number), frequency=2)
        with pytest.raises(
            CheckpointError, match=r"checkpoint\.round=9 is not one of the rounds there are: 8, 10, 11$"
        ):
            load(tmp_path, bank("unified", fitted=False), round=9)

    def test_the_last_ones_stay(self, tmp_path: Path) -> None:
        """Round 9 comes before round 10, whatever their names say."""
        for number in range(7, 12):
            save_bank(tmp_path, "vae", 0, bank("unified"), round_(number), frequency=1, keep_last=2)
        save_bank(tmp_path, "vae", 1, bank("unified"), round_(1), frequency=1, keep_last=2)  # a node's own
        assert names(tmp_path) == {"vae_node0_round_10", "vae_node0_round_11", "vae_node1_round_1"}

    def test_a_round_that_is_repeated_counts_as_the_last(self, tmp_path: Path) -> None:
        for number in (1, 2, 3, 1):
            save_bank(tmp_path, "vae", 0, bank("unified"), round_(number), frequency=1, keep_last=2)
        assert rounds(tmp_path) == [3, 1]
        for seed in (1, 2, 3):
            save_bank(tmp_path, "vae", 0, bank("unified", seed=seed), round_(4))
        assert rounds(tmp_path) == [3, 1, 4]
        loaded = bank("unified", fitted=False)
        load(tmp_path, loaded)
        assert torch.equal(draw(loaded), draw(bank("unified", seed=3)))

    def test_files_of_classes_that_a_node_has_no_more_go(self, tmp_path: Path) -> None:
        save_bank(tmp_path, "vae", 0, bank(), METADATA)
        (tmp_path / "vae_node0_class_mine.safetensors").touch()  # in no checkpoint
        save_bank(tmp_path, "vae", 0, bank(names=["rain", "train"]), METADATA)
        (saved,) = checkpoints(tmp_path)
        assert names(saved) == {"vae_node0_class_rain.safetensors", "vae_node0_class_train.safetensors"}
        assert names(tmp_path) == {saved.name, "vae_node0_class_mine.safetensors"}


class TestMetadata:
    def test_the_manifest_tells_everything(self, tmp_path: Path) -> None:
        save_bank(tmp_path, "vae", 2, bank("per_group", "conditioned_vae"), METADATA)
        found = json.loads((tmp_path / "vae_node2_round_3" / "manifest.json").read_text())
        assert found.pop("format") == FORMAT == 4
        files, time = found.pop("files"), datetime.fromisoformat(found.pop("time"))
        assert timedelta() <= datetime.now(time.tzinfo) - time < timedelta(minutes=5)
        assert found == {
            "base_name": "vae",
            "node": 2,
            "kept": False,
            "kind": "conditioned_vae",
            "granularity": "per_group",
            "class_ids": {"dog/cat": 3, "rain": 0, "sea waves": 2, "train": 1},
            "sizes": {"components": 6, "width": 16, "latents": 4, "conditions": {"text": [4]}},
            "lengths": {"tokens": [7, 5], "training": None, "output": None, "upsampling": "linear"},
            "metadata": METADATA,
        }
        first = files["vae_node2_group_first.safetensors"]
        assert (first["key"], first["classes"]) == ("first", ["rain", "sea waves"])
        assert first["standardisation"] == ["mean", "deviation"]
        assert first["parameters"] > 1000
        assert {len(part["sha256"]) for part in files.values()} == {64}
        assert {name: part["bytes"] for name, part in files.items()} == {
            path.name: path.stat().st_size for path in tmp_path.glob("*/*.safetensors")
        }

    @pytest.mark.parametrize("metadata", [{}, {"round": "3"}, {"round": None}])
    def test_a_checkpoint_without_a_round_is_not_saved(self, tmp_path: Path, metadata: dict[str, object]) -> None:
        with pytest.raises(CheckpointError, match="has no round"):
            save_bank(tmp_path, "vae", 0, bank(), metadata)

    def test_a_bank_that_was_never_fitted_is_not_saved(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="no fitted generators"):
            save_bank(tmp_path, "vae", 0, bank(fitted=False), METADATA)


def test_nodes_may_save_at_once(tmp_path: Path) -> None:
    processes = [PROCESSES.Process(target=save_five_times, args=(tmp_path, node)) for node in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert names(tmp_path) == {f"vae_node{node}_round_{kept}" for node in range(3) for kept in (2, 4, 5)}
    assert [rounds(tmp_path, node) for node in range(3)] == [[2, 4, 5]] * 3


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4).T, "b": torch.tensor(5), "c": torch.randn(2).half()}
    path = tmp_path / "deep" / "adapter.safetensors"
    save_tensors(path, tensors, {"round": 2, "head": ["clip", "t5"]})
    loaded, metadata = load_tensors(path)
    assert metadata == {"round": 2, "head": ["clip", "t5"]}
    assert {name: value.dtype for name, value in loaded.items()} == {
        name: value.dtype for name, value in tensors.items()
    }
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())
    assert [file.name for file in path.parent.iterdir()] == ["adapter.safetensors"]


def test_files_that_are_not_tensors_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is missing"):
        load_tensors(path)
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_tensors(path)

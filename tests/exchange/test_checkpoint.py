"""Checkpoints come back whole or not at all, and say what is wrong."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedgen.data.conditions import Conditions
from fedgen.data.tokens import TensorTokens
from fedgen.errors import CheckpointError
from fedgen.exchange import checkpoint
from fedgen.exchange.checkpoint import load_bank, load_tensors, save_bank, save_tensors
from fedgen.models.codec import CodecSettings
from fedgen.models.generators import KINDS, GeneratorSettings, GeneratorTraining
from fedgen.training.bank import GRANULARITIES, Bank, GranularitySettings

NAMES = ["rain", "train", "sea waves", "dog/cat"]
GROUPS = {"water": ["rain", "sea waves"], "other": ["train", "dog/cat"]}
SETTINGS = GeneratorSettings(
    width=16, latents=4, codec=CodecSettings(4, 4, 6), training=GeneratorTraining(epochs=2, validation=0.0)
)
METADATA = {"encoder": {"name": "patches", "stride": 10}, "target": "sd", "round": 3}


def source(seed: int = 0) -> TensorTokens:
    tokens = torch.randn(60, 7, 5, generator=torch.Generator().manual_seed(seed))
    return TensorTokens(tokens, torch.arange(60) % 4)


CONDITIONS = Conditions({"text": torch.eye(4)})


def bank(granularity: str = "per_class", kind: str = "gaussian", fitted: bool = True, conditions: int = 4) -> Bank:
    groups = GranularitySettings(granularity, GROUPS)
    made = Bank(replace(SETTINGS, kind=kind), groups, NAMES, Conditions({"text": torch.eye(4, conditions)}))
    if fitted:
        made.fit(source(), seed=0)
    return made


def load(folder: Path, into: Bank, node: int = 0, classes: list[str] = NAMES, target: str = "sd") -> dict[str, object]:
    return load_bank(folder, "vae", node, into, classes, {"encoder": METADATA["encoder"], "target": target})


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_loaded_bank_draws_the_same_samples(tmp_path: Path, kind: str, granularity: str) -> None:
    saved = bank(granularity, kind)
    save_bank(tmp_path, "vae", 0, saved, METADATA)
    loaded = bank(granularity, kind, fitted=False)
    assert load(tmp_path, loaded) == METADATA
    counts = {0: 3, 3: 2}
    assert torch.equal(saved.sample(counts, 1).latents, loaded.sample(counts, 1).latents)
    everything = torch.arange(5)
    assert torch.equal(saved.sample(counts, 1).batch(everything), loaded.sample(counts, 1).batch(everything))
    assert saved.fit(source(), seed=2) == loaded.fit(source(), seed=2)  # optimiser state came along


def test_files_are_named_as_users_know_them(tmp_path: Path) -> None:
    for node, granularity in enumerate(GRANULARITIES):
        save_bank(tmp_path, "vae", node, bank(granularity), METADATA)
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {
        "vae_node0.safetensors",
        "vae_node0_codec.safetensors",
        "vae_node1_class_rain.safetensors",
        "vae_node1_class_train.safetensors",
        "vae_node1_class_sea waves.safetensors",
        "vae_node1_class_dog%2Fcat.safetensors",
        "vae_node1_codec.safetensors",
        "vae_node2_group_water.safetensors",
        "vae_node2_group_other.safetensors",
        "vae_node2_codec.safetensors",
    }
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    entry = manifest["checkpoints"]["vae_node2"]
    assert entry["generators"]["vae_node2_group_water.safetensors"]["classes"] == ["rain", "sea waves"]
    assert (entry["kind"], entry["granularity"], entry["metadata"]) == ("gaussian", "per_group", METADATA)


def test_a_missing_checkpoint_says_which_and_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint vae_node0 .*mode=train_generators generator=gaussian"):
        load(tmp_path, bank(fitted=False))
    save_bank(tmp_path, "vae", 0, bank(), METADATA)
    with pytest.raises(CheckpointError, match=r"no checkpoint vae_node7 .*found: vae_node0"):
        load(tmp_path, bank(fitted=False), node=7)


def test_every_problem_is_listed_and_nothing_changes(tmp_path: Path) -> None:
    save_bank(tmp_path, "vae", 0, bank(), METADATA)
    (tmp_path / "vae_node0_class_rain.safetensors").unlink()
    train = tmp_path / "vae_node0_class_train.safetensors"
    train.write_bytes(train.read_bytes()[:-7])
    into = bank()
    before = into.sample({0: 2, 1: 2}, seed=0).latents
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, into, target="flux")
    for says in (
        "class_rain.safetensors is missing",
        "class_train.safetensors is damaged",
        "target is sd, this run has flux",
    ):
        assert says in str(caught.value)
    assert torch.equal(into.sample({0: 2, 1: 2}, seed=0).latents, before)


def test_what_belongs_to_another_run_is_refused(tmp_path: Path) -> None:
    save_bank(tmp_path, "vae", 0, bank("unified", "conditioned_vae"), METADATA)
    wider = bank("unified", "conditioned_vae", fitted=False, conditions=3)
    deeper = Bank(
        replace(SETTINGS, kind="conditioned_vae", latents=5),
        GranularitySettings(),
        NAMES,
        Conditions({"text": torch.eye(4)}),
    )
    cases = [
        (bank("unified", "vae", fitted=False), NAMES, "kind is conditioned_vae, this run has vae"),
        (bank("per_class", "conditioned_vae", fitted=False), NAMES, "granularity is unified, this run has per_class"),
        (bank("unified", "conditioned_vae", fitted=False), NAMES[:2], "classes is .*this run has"),
        (wider, NAMES, r"size of conditions is \{'text': \[4\]\}, this run has \{'text': \[3\]\}"),
        (deeper, NAMES, r"model.encoder.4.weight is \(8, 16\), expected shape \(10, 16\)"),
    ]
    for into, classes, says in cases:
        with pytest.raises(CheckpointError, match=says):
            load(tmp_path, into, classes=classes)
        assert into.codec is None


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b'{"format": 99, "checkpoints": {}}', b"\x80\x04."])
def test_a_bad_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json is not"):
        load(tmp_path, bank(fitted=False))


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    save_bank(tmp_path, "vae", 0, bank(), METADATA)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["checkpoints"]["vae_node0"]["codec"] = "../codec.safetensors"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="not a file of the folder"):
        load(tmp_path, bank(fitted=False))


@pytest.mark.parametrize("survived", range(13))
def test_a_save_that_dies_leaves_the_old_checkpoint_or_the_new(
    tmp_path: Path, survived: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = bank(), bank(fitted=False)
    new.fit(source(seed=1), seed=1)
    save_bank(tmp_path, "vae", 0, old, METADATA)
    steps = iter(range(survived))
    replace_file = checkpoint.os.replace

    def dying(*paths: Path) -> None:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        replace_file(*paths)

    with monkeypatch.context() as patched:  # `os.replace` is the only call that changes what a reader sees
        patched.setattr("os.replace", dying)
        try:
            save_bank(tmp_path, "vae", 0, new, METADATA)
        except KeyboardInterrupt:
            assert survived < 11
    loaded = bank(fitted=False)
    load(tmp_path, loaded)
    expected = new if survived >= 6 else old  # five staged files, then the manifest
    assert torch.equal(loaded.sample({0: 3}, 0).latents, expected.sample({0: 3}, 0).latents)
    save_bank(tmp_path, "vae", 0, old, METADATA)
    assert not list(tmp_path.glob("*.new"))
    load(tmp_path, loaded)


def test_nodes_that_save_at_once_all_end_up_in_the_manifest(tmp_path: Path) -> None:
    code = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from fedgen.data.tokens import TensorTokens\n"
        "from fedgen.exchange.checkpoint import save_bank\n"
        "from fedgen.models.generators import GeneratorSettings\n"
        "from fedgen.training.bank import Bank, GranularitySettings\n"
        "bank = Bank(GeneratorSettings(), GranularitySettings(), ['a', 'b'])\n"
        "bank.fit(TensorTokens(torch.randn(9, 3, 2), torch.arange(9) % 2), seed=0)\n"
        "for _ in range(5): save_bank(Path(sys.argv[1]), 'vae', int(sys.argv[2]), bank, {})\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    for process in [subprocess.Popen([*command, str(node)]) for node in range(3)]:
        assert process.wait(60) == 0
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert sorted(manifest["checkpoints"]) == ["vae_node0", "vae_node1", "vae_node2"]


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

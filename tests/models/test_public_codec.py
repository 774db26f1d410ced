"""Federations in the public codec: nodes whose sounds differ, lengths that are decoding alone, and older runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from federations import Federate
from flwr.app import Context, Message

from fedgen.client_app import app as client_app
from fedgen.config.compose import load_config
from fedgen.config.settings import Config
from fedgen.data.tensors import load_tensors, save_tensors
from fedgen.errors import CheckpointError, ConfigError, DataError, FedgenError
from fedgen.models.generators.bank import Bank
from fedgen.node.settings import own_codec
from fedgen.report.saved_run import SavedRun
from fedgen.runs.folder import RunFolder
from fedgen.runtimes.local import run_config as run

Tiny = Callable[..., Config]


def write_clips(folder: Path, seed: int) -> Path:
    """Write noises of three colours, eight of each: public sounds for a moment's work."""
    generator = np.random.default_rng(seed)
    for label in range(3):
        (folder / f"sound{label}").mkdir(parents=True)
        for number in range(8):
            noise = np.diff(generator.standard_normal(16000).cumsum().cumsum(), label)
            soundfile.write(folder / f"sound{label}" / f"{number}.wav", 0.5 * noise / np.abs(noise).max(), 16000)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folders of public sounds of other content."""
    base = tmp_path_factory.mktemp("public")
    return [write_clips(base / name, seed) for seed, name in enumerate(("ours", "theirs"))]


def with_other_sounds(folders: list[Path], asked: list[tuple[str, int]]) -> Callable[[Message, Context], Message]:
    """Nodes of which node 1 has other sounds in its folder of that name."""

    def app(message: Message, context: Context) -> Message:
        node = int(context.node_config["partition-id"])
        asked.append((message.metadata.message_type, node))
        if node == 1:
            words = message.content.config_records["config"]
            words["yaml"] = str(words["yaml"]).replace(str(folders[0]), str(folders[1]))
        return client_app(message, context)

    return app


def test_a_folder_of_public_sounds_serves_a_run(
    tiny: Tiny, federate: Federate, folders: list[Path], tmp_path: Path
) -> None:
    results = federate(tiny("mode=combined", f"codec.public={folders[0]}"), tmp_path)
    assert sum(results["samples"].values()) == 36
    assert results["lost"] == {}


def test_a_node_whose_codec_differs_is_refused_and_the_others_go_on(
    tiny: Tiny, federate: Federate, folders: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[tuple[str, int]] = []
    config = tiny("mode=combined", f"codec.public={folders[0]}", "strategy.min_nodes=2")
    results = federate(config, tmp_path, with_other_sounds(folders, asked))
    assert {kind for kind, node in asked if node == 1} == {"query.describe"}
    assert sum(results["samples"].values()) == 24
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (refused,) = (line["server/refused_nodes"] for line in lines if "server/refused_nodes" in line)
    ((_, reason),) = refused.items()
    assert "codec is not the one that this node computes of the same public sounds" in reason
    assert reason in caplog.text


def test_too_few_nodes_with_the_run_s_codec_are_an_error(
    tiny: Tiny, federate: Federate, folders: list[Path], tmp_path: Path
) -> None:
    config = tiny("mode=combined", f"codec.public={folders[0]}")
    with pytest.raises(DataError, match=r"nodes cannot start: .*codec is not the one that this node computes"):
        federate(config, tmp_path, with_other_sounds(folders, []))


def test_a_run_without_samples_asks_for_no_codec(
    tiny: Tiny, federate: Federate, folders: list[Path], tmp_path: Path
) -> None:
    config = tiny("mode=federate", f"codec.public={folders[0]}")
    assert federate(config, tmp_path, with_other_sounds(folders, []))["lost"] == {}


@pytest.mark.parametrize("what", ["missing", "unreadable"])
def test_public_sounds_that_cannot_be_read_end_the_run_in_one_line(
    what: str, tiny: Tiny, federate: Federate, tmp_path: Path
) -> None:
    folder = tmp_path / "public"
    if what == "unreadable":
        (write_clips(folder, 0) / "sound2" / "5.wav").write_bytes(b"no sound")
    with pytest.raises(DataError, match=r"^codec\.public=") as caught:
        federate(tiny("mode=combined", f"codec.public={folder}"), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "state").exists()


# Lengths


@pytest.mark.parametrize("training", ["null", "8"])
def test_what_was_trained_is_decoded_to_another_length_without_training_again(
    training: str, tiny: Tiny, federate: Federate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["generator=vae", f"generator.training_length={training}", "synthesis.fill=0", "evaluation.gate='off'"]
    federate(tiny("mode=train_generators", *common), tmp_path / "first")
    decoding = ["generator.output_length=30", "generator.upsampling=cubic"]
    monkeypatch.setattr(Bank, "fit", lambda *_, **__: pytest.fail("generators were trained again"))
    results = federate(
        tiny("mode=generate", *common, *decoding, f"checkpoint.load={tmp_path / 'first'}"), tmp_path / "second"
    )
    assert sum(results["samples"].values()) == 36
    folder = RunFolder(tmp_path / "second")
    saved = SavedRun.open(folder, folder.config())
    assert {samples.shape for samples in saved.pool.values()} == {(30, 768)}
    name = "*/vae_unified_node0.safetensors"
    (file,) = (tmp_path / "first" / "checkpoints").glob(name)
    (again,) = (tmp_path / "second" / "state/node0/generators/round_1").glob(name)
    first, second = load_tensors(file)[0], load_tensors(again)[0]
    torch.testing.assert_close(second, first, atol=0, rtol=0)


@pytest.mark.parametrize("check", ["strict", "warn"])
def test_another_training_length_is_refused_by_its_key(
    check: str, tiny: Tiny, federate: Federate, tmp_path: Path
) -> None:
    federate(tiny("mode=train_generators", "generator.training_length=8"), tmp_path / "first")
    load = [f"checkpoint.load={tmp_path / 'first'}", f"checkpoint.check={check}"]
    with pytest.raises(DataError, match=r"node0.*generator\.training_length is 8, this run has 4") as caught:
        federate(tiny("mode=generate", "generator.training_length=4", *load), tmp_path / "second")
    assert "\n" not in str(caught.value)


def test_a_training_length_above_the_encoder_s_is_refused_before_any_training(
    tiny: Tiny, federate: Federate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedgen.node.node.train_adapters", lambda *_, **__: pytest.fail("adapters were trained"))
    with pytest.raises(
        ConfigError, match=r"^generator\.training_length=600 is longer than the encoder's .* 514 tokens"
    ) as caught:
        federate(tiny("mode=combined", "generator.training_length=600"), tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "state").exists()


# What runs left behind when each node fitted a codec to its clips


def test_no_file_of_a_run_holds_a_basis(finished: Path) -> None:
    for file in finished.rglob("*.safetensors"):
        tensors, _ = load_tensors(file)
        shapes = {tuple(value.shape) for value in tensors.values()}
        assert not {(514, 6), (6, 514), (768, 8), (8, 768)} & shapes, file
        assert not [name for name in tensors if "codec" in name], file


def test_the_samples_of_an_old_run_are_refused_with_the_reason(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "old"))
    file = folder / "state" / "server" / "round_2" / "samples_node1.safetensors"
    tensors, about = load_tensors(file)
    save_tensors(file, tensors | {"codec.mean": torch.zeros(48), "codec.channels": torch.zeros(768, 8)}, about)
    opened = RunFolder(folder)
    for again in (lambda: run(load_config([f"resume={folder}"])), lambda: SavedRun.open(opened, opened.config())):
        with pytest.raises(FedgenError, match=r"a codec of a node's own clips.*run anew") as caught:
            again()
        assert "\n" not in str(caught.value)


def test_old_generators_are_refused_with_the_reason(
    finished: Path, tiny: Tiny, federate: Federate, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "old"))
    for file in folder.rglob("manifest.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 2}))
    with pytest.raises((DataError, CheckpointError), match=r"format 2, .*fitted to a node's clips.*Train"):
        federate(tiny("mode=generate", f"checkpoint.load={folder}"), tmp_path / "new")


def test_the_configuration_of_an_old_run_is_refused_by_its_keys(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "old"))
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("generator:\n", "generator:\n  codec:\n    name: tucker\n"))
    with pytest.raises(ConfigError, match=r"generator\.codec"):
        run(load_config([f"resume={folder}"]))


def test_a_node_opens_no_folder_that_a_server_names() -> None:
    config = load_config(["data=nodes", "data.classes=[dog]", "codec.public=/etc"])
    with pytest.raises(ConfigError, match=r"codec\.public=/etc: name this node's copy as public"):
        own_codec(config, None)
    assert own_codec(config, "/srv/public").public == "/srv/public"
    assert own_codec(load_config(["data=nodes", "data.classes=[dog]"]), "/srv/public").public is None

"""``fedgen prepare`` with pretrained models, and a round of a federation on what it made: all models tiny."""

from __future__ import annotations

import re
import shlex
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from federations import Federate
from test_readme import SMALL, write_sounds
from tiny_models import WIDTH, tiny_ast, tiny_pipeline

from fedgen.cli import main
from fedgen.config.compose import load_config
from fedgen.data import clip_t5
from fedgen.data import encoders as frozen
from fedgen.data.pretrained import load_model
from fedgen.data.targets import prepare_targets
from fedgen.errors import DataError
from fedgen.task import open_task, prepare_task

PAGE = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(fedgen (?:prepare|run) .*?)(?: +# (.*))?$", PAGE, re.MULTILINE)  # each with its comment

pytestmark = pytest.mark.filterwarnings("ignore:At least one mel filter")


@pytest.fixture(autouse=True)
def few_sounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of a pretrained encoder take their time: codecs are of a take of each voice and of two recipes."""
    monkeypatch.setattr("fedgen.data.public.PublicTokens.__init__.__defaults__", (2, 1))


@pytest.fixture
def overrides(tiny_overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A small run with a tiny AST and tiny FLUX text encoders, and a home of its own."""
    monkeypatch.setenv("FEDGEN_HOME", str(tmp_path / "home"))
    models = [
        "encoder=ast",
        f"encoder.model={tiny_ast(tmp_path / 'models' / 'ast')}",
        "target=flux",
        "target.source=clip_t5",
        f"target.model={tiny_pipeline(tmp_path / 'models' / 'flux', 'flux')}",
        "target.t5_tokens=30",
    ]
    return [*(text for text in tiny_overrides if not text.startswith("encoder.")), *models]


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, weakref.ref]]:
    """The models that were loaded, in order; none may be there when the next one comes."""
    found: list[tuple[str, weakref.ref]] = []

    def watched(class_name: str, *arguments: Any) -> Any:
        still = [name for name, model in found if model() is not None]
        assert not still, f"{class_name} is loaded beside {still}"
        model = load_model(class_name, *arguments)
        found.append((class_name, weakref.ref(model)))
        return model

    monkeypatch.setattr(frozen, "load_model", watched)
    monkeypatch.setattr(clip_t5, "load_model", watched)
    return found


def test_prepare_does_it_all_and_a_federation_learns_from_it(
    overrides: list[str],
    tmp_path: Path,
    federate: Federate,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    loaded: list[tuple[str, weakref.ref]],
) -> None:
    caplog.set_level("INFO")
    assert main(["prepare", *overrides]) == 0
    assert [name for name, _ in loaded] == ["ASTModel", "ASTModel", "CLIPTextModel", "T5EncoderModel"]  # clips, codec
    assert not any(model() for _, model in loaded)
    assert f"36 clips of 6 classes, tokens (17, {WIDTH})" in caplog.text
    assert f"targets of 6 classes, clip ({WIDTH},), t5 (30, {2 * WIDTH})" in caplog.text

    def refuse(*arguments: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(frozen, "load_model", refuse)
    monkeypatch.setattr(clip_t5, "load_model", refuse)
    assert main(["prepare", *overrides]) == 0
    config = load_config([*overrides, "mode=combined"])
    results = federate(config, tmp_path / "run")
    assert sum(results["samples"].values()) == 36
    assert set(results["heads"]) == {"clip", "t5"}
    task = prepare_task(config)
    assert task.identity()["target"] == "flux of flux"
    assert task.identity()["encoder"]["model"] == "ast"
    shutil.rmtree(tmp_path / "models")
    node = open_task(task.config)  # a node needs neither model
    assert node.store.shape == (17, WIDTH)
    assert node.targets.fingerprint() == task.targets.fingerprint()


def test_the_class_token_alone_is_a_sequence_too(
    overrides: list[str], tmp_path: Path, federate: Federate, loaded: list[tuple[str, weakref.ref]]
) -> None:
    """Prepared by the run itself, which frees each model as well."""
    results = federate(load_config([*overrides, "encoder.tokens=cls", "mode=combined"]), tmp_path / "run")
    assert set(results["heads"]) == {"clip", "t5"}
    assert sorted(name for name, _ in loaded) == ["ASTModel", "ASTModel", "CLIPTextModel", "T5EncoderModel"]
    assert not any(model() for _, model in loaded)


def test_what_targets_need_is_looked_for_before_clips_are_encoded(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else hours of encoding would end with what could have been said at once."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(frozen, "load_model", refuse)
    assert main(["prepare", *overrides, "target.t5_tokens=9"]) == 1
    assert "target.t5_tokens is 9" in capsys.readouterr().err
    prepare_targets(["dog"], load_config(overrides).target)
    assert main(["prepare", *overrides, f"target.model={tiny_pipeline(tmp_path / 'other' / 'flux', 'flux', 1)}"]) == 1
    assert "holds targets of other text encoders" in capsys.readouterr().err
    (tmp_path / "models" / "flux" / "tokenizer" / "merges.txt").unlink()
    assert main(["prepare", *overrides]) == 1
    assert "target.model: CLIPTokenizer cannot be loaded" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "models" / "flux" / "text_encoder_2")
    with pytest.raises(DataError, match=r"has no text_encoder_2/config\.json"):
        prepare_task(load_config(overrides))


def test_prompts_of_classes_that_only_nodes_have(
    overrides: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("INFO")
    given = [text for text in overrides if not text.startswith(("data.", "data=", "encoder"))]
    assert main(["prepare", *given, "data=nodes", "data.classes=[dog, rain]"]) == 0
    assert "targets of 2 classes" in caplog.text
    assert not (tmp_path / "home" / "stores").exists()
    assert main(["prepare", *given, "data=nodes"]) == 1
    assert "data=nodes names no audio" in capsys.readouterr().err


def test_a_store_of_another_model_or_revision_is_refused(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models" / "ast"
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(folder))
    fetched = load_config([*overrides, "encoder.model=tiny/ast"])
    task = prepare_task(fetched)
    config = task.config
    assert task.store.encoder["revision"] == "main"
    assert prepare_task(load_config(overrides)).config.data.store == config.data.store  # a folder with the same files
    assert "revision" not in task.identity()["encoder"]  # which a node with a folder has not
    pinned = replace(config, encoder=replace(config.encoder, revision="v2"))
    with pytest.raises(DataError, match=r"was made by encoder .*the run's encoder is \{'revision': 'v2'\}"):
        open_task(pinned)
    with pytest.raises(DataError, match=r"encoder\.revision is main, this run has v2"):
        prepare_task(pinned)
    other = tiny_ast(tmp_path / "other" / "another-ast", seed=1)
    changed = load_config([*overrides, f"encoder.model={other}", f"data.store={config.data.store}"])
    with pytest.raises(DataError, match=r"was made by encoder .*the run's encoder is \{'model': 'another-ast'\}"):
        open_task(changed)
    with pytest.raises(DataError, match=r"encoder\.digest is"):
        prepare_task(changed)


def test_commands_with_a_download_mean_what_there_is() -> None:
    """Their configurations are composed: every key and choice is known."""
    commands = [command for command, comment in COMMANDS if "download" in comment]
    assert len(commands) >= 8
    for command in commands:
        config = load_config(shlex.split(command)[2:])
        assert (config.encoder.name, config.target.source) != ("patches", "words")


def test_commands_without_a_download_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_plots: None, loaded: list[tuple[str, weakref.ref]]
) -> None:
    """With tiny models in the folders; what the first command fetches is faked, and the run loads none of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDGEN_HOME", str(tmp_path / "home"))
    write_sounds()
    folders = {"ast": tiny_ast(Path("path/to/ast")), "FLUX": tiny_pipeline(Path("path/to/FLUX.1-dev"), "flux")}
    hub = {"MIT/ast-finetuned-audioset-10-10-0.4593": "ast", "black-forest-labs/FLUX.1-schnell": "FLUX"}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(folders[hub[name]]))
    prepared, *others = [command for command, comment in COMMANDS if "download" not in comment]
    assert [prepared.split()[1], len(others)] == ["run", 2]
    run(COMMANDS[0][0])
    before = len(loaded)
    run(prepared)
    assert len(loaded) == before == 4  # clips, codec, and two text encoders
    for command in others:
        run(f"{command} data.classes=[dog,rain]")
    assert len(list((tmp_path / "home" / "stores").iterdir())) == 3


def run(command: str) -> None:
    own = [text for text in SMALL if not text.startswith("encoder.")]
    assert main([*shlex.split(command)[1:], *own, "rounds=1", "target.t5_tokens=30", "device=cpu"]) == 0, command

"""Loading is all or nothing: every problem is told, and until all is well nothing changes."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from banks import EXPECTED, FIFTEEN, METADATA, NAMES, bank, draw, load

from fedgen.data.tensors import load_tensors, serialise
from fedgen.errors import CheckpointError, ConfigError
from fedgen.runs.checkpoint import has_bank, save_bank

SEVENTH = "vae_node0_class_class6.safetensors"
FIRST = "vae_node0_class_class0.safetensors"


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a manifest by hand."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def forge(folder: Path, file: str, content: bytes) -> None:
    """Replace a file, and its size and checksum in the manifest."""
    (folder / file).write_bytes(content)
    facts = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit(folder, lambda manifest: manifest["files"][file].update(facts))


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of fifteen classes: ours, and others that differ from it in one thing each."""
    folder = tmp_path_factory.mktemp("originals")
    others: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "ours": ({}, {}),
        "kind": ({"kind": "gaussian"}, {}),
        "size": ({"latents": 5}, {}),
        "earlier": ({"seed": 1}, {"round": 2}),
    }
    for name, (settings, metadata) in others.items():
        made = bank(**{"kind": "vae", "names": FIFTEEN, **settings})
        save_bank(folder / name, "vae", 0, made, METADATA | metadata)
    save_bank(folder / "granularity", "vae", 0, bank("unified", "vae", names=FIFTEEN), METADATA)
    return folder


@pytest.fixture
def ours(originals: Path, tmp_path: Path) -> Path:
    """The folder of our checkpoint, among the others of its own."""
    return Path(shutil.copytree(originals / "ours", tmp_path / "ours")) / "vae_node0_round_3"


@pytest.fixture
def before() -> Any:
    """A bank that is in use already."""
    return bank(kind="vae", names=FIFTEEN, seed=5)


def refused(folder: Path, into: Any, **changes: Any) -> str:
    """Return why loading is refused, sure that the bank is exactly as it was."""
    parts = (dict(into.generators), dict(into.classes))
    states = {key: {name: value.clone() for name, value in g.state().items()} for key, g in into.generators.items()}
    drawn = draw(into)
    with pytest.raises(CheckpointError) as caught:
        load(folder, into, **changes)
    assert (into.generators, into.classes) == parts
    for key, generator in into.generators.items():
        assert all(torch.equal(value, states[key][name]) for name, value in generator.state().items())
    assert torch.equal(draw(into), drawn)
    return str(caught.value)


class TestOneBadFileOfFifteen:
    """Whatever is wrong with one file, the other fourteen are not used either, in both ways to check."""

    @pytest.fixture(autouse=True, params=["strict", "warn"])
    def check(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    def test_corrupted(self, ours: Path, before: Any, check: str) -> None:
        content = bytearray((ours / SEVENTH).read_bytes())
        content[-3] ^= 1
        (ours / SEVENTH).write_bytes(content)
        assert f"{SEVENTH} is damaged or another file: another checksum than the manifest's" in refused(
            ours.parent, before, check=check
        )

    def test_truncated(self, ours: Path, before: Any, check: str) -> None:
        size = (ours / SEVENTH).stat().st_size
        os.truncate(ours / SEVENTH, size - 7)
        told = f"{SEVENTH} is not a whole safetensors file"
        assert told in refused(ours.parent, before, check=check)

    def test_empty(self, ours: Path, before: Any, check: str) -> None:
        os.truncate(ours / SEVENTH, 0)
        assert f"{SEVENTH} is not a whole safetensors file" in refused(ours.parent, before, check=check)

    def test_missing(self, ours: Path, before: Any, check: str) -> None:
        (ours / SEVENTH).unlink()
        assert f"{SEVENTH} is missing" in refused(ours.parent, before, check=check)

    def test_a_link_to_nowhere(self, ours: Path, before: Any, check: str) -> None:
        (ours / SEVENTH).unlink()
        (ours / SEVENTH).symlink_to(SEVENTH)  # to itself
        assert f"{SEVENTH} is missing" in refused(ours.parent, before, check=check)

    @pytest.mark.parametrize(
        ("other", "file"),
        [
            ("ours", "vae_node0_class_class7.safetensors"),
            ("kind", SEVENTH),
            ("granularity", "vae_node0.safetensors"),
            ("size", SEVENTH),
            ("earlier", SEVENTH),
        ],
    )
    def test_of_another_checkpoint(
        self, ours: Path, originals: Path, before: Any, check: str, other: str, file: str
    ) -> None:
        (found,) = (originals / other).glob(f"*/{file}")
        (ours / SEVENTH).write_bytes(found.read_bytes())
        told = refused(ours.parent, before, check=check)
        assert f"{SEVENTH} is damaged or another file" in told

    def test_with_values_that_are_not_finite(self, ours: Path, before: Any, check: str) -> None:
        tensors, header = load_tensors(ours / SEVENTH)
        tensors["model.decoder.0.weight"][0, 0] = torch.nan
        forge(ours, SEVENTH, serialise(tensors, header))
        assert f"{SEVENTH} holds values that are not finite, in model.decoder.0" in refused(
            ours.parent, before, check=check
        )

    @pytest.mark.parametrize("old", [True, False], ids=["pickle", "zip of a pickle"])
    @pytest.mark.parametrize("forged", [False, True], ids=["", "with its checksum in the manifest"])
    def test_a_pickle_is_never_opened(
        self, ours: Path, before: Any, check: str, old: bool, forged: bool, tmp_path: Path
    ) -> None:
        torch.save({"weights": Evil(tmp_path / "hacked")}, ours / SEVENTH, _use_new_zipfile_serialization=not old)
        content = (ours / SEVENTH).read_bytes()
        if forged:
            forge(ours, SEVENTH, content)
        told = refused(ours.parent, before, check=check)
        assert f"{SEVENTH} is " in told
        assert "not a whole safetensors file: it looks like a pickle, which is never opened" in told
        assert not (tmp_path / "hacked").exists()
        with (ours / SEVENTH).open("rb") as file:
            torch.load(file, weights_only=False)
        assert (tmp_path / "hacked").exists()  # it would have done harm


class Evil:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_every_problem_is_told_at_once(ours: Path, before: Any) -> None:
    (ours / SEVENTH).unlink()
    os.truncate(ours / "vae_node0_class_class2.safetensors", 100)
    (ours / "vae_node0_class_class3.safetensors").write_bytes((ours / FIRST).read_bytes())
    told = refused(ours.parent, before, expected=EXPECTED | {"target": "flux", "seed": 8}, classes=FIFTEEN[1:])
    for problem in (
        f"{SEVENTH} is missing",
        "class2.safetensors is not a whole safetensors file",
        "class3.safetensors is damaged or another file",
        "target is sd, this run has flux",
        "seed is 7, this run has 8",
        "class0 not needed",
    ):
        assert problem in told


class TestOfAnotherRun:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        save_bank(tmp_path, "vae", 0, bank("unified", "conditioned_vae"), METADATA)
        return tmp_path

    @pytest.mark.parametrize("check", ["strict", "warn"])
    @pytest.mark.parametrize(
        ("settings", "says"),
        [
            ({"kind": "vae"}, "kind is conditioned_vae, this run has vae"),
            ({"granularity": "per_class"}, "granularity is unified, this run has per_class"),
            ({"width": 3}, "size of conditions is {'text': [4]}, this run has {'text': [3]}"),
            ({"latents": 5}, "generator.latents is 4, this run has 5; vae_node0.safetensors: "),
            ({"training_length": 5}, "generator.training_length is None, this run has 5"),
            ({"names": [*NAMES, "wind"]}, "not served are wind (generator unified)"),
            ({"names": NAMES[::-1]}, "id of class rain is 0, this run has 3: its classes are in another order"),
        ],
        ids=lambda value: "".join(value) if isinstance(value, dict) else "",
    )
    def test_what_cannot_work_is_refused(self, folder: Path, settings: dict[str, Any], says: str, check: str) -> None:
        ours = {"granularity": "unified", "kind": "conditioned_vae", "fitted": False, "width": 4, **settings}
        into = bank(**ours)
        with pytest.raises(CheckpointError) as caught:
            load(folder, into, check=check)
        assert says in str(caught.value)
        assert (into.generators, into.classes) == ({}, {})

    @pytest.mark.parametrize(
        ("name", "value", "says"),
        [
            ("encoder", {"name": "ast"}, "encoder is {'name': 'patches', 'stride': 10}, this run has {'name': 'ast'}"),
            ("target", "flux", "target is sd, this run has flux"),
            ("dataset", {"name": "esc50"}, "this run has {'name': 'esc50'}"),
            ("split", {"test_fold": 1}, "split is {'test_fold': 5}, this run has {'test_fold': 1}"),
        ],
    )
    def test_what_only_differs_is_a_warning(
        self, folder: Path, name: str, value: object, says: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        into = bank("unified", "conditioned_vae", fitted=False)
        expected = EXPECTED | {name: value}
        with pytest.raises(CheckpointError) as caught:
            load(folder, into, expected=expected)
        assert says in str(caught.value)
        assert into.generators == {}
        with caplog.at_level(logging.WARNING):
            assert load(folder, into, expected=expected, check="warn") == METADATA
        assert [record.message for record in caplog.records if says in record.message]
        assert torch.equal(draw(into), draw(bank("unified", "conditioned_vae")))

    @pytest.mark.parametrize("granularity", ["unified", "per_class", "per_group"])
    def test_classes_beyond_those_needed(
        self, granularity: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        save_bank(tmp_path, "vae", 0, bank(granularity), METADATA)
        into = bank(granularity, fitted=False)
        with pytest.raises(CheckpointError, match=r"classes is .*this run has .*: train, dog/cat not needed"):
            load(tmp_path, into, classes=["rain", "sea waves"])
        with caplog.at_level(logging.WARNING):
            load(tmp_path, into, classes=["rain", "sea waves"], check="warn")
        assert "train, dog/cat not needed" in caplog.text
        assert torch.equal(draw(into), draw(bank(granularity)))

    def test_anything_else_that_is_expected_cannot_differ(self, folder: Path) -> None:
        for check in ("strict", "warn"):
            with pytest.raises(CheckpointError, match=r"tokens is None, this run has \[7, 5\]"):
                load(folder, bank(fitted=False), expected=EXPECTED | {"tokens": (7, 5)}, check=check)

    def test_without_a_difference_nothing_is_said(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            load(folder, bank("unified", "conditioned_vae", fitted=False), check="warn")
        assert not caplog.records

    def test_there_are_two_ways_to_check(self, folder: Path) -> None:
        with pytest.raises(ConfigError, match=r"checkpoint\.check='strikt'.*Did you mean 'strict'"):
            load(folder, bank("unified", "conditioned_vae", fitted=False), check="strikt")


def test_a_missing_checkpoint_says_which_and_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, bank("unified", fitted=False))
    assert str(caught.value) == (
        f"no checkpoint vae_node0 in {tmp_path}, which should hold vae_node0.safetensors (found: none); "
        "make it with `fedgen run mode=train_generators generator=gaussian granularity=unified`"
    )
    save_bank(tmp_path, "vae", 0, bank(), METADATA)
    with pytest.raises(CheckpointError, match=r"vae_node7 .*vae_node7_class_train\.safetensors.*found: vae_node0"):
        load(tmp_path, bank(fitted=False), node=7)


class TestManifest:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        save_bank(tmp_path, "vae", 0, bank("unified"), METADATA)
        return tmp_path / "vae_node0_round_3"

    def told(self, folder: Path) -> str:
        """Return why the manifest is refused, to load and to save alike; it stays as it is."""
        content = (folder / "manifest.json").read_bytes()
        told = refused(folder.parent, bank("unified"))
        with pytest.raises(CheckpointError) as caught:
            save_bank(folder.parent, "vae", 0, bank("unified"), METADATA)
        assert str(caught.value) == told
        assert (folder / "manifest.json").read_bytes() == content
        return told

    @pytest.mark.parametrize("content", [b"", b"not json", b"\x80\x04.", b"[" * 100_000, b"{'format': 3}"])
    def test_not_json(self, folder: Path, content: bytes) -> None:
        (folder / "manifest.json").write_bytes(content)
        assert "manifest.json is not JSON" in self.told(folder)

    @pytest.mark.parametrize("content", [b"{}", b"[]", b"null", b'"format"'])
    def test_not_a_manifest(self, folder: Path, content: bytes) -> None:
        (folder / "manifest.json").write_bytes(content)
        assert "manifest.json is not a manifest" in self.told(folder)

    @pytest.mark.parametrize("version", [1, 2, 3, 5, "4", None])
    def test_of_another_format(self, folder: Path, version: object) -> None:
        """Also of format 2, which held a codec fitted to clips: generators are trained again in minutes."""
        edit(folder, lambda manifest: manifest.update(format=version))
        told = self.told(folder)
        assert f"is of format {version!r}, this version of fedgen reads format 4" in told
        assert "formats 1 and 2 hold a codec that was fitted to a node's clips" in told

    def test_of_a_version_that_kept_all_in_one_folder(self, folder: Path) -> None:
        old = folder.parent / "manifest.json"
        old.write_text(json.dumps({"format": 3, "checkpoints": {}, "removed": []}))
        for action in (lambda: has_bank(folder.parent, "vae", 0), lambda: load(folder.parent, bank("unified"))):
            with pytest.raises(CheckpointError, match=f"{old} is of format 3, .*Train the generators again$"):
                action()

    @pytest.mark.parametrize(
        ("name", "value", "says"),
        [
            ("kind", 5, "kind: Input should be a valid string"),
            ("node", "0", "node: Input should be a valid integer"),
            ("node", True, "node: Input should be a valid integer"),
            ("class_ids", {"rain": "0"}, "class_ids.rain: Input should be a valid integer"),
            ("files", [], "files: "),
            ("files", {"a.safetensors": 5}, "files.a.safetensors: "),
            ("sizes", None, "sizes: "),
            ("metadata", {"round": "3"}, "metadata has no round, a whole number"),
            ("metadata", {}, "metadata has no round, a whole number"),
        ],
    )
    def test_with_a_field_of_another_type(self, folder: Path, name: str, value: object, says: str) -> None:
        edit(folder, lambda manifest: manifest.update({name: value}))
        assert f"manifest.json: {says}" in self.told(folder)

    @pytest.mark.parametrize("name", ["kind", "sizes", "metadata", "files", "granularity"])
    def test_without_a_field(self, folder: Path, name: str) -> None:
        edit(folder, lambda manifest: manifest.pop(name))
        assert f"manifest.json: {name}: Field required" in self.told(folder)

    @pytest.mark.parametrize(
        "name", ["../weights.safetensors", "/tmp/weights.safetensors", "a/../b.safetensors", "..", "", "manifest.json"]
    )
    def test_that_names_other_files(self, folder: Path, name: str) -> None:
        edit(folder, lambda manifest: manifest["files"].update({name: manifest["files"].pop("vae_node0.safetensors")}))
        assert f"manifest.json names {name!r}, which is not a .safetensors file of the folder" in self.told(folder)

"""docs/file-formats.md and the tables of docs/checkpoints.md, against the files of small runs, in both directions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from federations import Nodes
from flwr.app import Context, Error, Message
from safetensors import safe_open

from fedgen.cli import main
from fedgen.client_app import app as client_app
from fedgen.config.compose import load_config, to_yaml
from fedgen.data.settings import TargetSettings
from fedgen.data.targets import TargetCache
from fedgen.runtimes.local import LocalGrid, run_server
from fedgen.server_app import app as server_app

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "file-formats.md").read_text(encoding="utf-8")
CHECKPOINTS = (DOCS / "checkpoints.md").read_text(encoding="utf-8")
ELSEWHERE = {
    "tensorboard/",  # tests/tracking
    "wandb/",
    "wandb.json",
    "failure.json",  # tests/runtimes/test_sweeps.py
    "optimization_results.yaml",  # tests/runtimes/test_sweeps.py
    "momentum_vector.{n}",  # tests/runs/test_resume.py: these strategies remember something
    "m_t.…",
    "v_t.…",
    "analysis",  # tests/models/test_lengths.py: samples of another length than the clips
    "sums.safetensors",  # tests/server/test_sums.py
    "sums/round_{n}.safetensors",
    "forgotten",
}


def rows(page: str, heading: str, first: str) -> list[list[str]]:
    """The cells of the table below a heading whose first column is called ``first``."""
    section = re.split(r"^#+ ", page.split(f"# {heading}\n")[1], flags=re.MULTILINE)[0]
    lines = section.split(f"| {first} |")[1].splitlines()[2:]
    table = lines[: next((n for n, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def patterns(page: str, heading: str, first: str, column: int = 0) -> list[str]:
    """The keys in a column of a table; one that begins with a full stop follows the key before it."""
    found: list[str] = []
    for cells in rows(page, heading, first):
        before = ""
        for key in re.findall(r"`([^`]+)`", cells[column]):
            before = key if not key.startswith(".") or key.startswith((".hydra", ".lock")) else before
            found.append(key if key == before else before.rsplit(".", 1)[0] + key)
    return found


def hold(documented: Iterable[str], written: Iterable[str]) -> None:
    """Every documented key is written, and every written one is documented."""
    keys = set(written)
    matched = set()
    for pattern in documented:
        quoted = "".join(
            {"…": ".*"}.get(part, "[^.]+" if part[0] == "{" else re.escape(part))
            for part in re.split(r"(\{\w+\}|…)", pattern)
            if part
        )
        own = {key for key in keys if re.fullmatch(quoted, key)}
        assert own or pattern in ELSEWHERE, f"{pattern} is in no file"
        matched |= own
    assert keys - matched == set()


def flat(value: Any, key: str = "") -> Iterator[str]:
    """The keys of a JSON value, as the page writes them."""
    if isinstance(value, dict) and (value or not key):
        for name, item in value.items():
            yield from flat(item, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for item in value:
            yield from flat(item, f"{key}[]")
    elif value != {} or key == "":
        yield key


def keys_of(*files: Path) -> set[str]:
    return {key for file in files for key in flat(json.loads(file.read_text()))}


def tensors_of(*files: Path) -> set[str]:
    found = set()
    for file in files:
        with safe_open(file, framework="pt") as reader:
            found |= set(reader.keys())
    return found


def header_of(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as reader:
        return dict(reader.metadata())


def failing(request: Message, reply: Message, number: int) -> Message | None:
    """One node cannot start, and in the second round one sends what it must not."""
    if request.metadata.message_type == "query.describe" and number == 2:
        return Message(Error(code=0, reason="it has no store"), reply_to=request)
    if request.metadata.message_type == "train" and request.content["config"]["round"] == 2 and number == 1:
        next(iter(reply.content.array_records.values())).popitem()
    return reply


@pytest.fixture(scope="module")
def runs(tiny_overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of one job, a private run, and one with shared generators in which nodes fail."""
    folder = tmp_path_factory.mktemp("formats")

    def start(name: str, *overrides: str, app: Callable[[Message, Context], Message] = client_app) -> None:
        config = replace(load_config([*tiny_overrides, *overrides]), run_dir=str(folder / name))
        values = {"config": to_yaml(config)}
        run_server(server_app, LocalGrid(app, config.partition.nodes, values), values)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedgen.report.saved_run.PROBES", ["pooled"])  # the others take seconds
        sweep = [f"hydra.sweep.dir={folder}/sweep", "rounds=2", "evaluation.quality=true", "checkpoint.frequency=1"]
        sweep += ["evaluation.controls=0.5"]  # of four clips a class a tenth is none
        given = [text for text in tiny_overrides if text.split("=")[0] not in ("rounds", "evaluation.quality")]
        assert main(["run", "-m", "evaluation.gate=warn", *given, *sweep]) == 0
        for command in ("evaluate", "report"):
            assert main([command, str(folder / "sweep" / "0")]) == 0
        patch.setattr("fedgen.report.recorder.draw_run", lambda results, folder: [])
        start("private", "privacy=dp", "privacy.epsilon=8", "privacy.delta=0.01")
        start("shared", "rounds=2", "sharing=shared", "strategy.min_nodes=1", app=Nodes(failing))
    return folder


@pytest.fixture(scope="module")
def run(runs: Path) -> Path:
    return runs / "sweep" / "0"


def test_the_run_folder(run: Path) -> None:
    found = [path.name + "/" * path.is_dir() for path in run.iterdir()]
    hold(patterns(PAGE, "The run folder", "file"), found)


def test_the_folder_of_a_sweep(runs: Path) -> None:
    found = [path.name + "/" * path.is_dir() for path in (runs / "sweep").iterdir()]
    hold(patterns(PAGE, "The folder of a sweep", "file"), found)


def test_configuration(run: Path) -> None:
    hold(patterns(PAGE, "config.yaml", "key"), yaml.safe_load((run / "config.yaml").read_text()))


@pytest.mark.parametrize("file", ["partition.json", "results.json", "evaluation.json", "audit.json"])
def test_json_files(file: str, runs: Path, run: Path) -> None:
    files = [folder / file for folder in (run, runs / "private", runs / "shared") if (folder / file).is_file()]
    hold(patterns(PAGE, file, "key"), keys_of(*files))


def test_metrics(runs: Path, run: Path) -> None:
    lines = [
        json.loads(line)
        for folder in (run, runs / "private", runs / "shared")
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    refused = [line for line in lines if "server/refused_nodes" in line]
    own = [line for line in lines if "node" in line]
    server = [line for line in lines if line not in refused and line not in own]
    for kind, alike in (("a line about such nodes", refused), ("a node's line", own), ("the server's line", server)):
        hold(patterns(PAGE, "metrics.jsonl", f"key of {kind}"), {key for line in alike for key in flat(line)})


def test_adapters(run: Path) -> None:
    header = json.loads(header_of(run / "checkpoints" / "adapters.safetensors")["fedgen"])
    hold(patterns(PAGE, "Checkpoints", "key of the header of adapters.safetensors"), flat(header))


def test_manifest(run: Path) -> None:
    manifest = json.loads(next((run / "checkpoints").glob("*/manifest.json")).read_text())
    section = CHECKPOINTS.split("## The manifest\n")[1].split("\n## ")[0]
    tables = [
        re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE) for table in section.split("| field | type | meaning |")
    ]
    listed = [sorted(re.findall(r"\w+", " ".join(names))) for names in tables[1:]]
    written = [manifest, next(iter(manifest["files"].values())), manifest["metadata"]]
    assert listed == [sorted(keys) for keys in written]


def test_state_of_the_server(runs: Path, run: Path) -> None:
    folders = [next((folder / "state" / "server").iterdir()) for folder in (run, runs / "shared")]
    hold(patterns(PAGE, "State", "key of state.json"), keys_of(*(folder / "state.json" for folder in folders)))
    files = [file.name for folder in folders for file in folder.glob("*.safetensors")]
    hold([f"{name}" for name in patterns(PAGE, "State", "file of the server's state")], files)
    for name, own in tensors_named("file of the server's state").items():
        written = tensors_of(*(file for folder in folders for file in folder.glob(name.replace("{i}", "*"))))
        hold(own, {key for key in written if "\n" not in key})


def test_state_of_nodes(runs: Path, run: Path) -> None:
    nodes = [folder / "state" / "node0" for folder in (run, runs / "private", runs / "shared")]
    written = [str(path.relative_to(node)) for node in nodes for path in node.glob("*/round_*")]
    written += [path.name for node in nodes for path in node.glob("*.safetensors")]
    listed = patterns(PAGE, "State", "file of a node's state")
    hold([name.rstrip("/") for name in listed], written)
    for name, own in tensors_named("file of a node's state").items():
        if own:
            hold(own, tensors_of(*(file for node in nodes for file in node.glob(name.replace("{n}", "*")))))


def tensors_named(first: str) -> dict[str, list[str]]:
    """The names of tensors in each file of a table, without those of shapes and settings."""
    found = {}
    for file, names, *_ in rows(PAGE, "State", first):
        own = re.findall(r"`([^`]+)`", re.sub(r"with `[^`]*`:|\(`[^)]*\)|`\([^`]*`", "", names))
        found[re.findall(r"`([^`]+)`", file)[0]] = own
    return found


def test_codec(run: Path, home: Path) -> None:
    files = list((home / "codecs").glob("*.safetensors"))
    assert files, f"{run} left no codec on the machine"
    own = {name.removeprefix("codec.") for name in tensors_of(*files) if name.startswith("codec.")}
    hold(patterns(PAGE, "State", "tensor of a codec"), own)


def test_store(run: Path) -> None:
    store = Path(yaml.safe_load((run / "config.yaml").read_text())["data"]["store"])
    hold(patterns(PAGE, "Embedding store", "key of index.json"), keys_of(store / "index.json"))
    assert {path.name for path in store.iterdir()} == {"index.json", ".lock", "shard_00000.safetensors"}
    assert tensors_of(store / "shard_00000.safetensors") == {"tokens"}


class TextEncoders:
    """What a cache asks of text encoders."""

    def check(self, prompts: list[str]) -> None:
        pass

    def digests(self) -> dict[str, str]:
        return {"clip": "0", "t5": "1"}

    def encode(self, prompts: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        for prompt in prompts:
            yield prompt, {"clip": torch.zeros(4), "t5": torch.zeros(3, 4)}


def test_targets(home: Path) -> None:
    cache = TargetCache(TargetSettings("flux", "clip_t5", t5_tokens=3))
    cache.fill(["the sound of rain"], TextEncoders())  # type: ignore[arg-type]
    (file,) = cache.folder.glob("*.safetensors")
    hold(patterns(PAGE, "Targets", "key of a header"), flat(json.loads(header_of(file)["fedgen"])))

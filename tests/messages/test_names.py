"""Names of classes and groups, and whatever nodes say, are text: never resolved, never obeyed, never a path."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from flwr.app import Context, Message
from matplotlib.figure import Figure
from rich.console import Console

from fedgen.cli import main
from fedgen.client_app import app as client_app
from fedgen.config.compose import load_config, to_yaml
from fedgen.errors import AggregationError, ConfigError
from fedgen.evaluation.features import Records
from fedgen.evaluation.quality import Site
from fedgen.models.settings import GranularitySettings
from fedgen.node.settings import node_home
from fedgen.render.pictures import folder_name
from fedgen.report.page import write_report
from fedgen.report.plots import confusion_axes, draw_run, partition_axes, samples_figure
from fedgen.report.tables import PlainTable, show
from fedgen.runs.checkpoint import generator_file
from fedgen.runs.folder import RunFolder
from fedgen.runtimes.local import LocalGrid, run_server
from fedgen.runtimes.local import run_config as run
from fedgen.server_app import app as server_app
from fedgen.task import prepare_task

SECRET = "hush-8d1f"
POISON = "${oc.env:NODE_SECRET}"
SMALL = [
    *("encoder.stride=16", "adapter.width=16", "adapter.hidden=32", "adapter.training.epochs=1"),
    *("generator.width=16", "generator.latents=4", "codec.channels=8", "codec.positions=6"),
    *("codec.components=16", "generator.training.epochs=3", "global_training.epochs=1", "threads=1"),
    *(
        "synthesis.samples_per_class=6",
        "evaluation.quality=false",
        "strategy.wait=1",
        "device=cpu",
        "evaluation.gate=off",
    ),
    *("data.folds=3", "data.test_fold=3"),
]
LEGAL = [
    *("null", "yes", "on", "1.0", "1e3", "0x10", "a: b", "# c", "- d", "it's", 'say "hi"', "back\\slash", "{{ 7*7 }}"),
    *("[bold]z[red]", "[] f", "$\\frac$ g$", "<i>w", "%2F_round_7", "h..", "i" * 200, "犬" * 60, ":warning: j"),
]


def sounds(root: Path, classes: list[str], clips: int = 3) -> Path:
    rng = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for clip in range(clips):
            tone = np.sin(np.arange(3200) * (200 + 170 * label + 3 * clip) * 2 * np.pi / 16000)
            soundfile.write(root / name / f"clip{'abcdef'[clip]}.wav", 0.3 * tone + 0.01 * rng.normal(size=3200), 16000)
    return root


@dataclass
class Listener:
    """The project's nodes; keeps every message as text, and hands each reply to ``change``."""

    change: Callable[[Message, Message, int], None] = lambda message, reply, node: None
    heard: list[str] = field(default_factory=list)

    def __call__(self, message: Message, context: Context) -> Message:
        self._hear(message)
        reply = client_app(message, context)
        self.change(message, reply, int(context.node_config["partition-id"]))
        self._hear(reply)
        return reply

    def _hear(self, message: Message) -> None:
        records = message.content.config_records.values()
        self.heard += [f"{key}: {value}" for record in records for key, value in record.items()]


Deploy = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def stores(home: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Stores of two sites, the second with an odd class, as a version that did not look made it."""
    folder = tmp_path_factory.mktemp("sites")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedgen.data.datasets.check_names", lambda names, what: None)
        for number, classes in enumerate((["dog", "rain"], ["siren", POISON])):
            root = sounds(folder / f"site{number}", classes)
            chosen = ["data=folder", f"data.root={root}", f"data.store={folder / str(number)}"]
            prepare_task(load_config([*SMALL, *chosen]))
    return [str(folder / str(number)) for number in (0, 1)]


@pytest.fixture
def deploy(stores: list[str], tmp_path: Path, no_plots: None, monkeypatch: pytest.MonkeyPatch) -> Deploy:
    monkeypatch.setenv("NODE_SECRET", SECRET)

    def start(*overrides: str, facts: dict[int, dict[str, Any]] | None = None, app: Any = client_app) -> dict[str, Any]:
        own = [
            {"store": store, "state": str(tmp_path / f"site{number}"), **(facts or {}).get(number, {})}
            for number, store in enumerate(stores)
        ]
        few = ["data=nodes", "partition.nodes=2", "strategy.min_nodes=1", f"run_dir={tmp_path / 'run'}"]
        values = {"config": to_yaml(load_config([*SMALL, *few, *overrides]))}
        run_server(server_app, LocalGrid(app, 2, values, own), values)
        return RunFolder(tmp_path / "run").results()

    return start


def refused(folder: Path) -> str:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    (reason,) = json.loads(lines[0])["server/refused_nodes"].values()
    return str(reason)


def test_an_odd_class_is_refused_where_it_is_read(tmp_path: Path, home: Path) -> None:
    root = sounds(tmp_path, ["siren", POISON])
    with pytest.raises(ConfigError) as raised:
        prepare_task(load_config([*SMALL, "data=folder", f"data.root={root}"]))
    assert str(raised.value) == (
        "classes of data=folder: the name '${oc.env:NODE_SECRET}' holds ${, which reads as an interpolation"
    )
    chosen = ["data.classes=[dog,siren]", f"data.root={sounds(tmp_path, ['dog'])}"]
    assert prepare_task(load_config([*SMALL, "data=folder", *chosen])).classes == ["dog", "siren"]


def test_an_odd_class_of_a_node_is_refused_and_the_others_go_on(deploy: Deploy, tmp_path: Path) -> None:
    app = Listener()
    results = deploy("mode=combined", app=app)
    assert set(results["nodes"]) == {"0"}
    assert results["classes"] == ["dog", "rain"]
    assert "classes of node 1: the name '${oc.env:NODE_SECRET}' holds ${" in refused(tmp_path)
    assert len(app.heard) > 20
    assert not [text for text in app.heard if SECRET in text]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_a_node_leaves_its_odd_class_out(deploy: Deploy) -> None:
    results = deploy("mode=federate", facts={1: {"classes": "siren"}})
    assert results["classes"] == ["dog", "rain", "siren"]
    assert set(results["nodes"]) == {"0", "1"}


@pytest.mark.parametrize(
    "name", [POISON, "${seed}", "a\x1b[2J", "a\nWARNING b", "a\u202eb", "", None, 3, ["x"], "x" * 1000], ids=ascii
)
def test_a_lying_node_names_nothing(name: Any, deploy: Deploy, caplog: pytest.LogCaptureFixture) -> None:
    def lie(message: Message, reply: Message, node: int) -> None:
        if node == 1 and message.metadata.message_type == "query.introduce":
            reply.content.config_records["facts"]["classes"] = json.dumps(["siren", name])

    with caplog.at_level(logging.INFO):
        results = deploy("mode=federate", facts={1: {"classes": "siren"}}, app=Listener(lie))
    assert results["classes"] == ["dog", "rain"]
    assert SECRET not in caplog.text
    told = [record.getMessage() for record in caplog.records if record.name.startswith("fedgen")]
    assert [text for text in told if not text.isprintable()] == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"slots": {"${env:HOME}": ["siren"]}}, "generators: the name '${env:HOME}' holds ${"),
        ({"slots": {"a\x1b": ["siren"]}}, "holds U+001B"),
        ({"slots": {"a": ["wolf"]}}, "generators of classes that the run does not have"),
        ({"granularity": "odd\x1b[31m\n"}, "granularity 'odd"),
        ({"counts": {"2": 1e999}}, "cannot be read: counts.2: "),
        ({"encoder": {"name": "\x1b[31m\n" + "x" * 5000}}, "node 1 has encoder {'name': '"),
    ],
    ids=["slot", "escape", "class", "granularity", "infinity", "encoder"],
)
def test_a_node_that_describes_itself_oddly(change: dict[str, Any], words: str, deploy: Deploy, tmp_path: Path) -> None:
    def lie(message: Message, reply: Message, node: int) -> None:
        if node == 1 and message.metadata.message_type == "query.describe":
            record = reply.content.config_records["facts"]
            record["json"] = json.dumps(json.loads(str(record["json"])) | change)

    deploy("mode=federate", facts={1: {"classes": "siren"}}, app=Listener(lie))
    reason = refused(tmp_path)
    assert words in reason
    assert reason.isprintable()
    assert len(reason) < 700


def test_facts_that_are_nested_too_deeply(deploy: Deploy, tmp_path: Path) -> None:
    def lie(message: Message, reply: Message, node: int) -> None:
        if node == 1 and message.metadata.message_type == "query.describe":
            reply.content.config_records["facts"]["json"] = "[" * 100_000

    deploy("mode=federate", facts={1: {"classes": "siren"}}, app=Listener(lie))
    assert "nested too deeply" in refused(tmp_path)


@pytest.mark.parametrize("name", ["${env:HOME}", "${oc.env:NODE_SECRET}", "a\x1b[2J", "a\u200bb"], ids=ascii)
def test_an_odd_group_in_a_node_configuration(name: str, deploy: Deploy, tmp_path: Path) -> None:
    groups = {"classes": "siren", "granularity": "per_group", "groups": json.dumps({name: ["siren"]})}
    results = deploy("mode=combined", facts={1: groups})
    assert set(results["nodes"]) == {"0"}
    reason = refused(tmp_path)
    assert "nodes.*.groups and .classes: the name " in reason
    assert reason.isprintable()
    assert SECRET not in reason


def test_what_a_node_says_is_one_line_everywhere(
    deploy: Deploy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(message: Message, reply: Message, node: int) -> None:
        if node == 1 and message.metadata.message_type == "train":
            raise OSError("out\n[12:00:00] ERROR \x1b[2J\x1b]0;title\x07 of \u202eorder [bold]" + "x" * 5000)

    told = "OSError: out [12:00:00] ERROR \\x1b[2J\\x1b]0;title\\x07 of \\u202eorder [bold]xxx"
    results = deploy("mode=federate", "rounds=1", facts={1: {"classes": "siren"}}, app=Listener(fail))
    (reason,) = (reason for nodes in results["lost"].values() for reason in nodes.values())
    assert reason.startswith(told)
    assert len(reason) < 510
    assert f"node 1 is missing: {told}" in caplog.text
    with pytest.raises(AggregationError) as raised:
        deploy("mode=federate", "strategy.min_nodes=2", facts={1: {"classes": "siren"}}, app=Listener(fail))
    assert told in str(raised.value)
    assert str(raised.value).isprintable()
    assert all(line.isprintable() for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())


@pytest.mark.parametrize("name", ["a\x1b[2J", "a\nb", "x" * 200], ids=ascii)
def test_odd_names_of_metrics_are_refused(name: str, deploy: Deploy) -> None:
    def lie(message: Message, reply: Message, node: int) -> None:
        if node == 1 and message.metadata.message_type == "train":
            reply.content.metric_records["metrics"][name] = 1.0

    results = deploy("mode=federate", facts={1: {"classes": "siren"}}, app=Listener(lie))
    assert "is no name" in results["lost"]["1"]["1"]


def test_reasons_of_a_verdict_are_one_line_each(deploy: Deploy) -> None:
    told = {"verdict": "passed", "reasons": ["copies\n\x1b[2J", {"a": 1}] * 50, "summary": "a\x1b"}

    def lie(message: Message, reply: Message, node: int) -> None:
        if message.metadata.message_type == "query.assess":
            reply.content.config_records["report"]["audit"] = json.dumps(told)

    found = deploy("mode=combined", "evaluation.gate=warn", facts={1: {"classes": "siren"}}, app=Listener(lie))
    reasons = found["evaluation"]["gate"]["reasons"]
    assert len(reasons) == 40
    assert reasons[:2] == ["node 0: copies \\x1b[2J", "node 0: {'a': 1}"]


def test_legal_odd_names_live_through_a_whole_run(tmp_path: Path, home: Path) -> None:
    root, folder = sounds(tmp_path / "audio", LEGAL), tmp_path / "run"
    own = ["data=folder", f"data.root={root}", f"run_dir={folder}", "partition.nodes=2", "granularity=per_class"]
    results = run(load_config([*SMALL, *own, "mode=combined", "rounds=1", "checkpoint.frequency=1"]))
    assert results["classes"] == sorted(LEGAL)
    assert set(results["samples"]) == set(LEGAL)
    assert RunFolder(folder).config().data.root == str(root)
    assert {path.name for path in folder.glob("*.png")} >= {"accuracy.png", "partition.png", "confusion.png"}
    page = write_report([folder]).read_text()
    for name in LEGAL:
        assert name in unescape(page)
    assert "<i>w" not in page
    assert main(["checkpoints", str(folder)]) == 0
    assert main(["compare", str(folder)]) == 0
    assert main(["evaluate", str(folder)]) == 0


def test_odd_names_survive_the_configuration_of_a_run_and_its_resumption(tmp_path: Path, home: Path) -> None:
    root, folder = sounds(tmp_path / "audio", LEGAL[:7]), tmp_path / "run"
    groups = {"yes": LEGAL[:3], "{{ 7*7 }}": LEGAL[3:7]}
    names = f"data.classes=[{', '.join(json.dumps(name) for name in LEGAL[:7])}]"
    own = ["data=folder", f"data.root={root}", f"run_dir={folder}", "partition.nodes=2", names]
    config = load_config([*SMALL, *own, "mode=combined", "rounds=1"])
    results = run(replace(config, granularity=GranularitySettings("per_group", groups)))
    assert results["classes"] == sorted(LEGAL[:7])
    assert RunFolder(folder).config().granularity.groups == groups
    assert RunFolder(folder).config().data.classes == LEGAL[:7]
    resumed = run(load_config([f"resume={folder}"]))
    assert resumed["classes"] == results["classes"]


def test_pictures_take_names_as_they_are(tmp_path: Path) -> None:
    names = ["$\\frac$ g$", "$x^2$", "a_b", "\\alpha"]
    plain = ["$\\frac$ g$", "$x^2$", "a b", "\\alpha"]
    axes = Figure().subplots()
    confusion_axes(axes, np.eye(4, dtype=int).tolist(), names)
    partition_axes(Figure().subplots(), {"0": dict.fromkeys(names, 1)}, names)
    labels = [*axes.get_xticklabels(), *axes.get_yticklabels()]
    assert [label.get_text() for label in labels] == plain * 2
    assert not any(label.get_parse_math() for label in labels)
    history = [{"round": 1, "accuracy": 1.0}]
    results = {"classes": names, "history": history, "nodes": {"0": {}}, "confusion": np.eye(4, dtype=int).tolist()}
    assert len(draw_run(results, tmp_path)) == 3
    records = Records(torch.eye(4)[:, None], torch.arange(4))
    samples_figure(Site(records, records, records), names).savefig(tmp_path / "samples.png")


def test_tables_take_cells_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    table = PlainTable(title="[bold] title")
    table.add_column("x", overflow="fold")
    for name in ("[bold]z[/bold]", "[/]", "\x1b[2J\x07", "\\[a]", ":warning:", "two\nlines"):
        table.add_row(name)
    assert Console(width=80).measure(table).maximum > 0
    show(table)
    out = capsys.readouterr().out
    for words in ("[bold]z[/bold]", "[/]", "\\x1b[2J\\x07", "\\[a]", ":warning:", "[bold] title"):
        assert words in out
    assert "\x1b[2J" not in out


def test_errors_on_the_terminal_are_escaped(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "a\x1b[2Jb"
    assert main(["compare", str(folder)]) == 1
    assert "\x1b" not in capsys.readouterr().err


def test_file_names_are_bounded_and_differ() -> None:
    names = ["犬" * 200, "犬" * 199 + "猫", "x" * 200, "x" * 199 + "y", "../" * 60, "_round_3" * 25]
    files = {generator_file("vae_perclass", 12, "per_class", name) for name in names}
    folders = {folder_name(name) for name in names}
    assert len(files) == len(folders) == len(names)
    for name in files | folders:
        assert len(name.encode()) < 235
        assert "/" not in name


@pytest.mark.parametrize("name", ["..", "/", "a/..", ""])
def test_a_server_does_not_choose_the_folder_of_a_node(name: str) -> None:
    facts = {"state": "/var/node"}
    with pytest.raises(ConfigError, match="ends in a name"):
        node_home(name, facts)
    assert node_home("/srv/runs/first", facts) == Path("/var/node/first")

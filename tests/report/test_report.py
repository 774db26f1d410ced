"""The page about runs: what it tells, and that hostile text stays text."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

from fedgen.cli import main
from fedgen.errors import ConfigError
from fedgen.report.page import images, write_report
from fedgen.report.record import RunRecord
from fedgen.runs.folder import RunFolder

HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_of_several_runs(runs: Path) -> None:
    assert main(["report", str(runs / "combined"), str(runs / "federate")]) == 0
    page = Page(runs / "report.html")
    accuracy = json.loads((runs / "combined" / "results.json").read_text())["accuracy"]
    for words in (
        "combined",
        "federate",
        f"{accuracy:.3f}",
        "crickets",
        "kind: vae",
        "Adapters, text",
        "Generators",
        "MB sent",
    ):
        assert words in page.text
    assert {"img", "table", "caption", "h1", "h2"} <= {tag for tag, _ in page.tags}
    assert "Confusion" in page.text
    shutil.copy(runs / "combined" / "accuracy.png", runs / "combined" / "samples.png")
    assert "Real and synthetic embeddings" in Page(write_report([runs / "combined"])).text


def test_a_page_needs_no_network(runs: Path) -> None:
    page = Page(write_report([runs / "combined"]))
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "embed"}
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "srcset"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), f"<{tag} {name}={value[:80]}>"
    assert not re.search(r"url\((?!['\"]?data:)|@import", (runs / "combined" / "report.html").read_text())


def test_runs_are_compared_with_the_settings_in_which_they_differ(runs: Path, tmp_path: Path) -> None:
    for name, rate in (("slow[b]", 0.25), ("fast", 0.5)):
        shutil.copytree(runs / "federate", tmp_path / name)
        config = OmegaConf.load(tmp_path / name / "config.yaml")
        config.adapter.training.lr = rate
        OmegaConf.save(config, tmp_path / name / "config.yaml")
    results = json.loads((tmp_path / "fast" / "results.json").read_text())
    (tmp_path / "fast" / "results.json").write_text(json.dumps(results | {"accuracy": 0.99}))
    text = write_report([tmp_path / "slow[b]", tmp_path / "fast"]).read_text()
    cells = "{}/{}</th><td>adapter.training.lr={}</td>"
    better, worse = cells.format(tmp_path.name, "fast", 0.5), cells.format(tmp_path.name, "slow[b]", 0.25)
    assert 0 < text.index(better) < text.index(worse)


def test_a_run_that_has_not_finished(runs: Path) -> None:
    page = Page(write_report([runs / "unfinished"]))
    assert "not finished: 2 of 2 rounds" in page.text


def test_a_run_without_a_round(runs: Path, tmp_path: Path) -> None:
    """It is named, but in no legend, and nobody's reply is said to have been used."""
    folder = tmp_path / "early"
    folder.mkdir()
    shutil.copy(runs / "federate" / "config.yaml", folder)
    file = write_report([folder, runs / "federate"], tmp_path / "page.html")
    page = Page(file)
    assert re.search(rf"Without figures: \S*{tmp_path.name}/early\s", page.text)
    assert "No round has been done." in page.text
    about = "".join(attributes.get("alt") or "" for _, attributes in page.tags)
    assert f"{runs.name}/federate ends at" in about
    assert "early" not in about


def test_a_job_of_a_sweep_that_failed_says_why(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "7"
    folder.mkdir()
    shutil.copy(runs / "federate" / "config.yaml", folder)
    RunFolder(folder).fail("no room for <weights>")
    assert "stopped after 0 of 2 rounds: no room for <weights>" in Page(write_report([folder])).text


def test_the_loss_of_all_heads_has_a_name_of_its_own(runs: Path) -> None:
    record = RunRecord.read(runs / "combined")
    line = {"round": 1, "server/accuracy": 0.5} | {f"server/global_{n}": 1.0 for n in ("clip_loss", "t5_loss", "loss")}
    (losses,) = replace(record, lines=[line]).losses().values()
    assert list(losses) == ["clip", "t5", "all heads"]


def test_nodes_have_the_same_colour_in_every_chart(runs: Path) -> None:
    record = RunRecord.read(runs / "federate")
    lines = [{"round": 1, "train/node_2/text_loss": 1.0}, {"round": 1, "train/node_0/generator_loss": 0.5}]
    losses = replace(record, lines=lines).losses()
    assert list(losses["Adapters, text"]) == list(losses["Generators"]) == ["node 0", "node 2"]


def test_runs_of_the_same_name_are_told_apart(runs: Path, tmp_path: Path) -> None:
    for sweep in ("first", "second"):
        shutil.copytree(runs / "federate", tmp_path / sweep / "today" / "0")
    text = write_report([tmp_path / sweep / "today" / "0" for sweep in ("first", "second", "first")]).read_text()
    assert "<h1>2 runs</h1>" in text
    assert text.count("first/today/0 ends at") == text.count("second/today/0 ends at") == 1


def test_what_nodes_say_stays_text(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hostile"
    shutil.copytree(runs / "combined", folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if "server/answered" in line:
            line["server/lost"] = {"1": HOSTILE}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("results.json", "partition.json"):
        file = folder / name
        file.write_text(file.read_text().replace("crickets", HOSTILE.replace("/", "\\/")))
    page = Page(write_report([folder]))
    assert HOSTILE in page.text
    assert "node 12missing<script>" in page.text  # in the second round
    assert "script" not in {tag for tag, _ in page.tags}


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.yaml"):
        write_report([tmp_path])


def test_pictures_that_are_left_out_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "render" / "dog"
    folder.mkdir(parents=True)
    for number in range(62):
        (folder / str(number)).mkdir()
        Image.new("RGB", (4, 4)).save(folder / str(number) / "grid.png")
    assert len(images(tmp_path)) == 60
    assert "shows 60 of 62 grids" in caplog.text

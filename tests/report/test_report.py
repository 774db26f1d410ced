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
from fedgen.config.phases import PhaseSettings
from fedgen.errors import ConfigError
from fedgen.report.page import beside, images, section, write_report
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
    for words in ("combined", "federate", f"{accuracy:.3f}", "crickets", "generator.kind", "Adapters, text", "MB sent"):
        assert words in page.text
    assert {"img", "table", "caption", "h1", "h2"} <= {tag for tag, _ in page.tags}
    assert (runs / "combined" / "accuracy.png").is_file()  # drawn again


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


def test_one_run_is_held_against_those_beside_it(runs: Path) -> None:
    page = Page(write_report([runs / "combined"]))
    assert "runs" in page.text
    assert any(f"{runs.name}/federate ends at" in (attributes.get("alt") or "") for _, attributes in page.tags)


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
    assert f"Without figures: {tmp_path.name}/early" in page.text
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


def test_settings_that_a_mode_has_no_use_for_are_not_in_front(runs: Path) -> None:
    def overview(mode: str) -> str:
        return write_report([runs / mode]).read_text().partition("<summary>All")[0]

    for key in ("generator.kind", "global_training.name"):
        assert key in overview("combined")
        assert key not in overview("federate")


def test_the_loss_of_all_heads_has_a_name_of_its_own(runs: Path) -> None:
    record = RunRecord.read(runs / "combined")
    assert list(record.global_losses()) == ["text"]
    line = {"round": 1, "server/accuracy": 0.5} | {f"server/global_{n}": 1.0 for n in ("clip_loss", "t5_loss", "loss")}
    assert list(replace(record, lines=[line]).global_losses()) == ["clip", "t5", "all heads"]


def test_phases_take_the_place_of_mode_and_rounds(runs: Path) -> None:
    record = RunRecord.read(runs / "combined")
    phases = [PhaseSettings("train_generators", 1), PhaseSettings("generate", 2)]
    given = section(replace(record, config=replace(record.config, phases=phases)), "it", 0)["config"]
    assert (given["phases.0.mode"], given["phases.1.rounds"]) == ("train_generators", "2")
    assert not {"mode", "rounds"} & set(given)
    assert section(record, "it", 0)["config"]["rounds"] == "2"


def test_nodes_have_the_same_colour_in_every_chart(runs: Path) -> None:
    record = RunRecord.read(runs / "federate")
    lines = [{"round": 1, "train/node_2/text_loss": 1.0}, {"round": 1, "train/node_0/generator": [{"kl": 0.5}]}]
    record = replace(record, lines=lines)
    assert list(record.adapter_losses()["text"]) == list(record.generator_losses()["kl"]) == ["node 0", "node 2"]


def test_what_was_spent_is_a_table_with_a_column_for_each_node(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "private"
    shutil.copytree(runs / "federate", folder)
    results = json.loads((folder / "results.json").read_text())
    spent = {"epsilon": 7.9, "mechanisms": [{"name": "means", "sensitivity": 8.07}]}
    results["privacy"] = {"epsilon": 8.0, "nodes": {"0": spent, "1": spent}}
    (folder / "results.json").write_text(json.dumps(results))
    text = write_report([folder]).read_text()
    assert '<th scope="row">mechanisms.means.sensitivity</th><td class="n">8.07</td><td class="n">8.07</td>' in text
    assert "{&#39;" not in text  # no Python


def test_runs_of_the_same_name_are_told_apart(runs: Path, tmp_path: Path) -> None:
    for sweep in ("first", "second"):
        shutil.copytree(runs / "federate", tmp_path / sweep / "today" / "0")
    text = write_report([tmp_path / sweep / "today" / "0" for sweep in ("first", "second", "first")]).read_text()
    assert "<h1>2 runs</h1>" in text
    assert text.count("first/today/0 ends at") == text.count("second/today/0 ends at") == 1


def test_runs_beside_it_that_are_too_many_are_told_of(
    runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(9):
        (tmp_path / str(number)).mkdir()
        for name in ("config.yaml", "metrics.jsonl"):
            shutil.copy(runs / "federate" / name, tmp_path / str(number))
    assert len(beside(RunRecord.read(tmp_path / "0"))) == 7
    assert "7 of 8 comparable runs beside it are drawn" in caplog.text


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
        Image.new("RGB", (4, 4)).save(folder / f"text_{number:02}.png")
    (folder / "text_00.png").write_bytes(b"half")
    assert len(images(tmp_path)) == 59
    assert "shows 60 of 62 pictures" in caplog.text
    assert "text_00.png is not on the page" in caplog.text

"""The page about runs: what it tells, that hostile text stays text, and how it looks in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from fedgen.cli import main
from fedgen.errors import ConfigError
from fedgen.local_run import run
from fedgen.report.page import images
from fedgen.report.writing import write_report
from fedgen.settings import Config

HOSTILE = "<script>alert(1)</script>"
CHROMIUM = [
    "chromium",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]


@pytest.fixture(scope="module")
def runs(tiny: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that made samples, one that did not, and one that has not finished."""
    folder = tmp_path_factory.mktemp("runs")
    for mode in ("one_shot", "federate"):
        config = tiny(f"mode={mode}", "rounds=2", "generator=vae", "evaluation.gate=warn", f"run_dir={folder / mode}")
        run(config)
    shutil.copytree(folder / "one_shot", folder / "unfinished")
    (folder / "unfinished" / "results.json").unlink()
    return folder


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
    assert main(["report", str(runs / "one_shot"), str(runs / "federate")]) == 0
    page = Page(runs / "report.html")
    accuracy = json.loads((runs / "one_shot" / "results.json").read_text())["accuracy"]
    for words in ("one_shot", "federate", f"{accuracy:.3f}", "crickets", "generator.kind", "Adapters, text", "MB sent"):
        assert words in page.text
    assert {"svg", "table", "caption", "h1", "h2"} <= {tag for tag, _ in page.tags}
    assert (runs / "one_shot" / "accuracy.png").is_file()  # drawn again


def test_a_page_needs_no_network(runs: Path) -> None:
    page = Page(write_report([runs / "one_shot"]))
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "embed"}
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "srcset"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), f"<{tag} {name}={value[:80]}>"
    assert not re.search(r"url\((?!['\"]?data:)|@import", (runs / "one_shot" / "report.html").read_text())


def test_one_run_is_held_against_those_beside_it(runs: Path) -> None:
    page = Page(write_report([runs / "one_shot"]))
    assert "runs" in page.text
    assert f"{runs.name}/federate" in page.text


def test_a_run_that_has_not_finished(runs: Path) -> None:
    page = Page(write_report([runs / "unfinished"]))
    assert "not finished: 2 of 2 rounds" in page.text


def test_what_nodes_say_stays_text(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hostile"
    shutil.copytree(runs / "one_shot", folder)
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
    assert "script" not in {tag for tag, _ in page.tags}


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.yaml"):
        write_report([tmp_path])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(width: int, scheme: str, runs: Path, tmp_path: Path) -> None:
    """Nothing is wider than the window, nothing is fetched or complained of, and the picture shows something."""
    page = write_report([runs / "one_shot", runs / "federate"], tmp_path / "page.html")
    probe = "<script>document.title = document.documentElement.scrollWidth + ' of ' + window.innerWidth</script></body>"
    measured = tmp_path / "measured.html"
    policy = "default-src 'none'"  # of the page, under which no script runs, not even ours
    assert policy in page.read_text()
    measured.write_text(
        page.read_text().replace("</body>", probe).replace(policy, f"{policy}; script-src 'unsafe-inline'")
    )
    browser = [*CHROMIUM, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},1600"]
    browser += ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    dumped = subprocess.run(
        [*browser, "--enable-logging=stderr", "--dump-dom", measured.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r"<title>(\d+) of (\d+)</title>", dumped.stdout)
    assert found is not None
    assert int(found[1]) <= int(found[2])
    assert "CONSOLE" not in dumped.stderr
    picture = tmp_path / "page.png"
    subprocess.run([*browser, f"--screenshot={picture}", page.as_uri()], capture_output=True, timeout=120, check=True)
    with Image.open(picture) as opened:
        grey = opened.convert("L")
        assert len(grey.getcolors(256)) > 50
        background = grey.getpixel((2, 2))
    assert (background < 100) == (scheme == "dark")


def test_pictures_that_are_left_out_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "render" / "dog"
    folder.mkdir(parents=True)
    for number in range(62):
        Image.new("RGB", (4, 4)).save(folder / f"text_{number:02}.png")
    (folder / "text_00.png").write_bytes(b"half")
    assert len(images(tmp_path)) == 59
    assert "shows 60 of 62 pictures" in caplog.text
    assert "text_00.png is not on the page" in caplog.text

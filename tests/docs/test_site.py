"""The site builds without a warning, and every page is on the front page and in the navigation."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_every_page_is_on_the_front_page_and_in_the_navigation() -> None:
    front = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| \[[^\]]+\]\(([\w-]+\.md)\) \| \S", front, re.MULTILINE)
    assert sorted([*named, "README.md"]) == PAGES
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    in_order = re.findall(r"([\w-]+\.md)", str(navigation))
    assert in_order == ["README.md", *named]


def test_figures_are_those_of_the_benchmarks() -> None:
    """What choosing.md quotes stands where the command that reproduces it stands."""
    sources = "".join((ROOT / "docs" / name).read_text() for name in ("results.md", "security.md"))
    text = (ROOT / "docs" / "choosing.md").read_text()
    text = re.sub(r"```.*?```|`[^`]*`|\([\w.#-]*\)", "", text, flags=re.DOTALL)
    assert set(re.findall(r"\d+\.\d+", text)) <= set(re.findall(r"\d+\.\d+", sources))


@pytest.mark.slow
def test_the_site_builds_and_needs_no_network(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {page.name: page.read_text(encoding="utf-8") for page in (tmp_path / "site").glob("*.html")}
    assert {"index.html", "api.html", "quickstart.html"} <= pages.keys()
    assert "Return an unfitted generator" in pages["api.html"]
    for name, page in pages.items():
        loaded = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"(https?:[^\"]+)", page)
        assert not loaded, f"{name} loads {loaded}"

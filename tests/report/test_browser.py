"""How the page looks in a real browser, on a telephone and on a screen, in the light and in the dark."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from PIL import Image

from fedgen.report.page import write_report

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
    "--allow-file-access-from-files",
]
FRAME = """<!doctype html><body style="margin:0">
<iframe src="{source}" style="display:block;border:0;width:{width}px;height:1600px"></iframe>
<script>window.onload = () => {{ document.title = JSON.stringify(({measure})(frames[0])) }}</script></body>"""
MEASURE = """page => {
  const all = (selector, inside) => [...(inside || page.document).querySelectorAll(selector)]
  for (const details of all("details")) details.open = true
  const sticks = cell => page.getComputedStyle(cell).position === "sticky"
  const sticky = all("th, td").filter(sticks)
  return {
    inner: page.innerWidth, content: page.document.documentElement.scrollWidth,
    charts: all("img").filter(image => image.complete && image.naturalWidth).length, sticky: sticky.length,
    loose: all(".scroll tr").filter(row => !sticks(row.firstElementChild)).length,
    without_line: sticky.filter(cell => page.getComputedStyle(cell).borderBottomWidth === "0px").length,
  }
}"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(width: int, scheme: str, runs: Path, tmp_path: Path) -> None:
    """Nothing is wider than the window, nothing is fetched or complained of, and the picture shows something."""
    page = write_report([runs / "combined", runs / "federate"], tmp_path / "page.html")
    frame = tmp_path / "frame.html"  # a window of its own would be 500 wide at least
    frame.write_text(FRAME.format(width=width, source=page.name, measure=MEASURE))
    browser = [*CHROMIUM, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={max(width, 500)},1600"]
    browser += ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    dumped = subprocess.run(
        [*browser, "--enable-logging=stderr", "--dump-dom", frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r"<title>(.+)</title>", dumped.stdout)
    assert found is not None
    measured = json.loads(unescape(found[1]))
    assert measured["inner"] == width
    assert measured["content"] <= width
    assert measured["charts"] > 5
    assert measured["sticky"] > 10
    assert measured["loose"] == 0
    assert measured["without_line"] == 0  # such a cell is painted over what its row has
    assert "CONSOLE" not in dumped.stderr
    picture = tmp_path / "page.png"
    subprocess.run([*browser, f"--screenshot={picture}", frame.as_uri()], capture_output=True, timeout=120, check=True)
    with Image.open(picture) as opened:
        grey = opened.convert("L").crop((0, 0, width, 1600))
        assert len(grey.getcolors(256)) > 50
        background = grey.getpixel((2, 2))
    assert (background < 100) == (scheme == "dark")

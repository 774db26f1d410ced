"""What a run shows on a terminal, what it prints where there is none, and what its log keeps."""

from __future__ import annotations

import logging
import os
import pty
import re
import sys
import termios
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.progress import Progress

import fedgen
from fedgen.cli import main
from fedgen.data.progress import LOG, ConsoleHandler, RoundsBar, made_quiet, quiet, show_step

Fedgen = Callable[..., int]

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"  # the cursor


class Terminal:
    """A terminal in place of both streams, and all that was written to it."""

    def __init__(self) -> None:
        self.ours, theirs = pty.openpty()
        modes = termios.tcgetattr(theirs)
        modes[1] &= ~termios.OPOST  # lines as they are written
        termios.tcsetattr(theirs, termios.TCSANOW, modes)
        self.stream = os.fdopen(theirs, "w", buffering=1, encoding="utf-8")
        self.written = b""
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        try:
            while part := os.read(self.ours, 65536):
                self.written += part
        except OSError:  # how a terminal ends that nobody writes to any more
            return

    def close(self) -> None:
        self.stream.close()
        self.reader.join(timeout=10)
        os.close(self.ours)

    @property
    def text(self) -> str:
        return self.written.decode()


@contextmanager
def terminal() -> Iterator[Terminal]:
    """Let a test write to a terminal; no fixture, because pytest sets the streams anew when the test itself begins."""
    opened = Terminal()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"TERM": "xterm", "COLUMNS": "250", "LINES": "50"}.items():
            patch.setenv(name, value)
        patch.setattr(sys, "stdout", opened.stream)
        patch.setattr(sys, "stderr", opened.stream)
        try:
            yield opened
        finally:
            RoundsBar.stop()
            opened.close()


@pytest.fixture
def run(
    tiny_overrides: list[str],
    no_plots: None,
    logging_as_before: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Fedgen:
    """Run the small configuration in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fedgen"])
    return lambda *words: main(["run", *tiny_overrides, *words])


def log_of(folder: str) -> list[str]:
    """The lines of a log without the time of day."""
    return [re.sub(r"^\[[^]]*\] ", "", line) for line in (Path(folder) / LOG).read_text().splitlines()]


def without_times(lines: list[str]) -> list[str]:
    return [re.sub(r"[\d.]+ s$|run folder: .*", "", line) for line in lines]


def test_a_terminal_shows_a_bar_with_the_step_of_the_round_and_every_line_once(
    run: Fedgen, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Progress.update

    def at_once(bar: Progress, *arguments: Any, **fields: Any) -> None:
        update(bar, *arguments, **fields | {"refresh": True})  # a small round is over before the bar moves by itself

    monkeypatch.setattr(Progress, "update", at_once)
    with terminal() as opened:
        assert run("mode=combined", "hydra.run.dir=run") == 0
        assert RoundsBar.shown is None
    written = opened.text
    assert written.count(HIDE) == written.count(SHOW) == 1
    shown = CONTROL.sub("", written)
    for step in (
        "0/1 0:00:00 -:--:-- training adapters 0/3 nodes",
        "fitting generators 2/3 nodes",
        "making samples 1/3 nodes",
        "training on the server",
        "testing",
        "1/1 0:",
    ):
        assert re.search(rf"rounds ━+ (.* )?{re.escape(step)}", shown), step
    lines = [line for line in log_of("run") if not line.startswith("fitting the codec")]  # once on a machine
    assert len(lines) == 4  # two rounds, the folder, and what the gate says
    for line in lines:
        assert shown.count(line) == lines.count(line) == 1, line


def test_without_a_terminal_lines_are_plain_and_quiet_ones_are_in_the_log_alone(
    run: Fedgen, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("mode=federate", "hydra.run.dir=loud") == 0
    shown = capfd.readouterr()
    assert not re.search(r"[\x00-\x09\x0b-\x1f]|rounds ━", shown.out + shown.err)
    assert all(shown.out.count(line) == 1 for line in log_of("loud"))
    assert run("--quiet", "mode=federate", "hydra.run.dir=silent") == 0
    assert capfd.readouterr() == ("", "")
    assert without_times(log_of("silent")) == without_times(log_of("loud"))
    assert "accuracy" in log_of("silent")[-1]


def test_a_handler_of_an_earlier_run_is_quiet_when_the_next_is(capsys: pytest.CaptureFixture[str]) -> None:
    handler = ConsoleHandler()
    with made_quiet(True):
        for level in (logging.INFO, logging.WARNING):
            handler.handle(logging.makeLogRecord({"levelno": level, "msg": f"of level {level}"}))
    assert capsys.readouterr().out == f"of level {logging.WARNING}\n"


def test_runs_in_one_process_have_a_log_each_and_no_line_twice(
    tiny_overrides: list[str],
    no_plots: None,
    logging_as_before: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for logger in (logging.getLogger(), logging.getLogger("fedgen")):
        monkeypatch.setattr(logger, "handlers", [])  # as in a process where nobody has set up logging
    for name, rounds in (("standalone", 1), ("federate", 2), ("centralised", 1)):
        fedgen.run(*tiny_overrides, f"mode={name}", f"rounds={rounds}", run_dir=tmp_path / name)
        assert [line for line in log_of(str(tmp_path / name)) if line.startswith("round ")][-1].startswith(
            f"round {rounds}/{rounds} {name} |"
        )
    shown = capfd.readouterr()
    printed = Counter(re.findall(r"round \d/\d \w+ \||accuracy [\d.]+ after.*", shown.out))
    assert {f"round {number}/2 federate |" for number in range(3)} < set(printed)
    assert set(printed.values()) == {1}
    for name in ("standalone", "federate", "centralised"):
        lines = log_of(str(tmp_path / name))
        assert all(times == 1 for times in Counter(lines).values())
        assert all(name in line for line in lines if line.startswith("round "))


def test_a_bar_and_a_log_that_an_error_has_left_are_taken_away(
    tiny_overrides: list[str], no_plots: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        assert RoundsBar.shown is not None
        raise RuntimeError("out of memory")

    own = logging.getLogger("fedgen")
    before = list(own.handlers)
    monkeypatch.setattr("fedgen.server_app.zero_shot", fail)
    with terminal() as opened:
        with pytest.raises(RuntimeError, match="out of memory"):
            fedgen.run(*tiny_overrides, "mode=federate", run_dir=tmp_path / "run")
        assert RoundsBar.shown is None
        assert sys.stdout is opened.stream
    assert own.handlers == before


def test_who_shows_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    def shows() -> bool:
        bar = RoundsBar(3)
        bar.start(0)
        return RoundsBar.shown is bar

    with terminal() as opened:
        assert shows()
        assert shows()  # in place of the one before
        RoundsBar.stop()
        show_step("nobody looks")
        with monkeypatch.context() as patch:
            patch.setenv("FEDGEN_QUIET", "1")
            assert not shows()
        with monkeypatch.context() as patch:
            patch.setattr("multiprocessing.parent_process", lambda: "a sweep with several jobs at once")
            assert not shows()
        with monkeypatch.context() as patch, open(os.devnull, "w") as nowhere:
            patch.setattr(sys, "stderr", nowhere)
            assert not shows()
    assert "nobody looks" not in opened.text


@pytest.mark.parametrize("command", ["simulate", "submit"])
def test_flowers_runs_are_quiet_too(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[bool] = []

    def start(*arguments: object) -> None:
        seen.append(quiet())

    monkeypatch.setattr(f"fedgen.runtimes.simulation.{command}", start)
    name = ["hospitals"] if command == "submit" else []
    assert main([command, "--quiet", *name, "mode=federate"]) == 0
    assert main([command, *name, "mode=federate"]) == 0
    assert seen == [True, False]
    assert capsys.readouterr().out == ""

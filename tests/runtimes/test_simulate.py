"""Runs that are handed to a SuperLink, on a tiny app: what it is told, how the run ended, and what goes on."""

import re
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import superlinks
from flwr.common.config import parse_config_args
from hypothesis import given
from hypothesis import strategies as st

from fedgen.errors import ConfigError, FedgenError
from fedgen.runtimes.simulation import _stream, run_config_toml, submit

PYPROJECT = """
[project]
name = "tiny"
version = "1.0.0"
description = "Adds its partition to the weights"
license = "Apache-2.0"
dependencies = ["flwr"]

[tool.flwr.app]
publisher = "tiny"

[tool.flwr.app.components]
serverapp = "tiny.app:server"
clientapp = "tiny.app:client"

[tool.flwr.app.config]
overrides = ""
"""

APP = """
import os
import shlex
import time

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

client = ClientApp()
server = ServerApp()


@client.train()
def train(message, context):
    weights = message.content["arrays"]["w"].numpy() + context.node_config["partition-id"]
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": ArrayRecord({"w": Array(weights)}), "metrics": metrics}), reply_to=message)


@server.main()
def main(grid, context):
    overrides = shlex.split(context.run_config["overrides"])
    print("OVERRIDES", overrides, "IN", os.getcwd(), flush=True)
    if "mode=fail" in overrides:
        raise RuntimeError("told to fail")
    if "mode=wait" in overrides:
        time.sleep(600)
    strategy = FedAvg(fraction_evaluate=0, min_train_nodes=3, min_available_nodes=3)
    result = strategy.start(grid, ArrayRecord({"w": Array(np.zeros(1, np.float32))}), num_rounds=2)
    print("WEIGHTS", result.arrays["w"].numpy().round(3).tolist())
"""


# A background job of a shell inherits that Ctrl-C is ignored.
WITH_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    (folder / "tiny").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "tiny" / "__init__.py").touch()
    (folder / "tiny" / "app.py").write_text(APP)
    return folder


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_every_override_survives_the_run_config(overrides: list[str]):
    values = tomllib.loads(run_config_toml(overrides))
    assert shlex.split(values["overrides"]) == overrides


def test_what_one_types_by_hand_reads_the_same():
    typed = parse_config_args(["overrides=\"mode=combined 'target.template=the sound of {}' data.classes=[dog,rain]\""])
    wanted = ["mode=combined", "target.template=the sound of {}", "data.classes=[dog,rain]"]
    assert shlex.split(typed["overrides"]) == wanted


def test_flower_reads_the_file_as_we_wrote_it(tmp_path: Path):
    overrides = ["data.classes=[dog, 'sea waves']", 'a="b\\c"', "d=é\x7f\n"]
    (tmp_path / "run.toml").write_text(run_config_toml(overrides), encoding="utf-8")
    assert shlex.split(parse_config_args([str(tmp_path / "run.toml")])["overrides"]) == overrides


def test_what_is_not_there_is_refused(tmp_path: Path, app: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match=r"holds no pyproject\.toml"):
        submit("hospitals", [], app=tmp_path)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    (tmp_path / "config.toml").write_text('[superlink]\ndefault = "x"\n[superlink.hospital]\naddress = "a:1"\n')
    with pytest.raises(FedgenError, match=r"`flwr run` failed: .*'hospitals' not found in the Flower configuration"):
        submit("hospitals", [], app=app)


def test_stop_all_ends_detached_and_stubborn_processes_of_its_home_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(superlinks, "STOP_SECONDS", 1.0)
    mine, other = tmp_path / "mine", tmp_path / "other"
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    processes = []
    for home in (mine, other):
        superlinks.work_folder(home).mkdir(parents=True)
        process = superlinks.spawn([sys.executable, "-c", ignore], home, subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()  # it ignores the signal from here on
        processes.append(process)
    superlinks.stop_all(mine)
    assert processes[0].wait(timeout=5) == -signal.SIGKILL
    assert processes[1].poll() is None
    superlinks.stop_all(other)
    assert processes[1].wait(timeout=5) == -signal.SIGKILL


@pytest.mark.slow
def test_a_submitted_run_that_fails_and_one_that_is_left_alone(
    app: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    home = tmp_path / "home"
    home.mkdir()
    with superlinks.running_superlink(home, simulation=False):
        monkeypatch.setenv("FLWR_HOME", str(home))
        with pytest.raises(FedgenError, match=r"run \d+ ended as finished:failed: .*told to fail"):
            submit(superlinks.CONNECTION, ["mode=fail"], app=app)
        assert "OVERRIDES ['mode=fail']" in capfd.readouterr().out
        call = f"submit({superlinks.CONNECTION!r}, ['mode=wait'], app=Path({str(app)!r}))"
        code = f"from pathlib import Path; from fedgen.runtimes.simulation import submit; {call}"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen([sys.executable, "-c", WITH_CTRL_C + code], cwd=tmp_path, **pipes)
        assert process.stdout is not None
        assert any("OVERRIDES" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        assert f"The run goes on: `flwr list {superlinks.CONNECTION}` shows it" in process.stdout.read()
        assert process.wait(timeout=60) != 0
        commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in superlinks.processes_of(home)]
        assert any("flwr-serverapp" in command for command in commands), commands  # it does
        assert not any("\0log\0" in command for command in commands)


@pytest.mark.slow
def test_a_run_that_cannot_start_is_an_error(app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (app / "pyproject.toml").write_text(PYPROJECT.replace('overrides = ""', ""))
    with superlinks.running_superlink(tmp_path, simulation=False):
        monkeypatch.setenv("FLWR_HOME", str(tmp_path))
        with pytest.raises(FedgenError, match=r"`flwr run` failed: .*Invalid run configuration"):
            submit(superlinks.CONNECTION, ["mode=fine"], app=app)


def test_of_a_servers_log_quiet_passes_on_warnings_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    say = """
import logging
from fedgen.data.progress import show_lines
show_lines()
print("INFO: Flower's own")
for level in (logging.INFO, logging.WARNING):
    logging.getLogger("fedgen.server_app").log(level, "round 1 of level %d", level)
"""
    monkeypatch.setattr(
        "fedgen.runtimes.simulation._command", lambda *words: {"args": [sys.executable, "-c", say], "text": True}
    )
    _stream(tmp_path, "1", "x")
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "INFO: Flower's own"
    assert re.fullmatch(r"\[\d\d:\d\d:\d\d\] INFO round 1 of level 20", lines[1])
    monkeypatch.setenv("FEDGEN_QUIET", "1")
    _stream(tmp_path, "1", "x")
    assert capfd.readouterr().out.endswith("] WARNING round 1 of level 30\n")

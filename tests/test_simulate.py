"""Flower's own simulation, on a tiny app: it starts, says how it ended, and leaves nothing behind."""

import re
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args
from hypothesis import given
from hypothesis import strategies as st

from fedgen import superlink
from fedgen.errors import ConfigError, FedgenError
from fedgen.simulate import root_error, run_config_toml, simulate, submit

CHECKOUT = Path(__file__).parents[1]

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
    typed = parse_config_args(["overrides=\"mode=one_shot 'target.template=the sound of {}' data.classes=[dog,rain]\""])
    wanted = ["mode=one_shot", "target.template=the sound of {}", "data.classes=[dog,rain]"]
    assert shlex.split(typed["overrides"]) == wanted


def test_flower_reads_the_file_as_we_wrote_it(tmp_path: Path):
    overrides = ["data.classes=[dog, 'sea waves']", 'a="b\\c"', "d=é\x7f\n"]
    (tmp_path / "run.toml").write_text(run_config_toml(overrides), encoding="utf-8")
    assert shlex.split(parse_config_args([str(tmp_path / "run.toml")])["overrides"]) == overrides


def test_the_root_error_is_the_first_of_the_last_chain():
    log = """INFO start
ERROR Traceback (most recent call last):
KeyError: an earlier one
ERROR Simulation raised an exception
Traceback (most recent call last):
  File "actor.py", line 5
    raise ValueError
ValueError: no GPU

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
RuntimeError: An error was encountered.
ERROR Exit Code: 700""".splitlines()
    assert root_error(log) == (4, "ValueError: no GPU")
    assert root_error(log[:3]) == (2, "KeyError: an earlier one")
    assert root_error(["fine", "ERROR broken", "end"]) == (2, "ERROR broken")
    assert root_error(["fine"]) == (1, "the log shows no error")


def test_wrong_settings_are_refused_before_anything_starts(tmp_path: Path, app: Path):
    with pytest.raises(ConfigError, match=r"holds no pyproject\.toml"):
        simulate([], 3, app=tmp_path)
    with pytest.raises(ConfigError, match="nodes=0, cpus=1"):
        simulate([], 0, app=app)


def test_a_connection_that_is_not_there_is_refused(tmp_path: Path, app: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="no connection to a SuperLink can be read from"):
        submit("hospitals", [], app=app)
    (tmp_path / "config.toml").write_text('[superlink]\ndefault = "x"\n[superlink.hospital]\naddress = "a:1"\n')
    with pytest.raises(ConfigError, match=r"CONNECTION='hospitals' is not one of hospital\."):
        submit("hospitals", [], app=app)


def test_a_missing_flower_is_an_error(tmp_path: Path):
    with pytest.raises(FedgenError, match="no `flower-nothing` beside"):
        superlink.spawn(["flower-nothing"], tmp_path, subprocess.PIPE)


def test_the_environment_keeps_flower_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    monkeypatch.setenv("no_proxy", "example.org")
    monkeypatch.setenv("FEDGEN_HOME", "cache")
    monkeypatch.chdir(tmp_path)
    values = superlink.environment(tmp_path)
    assert "RAY_ADDRESS" not in values
    assert values["no_proxy"] == values["NO_PROXY"] == "example.org,127.0.0.1"
    assert values["FEDGEN_HOME"] == str(tmp_path / "cache")
    assert values["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"  # Flower would install torch once more
    assert values["OPENBLAS_NUM_THREADS"] == "1"  # more can hang for ever
    assert values["PATH"].startswith(str(Path(sys.executable).parent))


def test_stop_all_ends_detached_and_stubborn_processes_of_its_home_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(superlink, "STOP_SECONDS", 1.0)
    mine, other = tmp_path / "mine", tmp_path / "other"
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    processes = []
    for home in (mine, other):
        superlink.work_folder(home).mkdir(parents=True)
        process = superlink.spawn([sys.executable, "-c", ignore], home, subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()  # it ignores the signal from here on
        processes.append(process)
    superlink.stop_all(mine)
    assert processes[0].wait(timeout=5) == -signal.SIGKILL
    assert processes[1].poll() is None
    superlink.stop_all(other)
    assert processes[1].wait(timeout=5) == -signal.SIGKILL


def home_in(text: str) -> Path:
    """Return the temporary Flower home that the ServerApp printed as its working directory."""
    match = re.search(r"OVERRIDES .* IN (\S+)/work\n", text)
    assert match is not None, text
    return Path(match[1])


@pytest.mark.slow
def test_a_run_of_three_nodes_completes(app: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    log = tmp_path / "logs" / "run.log"
    assert simulate(["mode=fine", "a='b c'", 'd="e\\f"'], nodes=3, app=app, log=log) == 0
    text = capfd.readouterr().out
    assert str(["mode=fine", "a='b c'", 'd="e\\f"']) in text
    assert "WEIGHTS [2.0]" in text  # two rounds, each adds the mean of 0, 1 and 2
    assert log.read_text() == text
    assert superlink.processes_of(home_in(text)) == []
    assert not home_in(text).exists()


@pytest.mark.slow
def test_a_run_whose_server_raises_fails_and_says_why(
    app: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    assert simulate(["mode=fail"], nodes=3, app=app) != 0
    ended, cause = [record.getMessage() for record in caplog.records][-2:]
    assert re.search(r"ended as finished:failed: .*told to fail", ended)
    match = re.fullmatch(r"The cause: RuntimeError: told to fail \((.*), line (\d+)\)", cause)
    assert match is not None
    kept = Path(match[1])
    assert "raised an exception" in kept.read_text().splitlines()[int(match[2]) - 1]
    kept.unlink()
    assert superlink.processes_of(home_in(capfd.readouterr().out)) == []


@pytest.mark.slow
def test_a_run_that_cannot_start_fails(app: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path):
    (app / "pyproject.toml").write_text(PYPROJECT.replace('overrides = ""', ""))
    log = tmp_path / "run.log"
    assert simulate(["mode=fine"], nodes=3, app=app, log=log) != 0
    assert "Invalid run configuration" in log.read_text()
    assert "started no run" in caplog.text


@pytest.mark.slow
def test_a_submitted_run_that_fails_and_one_that_is_left_alone(
    app: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    home = tmp_path / "home"
    home.mkdir()
    with superlink.running_superlink(home, simulation=False):
        monkeypatch.setenv("FLWR_HOME", str(home))
        assert submit(superlink.CONNECTION, ["mode=fail"], app=app, log=tmp_path / "log") != 0
        assert re.search(r"ended as finished:failed: .*told to fail", caplog.text)
        call = f"submit({superlink.CONNECTION!r}, ['mode=wait'], app=Path({str(app)!r}), log=Path('log'))"
        code = f"from pathlib import Path; from fedgen.simulate import submit; {call}"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen([sys.executable, "-c", WITH_CTRL_C + code], cwd=tmp_path, **pipes)
        assert process.stdout is not None
        assert any("OVERRIDES" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        assert f"The run goes on: `flwr list {superlink.CONNECTION}` shows it" in process.stdout.read()
        assert process.wait(timeout=60) != 0
        commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in superlink.processes_of(home)]
        assert any("flwr-serverapp" in command for command in commands), commands  # it does
        assert not any("--stream" in command for command in commands)


@pytest.mark.slow
def test_a_termination_signal_in_a_run_stops_everything(app: Path):
    call = f"simulate(['mode=wait'], 3, app=Path({str(app)!r}))"
    code = f"from pathlib import Path; from fedgen.simulate import simulate; {call}"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    home = home_in(next(line for line in process.stdout if "OVERRIDES" in line))
    assert len(superlink.processes_of(home)) >= 3
    process.terminate()
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert superlink.processes_of(home) == []
    assert not home.exists()


@pytest.mark.slow
def test_ctrl_c_stops_the_superlink(tmp_path: Path):
    code = f"""{WITH_CTRL_C}
import time
from pathlib import Path
from fedgen.superlink import running_superlink
with running_superlink(Path({str(tmp_path)!r})):
    print("up", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    assert superlink.processes_of(tmp_path)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0
    assert superlink.processes_of(tmp_path) == []

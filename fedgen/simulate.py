"""Run the project's apps on a SuperLink, or in Flower's own simulation, and tell the truth about how the run ended.

``flwr run --stream`` exits with 0 for failed runs, takes the ClientApp from the working directory of the SuperLink, and
shares one SuperLink, its port and its stored settings with everyone on the machine. So each simulation here has a
SuperLink of its own, and every SuperLink is asked how the run ended.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

from fedgen.errors import ConfigError, choose, require
from fedgen.progress import quiet, warns
from fedgen.superlink import CONNECTION, environment, running_superlink, spawn, work_folder

logger = logging.getLogger(__name__)

COMPLETED = "finished:completed"


def simulate(
    overrides: list[str],
    nodes: int,
    cpus: int = 1,
    gpus: float = 0.0,
    app: Path | None = None,
    log: Path | None = None,
) -> int:
    """Run a Flower app in a simulation of its own and stream its output.

    Parameters
    ----------
    overrides : list of str
        Hydra overrides; the ServerApp finds them as ``shlex.split(context.run_config["overrides"])``.
    nodes : int
        Number of simulated nodes.
    cpus, gpus : int, float
        What each node reserves: it limits how many nodes work at a time. Without ``gpus`` the nodes see no GPU.
    app : Path, optional
        Folder with the ``pyproject.toml`` of the app; this checkout by default.
    log : Path, optional
        File for a copy of the output. By default a temporary one, kept if the run fails.

    Returns
    -------
    int
        0 if Flower calls the run ``finished:completed``; otherwise another number, and the last lines logged say why
        and where to read on.

    Raises
    ------
    ConfigError
        For values that no simulation can be started with.
    FedgenError
        If Flower's commands are missing or its SuperLink does not start.
    """
    folder = _app(app)
    require(nodes >= 1 and cpus >= 1 and gpus >= 0, f"nodes={nodes}, cpus={cpus}, gpus={gpus}: at least 1, 1 and 0")
    resources = f"client-resources-num-cpus={cpus} client-resources-num-gpus={float(gpus)}"
    options = ["--federation-config", f"num-supernodes={nodes} {resources}"]
    with tempfile.TemporaryDirectory(prefix="fedgen-", ignore_cleanup_errors=True) as temporary:
        home = Path(temporary)
        with running_superlink(home):
            return _run(home, CONNECTION, folder, overrides, options, log)


def submit(connection: str, overrides: list[str], app: Path | None = None, log: Path | None = None) -> int:
    """Run a Flower app on a SuperLink that is running, and stream its output.

    Parameters
    ----------
    connection : str
        Name of the SuperLink in ``$FLWR_HOME/config.toml`` (``~/.flwr``).
    overrides, app, log
        As `simulate` has them.

    Returns
    -------
    int
        As `simulate` returns it. Who interrupts it leaves the run to the SuperLink, which goes on with it.

    Raises
    ------
    ConfigError
        If there is no such connection, or no such app.
    FedgenError
        If Flower's commands are missing.
    """
    folder, home = _app(app), Path(os.environ.get("FLWR_HOME") or "~/.flwr").expanduser().absolute()
    choose(connection, _connections(home / "config.toml"), "CONNECTION")
    work_folder(home).mkdir(exist_ok=True)
    try:
        return _run(home, connection, folder, overrides, [], log)
    except KeyboardInterrupt:
        logger.warning("The run goes on: `flwr list %s` shows it, `flwr stop RUN %s` ends it", connection, connection)
        raise


def run_config_toml(overrides: list[str]) -> str:
    """Return a run configuration file with the overrides as one string.

    On the command line Flower takes no double quotes or backslashes inside a value; in a file every character works.
    ``shlex.split`` gives the list back, also from what one types by hand: ``overrides="mode=one_shot rounds=3"``.
    """
    text = json.dumps(shlex.join(overrides), ensure_ascii=False)  # TOML's escapes, but for one character
    return f"overrides = {text}\n".replace("\x7f", "\\u007f")


def root_error(lines: list[str]) -> tuple[int, str]:
    """Return where a log tells of the failure: the number of the line, and the exception that started it.

    Flower logs ``... raised an exception`` and the whole chain of tracebacks; the first exception is the cause.
    """
    for sign in ("raised an exception", "Traceback (", "ERROR"):
        places = [i for i, line in enumerate(lines) if sign in line]
        if places:
            break
    else:
        return len(lines), "the log shows no error"
    after = itertools.dropwhile(lambda line: "Traceback (" not in line, lines[places[-1] :])
    text = next((line for line in itertools.islice(after, 1, None) if not line.startswith((" ", "\t"))), "")
    return places[-1] + 1, text.strip() or lines[places[-1]].strip()


def _app(app: Path | None) -> Path:
    folder = Path(app or Path(__file__).parents[1]).resolve()
    require((folder / "pyproject.toml").is_file(), f"app={folder} holds no pyproject.toml: not a Flower app")
    return folder


def _connections(file: Path) -> list[str]:
    """Return the names of the SuperLinks in Flower's configuration."""
    try:
        entries = tomllib.loads(file.read_text(encoding="utf-8")).get("superlink", {})
    except (OSError, ValueError) as error:
        raise ConfigError(f"no connection to a SuperLink can be read from {file}: {error}") from error
    return [name for name, entry in entries.items() if isinstance(entry, dict)]


def _run(home: Path, connection: str, app: Path, overrides: list[str], options: list[str], log: Path | None) -> int:
    """Run the app on a SuperLink and return an exit code that tells the truth; see `simulate`."""
    path = (log or Path(tempfile.gettempdir()) / f"fedgen-run-{os.getpid()}.log").resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    code = 0
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as settings:
            settings.write(run_config_toml(overrides))  # a file is the one way to pass every character
            settings.flush()
            given = ["--stream", "--run-config", settings.name, *options]
            code = _exit_code(["flwr", "run", str(app), connection, *given], connection, home, path)
    finally:
        if code == 0 and log is None:
            path.unlink(missing_ok=True)
    return code


def _exit_code(command: list[str], connection: str, home: Path, log: Path) -> int:
    """Stream a ``flwr run``, ask how it ended, and say why if it failed."""
    code, lines = _stream(command, home, log)
    started = re.search(r"Successfully started run (\d+)", "".join(lines))
    if started is None:
        if quiet():
            sys.stdout.writelines(lines)
        logger.error("`flwr run` started no run (exit code %d): its message is above", code)
        return code or 1
    status, details = _outcome(started[1], connection, home)
    if status == COMPLETED:
        return 0
    number, error = root_error(lines)
    logger.error("Run %s ended as %s: %s", started[1], status, details or "Flower gives no details")
    logger.error("The cause: %s (%s, line %d)", error, log, number)
    return code or 1


def _stream(command: list[str], home: Path, log: Path) -> tuple[int, list[str]]:
    """Run a command of Flower and pass its output through, and to ``log``; return its exit code and the lines.

    With ``--quiet`` only the server's warnings and errors pass; what it says of a failure is said at the end.
    """
    lines: list[str] = []
    process = spawn(command, home, subprocess.PIPE)
    assert process.stdout is not None
    try:
        with log.open("w", encoding="utf-8") as copy:  # not `with process`: after a signal it would wait for the run
            for raw in process.stdout:
                lines.append(raw.decode("utf-8", errors="replace"))
                for stream in (sys.stdout, copy) if not quiet() or warns(lines[-1]) else (copy,):
                    stream.write(lines[-1])
                    stream.flush()
        return process.wait(), lines
    finally:
        process.terminate()  # after a signal; it is no child of the terminal's


def _outcome(run_id: str, connection: str, home: Path) -> tuple[str, str]:
    """Return the final status of a run and its details; the stream may end before the run does."""
    command = ["flwr", "list", connection, "--run-id", run_id, "--format", "json"]
    while True:
        listed = subprocess.run(command, cwd=work_folder(home), env=environment(home), capture_output=True, text=True)
        try:
            run = json.loads(listed.stdout)["runs"][0]
        except (ValueError, KeyError, IndexError):
            return "unknown", f"`flwr list` failed: {(listed.stdout + listed.stderr).strip()[-500:]}"
        if run["status"].startswith("finished"):
            return run["status"], run["status-details"]
        time.sleep(1.0)

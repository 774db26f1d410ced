"""Run the apps in Flower's own simulation, or on a SuperLink; a run that failed raises."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedgen.config.settings import Config
from fedgen.data.progress import RoundsBar, leave_log, quiet
from fedgen.errors import FedgenError, require
from fedgen.runs.folder import RunFolder

logger = logging.getLogger(__name__)

COMPLETED = "finished:completed"
WARNS = re.compile(r"\[\d\d:\d\d:\d\d\] (WARNING|ERROR|CRITICAL) ")  # how `show_lines` prints them
ENVIRONMENT = {  # neither packages that are installed over these, nor calls home
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONUNBUFFERED": "1",
}


def simulate(config: Config, cpus: int = 1, gpus: float = 0.0) -> dict[str, Any]:
    """Run ``config``, whose ``run_dir`` is set, in Flower's simulation, and return the content of ``results.json``.

    Parameters
    ----------
    config : Config
    cpus, gpus : int, float
        What each node reserves: it limits how many nodes work at a time. Without ``gpus`` the nodes see no GPU.

    Raises
    ------
    FedgenError
    """
    os.environ.update(ENVIRONMENT)
    logging.getLogger("alembic").setLevel(logging.ERROR)  # of Flower's database; it logs when it is imported
    import ray
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    from fedgen.client_app import app as client_app
    from fedgen.server_app import federate

    server, grids = ServerApp(), []

    @server.main()
    def main(grid: Grid, context: Any) -> None:
        grids.append(grid)
        federate(grid, config)

    def ended(message_ids: Any) -> Any:
        raise FedgenError("the simulation has ended")

    logging.getLogger("flwr").setLevel(logging.ERROR)  # our own progress lines are shorter
    warnings.filterwarnings("ignore", module="ray")
    # before the server's thread works: Ray forks, which ends OpenBLAS's threads, and NumPy would wait for them for ever
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        most = {name: ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU")}
        good = 1 <= cpus <= most["CPU"] and 0 <= gpus <= most["GPU"]
        require(good, f"cpus={cpus}, gpus={gpus}: at least 1 and 0, at most {most['CPU']:g} and {most['GPU']:g} here")
        resources: dict[str, Any] = {"client_resources": {"num_cpus": cpus, "num_gpus": gpus}}
        run_simulation(server, client_app, config.partition.nodes, backend_config=resources)
    finally:
        for grid in grids:  # after Ctrl-C the server's thread would wait for replies, and the process for the thread
            grid.pull_messages = ended  # type: ignore[method-assign]
        ray.shutdown()
        RoundsBar.stop()
        leave_log()
    return RunFolder(Path(str(config.run_dir))).results()


def submit(connection: str, overrides: list[str], app: Path | None = None) -> None:
    """Run a Flower app on a SuperLink that is running, and stream its log.

    After Ctrl-C the run goes on.

    Parameters
    ----------
    connection : str
        Name of the SuperLink in ``$FLWR_HOME/config.toml`` (``~/.flwr``).
    overrides : list of str
        Hydra overrides; the ServerApp reads them as ``shlex.split(context.run_config["overrides"])``.
    app : Path, optional
        Folder with the ``pyproject.toml`` of the app; fedgen itself by default.

    Raises
    ------
    ConfigError
        There is no such app.
    FedgenError
        Flower knows no such connection or starts no run, or the run ends as anything but ``finished:completed``.
    """
    home = Path(os.environ.get("FLWR_HOME") or "~/.flwr").expanduser().absolute()
    home.mkdir(parents=True, exist_ok=True)
    with app_folder(app) as folder, tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as settings:
        settings.write(run_config_toml(overrides))  # only in a file may a value have any character
        settings.flush()
        run = _ask_flower(home, "run", str(folder), connection, "--run-config", settings.name)["run-id"]
    try:
        _stream(home, run, connection)
        while True:  # the stream may end before the run does
            found = _ask_flower(home, "list", connection, "--run-id", run)["runs"][0]
            if found["status"].startswith("finished"):
                break
            time.sleep(1.0)
    except KeyboardInterrupt:
        logger.warning("The run goes on: `flwr list %s` shows it, `flwr stop RUN %s` ends it", connection, connection)
        raise
    if found["status"] != COMPLETED:
        raise FedgenError(f"run {run} ended as {found['status']}: {found['status-details'] or 'see its log'}")


@contextmanager
def app_folder(app: Path | None = None) -> Iterator[Path]:
    """Give the folder of a Flower app: ``app``, this checkout, or a copy of the installed package in its layout."""
    package = Path(__file__).resolve().parents[1]
    folder = (app or package.parent).resolve()
    if app or not (package / "app").is_dir() or (folder / "pyproject.toml").is_file():
        require((folder / "pyproject.toml").is_file(), f"app={folder} holds no pyproject.toml: not a Flower app")
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="fedgen-") as name:
        shutil.copytree(package / "app", name, dirs_exist_ok=True)
        shutil.copytree(package / "conf", Path(name) / "conf")
        shutil.copytree(package, Path(name) / "fedgen", ignore=shutil.ignore_patterns("app", "conf", "__pycache__"))
        yield Path(name)


def run_config_toml(overrides: list[str]) -> str:
    """Return a run configuration file with the overrides as one string.

    On the command line Flower takes no double quotes or backslashes inside a value. ``shlex.split`` gives the list
    back, also from a value that is typed by hand: ``overrides="mode=combined rounds=3"``.
    """
    text = json.dumps(shlex.join(overrides), ensure_ascii=False)  # TOML's escapes, but for one character
    return f"overrides = {text}\n".replace("\x7f", "\\u007f")


def _command(home: Path, *words: str) -> dict[str, Any]:
    """Return the arguments of `subprocess.run` for a command of Flower; in a checkout it would take the apps there."""
    flower = Path(sys.executable).with_name("flwr")
    return {"args": [flower, *words], "cwd": home, "env": os.environ | ENVIRONMENT, "text": True, "errors": "replace"}


def _ask_flower(home: Path, *words: str) -> dict[str, Any]:
    """Return what a command of Flower answers; raises `FedgenError` with its own message if it fails."""
    done = subprocess.run(**_command(home, *words, "--format", "json"), capture_output=True)
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        answer = {"error-message": done.stdout + done.stderr}
    if not answer.get("success"):
        raise FedgenError(f"`flwr {words[0]}` failed: {' '.join(str(answer.get('error-message')).split())[-500:]}")
    return answer


def _stream(home: Path, run: str, connection: str) -> None:
    """Print the log of a run until its end; with ``--quiet`` its warnings and errors alone."""
    command = _command(home, "log", run, connection)
    with subprocess.Popen(**command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if not quiet() or WARNS.match(line):
                    sys.stdout.write(line)
                    sys.stdout.flush()
        finally:
            process.terminate()  # after a signal, which may not have reached it

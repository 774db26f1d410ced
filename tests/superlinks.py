"""A SuperLink of our own: started in a Flower home of its own, and stopped with everything that it started."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

CONNECTION = "simulation"  # name of the SuperLink in its Flower home
START_SECONDS = 120.0  # how long a SuperLink may take to answer
STOP_SECONDS = 10.0  # how long processes may take to end before they are killed
RAY_PATH_LIMIT = 38  # characters of a folder in which Ray can still create its sockets (107 in all)


@contextlib.contextmanager
def running_superlink(home: Path, simulation: bool = True) -> Iterator[str]:
    """Run a SuperLink on this machine as long as the block lasts; yields its address, without TLS.

    Parameters
    ----------
    home : Path
        An empty folder: the Flower home, with the connection `CONNECTION` and the log ``superlink.log``.
    simulation : bool
        Whether it simulates nodes, rather than waiting for SuperNodes.

    """
    work_folder(home).mkdir()
    try:
        yield _start(home, simulation)
    finally:
        stop_all(home)


def work_folder(home: Path) -> Path:
    """Return the folder where Flower works: a SuperLink started in a checkout would take the ClientApp from there."""
    return home / "work"


def environment(home: Path) -> dict[str, str]:
    """Return the environment of everything we start; its ``FLWR_HOME`` also marks these processes as ours."""
    values = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    no_proxy = ",".join(filter(None, [values.get("no_proxy", values.get("NO_PROXY")), "127.0.0.1"]))
    values |= {
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray forks while the ServerApp already works in a thread, and a fork ends OpenBLAS's threads: NumPy then waits
        # for them for ever. With one thread there is nothing to wait for; torch has threads of its own.
        "OPENBLAS_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{values.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
    }
    if values.get("FEDGEN_HOME"):  # relative to where we are, not to where Flower works
        values["FEDGEN_HOME"] = str(Path(values["FEDGEN_HOME"]).expanduser().absolute())
    if len(str(home)) <= RAY_PATH_LIMIT:
        values["RAY_TMPDIR"] = str(home)
    return values


def spawn(command: list[str], home: Path, output: IO[bytes] | int) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own: Ctrl-C reaches only us, and we stop everything in order."""
    path = shutil.which(command[0], path=environment(home)["PATH"])
    assert path is not None, command
    return subprocess.Popen(
        [path, *command[1:]],
        cwd=work_folder(home),
        env=environment(home),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def stop_all(home: Path) -> None:
    """Ask every process of this Flower home to end, and make those that do not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + STOP_SECONDS
        for pid in processes_of(home):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        while processes_of(home) and time.monotonic() < deadline:
            time.sleep(0.1)


def processes_of(home: Path) -> list[int]:
    """Return the ids of the processes that were started with ``FLWR_HOME=home``, whatever their parent or group.

    Flower and Ray detach their servers into sessions of their own, so neither the tree nor the group finds them all.
    """
    mark = f"FLWR_HOME={home}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
    return [pid for pid in found if pid != os.getpid()]


def _start(home: Path, simulation: bool) -> str:
    """Start the SuperLink on a free port, wait until it answers, and return its address."""
    port = free_port()
    names = f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
    (home / "config.toml").write_text(f'{names}address = "127.0.0.1:{port}"\ninsecure = true\n', encoding="utf-8")
    kind = ["--simulation"] if simulation else []
    command = ["flower-superlink", *kind, "--insecure", "--host", "127.0.0.1", "--port", str(port)]
    log = home / "superlink.log"
    with log.open("wb") as output:
        process = spawn(command, home, output)
    deadline = time.monotonic() + START_SECONDS
    while not _answers(port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(log.read_text(errors="replace")[-2000:])
        time.sleep(0.1)
    return f"127.0.0.1:{port}"


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0

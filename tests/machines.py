"""Real processes of a deployment, which a test may kill: a SuperLink with a database, SuperNodes, and a run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from superlinks import CONNECTION, environment, free_port, processes_of, spawn, stop_all, work_folder

from fedgen.runtimes.simulation import run_config_toml

CHECKOUT = Path(__file__).parents[1]
SECONDS = 300.0  # that anything may take on a busy machine


class Machines:
    """A SuperLink and SuperNodes, each with a Flower home of its own, whose processes are found by it.

    Parameters
    ----------
    folder : Path
        Where everything is.
    nodes : int
    """

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder, self.nodes, self.port = folder, nodes, free_port()
        self.run_id = ""  # of the run that was submitted last
        self.link = folder / "link"
        work_folder(self.link).mkdir(parents=True)
        names = f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
        (self.link / "config.toml").write_text(f'{names}address = "127.0.0.1:{self.port}"\ninsecure = true\n')
        for number in range(nodes):
            work_folder(self.home(number)).mkdir(parents=True)

    def home(self, number: int) -> Path:
        """Return the Flower home of a node."""
        return self.folder / f"n{number}"

    def start_link(self) -> None:
        """Start the SuperLink on its port and database, and wait until it answers."""
        command = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(self.port)]
        with (self.link / "log").open("ab") as log:
            process = spawn([*command, "--database", str(self.link / "state.db")], self.link, log)
        self.until(lambda: process.poll() is None and self._answers(), "the SuperLink answers")

    def start_node(self, number: int, facts: str = "") -> None:
        """Start a SuperNode; its state is where it was. ``facts`` are more of its node configuration."""
        home = self.home(number)
        facts = f'partition-id={number} num-partitions={self.nodes} state="{home / "state"}" {facts}'
        command = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{self.port}"]
        with (home / "log").open("ab") as log:
            spawn([*command, "--port", str(free_port()), "--node-config", facts], home, log)

    def submit(self, overrides: list[str]) -> None:
        """Start a run and leave it to itself."""
        settings = self.link / "run.toml"
        settings.write_text(run_config_toml(overrides), encoding="utf-8")
        words = ["run", str(CHECKOUT), CONNECTION, "--run-config", str(settings), "--format", "json"]

        def started() -> str:  # a SuperLink whose port is open may not take runs yet: then there is no id
            self.run_id = str(json.loads(self._flwr(*words)).get("run-id", ""))
            return self.run_id

        self.until(started, "the SuperLink takes the run")

    def signal(self, home: Path, number: signal.Signals, only: str = "") -> None:
        """Send a signal to all processes of a Flower home, or to those whose command has ``only`` in it."""
        chosen = [pid for pid in processes_of(home) if only.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert chosen, f"no process of {home.name} {only}"
        for pid in chosen:
            os.kill(pid, number)

    def memory(self, name: str) -> float:
        """Return the most memory, in MiB, that a process of the SuperLink has had so far; 0 without such a process."""
        with contextlib.suppress(OSError):
            for pid in processes_of(self.link):
                if name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    status = Path(f"/proc/{pid}/status").read_text()
                    return max((int(kb) / 1024 for kb in re.findall(r"VmHWM:\s+(\d+) kB", status)), default=0.0)
        return 0.0

    def stop(self) -> None:
        """End everything, whatever state it is in."""
        for home in (self.link, *map(self.home, range(self.nodes))):
            for pid in processes_of(home):
                os.kill(pid, signal.SIGCONT)
            stop_all(home)

    def until(self, true: Callable[[], Any], what: str) -> None:
        """Wait until something is the case; else show the logs."""
        deadline = time.monotonic() + SECONDS
        while not true():
            if time.monotonic() > deadline:
                logs = [f"{path}:\n{path.read_text(errors='replace')[-2000:]}" for path in self.folder.glob("*/log")]
                if self.run_id:
                    logs.append(f"the ServerApp:\n{self._flwr('log', self.run_id, CONNECTION, '--show')[-4000:]}")
                raise AssertionError("\n".join([f"not after {SECONDS:g} s: {what}", *logs]))
            time.sleep(0.2)

    def _flwr(self, *words: str) -> str:
        """Return what a command of Flower prints."""
        options = {"cwd": work_folder(self.link), "env": environment(self.link), "timeout": SECONDS}
        return subprocess.run(["flwr", *words], stdout=subprocess.PIPE, text=True, check=True, **options).stdout

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def rounds(run: Path) -> dict[int, dict[str, Any]]:
    """Return what the server noted of each finished round of a run."""
    file = run / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")] if file.is_file() else []
    return {line["round"]: line for line in lines if "server/answered" in line}

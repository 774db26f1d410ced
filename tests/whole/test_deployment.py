"""The commands of docs/deployment.md, on one machine: server, proxy, operator and two nodes, with TLS and keys.

Only addresses and folders differ from the page. Nodes and server share nothing but the proxy's port.
"""

from __future__ import annotations

import http.client
import os
import re
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
from superlinks import free_port, stop_all

from fedgen.data.sounds import RATE, synthesise
from fedgen.runs.folder import RunFolder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") is None, reason="no nginx here"),
    pytest.mark.skipif(not (shutil.which("openssl") and shutil.which("ssh-keygen")), reason="no openssl or ssh-keygen"),
]

CHECKOUT = Path(__file__).parents[2]
PAGE = (CHECKOUT / "docs" / "deployment.md").read_text(encoding="utf-8")
SITES = [["dog", "cow", "rain"], ["crickets", "siren", "engine"]]
SECONDS = 500.0  # that anything may take on a busy machine


class Deployment:
    """The machines of the page, all of them here, below one folder.

    Attributes
    ----------
    running : dict[str, subprocess.Popen]
        What was started and stays in the foreground, by the name of its settings and script.
    ports : dict[str, int]
        Of nodes, operator and SuperLink, and one for every SuperNode.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.ports = {name: free_port() for name in ("nodes", "operator", "superlink", "node0", "node1")}
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin",
            "FLWR_HOME": str(folder / "operator"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
        }
        for name in ("etc", "var", "logs"):
            (folder / name).mkdir()

    def section(self, title: str, *more: str, node: int = 0) -> list[str]:
        """Do what a section of the page says, with ``more`` arguments for ``fedgen``; return what was printed."""
        return [self.do(command, *more, node=node) for command in commands(title)]

    def do(self, command: str, *more: str, node: int = 0) -> str:
        """Run a command of the page; what stays in the foreground is left running, and waited for until it listens."""
        words = shlex.split(self.here(command, node))
        if words[0] == "fedgen":
            words += more
        if Path(words[0]).name.startswith("start-"):
            return self.start(words)
        done = self.run(words)
        assert done.returncode == 0, f"{command}: {done.stdout}"
        if words[0] == "cp" and words[1].startswith("deploy/"):  # the reader looks at the settings
            Path(words[2]).write_text(self.here(Path(words[2]).read_text(), node))
        return done.stdout

    def run(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.run(words, cwd=CHECKOUT, env=self.environment, text=True, timeout=SECONDS, **pipes)

    def start(self, words: list[str]) -> str:
        name = " ".join(Path(word).name for word in words[:2])
        with (self.folder / "logs" / name).open("ab") as log:
            process = subprocess.Popen(words, cwd=CHECKOUT, env=self.environment, stdout=log, stderr=subprocess.STDOUT)
        self.running[name] = process
        port = next((self.ports[key] for word, key in LISTENS.items() if word in name), None)
        deadline = time.monotonic() + SECONDS
        while port and not listening(port):
            assert process.poll() is None, self.log(name)
            assert time.monotonic() < deadline, self.log(name)
            time.sleep(0.2)
        return name

    def ended(self, name: str) -> str:
        """Wait for what was started, which must fail, and return what it has printed."""
        assert self.running[name].wait(SECONDS) == 1
        return self.log(name)

    def log(self, name: str) -> str:
        return (self.folder / "logs" / name).read_text(errors="replace")

    def here(self, text: str, node: int = 0) -> str:
        """Return a text of the page, or of a settings file, with the folders and addresses of this machine."""
        places = {
            "/opt/fedgen/.venv/bin": str(Path(sys.executable).parent),
            "/etc/fedgen": f"{self.folder}/etc",
            "/var/lib/fedgen": f"{self.folder}/var",
            "/srv/sounds": f"{self.folder}/sounds{node}",
            "fedgen.example.org": "127.0.0.1",
            "0.0.0.0": "127.0.0.1",
            "8443": str(self.ports["nodes"]),
            "8444": str(self.ports["operator"]),
            "=8000": f"={self.ports['superlink']}",
            "9094": str(self.ports[f"node{node}"]),
            "node0": f"node{node}",
            "partition-id = 0": f"partition-id = {node}",
        }
        for page, here in places.items():
            text = text.replace(page, here)
        return text

    def settings(self, name: str, node: int = 0, **changed: str) -> str:
        """Write settings in which some are others, and return their path."""
        text = self.here((CHECKOUT / "deploy" / name).read_text(), node)
        for key, value in changed.items():
            text, count = re.subn(f"^{key}=.*$", f"{key}={value}", text, flags=re.MULTILINE)
            assert count == 1, key
        file = self.folder / "etc" / f"{len(list((self.folder / 'etc').iterdir()))}-{name}"
        file.write_text(text)
        return str(file)

    def stop(self, name: str) -> None:
        process = self.running.pop(name)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()

    def stop_all(self) -> None:
        for name in list(self.running):
            self.stop(name)
        for home in [self.folder / "operator", *self.folder.glob("var/*/flower")]:
            stop_all(home)


LISTENS = {"start-superlink": "superlink", "start-proxy": "nodes"}


def commands(title: str) -> list[str]:
    """Return the commands of a section of the page, without comments and prompts."""
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert section is not None, title
    lines = "".join(re.findall(r"^```sh\n(.*?)^```", section[1], re.DOTALL | re.MULTILINE)).splitlines()
    assert lines, title
    return lines


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, usual_codec: None) -> Iterator[Deployment]:
    """Server, proxy, operator and two nodes with clips of their own, as the page sets them up."""
    made = Deployment(tmp_path_factory.mktemp("d"))
    for node, names in enumerate(SITES):
        for name in names:
            folder = made.folder / f"sounds{node}" / name
            folder.mkdir(parents=True)
            for index in range(5):
                soundfile.write(folder / f"{index}.wav", synthesise(name, index, 0), RATE)
    try:
        made.section("The server")
        made.section("The operator")
        for node in range(len(SITES)):
            made.section("A node", "encoder.stride=16", node=node)
        yield made
    finally:
        made.stop_all()


def test_a_run_to_its_end_and_on_after_the_cleaning(deployment: Deployment, tiny_overrides: list[str]) -> None:
    small = [text for text in tiny_overrides if not text.startswith(("data", "rounds", "strategy"))]
    log = deployment.section("A run", *small, "data.test_fold=5", "strategy.wait=120")[0]
    first = deployment.folder / "var" / "runs" / "first"
    assert f"run folder: {first}" in log
    results = RunFolder(first).results()
    assert sorted(results["nodes"]["0"]) == sorted(SITES[0])
    assert (first / "checkpoints").is_dir()
    for node in range(2):  # each keeps its own, the server nothing of theirs
        assert list((deployment.folder / "var" / f"node{node}" / "state" / "first").rglob(f"node{node}"))
    assert not [path for path in first.rglob("*") if re.search(r"node\d", path.name)]

    refused = deployment.run(shlex.split(deployment.here(commands("After a run")[0])))
    assert refused.returncode == 1
    assert "stop the SuperLink first" in refused.stdout
    assert PAYLOAD in database(deployment)
    deployment.stop("start-superlink.sh server.env")
    assert "2 registered nodes kept" in deployment.section("After a run")[0]
    assert PAYLOAD not in database(deployment)
    deployment.section("Going on, and updating")  # with the nodes that have been there all the time
    assert RunFolder(first).results()["accuracy"] == results["accuracy"]


PAYLOAD = b"ArrayChunk"  # with which Flower marks every piece of a payload


def database(deployment: Deployment) -> bytes:
    """Return all that the disk has of the SuperLink's database."""
    return b"".join(file.read_bytes() for file in (deployment.folder / "var" / "server").glob("superlink.db*"))


def test_supernodes_that_are_refused(deployment: Deployment) -> None:
    other = deployment.settings("server.env", CERTIFICATES=f"{deployment.folder}/var/other")
    assert deployment.run(["deploy/make-certificates.sh", other]).returncode == 0

    def node(**changed: str) -> str:
        own = {"STATE": f"{deployment.folder}/var/x{free_port()}/flower", "RUNTIME_PORT": str(free_port())}
        return deployment.settings("node.env", **own, **changed)

    stranger = node(KEY=f"{deployment.folder}/etc/stranger")
    assert deployment.run(["deploy/make-node-key.sh", stranger]).returncode == 0
    misled = node(CA=f"{deployment.folder}/var/other/ca.crt")
    address = f"127.0.0.1:{deployment.ports['nodes']}"
    plain = ["flower-supernode", "--insecure", "--superlink", address, "--port", str(free_port())]
    started = [
        deployment.start(words)
        for words in (["deploy/start-supernode.sh", stranger], ["deploy/start-supernode.sh", misled], plain)
    ]
    found = [deployment.ended(name) for name in started]
    assert "[code: 2004] Failed to activate SuperNode" in found[0]
    assert "CERTIFICATE_VERIFY_FAILED" in found[1]
    assert "400 Bad Request" in found[2]


def test_operators_that_are_refused(deployment: Deployment) -> None:
    nodes, operator = (f"127.0.0.1:{deployment.ports[name]}" for name in ("nodes", "operator"))
    connect = ["deploy/connect.sh", deployment.settings("operator.env", CONNECTION="node", OPERATOR_ADDRESS=nodes)]
    assert deployment.run(connect).returncode == 0
    trespass = deployment.run(["fedgen", "submit", "node", "mode=federate"])
    assert trespass.returncode == 1
    assert re.search(r"403 Forbidden.*/v1/control/start-run", trespass.stdout, re.DOTALL)
    with (deployment.folder / "operator" / "config.toml").open("a") as file:
        file.write(f'\n[superlink.plain]\naddress = "{operator}"\ninsecure = true\n')
    plain = deployment.run(["flwr", "list", "plain"])
    assert plain.returncode == 1
    assert "400 Bad Request" in plain.stdout


def test_each_port_serves_its_own_paths(deployment: Deployment) -> None:
    ca = str(deployment.folder / "etc" / "certificates" / "ca.crt")
    context = ssl.create_default_context(cafile=ca)

    def status(port: str, path: str) -> int:
        connection = http.client.HTTPSConnection("127.0.0.1", deployment.ports[port], timeout=60, context=context)
        connection.request("POST", path, headers={"content-type": "application/x-protobuf"})
        return connection.getresponse().status

    open_to = {"nodes": "/v1/fleet/pull-messages", "operator": "/v1/control/list-runs"}
    for path in [*open_to.values(), "/v1/runtime/get-nodes"]:
        assert status("superlink", path) not in (403, 404), f"{path} is no path of Flower's any more"
    runtime = ["/v1/runtime/get-nodes", "/v1/runtime/responses", "/V1/runtime/get-nodes", "/docs", "/health", "/"]
    detours = [
        f"/v1/{own}{up}{other}/{what}"
        for own, other, what in [("fleet", "control", "list-runs"), ("control", "runtime", "get-nodes")]
        for up in ["/../", "//../", "/%2e%2e/", "/x/../../", "/..%2f"]
    ]
    for port, path in open_to.items():
        assert status(port, path) != 403
        others = [other for key, other in open_to.items() if key != port]
        wrong = [
            *others,
            *runtime,
            *(path for path in detours if path.startswith(f"/v1/{'fleet' if port == 'nodes' else 'control'}")),
        ]
        assert {path: status(port, path) for path in wrong} == dict.fromkeys(wrong, 403)


def test_every_command_of_the_page_is_executed() -> None:
    done = ["The server", "The operator", "A node", "A run", "After a run", "Going on, and updating"]
    assert PAGE.count("```sh\n") == sum(
        len(re.findall(r"^```sh$", part, re.MULTILINE)) for part in PAGE.split("\n## ") if part.startswith(tuple(done))
    )

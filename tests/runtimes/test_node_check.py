"""What `fedgen node check` finds: each thing sound, and each thing wrong with the way to mend it."""

from __future__ import annotations

import datetime
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from flwr.common.config import parse_config_args

from fedgen.cli import main
from fedgen.config.settings import Config
from fedgen.errors import FedgenError
from fedgen.runtimes import node_check
from fedgen.runtimes.node_check import KEYS, Finding, check_node, reached, read_node_config
from fedgen.task import Task

Check = Callable[..., dict[str, Finding]]
PRIVATE = (serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())


@pytest.fixture
def check(task: Task, tmp_path: Path) -> Check:
    """Look at a node whose configuration has a number and a store, and what the test says, by subject."""

    def look(text: str = "", config: Config | None = None, **options: object) -> dict[str, Finding]:
        file = tmp_path / "node.toml"
        store = "" if "store =" in text else f'store = "{task.store.path}"\n'
        file.write_text(("" if "partition-id" in text else "partition-id = 0\n") + store + text)
        found = check_node(file, config or task.config, **options)  # type: ignore[arg-type]
        return {finding.subject: finding for finding in found}

    return look


def test_a_sound_node(check: Check, task: Task, tmp_path: Path) -> None:
    found = check(f'state = "{tmp_path}/later/state"\nclasses = "dog, siren"\nmax-epsilon = 8.0', joins=True)
    assert [finding.subject for finding in found.values() if not finding.sound] == []
    assert found["embeddings"].found.startswith("12 clips of 2 classes (dog, siren), of encoder")
    assert found["device"].found == "device=cpu: cpu"
    assert not (tmp_path / "later").exists()  # nothing is made


@pytest.mark.parametrize(
    ("text", "subject", "words"),
    [
        ("stat = '/x'", "stat", "nothing reads stat. Did you mean 'state'?"),
        ("partition-id = '0'", "partition-id", "partition-id='0' must be a whole number from 0"),
        ("partition-id = -1", "partition-id", "partition-id=-1 must be"),
        ("partition-id = true", "partition-id", "partition-id=True must be"),
        ("classes = ['dog', 'cow']", "classes", "class names with commas between them"),
        ("classes = 'dog, cat'", "embeddings", "classes='cat' is not one of dog, cow"),
        ("granularity = 'per_clas'", "granularity", "Did you mean 'per_class'?"),
        ("groups = '{pets}'", "groups", "must be JSON such as"),
        ("samples-per-class = 'many'", "samples-per-class", "many"),
        ("device = 'gpu'", "device", "gpu"),
        ("max-epsilon = 0", "max-epsilon", "max-epsilon=0 must be a number above 0"),
        ("max-epsilon = 'eight'", "max-epsilon", "must be a number above 0"),
        ("secure-aggregation = 2", "secure-aggregation", "at least 3"),
        ("store = '/nowhere'", "embeddings", "/nowhere holds no embedding store: make it with `fedgen prepare`"),
        ("store = 'nowhere'", "embeddings", "store=nowhere must be an absolute path"),
        ("store = 7", "store", "store=7 must be the folder of the node's embeddings"),
        ("state = '/dev/null/state'", "state folder", "/dev/null cannot be written to"),
        ("state = 'here'", "state folder", "state=here must be an absolute path"),
        ("partition-id 0", "node configuration", "cannot be read"),
    ],
    ids=lambda value: value if "=" in value else "",
)
def test_a_wrong_configuration(check: Check, text: str, subject: str, words: str) -> None:
    finding = check(text)[subject]
    assert not finding.sound
    assert words in finding.found


def test_what_is_missing(check: Check, task: Task, tmp_path: Path) -> None:
    file = tmp_path / "empty.toml"
    file.touch()
    wrong = {finding.subject: finding.found for finding in check_node(file, task.config) if not finding.sound}
    assert set(wrong) == {"partition-id", "store"}
    assert "store is missing: the folder of the node's embeddings" in wrong["store"]
    assert "must end in .toml" in str(read_node_config(tmp_path / "node.txt")[1])
    assert "cannot be read" in str(read_node_config(tmp_path / "nowhere.toml")[1])


def test_flower_reads_the_same_file(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text((Path(__file__).parents[2] / "deploy" / "node.toml").read_text().replace("# max", "max"))
    facts, problem = read_node_config(file)
    assert problem is None
    assert facts == parse_config_args([str(file)])
    assert set(facts) == {"partition-id", "store", "state", "max-epsilon"}


def test_every_entry_that_the_client_reads_is_known() -> None:
    source = (Path(node_check.__file__).parent / "client_app.py").read_text()
    read = set(re.findall(r'(?:facts|node_config)(?:\.get\(|\[)"([\w-]+)"', source))
    assert {"partition-id", "store", "state", "max-epsilon"} <= read <= set(KEYS)


def test_a_damaged_store_and_another_encoder(
    check: Check, task: Task, tiny: Callable[..., Config], tmp_path: Path
) -> None:
    other = tiny("encoder.stride=8")
    finding = check(config=other, joins=True)["embeddings"]
    assert not finding.sound
    assert "the run's has {'stride': 8}" in finding.found
    assert check(config=other)["embeddings"].sound  # which run it is to join is not said
    copy = Path(shutil.copytree(task.store.path, tmp_path / "copy"))
    shard = next(copy.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert "is damaged" in check(f'store = "{copy}"')["embeddings"].found


def test_another_flower(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check()["flwr"].sound
    monkeypatch.setattr(node_check.metadata, "version", {"flwr": "1.42.0", "torch": "2.7.0", "fedgen": "1"}.__getitem__)
    found = check()
    assert found["torch"].sound
    assert found["flwr"] == Finding("flwr", "flwr 1.42.0 is installed, fedgen needs flwr<1.42,>=1.41", False)


def make_certificate(folder: Path, name: str, authority: bool = True) -> tuple[Path, Path]:
    """Write a certificate that is signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=100))
    builder = builder.add_extension(x509.BasicConstraints(authority, None), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    files = folder / f"{name}.crt", folder / f"{name}.key"
    files[0].write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(key.private_bytes(*PRIVATE))
    files[1].chmod(0o600)
    return files


def test_certificates(check: Check, tmp_path: Path) -> None:
    found = check(root_certificates=make_certificate(tmp_path, "ca")[0])["root certificate"]
    assert found.sound
    assert re.fullmatch(r"until \w{3} +\d+ \d\d:\d\d:\d\d \d{4} GMT", found.found)
    server = make_certificate(tmp_path, "server", authority=False)[0]
    assert "no certificate of an authority" in check(root_certificates=server)["root certificate"].found
    (tmp_path / "text.crt").write_text("ca")
    for file in ("text.crt", "nowhere"):
        assert not check(root_certificates=tmp_path / file)["root certificate"].sound


def test_keys(check: Check, tmp_path: Path) -> None:
    key = make_certificate(tmp_path, "node")[1]
    assert check(key=key)["key"].sound
    key.chmod(0o640)
    assert f"(mode 640): chmod 600 {key}" in check(key=key)["key"].found
    assert "No such file" in check(key=tmp_path / "nowhere")["key"].found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A server with TLS on localhost: its port, and what vouches for it."""
    certificate, key = make_certificate(tmp_path, "server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, _pem(key))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    context.wrap_socket(listener.accept()[0], server_side=True).close()
                except (ssl.SSLError, ConnectionError):  # the client does not trust us
                    continue
                except OSError:  # the test is over
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1], certificate
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def _pem(key: Path) -> Path:
    """Return the key in the form that TLS reads."""
    loaded = serialization.load_ssh_private_key(key.read_bytes(), None)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    key.write_bytes(loaded.private_bytes(*form))
    return key


def test_reaching_the_server(server: tuple[int, Path], tmp_path: Path) -> None:
    port, certificate = server
    address = f"localhost:{port}"
    assert reached(address, certificate) == f"{address} answers, and proves who it is"
    for name, vouches in ((address, make_certificate(tmp_path, "other")[0]), (f"127.0.0.1:{port}", certificate)):
        with pytest.raises(FedgenError, match=r"does not prove who it is: .*CERTIFICATE_VERIFY_FAILED"):
            reached(name, vouches)
    with pytest.raises(FedgenError, match="must be HOST:PORT"):
        reached("https://localhost", certificate)


def test_nobody_there(check: Check, tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert f"{address} cannot be reached" in check(superlink=address)["superlink"].found


def test_the_command(task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "node.toml"
    file.write_text(f'partition-id = 0\nstore = "{task.store.path}"\n')
    command = ["node", "check", "--node-config", str(file)]
    assert main(command) == 0
    assert "this node is ready" in capsys.readouterr().out
    assert main([*command, "encoder.stride=8"]) == 1
    assert "this node is not ready: 1 to mend" in capsys.readouterr().out
    assert main([*command, "encoder.strid=8"]) == 1
    assert "Did you mean 'encoder.stride'?" in capsys.readouterr().err


def test_the_script(task: Task, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = Path(__file__).parents[2] / "deploy" / "check-node.sh"
    ca, key = make_certificate(tmp_path, "ca")
    (tmp_path / "node.toml").write_text(f'partition-id = 0\nstore = "{task.store.path}"\n')
    settings = tmp_path / "node.env"
    words = {"BIN": Path(sys.executable).parent, "NODE_CONFIG": tmp_path / "node.toml", "KEY": key, "CA": ca}
    settings.write_text("".join(f"{name}={value}\n" for name, value in words.items()) + "FEDGEN_HOME=/nowhere\n")
    assert subprocess.run([script, settings], timeout=120).returncode == 0
    assert "root certificate" in capfd.readouterr().out
    assert subprocess.run([script, settings, "encoder.stride=8"], timeout=120).returncode == 1

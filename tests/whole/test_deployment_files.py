"""The files of `deploy/` one by one: scripts, settings, units and the compose file."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

CHECKOUT = Path(__file__).parents[2]
DEPLOY = CHECKOUT / "deploy"
PAGE = (CHECKOUT / "docs" / "deployment.md").read_text(encoding="utf-8")
SCRIPTS = sorted(DEPLOY.glob("*.sh"))
UNITS = sorted(DEPLOY.glob("*.service"))
GIVEN = {"HOME", "PATH", "FLWR_HOME", "CA_DAYS", "SERVER_DAYS"}  # by the system, or with a default


def assigned(text: str) -> set[str]:
    return set(re.findall(r"^([A-Z_]+)=", text, re.MULTILINE))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_says_what_it_does_and_has_its_settings(script: Path) -> None:
    text = script.read_text()
    assert os.access(script, os.X_OK)
    assert text.startswith("#!/bin/sh\n# ")
    assert "\nset -eu\n" in text
    assert subprocess.run(["sh", "-n", script]).returncode == 0
    called = re.search(rf"^# +deploy/{script.name} /etc/fedgen/(\w+)\.env$", text, re.MULTILINE)
    assert called is not None
    settings = DEPLOY / f"{called[1].replace('node0', 'node')}.env"
    assert script.name in settings.read_text()
    code = re.sub(r"^#.*|\\\$\{\w+\}", "", text, flags=re.MULTILINE)
    used = set(re.findall(r"\$\{?([A-Z_]+)", code))
    assert used <= assigned(settings.read_text()) | assigned(code) | GIVEN
    assert f"deploy/{script.name} {called[0].split()[-1]}" in PAGE


def test_settings_are_used() -> None:
    code = "".join(script.read_text() for script in SCRIPTS)
    for settings in DEPLOY.glob("*.env"):
        assert {name for name in assigned(settings.read_text()) if f"${name}" not in code} <= {"FEDGEN_HOME"}
        assert subprocess.run(["sh", "-eu", settings]).returncode == 0


def test_the_proxy_gets_every_variable_of_its_template() -> None:
    template, script = (DEPLOY / "nginx.conf").read_text(), (DEPLOY / "start-proxy.sh").read_text()
    wanted = set(re.findall(r"\$\{(\w+)\}", template))
    assert wanted == set(re.findall(r"s\|\\\$\{(\w+)\}\|\$\1\|g", script))
    assert wanted <= assigned((DEPLOY / "server.env").read_text())


@pytest.fixture
def units(tmp_path: Path) -> list[str]:
    """The units as they are where fedgen is installed here."""
    for unit in UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/fedgen", str(CHECKOUT)))
    return [str(tmp_path / unit.name) for unit in UNITS]


def test_units(units: list[str]) -> None:
    assert len(units) == 3
    for unit in UNITS:
        parsed = configparser.ConfigParser(strict=False, interpolation=None)
        parsed.optionxform = str  # type: ignore[assignment, method-assign]
        parsed.read_string(unit.read_text())
        for key in {"ExecStart", "ExecStartPre"} & set(parsed["Service"]):
            script, settings = parsed["Service"][key].split()
            assert Path(script.replace("/opt/fedgen", str(CHECKOUT))) in SCRIPTS
            assert settings.startswith("/etc/fedgen/")
        assert parsed["Service"]["User"] == "fedgen"
        assert parsed["Service"]["Restart"] == "always"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_understands_the_units(units: list[str]) -> None:
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=60)
    own = [line for line in done.stderr.splitlines() if "fedgen-" in line]
    assert own == []
    assert done.returncode == 0


def test_the_compose_file() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = compose["services"]
    assert {name: service["profiles"] for name, service in services.items()} == {
        "superlink": ["server"],
        "proxy": ["server"],
        "supernode": ["node"],
    }
    for service in services.values():
        script, settings = service["command"]
        assert CHECKOUT / script in SCRIPTS
        assert settings in ("/etc/fedgen/server.env", "/etc/fedgen/${NODE:-node0}.env")
        assert service["network_mode"] == "host"
        assert service["image"] == f"fedgen:{re.search(r'version = .(.*).$', pyproject(), re.MULTILINE)[1]}"  # type: ignore[index]
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    base = re.search(r"^FROM (\S+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert base is not None
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base[1])  # pinned
    for copied in re.findall(r"^COPY (.*) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE):
        assert all((CHECKOUT / name).exists() for name in copied.split())


def pyproject() -> str:
    return (CHECKOUT / "pyproject.toml").read_text()


def test_compose_understands_it() -> None:
    environment = {**os.environ, "FEDGEN_USER": "1000"}
    try:
        known = subprocess.run(["docker", "compose", "version"], capture_output=True, env=environment, timeout=60)
    except FileNotFoundError:
        pytest.skip("no docker here")
    if known.returncode != 0:
        pytest.skip("docker has no compose here")
    command = ["docker", "compose", "-f", DEPLOY / "compose.yaml", "--profile", "server", "--profile", "node", "config"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr


needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")


def make_certificates(folder: Path, name: str) -> x509.Certificate:
    settings = folder / "server.env"
    settings.write_text(f"CERTIFICATES={folder}/certificates\nSERVER_NAME={name}\n")
    done = subprocess.run([DEPLOY / "make-certificates.sh", settings], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return x509.load_pem_x509_certificate((folder / "certificates" / "server.crt").read_bytes())


@needs_openssl
def test_certificates(tmp_path: Path) -> None:
    certificate = make_certificates(tmp_path, "fedgen.example.org")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fedgen.example.org", "localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    authority = (tmp_path / "certificates" / "ca.crt").read_bytes()
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "certificates").iterdir()}
    assert {name: oct(mode) for name, mode in modes.items() if name.endswith((".key", ".crt"))} == {
        "ca.key": "0o600",
        "server.key": "0o600",
        "ca.crt": "0o644",
        "server.crt": "0o644",
    }


@needs_openssl
def test_a_renewed_certificate_is_of_the_same_authority(tmp_path: Path) -> None:
    first = make_certificates(tmp_path, "fedgen.example.org")
    authority = (tmp_path / "certificates" / "ca.crt").read_bytes()
    second = make_certificates(tmp_path, "192.0.2.7")
    assert (tmp_path / "certificates" / "ca.crt").read_bytes() == authority
    assert first.serial_number != second.serial_number
    names = second.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7", "127.0.0.1"]
    second.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen here")
def test_a_key_is_kept(tmp_path: Path) -> None:
    settings = tmp_path / "node.env"
    settings.write_text(f"KEY={tmp_path}/keys/node0.key\n")
    contents = []
    for _ in range(2):
        done = subprocess.run([DEPLOY / "make-node-key.sh", settings], capture_output=True, text=True, timeout=60)
        assert done.stdout == f"{tmp_path}/keys/node0.key.pub\n"
        contents.append((tmp_path / "keys" / "node0.key").read_bytes())
    assert contents[0] == contents[1]
    assert stat.S_IMODE((tmp_path / "keys" / "node0.key").stat().st_mode) == 0o600


def test_a_connection_is_written_once(tmp_path: Path) -> None:
    settings = tmp_path / "operator.env"
    settings.write_text("CONNECTION=far\nOPERATOR_ADDRESS=127.0.0.1:1\nCA=/ca.crt\n")
    file = tmp_path / "home" / "config.toml"
    for _ in range(2):
        environment = os.environ | {"FLWR_HOME": str(file.parent)}
        assert subprocess.run([DEPLOY / "connect.sh", settings], env=environment, timeout=60).returncode == 0
        assert file.read_text() == '\n[superlink.far]\naddress = "127.0.0.1:1"\nroot-certificates = "/ca.crt"\n'


def test_no_database_to_clean(tmp_path: Path) -> None:
    settings = tmp_path / "server.env"
    settings.write_text(f"BIN={Path(sys.executable).parent}\nSTATE={tmp_path}\n")
    done = subprocess.run([DEPLOY / "clean-database.sh", settings], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"there is no database {tmp_path}/superlink.db" in done.stderr
    assert not (tmp_path / "superlink.db").exists()

"""What a node needs before it joins: each thing is sound, or it is said what is wrong and how to mend it.

``cryptography`` and ``packaging`` come with Flower.
"""

from __future__ import annotations

import datetime
import http.client
import os
import platform
import ssl
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from packaging.requirements import Requirement
from rich.table import Table

from fedgen.client_app import own_settings
from fedgen.data.encoders import differences
from fedgen.data.store import Store, open_store
from fedgen.errors import ConfigError, DataError, FedgenError, choose, require, suggestion
from fedgen.evaluation.tables import PlainTable
from fedgen.secure_aggregation.node import OWN_KEY, fewest
from fedgen.settings import DEVICES, Config
from fedgen.task import use_hardware
from fedgen.training.granularity import GRANULARITIES

PACKAGES = ("flwr", "torch")
SIGNED = (400, 401, 415, 422)  # what a SuperLink answers to a request that no node has signed
SECONDS = 10.0  # how long a server may take to answer
WARNING_DAYS = 30  # a certificate that ends sooner is told of

Check = Callable[[], str]

KEYS: dict[str, tuple[tuple[type, ...], str]] = {
    "partition-id": ((int,), "a whole number from 0, the node's own"),
    "num-partitions": ((int,), "a whole number; nothing reads it"),
    "store": ((str,), "the folder of the node's embeddings"),
    "state": ((str,), "the folder of what the node keeps of its runs"),
    "device": ((str,), " or ".join(DEVICES)),
    "classes": ((str,), 'class names with commas between them, such as "dog, cat"'),
    "granularity": ((str,), " or ".join(GRANULARITIES)),
    "groups": ((str,), 'JSON in quotes, such as \'{"pets": ["dog", "cat"]}\''),
    "samples-per-class": ((int, str), "a number of samples"),
    "public": ((str,), "the folder of its copy of the public sounds, for runs with codec.public"),
    "max-epsilon": ((int, float), "a number above 0"),
    "secure-aggregation": ((int,), "a whole number of at least 3, the fewest nodes in a sum of adapters"),
}
"""What a node configuration may say, of which type, and what it is."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    subject : str
    found : str
        What it is; or what is wrong with it, and how to mend it.
    sound : bool
    """

    subject: str
    found: str
    sound: bool


def check_node(
    file: Path,
    config: Config,
    joins: bool = False,
    root_certificates: Path | None = None,
    key: Path | None = None,
    superlink: str | None = None,
) -> list[Finding]:
    """Look at everything that a node needs; what is None is not looked at.

    Parameters
    ----------
    file : Path
        The node configuration, TOML.
    config : Config
        Of a run.
    joins : bool
        Whether the node is to join that run, so that its embeddings must be of the run's encoder. Otherwise ``config``
        says the device alone.
    root_certificates : Path, optional
        Certificate that vouches for the server.
    key : Path, optional
        The node's private key.
    superlink : str, optional
        ``HOST:PORT`` that nodes connect to.
    """
    facts, problem = read_node_config(file)
    findings = [_looked("python", platform.python_version), _looked("fedgen", partial(metadata.version, "fedgen"))]
    findings += [_looked(name, partial(version, name)) for name in PACKAGES]
    findings += [Finding("node configuration", problem, False)] if problem else []
    findings += [] if "device" in facts else [_looked("device", partial(device, config.device))]
    findings += [
        _looked(name, partial(entry, facts, name)) for name in dict.fromkeys(["partition-id", "store", *facts])
    ]
    if isinstance(facts.get("store"), str):
        findings.append(_looked("embeddings", partial(embeddings, facts, config if joins else None)))
    if isinstance(facts.get("state"), str):
        findings.append(_looked("state folder", partial(writable, Path(facts["state"]))))
    if root_certificates:
        findings.append(_looked("root certificate", partial(certificate, root_certificates)))
    if key:
        findings.append(_looked("key", partial(private_key, key)))
    if superlink:
        findings.append(_looked("superlink", partial(reached, superlink, root_certificates)))
    return findings


def findings_table(findings: list[Finding]) -> Table:
    """Return what was found, one line a thing."""
    wrong = sum(not finding.sound for finding in findings)
    table = PlainTable(title="this node is ready" if not wrong else f"this node is not ready: {wrong} to mend")
    table.add_column("what")
    table.add_column("is")
    table.add_column("found", overflow="fold")
    for finding in findings:
        table.add_row(finding.subject, "sound" if finding.sound else "WRONG", finding.found)
    return table


def _looked(subject: str, check: Check) -> Finding:
    try:
        return Finding(subject, check(), True)
    except (FedgenError, OSError) as error:
        return Finding(subject, str(error), False)


def version(package: str) -> str:
    """Return the installed version of a package that fedgen needs; `ConfigError` if it is another than that."""
    needed = [Requirement(text) for text in metadata.requires("fedgen") or []]
    wanted = next(item for item in needed if item.name == package and item.marker is None).specifier
    found = metadata.version(package)
    require(wanted.contains(found, prereleases=True), f"{package} {found} is installed, fedgen needs {package}{wanted}")
    return found


def device(name: str) -> str:
    """Return where the node would train; `ConfigError` for a name that is none, or ``cuda`` without a CUDA device."""
    return f"device={name}: {use_hardware(Config(device=name))}"


def read_node_config(file: Path) -> tuple[dict[str, Any], str | None]:
    """Return what a node configuration says; and why Flower cannot read it, if it cannot."""
    if file.suffix != ".toml":
        return {}, f"--node-config={file} must end in .toml: any other text is `key=value` for Flower"
    try:
        return tomllib.loads(file.read_text(encoding="utf-8")), None
    except (OSError, ValueError) as error:
        return {}, f"--node-config={file} cannot be read: {error}"


def entry(facts: Mapping[str, Any], key: str) -> str:
    """Return an entry of a node configuration; `ConfigError` if nothing reads it, or not so."""
    if key not in KEYS:
        raise ConfigError(f"nothing reads {key}.{suggestion(key, KEYS)} What is read: {', '.join(KEYS)}")
    types, meaning = KEYS[key]
    require(key in facts, f"{key} is missing: {meaning}")
    value = facts[key]
    good = isinstance(value, types) and not isinstance(value, bool)
    require(good and (isinstance(value, str) or value >= 0), f"{key}={value!r} must be {meaning}")
    require(key != "max-epsilon" or value > 0, f"{key}={value!r} must be {meaning}")
    if key == OWN_KEY:
        fewest(value)
    if key == "device":
        return device(value)
    own_settings({key: value})
    return str(value)


def embeddings(facts: Mapping[str, Any], config: Config | None) -> str:
    """Return what the node's store holds, every byte of it read.

    Raises
    ------
    DataError, ConfigError
        There is no sound store, it is of another encoder than the run's, or has no clip of a class that is named.
    """
    path = Path(facts["store"]).expanduser()
    require(path.is_absolute(), f"store={path} must be an absolute path: Flower works in another folder")
    store = open_store(path)
    store.verify()
    made_by = store.encoder
    if config is not None and (wanted := differences(config.encoder, made_by)):
        raise DataError(f"{path} was made by encoder {made_by}, the run's has {wanted}: make it with `fedgen prepare`")
    names = own_settings({"classes": facts["classes"]}).classes if isinstance(facts.get("classes"), str) else None
    return f"{_clips(store, names)}, of encoder {made_by}"


def _clips(store: Store, names: list[str] | None) -> str:
    """Return how many clips there are, of ``names`` alone if given."""
    counts = dict(zip(store.classes, np.bincount(store.labels, minlength=len(store.classes)).tolist(), strict=True))
    for name in names or []:
        require(bool(counts[choose(name, counts, "classes")]), f"classes names {name}, of which the store has no clip")
    used = {name: counts[name] for name in names or counts if counts[name]}
    return f"{sum(used.values())} clips of {len(used)} classes ({', '.join(used)})"


def writable(folder: Path) -> str:
    """Return a folder that can be written to, or made; `ConfigError` if it cannot."""
    folder = folder.expanduser()
    require(folder.is_absolute(), f"state={folder} must be an absolute path: Flower works in another folder")
    there = next(path for path in (folder, *folder.parents) if path.exists())
    good = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    require(good, f"{there} cannot be written to: let the user of the SuperNode own it")
    return str(folder)


def certificate(file: Path) -> str:
    """Return whose certificate it is and until when; `ConfigError` if it vouches for nothing, or no more."""
    try:
        found = x509.load_pem_x509_certificates(file.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{file} is no PEM certificate ({error}): ask the operator for ca.crt") from error
    now, words = datetime.datetime.now(datetime.UTC), []
    for item in found:
        name, last = item.subject.rfc4514_string(), item.not_valid_after_utc
        require(_vouches(item), f"{file} holds the certificate of a server, {name}: ask the operator for ca.crt")
        require(last > now, f"{name} in {file} has ended on {last:%Y-%m-%d}: ask the operator for a new ca.crt")
        begins = item.not_valid_before_utc
        require(begins < now, f"{name} in {file} begins on {begins:%Y-%m-%d}: is the clock of this machine right?")
        soon = " (soon!)" if last - now < datetime.timedelta(days=WARNING_DAYS) else ""
        words.append(f"{name}, until {last:%Y-%m-%d}{soon}")
    return "; ".join(words)


def _vouches(item: x509.Certificate) -> bool:
    try:
        return item.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def private_key(file: Path) -> str:
    """Return what key it is; `ConfigError` if Flower cannot use it, or others can read it."""
    mend = "make one with `ssh-keygen -t ecdsa -b 384`, and have the operator register it"
    try:
        key = load_ssh_private_key(file.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{file} is no private key without a password ({error}): {mend}") from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise ConfigError(f"{file} is no ECDSA key, which is all that Flower reads: {mend}")
    mode = file.stat().st_mode & 0o777
    require(not mode & 0o077, f"others may read {file} (mode {mode:o}): chmod 600 {file}")
    return f"ECDSA, {key.curve.name}"


def reached(address: str, root_certificates: Path | None) -> str:
    """Return that a SuperLink answers; `FedgenError` if not, or if it is somebody else."""
    host, _, port = address.rpartition(":")
    require(bool(host) and port.isdecimal() and "/" not in host, f"--superlink={address} must be HOST:PORT")
    context = ssl.create_default_context(cafile=root_certificates and str(root_certificates))
    connection = http.client.HTTPSConnection(host.strip("[]"), int(port), timeout=SECONDS, context=context)
    try:
        connection.request("POST", "/v1/fleet/activate-node", headers={"content-type": "text/plain"})
        status = connection.getresponse().status
    except ssl.SSLCertVerificationError as error:
        mend = "ask the operator for ca.crt, and for the name that is in the certificate"
        raise FedgenError(f"{address} cannot prove who it is ({error.verify_message}): {mend}") from error
    except (OSError, http.client.HTTPException) as error:
        raise FedgenError(
            f"{address} cannot be reached ({error}): check name, port and the firewalls between"
        ) from error
    finally:
        connection.close()
    if status in (502, 503, 504):
        raise FedgenError(f"{address}: the proxy is there, the SuperLink behind it is not (status {status})")
    require(
        status in SIGNED, f"{address} is not where nodes connect (status {status}): ask for the server's NODES_LISTEN"
    )
    return f"{address} answers, and proves who it is"

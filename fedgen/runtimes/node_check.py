"""Check a node's configuration, store and device before it joins; every failure says how to fix it."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedgen.config.settings import DEVICES, Config
from fedgen.data.encoders import differences
from fedgen.data.store import open_store
from fedgen.errors import ConfigError, DataError, FedgenError, choose, require, suggestion
from fedgen.models.settings import GRANULARITIES
from fedgen.node.secure import OWN_KEY, fewest
from fedgen.node.settings import own_settings
from fedgen.task import use_hardware

# The entries of a node configuration: their types, and their meaning.
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


def check_node(file: Path, config: Config, joins: bool = False) -> list[str]:
    """Check the node configuration in ``file``; where the node ``joins`` the run of ``config``, its encoder too.

    Returns
    -------
    list of str
        A line for each thing that was checked.

    Raises
    ------
    ConfigError
        With a line for each thing that is wrong.
    """
    facts = {"device": config.device, **read_node_config(file)}
    checks = [partial(entry, facts, name) for name in dict.fromkeys(("partition-id", "store", *facts))]
    if isinstance(facts.get("store"), str):
        checks.append(partial(embeddings, facts, config if joins else None))
    if isinstance(facts.get("state"), str):
        checks.append(partial(writable, Path(facts["state"])))
    sound, wrong = [], []
    for check in checks:
        try:
            sound.append(check())
        except (FedgenError, OSError) as error:
            wrong.append(str(error))
    require(not wrong, "\n".join([f"this node is not ready: {len(wrong)} to mend", *wrong]))
    return sound


def read_node_config(file: Path) -> dict[str, Any]:
    """Return the entries of a node configuration; `ConfigError` if Flower cannot read it."""
    require(file.suffix == ".toml", f"--node-config={file} must end in .toml: any other text is `key=value` for Flower")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--node-config={file} cannot be read: {error}") from error


def entry(facts: Mapping[str, Any], key: str) -> str:
    """Return an entry of a node configuration; `ConfigError` if it is missing, unknown or wrong."""
    if key not in KEYS:
        raise ConfigError(f"nothing reads {key}.{suggestion(key, KEYS)} What is read: {', '.join(KEYS)}")
    types, meaning = KEYS[key]
    require(key in facts, f"{key} is missing: {meaning}")
    value = facts[key]
    good = isinstance(value, types) and not isinstance(value, bool)
    good = good and (isinstance(value, str) or value > 0 or (value == 0 and key != "max-epsilon"))
    require(good, f"{key}={value!r} must be {meaning}")
    if key == OWN_KEY:
        fewest(value)
    own_settings({key: value})
    return f"{key}={value}" + (f": {use_hardware(Config(device=value))}" if key == "device" else "")


def embeddings(facts: Mapping[str, Any], config: Config | None) -> str:
    """Return the content of the node's store, every byte of it read; an error if it is damaged, or not the run's."""
    path = Path(facts["store"]).expanduser()
    require(path.is_absolute(), f"store={path} must be an absolute path: Flower works in another folder")
    store = open_store(path)
    store.verify()
    if config is not None and (wanted := differences(config.encoder, store.encoder)):
        raise DataError(f"{path} is of encoder {store.encoder}, the run's has {wanted}: make it with `fedgen prepare`")
    names = own_settings({"classes": facts["classes"]}).classes if isinstance(facts.get("classes"), str) else None
    counts = dict(zip(store.classes, np.bincount(store.labels, minlength=len(store.classes)).tolist(), strict=True))
    for name in names or []:
        require(bool(counts[choose(name, counts, "classes")]), f"classes names {name}, of which the store has no clip")
    used = {name: counts[name] for name in names or counts if counts[name]}
    return f"{sum(used.values())} clips of {len(used)} classes ({', '.join(used)}), of encoder {store.encoder}"


def writable(folder: Path) -> str:
    """Return a folder that can be written to, or made; `ConfigError` if it cannot."""
    folder = folder.expanduser()
    require(folder.is_absolute(), f"state={folder} must be an absolute path: Flower works in another folder")
    there = next(path for path in (folder, *folder.parents) if path.exists())
    good = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    require(good, f"{there} cannot be written to: let the user of the SuperNode own it")
    return f"state folder {folder}"

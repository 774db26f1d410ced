"""Settings as overrides in Hydra's grammar, as one command line, and as an experiment file."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedgen.config import choices, config_dir, known_keys, quoted
from fedgen.errors import require
from fedgen.files import write_atomically

YAML_WORDS = ("yes", "no", "on", "off")  # that YAML takes for true and false
BARE = re.compile(r"(?!(?:true|false|null|nan|inf)$)[A-Za-z_./][\w./-]*", re.ASCII | re.IGNORECASE)


def overrides(settings: Mapping[str, Any]) -> list[str]:
    """Return ``settings`` as overrides: groups first, then keys, both in the configuration's own order."""
    return [f"{key}={written(settings[key])}" for key in ordered(settings)]


def command(texts: Sequence[str]) -> str:
    """Return the command line that runs with these overrides, quoted for a shell."""
    return " ".join(["fedgen", "run", *map(shlex.quote, texts)])


def experiment(settings: Mapping[str, Any], name: str, origin: str) -> str:
    """Return the text of an experiment file ``name.yaml`` that says the same.

    Parameters
    ----------
    settings : Mapping
        Values by new key.
    name : str
        What ``experiment=`` calls it.
    origin : str
        File that the settings come from.
    """
    groups = {key: settings[key] for key in ordered(settings) if key in choices()}
    keys: dict[str, Any] = {}
    for key in ordered(settings):
        if key not in groups:
            *sections, last = key.split(".")
            section = keys
            for part in sections:
                section = section.setdefault(part, {})
            section[last] = settings[key]
    head = ["# @package _global_", f"# fedgen run experiment={name}", f"# Translated from {origin}."]
    defaults = [f"  - override /{group}: {_yaml(choice)}" for group, choice in groups.items()]
    return "\n".join([*head, "defaults:", *defaults, "", *_block(keys)]).rstrip() + "\n"


def save_experiment(path: Path, name: str, text: str) -> str:
    """Write the text of an experiment file to ``path`` and return the command that runs it.

    Raises
    ------
    ConfigError
        Hydra would not find the file there as ``experiment=name``, or ``path`` exists.
    """
    where = path.absolute().parent
    found = path.name == f"{name}.yaml" and where.name == "experiment"
    require(found, f"--out={path} must be a folder `experiment` and {name}.yaml: experiment={name} is looked for there")
    require(not path.exists(), f"--out={path} exists already")
    write_atomically(path, text.encode())
    ours = where.resolve() == config_dir() / "experiment"
    return command([*([] if ours else ["--config-dir", str(path.parent.parent)]), f"experiment={name}"])


def ordered(settings: Mapping[str, Any]) -> list[str]:
    """Return the keys: groups before keys within them, both in the configuration's own order."""
    order, groups = known_keys(), choices()

    def place(key: str) -> tuple[bool, int, str]:
        known = key if key in order else key.split(".")[0]
        return key not in groups, order.index(known), key

    return sorted(settings, key=place)


def written(value: Any) -> str:
    """Return a JSON value in the grammar of Hydra's overrides, quoted where it has to be."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)}: {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    if not isinstance(value, str):
        return json.dumps(value)
    return value if BARE.fullmatch(value) else quoted(value)


def _key(name: str) -> str:
    """Return the key of a mapping, which takes no quotes."""
    return re.sub(r"([\\()\[\]{}:=,\t])", r"\\\1", name)


def _block(values: Mapping[str, Any], indent: str = "") -> list[str]:
    """Return nested sections as lines of YAML; what stands in them is JSON, which YAML reads as well."""
    lines = []
    for key, value in values.items():
        section = isinstance(value, dict) and bool(value)
        lines.append(f"{indent}{_yaml(key)}:" + ("" if section else f" {_yaml(value)}"))
        lines += _block(value, indent + "  ") if section else []
    return lines


def _yaml(value: Any) -> str:
    simple = isinstance(value, str) and BARE.fullmatch(value) and value.lower() not in YAML_WORDS
    return value if simple else json.dumps(value, ensure_ascii=False)

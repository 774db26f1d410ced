"""The configuration: composed by Hydra, read once, and turned into typed settings that refuse unknown keys."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import reduce
from operator import attrgetter, getitem
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedgen.config.settings import Config, NodeConfig
from fedgen.data.plain import read_text, read_yaml
from fedgen.errors import ConfigError, require, said, suggestion

Settings = TypeVar("Settings")

CHANGEABLE = ["device", "threads", "memory", "strategy.timeout", "strategy.wait"]  # when a run is resumed
SCALARS: dict[type, tuple[str, tuple[type, ...]]] = {  # by type: its name, and the types that are read as it
    str: ("text: in quotes, if it reads as something else", (str, int, float)),
    int: ("a whole number", (int, str)),
    float: ("a number", (float, int, str)),
    bool: ("true or false", (bool,)),
}
OPEN_KEYS = ("granularity.groups", "strategy.options", "nodes")  # mappings whose keys are the user's own

ConfigStore.instance().store("settings", dataclasses.asdict(Config()))  # conf/config.yaml begins with it


def paths_of(config: Config) -> dict[str, str]:
    """Return the paths that are set in a configuration, by key."""
    keys = ("run_dir", "data.root", "data.store", "checkpoint.load", "checkpoint.dir")
    models = {key: name for key in ("encoder.model", "target.model") if (name := attrgetter(key)(config))}
    folders = {key: name for key, name in models.items() if Path(name).is_dir()}  # others are names at Hugging Face
    return {key: path for key in keys if (path := attrgetter(key)(config))} | folders


def config_dir() -> Path:
    """Return the folder of configuration files: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "conf", package / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(f"no configuration found in {package.parent / 'conf'} or {package / 'conf'}")


def load_config(overrides: list[str]) -> Config:
    """Compose the configuration files with ``overrides`` (Hydra's syntax) and validate the result.

    Raises
    ------
    ConfigError
        Unknown key or choice (the nearest is suggested), wrong type, or values that contradict each other.
    """
    resumed = resume_config(overrides)
    if resumed is not None:
        return resumed
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return from_dictconfig(compose("config", overrides=opened(overrides)))
    except HydraException as error:
        raise explain(error) from error


def resume_config(overrides: Sequence[str]) -> Config | None:
    """Return the configuration of the run that ``resume=...`` among ``overrides`` names; None if there is none.

    Raises
    ------
    ConfigError
        It is no run folder, or ``overrides`` would change what decides the run's results.
    """
    if not any(re.match(r"\+*resume=", text) for text in overrides):
        return None
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise explain(error) from error
    given = {override.key_or_group: override.value() for override in parsed}
    named = given.pop("resume", None)
    if named is None:
        return None
    folder = Path(str(named)).expanduser().absolute()
    for key in given:
        if key not in CHANGEABLE:
            raise ConfigError(
                f"{key} cannot be changed when a run is resumed: it goes on with its own configuration, and only "
                f"{', '.join(CHANGEABLE)} may be given. To go on in another way, use checkpoint.load={named}"
            )
    file = folder / "config.yaml"
    if not file.is_file():
        raise ConfigError(f"resume={named} is no run folder: it has no config.yaml")
    values = dataclasses.asdict(read_config(file))
    for key, value in {**_resolved(OmegaConf.create(given)), "resume": str(folder), "run_dir": str(folder)}.items():
        *groups, name = key.split(".")
        reduce(getitem, groups, values)[name] = value
    return typed(Config, values)


def quoted(value: str) -> str:
    """Return ``value`` in quotes for an override; only backslashes before a quote mean more than themselves there."""
    mark = "'" if '"' in value else '"'
    return mark + re.sub(rf"(\\*)({mark}|$)", lambda m: 2 * m[1] + ("\\" + mark if m[2] else ""), value) + mark


def opened(overrides: Sequence[str]) -> list[str]:
    """Return ``overrides`` with those of `OPEN_KEYS` in Hydra's form for new keys; `ConfigError` for an unknown key."""
    known = [*known_keys(), *choices()]
    for text in overrides:
        key = re.match(r"[+~]*([\w.]+)=", text)
        if key and not re.match(rf"(hydra|{'|'.join(OPEN_KEYS)})\b", key[1]) and key[1] not in known:
            raise ConfigError(f"unknown configuration key '{key[1]}'.{suggestion(key[1], known)}")
    return [f"++{text}" if re.match(rf"({'|'.join(OPEN_KEYS)})[.=]", text) else text for text in overrides]


def read_config(file: Path) -> Config:
    """Return the resolved configuration in a file; `ConfigError` as `from_yaml`, or if it cannot be read."""
    return from_yaml(read_text(file), str(file))


def from_yaml(text: str, where: str = "the configuration") -> Config:
    """Return the configuration that `to_yaml` wrote: plain data, in which nothing is interpolated or completed.

    Raises
    ------
    ConfigError
        ``where`` holds no plain YAML; a key is missing or unknown, or a value of another type or out of range.
    """
    require(text.endswith("\n"), f"{where} is empty, or cut off: its last line has no end")
    values = read_yaml(text, where)
    require(isinstance(values, dict), f"{where} holds no configuration: it is no mapping of keys to values")
    try:
        return typed(Config, values, complete=True)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def to_yaml(config: Config) -> str:
    """Return the resolved configuration as YAML text."""
    return str(yaml.dump(dataclasses.asdict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000))


def nested_yaml(values: Mapping[str, Any]) -> str:
    """Return values by dotted key as YAML text, as Hydra reads it."""
    sections = OmegaConf.create()
    for key, value in values.items():
        OmegaConf.update(sections, key, value, force_add=True)
    return OmegaConf.to_yaml(sections)


class _Dumper(yaml.SafeDumper):
    """Escapes the line ends that PyYAML would fold: U+0085, U+2028, U+2029."""

    def represent_str(self, data: str) -> Any:
        return self.represent_scalar(
            "tag:yaml.org,2002:str", data, '"' if set(data) & set("\x85\u2028\u2029") else None
        )


_Dumper.add_representer(str, _Dumper.represent_str)


def from_dictconfig(values: DictConfig) -> Config:
    """Resolve and validate a composed configuration: every key known, every value of its type."""
    return typed(Config, _resolved(values))


def _resolved(values: DictConfig) -> dict[str, Any]:
    try:
        return dict(OmegaConf.to_container(values, resolve=True))  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from error


def typed(cls: type[Settings], values: Any, key: str = "", complete: bool = False) -> Settings:
    """Return plain ``values``, at ``key`` of the configuration, as the dataclass ``cls``.

    Raises
    ------
    ConfigError
        A key is unknown, or (if ``complete``) missing; a value is of another type or out of range.
    """
    require(isinstance(values, dict), f"{key[:-1]}={said(repr(values))} must be a mapping of keys to values")
    known = get_type_hints(cls)
    hints = {item.name: known[item.name] for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in (name for name in values if name not in hints):
        unknown = said(f"{key}{name}")
        raise ConfigError(f"unknown configuration key '{unknown}'.{suggestion(unknown, known_keys())}")
    for name in hints if complete else ():
        require(name in values, f"the key {key}{name} is missing")
    given = {name: hint for name, hint in hints.items() if name in values}
    return cls(**{name: _value(hint, values[name], f"{key}{name}", complete) for name, hint in given.items()})


def _value(hint: Any, value: Any, key: str, complete: bool) -> Any:
    """Return ``value`` as the type ``hint``."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind is UnionType:  # of a type and None
        return None if value is None else _value(inner[0], value, key, complete)
    if dataclasses.is_dataclass(kind):
        return typed(kind, value, f"{key}.", complete)  # type: ignore[arg-type]
    if kind is list:
        require(isinstance(value, list), f"{key}={said(repr(value))} must be a list")
        return [_value(inner[0], item, f"{key}[{place}]", complete) for place, item in enumerate(value)]
    if kind is dict:
        require(isinstance(value, dict), f"{key}={said(repr(value))} must be a mapping of keys to values")
        pairs = [(_scalar(str, name, key), item) for name, item in value.items()]
        return {name: _value(inner[1], item, f"{key}.{name}", complete) for name, item in pairs}
    return _scalar(kind, value, key)


def _scalar(kind: type, value: Any, key: str) -> Any:
    """Return ``value`` as text, number or boolean; numbers may stand for text, and text that reads as one for them."""
    wanted, taken = SCALARS[kind]
    if kind is bool and isinstance(value, str):
        value = {"true": True, "false": False}.get(value.lower(), value)
    with suppress(ValueError):
        if type(value) in taken:
            return kind(value)
    raise ConfigError(f"{key}={said(repr(value))} must be {wanted}")


def explain(error: HydraException) -> ConfigError:
    """Turn Hydra's error about an override into one that suggests the nearest choice."""
    text = str(error)
    if isinstance(error, MissingConfigException) and (found := re.search(r"'([\w/]+)/([^/']+)'", text)):
        group, choice = found.groups()
        options = choices().get(group, [])
        return ConfigError(f"{group}={choice!r} is not one of {', '.join(options)}.{suggestion(choice, options)}")
    if isinstance(error, OverrideParseException):
        return ConfigError(f"cannot read the override {error.override!r}: {text.splitlines()[0]}")
    return ConfigError(text.splitlines()[0])


def known_keys(cls: type = Config, prefix: str = "") -> list[str]:
    """Return every configuration key, dotted."""
    keys, hints = [], get_type_hints(cls)
    for name in (item.name for item in dataclasses.fields(cls)):
        inner = NodeConfig if hints[name] == dict[str, NodeConfig] else hints[name]
        key = f"{prefix}{name}"
        keys.append(key)
        if dataclasses.is_dataclass(inner):
            keys += known_keys(inner, f"{key}.0." if inner is NodeConfig else f"{key}.")
    return keys


def choices() -> dict[str, list[str]]:
    """Return the choices of every configuration group."""
    groups: dict[str, list[str]] = {}
    for file in sorted(config_dir().glob("*/*.yaml")):
        groups.setdefault(file.parent.name, []).append(file.stem)
    return groups

"""The configuration: composed by Hydra, read once, and turned into typed settings that refuse what they do not know."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedgen.errors import ConfigError, require, suggestion
from fedgen.phases import PhaseSettings
from fedgen.settings import Config, NodeConfig

Settings = TypeVar("Settings")

CHANGEABLE = ["device", "threads", "memory", "strategy.timeout", "strategy.wait"]  # when a run is resumed
OPEN_KEYS = ("granularity.groups", "strategy.options", "nodes")  # mappings whose keys are the user's own


def config_dir() -> Path:
    """Return the folder of configuration files: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent
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
    changed = OmegaConf.create(file.read_text(encoding="utf-8"))
    for key, value in {**given, "resume": str(folder), "run_dir": str(folder)}.items():
        OmegaConf.update(changed, key, value)
    return from_dictconfig(changed)  # type: ignore[arg-type]


def quoted(value: str) -> str:
    """Return ``value`` in quotes for an override; only backslashes before a quote mean more than themselves there."""
    mark = "'" if '"' in value else '"'
    return mark + re.sub(rf"(\\*)({mark}|$)", lambda m: 2 * m[1] + ("\\" + mark if m[2] else ""), value) + mark


def opened(overrides: Sequence[str]) -> list[str]:
    """Return ``overrides`` with those of mappings in Hydra's form for new keys, so that nobody has to know it."""
    return [f"++{text}" if re.match(rf"({'|'.join(OPEN_KEYS)})[.=]", text) else text for text in overrides]


def from_yaml(text: str) -> Config:
    """Return the configuration that `to_yaml` wrote."""
    return from_dictconfig(OmegaConf.create(text))  # type: ignore[arg-type]


def to_yaml(config: Config) -> str:
    """Return the resolved configuration as YAML text."""
    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))


def from_dictconfig(values: DictConfig) -> Config:
    """Validate a composed configuration: every key known, every value of its type."""
    rest = OmegaConf.masked_copy(values, [str(key) for key in values if key != "nodes"])
    nodes = values.get("nodes") or {}
    mapping = isinstance(nodes, dict | DictConfig) and all(isinstance(own, dict | DictConfig) for own in nodes.values())
    require(mapping, f"nodes={nodes} must map numbers of nodes to what they do otherwise")
    plain = _merged(Config, rest)
    plain["nodes"] = {
        str(number): _build(NodeConfig, _merged(NodeConfig, own, f"nodes.{number}."))
        for number, own in sorted(nodes.items(), key=str)
    }
    return _build(Config, plain)


def _merged(cls: type, values: DictConfig, prefix: str = "") -> dict[str, Any]:
    """Return ``values`` over the defaults of ``cls``, each of its type."""
    try:
        schema = _writable(OmegaConf.structured(cls))
        return dict(OmegaConf.to_container(OmegaConf.merge(schema, values), resolve=True))  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        raise _explain_value(error, prefix) from error


def _writable(schema: DictConfig) -> DictConfig:
    OmegaConf.set_readonly(schema, False)  # frozen dataclasses make read-only nodes
    for key in schema:
        child = schema._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            _writable(child)
    return schema


def _build(cls: type[Settings], values: Any) -> Settings:
    hints = get_type_hints(cls)
    built = {}
    for item in dataclasses.fields(cls):  # type: ignore[arg-type]
        value, hint = values[item.name], hints[item.name]
        if dataclasses.is_dataclass(hint):
            value = _build(hint, value)  # type: ignore[arg-type]
        elif hint == list[PhaseSettings]:
            value = [_build(PhaseSettings, phase) for phase in value]
        built[item.name] = value
    return cls(**built)


def _explain_value(error: OmegaConfBaseException, prefix: str = "") -> ConfigError:
    key = prefix + (error.full_key or "")
    first = str(error).splitlines()[0]
    if "not in" in first:
        return ConfigError(f"unknown configuration key '{key}'.{suggestion(key, known_keys())}")
    return ConfigError(f"{key}: {first}")


def explain(error: HydraException) -> ConfigError:
    """Turn what Hydra says about an override into an error that suggests the nearest known key or choice."""
    text = str(error)
    if isinstance(error, MissingConfigException) and (found := re.search(r"'([\w/]+)/([^/']+)'", text)):
        group, choice = found.groups()
        options = choices().get(group, [])
        return ConfigError(f"{group}={choice!r} is not one of {', '.join(options)}.{suggestion(choice, options)}")
    if isinstance(error, ConfigCompositionException) and (
        found := re.search(r"[Oo]verride '?\+*([\w./]+)", text) or re.search(r"'([\w./]+)'", text)
    ):
        key = found.group(1)
        cause = error.__cause__
        if isinstance(cause, OmegaConfBaseException) and "not in struct" not in str(cause):
            return ConfigError(f"{key}: {str(cause).splitlines()[0]}")
        return ConfigError(f"unknown configuration key '{key}'.{suggestion(key, [*known_keys(), *choices()])}")
    if isinstance(error, OverrideParseException):
        return ConfigError(f"cannot read the override {error.override!r}: {text.splitlines()[0]}")
    return ConfigError(text.splitlines()[0])


def known_keys() -> list[str]:
    """Return every configuration key, dotted."""

    def walk(cls: type, prefix: str) -> list[str]:
        keys = []
        for name, hint in get_type_hints(cls).items():
            if name not in {item.name for item in dataclasses.fields(cls)}:
                continue
            keys.append(prefix + name)
            if dataclasses.is_dataclass(hint):
                keys += walk(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
            elif hint == dict[str, NodeConfig]:
                keys += walk(NodeConfig, f"{prefix}{name}.0.")
        return keys

    return walk(Config, "")


def choices() -> dict[str, list[str]]:
    """Return the choices of every configuration group."""
    root = config_dir()
    groups: dict[str, list[str]] = {}
    for file in sorted(root.glob("*/*.yaml")):
        groups.setdefault(file.parent.name, []).append(file.stem)
    return groups

"""The node configuration: what a node has of its own, and which runs it refuses, whatever a server asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedgen.config.settings import Config, NodeConfig
from fedgen.data.files import home
from fedgen.data.plain import read_json
from fedgen.errors import ConfigError, require
from fedgen.models.settings import CodecSettings
from fedgen.node.data import NodeData
from fedgen.node.node import Node
from fedgen.node.secure import OWN_KEY, check_node
from fedgen.task import open_task


def open_node(config: Config, facts: Mapping[str, Any]) -> Node:
    """Open the node that this process is.

    Parameters
    ----------
    config : Config
        Of the run.
    facts : Mapping
        The node configuration, Flower's ``context.node_config``.

    Raises
    ------
    ConfigError, DataError
        The node refuses the run, or cannot take part in it.
    """
    if "device" in facts:
        config = replace(config, device=str(facts["device"]))
    config = replace(config, codec=own_codec(config, facts.get("public")))
    check_budget(config, facts.get("max-epsilon"))
    check_node(config.strategy.secure, facts.get(OWN_KEY))
    store, apart = facts.get("store"), config.data.on_nodes
    task = open_task(config, None if store is None else str(store))
    data = NodeData(task, int(facts["partition-id"]), store is not None, own_settings(facts))
    load, folder = config.checkpoint.load, config.checkpoint.dir
    on_server = folder and "state" not in facts and not apart  # a path of the server's
    return Node.open(
        data,
        node_home(str(config.run_dir), facts, apart),
        node_home(load, facts, apart) if load else None,
        Path(str(folder)) if on_server else None,
    )


def check_budget(config: Config, most: Any) -> None:
    """Raise `ConfigError` for a run that spends more than ``max-epsilon``, or if that is no number above 0."""
    if most is None:
        return
    try:
        limit = float(most)
    except (TypeError, ValueError):
        limit = 0.0
    require(limit > 0, f"the node configuration's max-epsilon={most!r} must be a number above 0")
    asked, seed = config.privacy.epsilon, config.privacy.seed
    require(
        config.privacy.used and asked is not None and asked <= limit,
        f"the node configuration's max-epsilon={limit:g} refuses privacy={config.privacy.name} privacy.epsilon={asked}",
    )
    require(seed is None, f"the node configuration's max-epsilon refuses privacy.seed={seed}: its noise hides nothing")


def own_codec(config: Config, public: Any) -> CodecSettings:
    """Return the codec's settings with the node's own folder of public sounds: a node opens none that a server names.

    Raises
    ------
    ConfigError
        The run's codec is of a folder, and the node configuration names none.
    """
    if config.codec.public is None or not config.data.on_nodes:
        return config.codec
    key = f"the run's codec is of codec.public={config.codec.public}"
    require(public is not None, f"{key}: name this node's copy as public in the node configuration")
    return replace(config.codec, public=str(public))


def node_home(run_dir: str, facts: Mapping[str, Any], apart: bool = False) -> Path:
    """Return the folder of a run for what is a node's: its run folder, or one of its name below the node's ``state``.

    A node ``apart`` from the server keeps nothing in the server's folders: without a ``state`` it takes
    ``$FEDGEN_HOME/nodes``.
    """
    root, name = facts.get("state", home() / "nodes" if apart else None), Path(run_dir).name
    require(bool(name) and name != "..", f"run_dir={run_dir} must be a path that ends in a name")
    return Path(str(root)) / name if root else Path(run_dir)


def own_settings(facts: Mapping[str, Any]) -> NodeConfig:
    """Return the settings in a node configuration that go before the run's.

    Parameters
    ----------
    facts : Mapping
        ``granularity`` (text), ``groups`` (JSON, ``{"name": ["class", ...]}``), ``classes`` (separated by commas) and
        ``samples-per-class`` count; other entries do not matter here.

    Raises
    ------
    ConfigError
        Names the entry that cannot be read.
    """
    names = {"granularity": "granularity", "samples_per_class": "samples-per-class"}
    values: dict[str, Any] = {name: str(facts[key]) for name, key in names.items() if key in facts}
    if "classes" in facts:
        values["classes"] = [name.strip() for name in str(facts["classes"]).split(",")]
    if "groups" in facts:
        values["groups"] = _groups(str(facts["groups"]))
    return NodeConfig(**values)


def _groups(text: str) -> dict[str, list[str]]:
    try:
        groups = read_json(text)
        assert all(isinstance(name, str) for names in groups.values() for name in names)
    except (ValueError, AttributeError, TypeError, AssertionError) as error:
        raise ConfigError(
            f'the node configuration\'s groups={text!r} must be JSON such as {{"pets": ["dog", "cat"]}}: {error}'
        ) from error
    return {str(name): list(names) for name, names in groups.items()}

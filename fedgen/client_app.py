"""Flower's ClientApp: read a message, let the node work, write a message."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedgen.config.compose import from_yaml
from fedgen.config.phases import Generators, Phase, plan
from fedgen.config.settings import Config, NodeConfig
from fedgen.data.files import home
from fedgen.data.plain import read_json
from fedgen.data.progress import show_step
from fedgen.errors import ConfigError, require
from fedgen.messages.samples import samples_from_record, samples_to_record
from fedgen.messages.states import states_from_records, states_to_records
from fedgen.models.generators.bank import generator_loss
from fedgen.models.samples import SyntheticTokens
from fedgen.models.settings import CodecSettings
from fedgen.node.measure import audit_node, measure_adapters
from fedgen.node.node import Node
from fedgen.node.private import PrivateNode
from fedgen.node.secure import check_asked, check_node, masked
from fedgen.server.aggregation import clipped
from fedgen.task import open_task

app = ClientApp()


@app.train(mods=[masked, clipped])
def train(message: Message, context: Context) -> Message:
    """Train adapters and generators, as the phase says; reply with the adapters and metrics of the training."""
    started = time.monotonic()
    order = Order.read(message)
    node = open_node(order.config, context)
    arrays, losses, history = ArrayRecord(), {}, []  # type: ignore[var-annotated]
    if order.phase.mode.trains_adapters:
        check_asked(order.config.strategy.secure, message)
        received = next(iter(message.content.array_records.values())).to_torch_state_dict()
        show_step("training adapters", None)
        weights, losses = node.train(received, order.round, order.phase, order.proximal_mu, order.filled)
        if order.config.strategy.send == "all":
            arrays = ArrayRecord(weights)
    if order.phase.mode.generators is Generators.TRAIN and order.config.sharing.name == "local":
        show_step("fitting generators", None)
        history = node.fit_generators(order.round)
    metrics = MetricRecord({"num-examples": len(node.indices), "seconds": time.monotonic() - started})
    if order.config.strategy.send == "samples":
        history = []
    else:
        metrics.update({**losses, **generator_loss(history)})
    report = ConfigRecord({"generators": json.dumps(history), "privacy": json.dumps(node.spent())})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics, "report": report}), reply_to=message)


@app.query("introduce")
def introduce(message: Message, context: Context) -> Message:
    """Reply with the names of the node's classes, for a run whose classes are those that nodes have."""
    node = open_node(Order.read(message).config, context)
    classes = [node.task.classes[label] for label in node.counts]
    return Message(RecordDict({"facts": ConfigRecord({"json": json.dumps({"classes": classes})})}), reply_to=message)


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Reply with the node's number, classes and clips, once it is sure that it can do every phase of the run."""
    order = Order.read(message)
    node = open_node(order.config, context)
    if order.codec:
        node.task.space.require_same(order.codec)
    node.check(order.finished, node.number in order.back)
    trains = any(item.mode.generators is Generators.TRAIN for item in plan(order.config.phase_list))
    facts = {
        "number": node.number,
        "classes": node.task.classes,
        "counts": list(node.counts.items()),
        "held_out": list(node.held_out_counts.items()),
        "shape": list(node.task.store.shape),
        "encoder": node.task.store.identity["encoder"],
        "targets": node.task.targets.fingerprint(),
        "granularity": node.granularity.name,
        "slots": node.slots if trains else {},
        "device": str(node.task.device),
    }
    return Message(RecordDict({"facts": ConfigRecord({"json": json.dumps(facts)})}), reply_to=message)


@app.query("synthesize")
def synthesize(message: Message, context: Context) -> Message:
    """Reply with synthetic samples of the node's classes; no real embedding is among them."""
    order = Order.read(message)
    samples = open_node(order.config, context).synthesize(order.round)
    return Message(RecordDict({"samples": samples_to_record(samples)}), reply_to=message)


@app.query("fill")
def fill(message: Message, context: Context) -> Message:
    """Keep samples of other nodes for the training of this round."""
    order = Order.read(message)
    node = open_node(order.config, context)
    node.keep_others(read_others(message.content, node, order.round), order.round)
    return Message(RecordDict({"facts": ConfigRecord({"round": order.round})}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Reply with the scores of the global adapters on the node's held-out clips."""
    order = Order.read(message)
    received = next(iter(message.content.array_records.values())).to_torch_state_dict()
    scores = measure_adapters(open_node(order.config, context), received)
    return Message(RecordDict({"report": ConfigRecord({"scores": json.dumps(scores)})}), reply_to=message)


@app.query("assess")
def assess(message: Message, context: Context) -> Message:
    """Reply with what the messages of the node tell of its clips."""
    order = Order.read(message)
    found = audit_node(open_node(order.config, context), order.round)
    return Message(RecordDict({"report": ConfigRecord({"audit": json.dumps(found)})}), reply_to=message)


@app.query("fit")
def fit(message: Message, context: Context) -> Message:
    """Train shared generators, from the weights and optimiser state in the message to those in the reply."""
    order = Order.read(message)
    states = states_from_records(message.content)
    states, history = open_node(order.config, context).fit_shared(states, order.round, order.phase)
    content = states_to_records(states)
    content["report"] = ConfigRecord({"generators": json.dumps(history)})
    return Message(content, reply_to=message)


@app.query("adopt")
def adopt(message: Message, context: Context) -> Message:
    """Keep the shared generators as they are at the end of the round."""
    order = Order.read(message)
    states = states_from_records(message.content)
    open_node(order.config, context).adopt(states, order.round)
    return Message(RecordDict({"facts": ConfigRecord({"adopted": sorted(states)})}), reply_to=message)


@dataclass(frozen=True)
class Order:
    """What the server's message asks for.

    Attributes
    ----------
    config : Config
    phase : Phase
    round : int
        Counted over the whole run, from 1; 0 before any training.
    finished : int
        Rounds of the run that this one goes on from.
    proximal_mu : float
        FedProx's; 0 under other strategies.
    filled : bool
        Whether adapters are trained on samples of other nodes too.
    back : list[int]
        Numbers of nodes that have been in this run before.
    codec : list[float]
        Sketch of the server's codec; empty in a run without samples.
    """

    config: Config
    phase: Phase
    round: int
    finished: int
    proximal_mu: float
    filled: bool
    back: list[int]
    codec: list[float]

    @classmethod
    def read(cls, message: Message) -> Order:
        """Read the ``config`` record of a message."""
        values = message.content.config_records["config"]

        def number(key: str) -> float:
            return float(str(values.get(key, 0)))

        config = _config(str(values["yaml"]))
        finished = int(number("finished"))
        phase = plan(config.phase_list, finished)[int(number("phase"))]
        back = [int(text) for text in str(values.get("back", "")).split()]
        filled, codec = bool(number("filled")), [float(value) for value in values.get("codec", [])]  # type: ignore[union-attr]
        return cls(config, phase, int(number("round")), finished, number("proximal-mu"), filled, back, codec)


def read_others(content: RecordDict, node: Node, round_number: int) -> dict[int, SyntheticTokens]:
    """Return the samples of other nodes in a message, by their numbers.

    Raises
    ------
    PayloadError
        They cannot be read.
    """
    classes, limit = range(len(node.task.classes)), node.config.synthesis.max_samples
    samples = {}
    for key, record in content.array_records.items():
        number = int(key.removeprefix("samples."))
        seed = node.task.seed("others", round_number, node.number, number)
        samples[number] = samples_from_record(record, node.task.space.codec, classes, limit, seed)
    return samples


def open_node(config: Config, context: Context) -> Node:
    """Open the node that this process is: its data, its number, and its folders."""
    facts = context.node_config
    if "device" in facts:
        config = replace(config, device=str(facts["device"]))
    config = replace(config, codec=own_codec(config, facts.get("public")))
    own_store = str(facts["store"]) if "store" in facts else None
    load, folder = config.checkpoint.load, config.checkpoint.dir
    check_budget(config, facts.get("max-epsilon"))
    check_node(config.strategy.secure, facts.get("secure-aggregation"))
    return (PrivateNode if config.privacy.used else Node)(
        open_task(config, own_store),
        int(facts["partition-id"]),
        node_home(str(config.run_dir), context, config.data.on_nodes),
        node_home(load, context, config.data.on_nodes) if load else None,
        own_store is not None,
        own_settings(dict(facts)),
        Path(folder)
        if folder and "state" not in facts and not config.data.on_nodes
        else None,  # a path of the server's
    )


def check_budget(config: Config, most: Any) -> None:
    """Refuse a run that spends more than the node configuration's ``max-epsilon``: no server can overrule that.

    Raises
    ------
    ConfigError
        The run is not private, or not enough; or ``max-epsilon`` is no number above 0.
    """
    if most is None:
        return
    try:
        limit = float(most)
    except (TypeError, ValueError):
        limit = 0.0
    require(limit > 0, f"the node configuration's max-epsilon={most!r} must be a number above 0")
    asked = config.privacy.epsilon
    require(
        config.privacy.used and asked is not None and asked <= limit,
        f"the node configuration's max-epsilon={limit:g} refuses privacy={config.privacy.name} privacy.epsilon={asked}",
    )
    seed = config.privacy.seed
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


def node_home(run_dir: str, context: Context, apart: bool = False) -> Path:
    """Return where a run keeps what is a node's: in its run folder, or by its name below the node's own ``state``.

    A node ``apart`` from the server keeps nothing in folders of the server's: without a ``state`` it takes
    ``$FEDGEN_HOME/nodes``.
    """
    root = context.node_config.get("state", home() / "nodes" if apart else None)
    name = Path(run_dir).name
    require(bool(name) and name != "..", f"run_dir={run_dir} must be a path that ends in a name")
    return Path(str(root)) / name if root else Path(run_dir)


def own_settings(facts: dict[str, Any]) -> NodeConfig:
    """Return what a node configuration says that the node does otherwise than the rest.

    Parameters
    ----------
    facts : dict
        ``granularity`` (text), ``groups`` (JSON, ``{"name": ["class", ...]}``), ``classes`` (separated by commas) and
        ``samples-per-class`` count; other entries do not matter here.

    Raises
    ------
    ConfigError
        Names the entry that cannot be read.
    """
    classes = [name.strip() for name in str(facts["classes"]).split(",")] if "classes" in facts else None
    return NodeConfig(
        granularity=str(facts["granularity"]) if "granularity" in facts else None,
        groups=_groups(str(facts["groups"])) if "groups" in facts else None,
        classes=classes,
        samples_per_class=str(facts["samples-per-class"]) if "samples-per-class" in facts else None,
    )


def _groups(text: str) -> dict[str, list[str]]:
    try:
        groups = read_json(text)
        assert all(isinstance(name, str) for names in groups.values() for name in names)
    except (ValueError, AttributeError, TypeError, AssertionError) as error:
        raise ConfigError(
            f'the node configuration\'s groups={text!r} must be JSON such as {{"pets": ["dog", "cat"]}}: {error}'
        ) from error
    return {str(name): list(names) for name, names in groups.items()}


@lru_cache(maxsize=4)
def _config(text: str) -> Config:
    return from_yaml(text, "the server's message")

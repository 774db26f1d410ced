"""Flower's ClientApp: read a message, let the node work, write a message."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedgen.config import Config, from_yaml
from fedgen.exchange.payload import codec_fingerprint, samples_to_record
from fedgen.node import Node
from fedgen.phases import Generators, Phase, plan
from fedgen.task import open_task

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train adapters and generators, as the phase says; reply with the adapters and metrics of the training."""
    started = time.monotonic()
    order = Order.read(message)
    node = open_node(order.config, context)
    arrays, losses, history = ArrayRecord(), {}, []  # type: ignore[var-annotated]
    if order.phase.mode.trains_adapters:
        received = next(iter(message.content.array_records.values())).to_torch_state_dict()
        weights, losses = node.train(received, order.round, order.phase, order.proximal_mu)
        arrays = ArrayRecord(weights)
    if order.phase.mode.generators is Generators.TRAIN:
        history = node.fit_generators(order.round)
    metrics = MetricRecord({"num-examples": len(node.indices), **losses, **generator_loss(history)})
    metrics["seconds"] = time.monotonic() - started
    report = ConfigRecord({"generators": json.dumps(history)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics, "report": report}), reply_to=message)


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Reply with the node's number, classes and clips, once it is sure that it can do every phase of the run."""
    node = open_node(Order.read(message).config, context)
    node.check()
    facts = {
        "number": node.number,
        "classes": node.task.classes,
        "counts": list(node.counts.items()),
        "shape": list(node.task.store.shape),
        "device": str(node.task.device),
    }
    return Message(RecordDict({"facts": ConfigRecord({"json": json.dumps(facts)})}), reply_to=message)


@app.query("synthesize")
def synthesize(message: Message, context: Context) -> Message:
    """Reply with synthetic samples of the node's classes; no real embedding is among them."""
    order = Order.read(message)
    samples = open_node(order.config, context).synthesize(order.round)
    known = str(message.content.config_records["config"].get("codecs", "")).split()
    facts = ConfigRecord({"codec": codec_fingerprint(samples.codec)})
    return Message(RecordDict({"samples": samples_to_record(samples, known), "facts": facts}), reply_to=message)


@dataclass(frozen=True)
class Order:
    """What the server's message asks for.

    Attributes
    ----------
    config : Config
    phase : Phase
    round : int
        Counted over the whole run, from 1; 0 before any training.
    proximal_mu : float
        FedProx's; 0 under other strategies.
    """

    config: Config
    phase: Phase
    round: int
    proximal_mu: float

    @classmethod
    def read(cls, message: Message) -> Order:
        """Read the ``config`` record of a message."""
        values = message.content.config_records["config"]

        def number(key: str) -> float:
            return float(str(values.get(key, 0)))

        config = _config(str(values["yaml"]))
        phase = plan(config.phase_list, int(number("finished")))[int(number("phase"))]
        return cls(config, phase, int(number("round")), number("proximal-mu"))


def open_node(config: Config, context: Context) -> Node:
    """Open the node that this process is: its data, its number, and its folders."""
    facts = context.node_config
    own_store = str(facts["store"]) if "store" in facts else None
    load = config.checkpoint.load
    return Node(
        open_task(config, own_store),
        int(facts["partition-id"]),
        node_folder(str(config.run_dir), context),
        node_folder(load, context) if load else None,
        own_store is not None,
    )


def node_folder(run_dir: str, context: Context) -> Path:
    """Return where a run keeps a node's state: in its run folder, or by its name below the node's own ``state``."""
    root = context.node_config.get("state")
    return (Path(str(root)) / Path(run_dir).name if root else Path(run_dir)) / "checkpoints"


def generator_loss(history: list[dict[str, float | str]]) -> dict[str, float]:
    """Return the mean over generators of the last epoch's loss, by its metric name."""
    last = {str(epoch["generator"]): float(epoch["loss"]) for epoch in history}
    return {"generator_loss": sum(last.values()) / len(last)} if last else {}


@lru_cache(maxsize=4)
def _config(text: str) -> Config:
    return from_yaml(text)

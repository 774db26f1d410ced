"""Flower's ClientApp: read a message, let the node work, write a message."""

from __future__ import annotations

import json
import time
from functools import lru_cache
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedgen.config import Config, from_yaml
from fedgen.exchange.payload import samples_to_record
from fedgen.node import Node
from fedgen.phases import Generators, Phase, plan
from fedgen.task import open_task

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train adapters and generators, as the phase says; reply with the adapters and metrics of the training."""
    started = time.monotonic()
    node, settings = _open(message, context)
    phase, round_number = _phase(node.config, settings), int(settings["round"])
    arrays, losses = ArrayRecord(), {}
    if phase.mode.trains_adapters:
        weights = next(iter(message.content.array_records.values())).to_torch_state_dict()
        weights, losses = node.train(weights, round_number, phase, float(settings.get("proximal-mu", 0.0)))
        arrays = ArrayRecord(weights)
    history = node.fit_generators(round_number) if phase.mode.generators is Generators.TRAIN else []
    metrics = {"num-examples": len(node.indices), **losses, **_generator_loss(history)}
    metrics["seconds"] = time.monotonic() - started
    content = RecordDict(
        {
            "arrays": arrays,
            "metrics": MetricRecord(metrics),
            "report": ConfigRecord({"details": json.dumps(history)}),
        }
    )
    return Message(content, reply_to=message)


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Reply with the node's number, classes and clips, once it is sure that it can do every phase of the run."""
    node, _ = _open(message, context)
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
    node, settings = _open(message, context)
    samples = node.synthesize(int(settings["round"]))
    return Message(RecordDict({"samples": samples_to_record(samples)}), reply_to=message)


def _open(message: Message, context: Context) -> tuple[Node, ConfigRecord]:
    settings = message.content.config_records["config"]
    config, facts = _config(str(settings["yaml"])), context.node_config
    own_store = str(facts["store"]) if "store" in facts else None
    task = open_task(config, own_store)
    number = int(facts["partition-id"])
    load = config.checkpoint.load
    return (
        Node(task, number, _folder(str(config.run_dir), context), _folder(load, context) if load else None, bool(own_store)),
        settings,
    )


def _folder(run_dir: str, context: Context) -> Path:
    """Return where a run keeps a node's state: in its run folder, or by its name below the node's own ``state``."""
    root = context.node_config.get("state")
    return (Path(str(root)) / Path(run_dir).name if root else Path(run_dir)) / "checkpoints"


def _phase(config: Config, settings: ConfigRecord) -> Phase:
    return plan(config.phase_list, int(settings["finished"]))[int(settings["phase"])]


def _generator_loss(history: list[dict[str, float | str]]) -> dict[str, float]:
    """Return the mean over generators of the last epoch's loss."""
    last = {str(epoch["generator"]): float(epoch["loss"]) for epoch in history}
    return {"generator_loss": sum(last.values()) / len(last)} if last else {}


@lru_cache(maxsize=4)
def _config(text: str) -> Config:
    return from_yaml(text)

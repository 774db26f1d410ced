"""Flower's ClientApp: read a message, let the node work, write a message."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedgen.config.phases import Generators, plan
from fedgen.data.progress import show_step
from fedgen.messages.checks import NodeInfo, TaskSpec
from fedgen.messages.instruction import Instruction
from fedgen.messages.masks import SUMS
from fedgen.messages.samples import samples_from_record, samples_to_record
from fedgen.messages.states import states_from_records, states_to_records
from fedgen.models.generators.bank import generator_loss
from fedgen.node.node import Node
from fedgen.node.secure import check_asked, masked
from fedgen.node.settings import open_node

app = ClientApp()


@app.train(mods=[masked])
def train(message: Message, context: Context) -> Message:
    """Train adapters and generators, as the phase says; reply with the adapters and metrics of the training."""
    started = time.monotonic()
    instruction, node = opened(message, context)
    config, mode = node.config, instruction.phase.mode
    arrays, losses, history = ArrayRecord(), {}, []  # type: ignore[var-annotated]
    if mode.trains_adapters:
        check_asked(config.strategy.secure, message)
        show_step("training adapters", None)
        received = message.content.array_records["arrays"].to_torch_state_dict()
        trained, losses = node.train(
            received, instruction.round, instruction.phase, instruction.proximal_mu, instruction.filled
        )
        if config.strategy.send == "all":
            arrays = ArrayRecord(trained)
    if mode.sums:
        check_asked(config.strategy.secure, message)
        show_step("adding up clips", None)
        arrays = ArrayRecord({SUMS: Array(node.sums(instruction.round).numpy())})
    if mode.generators is Generators.TRAIN and config.sharing.name == "local":
        show_step("fitting generators", None)
        history = node.generators.fit(instruction.round)
    metrics = MetricRecord({"num-examples": len(node.data.indices), "seconds": time.monotonic() - started})
    if config.strategy.send == "samples":
        history = []
    else:
        metrics.update({**losses, **generator_loss(history)})
    return reply(
        message, arrays=arrays, metrics=metrics, report=as_json(generators=history, privacy=node.generators.spent())
    )


@app.query("introduce")
def introduce(message: Message, context: Context) -> Message:
    """Reply with the names of the node's classes, for a run whose classes are those that nodes have."""
    _, node = opened(message, context)
    return reply(message, facts=as_json(classes=node.data.class_names))


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Reply with the node's place, classes and clips, once it is sure that it can do every phase of the run."""
    instruction, node = opened(message, context)
    if instruction.codec:
        node.task.space.require_same(list(instruction.codec))
    node.prepare(instruction.finished, node.partition_id in instruction.rejoined)
    data, phases = node.data, plan(node.config.phase_list)
    info = NodeInfo(
        data.partition_id,
        data.counts,
        data.granularity.name,
        data.slots if any(phase.mode.generators is Generators.TRAIN for phase in phases) else {},
        data.class_counts(data.held_out),
    )
    facts = {**asdict(TaskSpec.of(node.task)), **asdict(info), "device": str(node.task.device)}
    return reply(message, facts=as_json(json=facts))


@app.query("synthesize")
def synthesize(message: Message, context: Context) -> Message:
    """Reply with synthetic samples of the node's classes; no real embedding is among them."""
    instruction, node = opened(message, context)
    return reply(message, samples=samples_to_record(node.synthesize(instruction.round)))


@app.query("fill")
def fill(message: Message, context: Context) -> Message:
    """Keep samples of other nodes for the training of this round."""
    instruction, node = opened(message, context)
    classes, limit = range(len(node.task.classes)), node.config.synthesis.max_samples
    samples = {}
    for key, record in message.content.array_records.items():
        other = int(key.removeprefix("samples."))
        seed = node.task.seed("others", instruction.round, node.partition_id, other)
        samples[other] = samples_from_record(record, node.task.space.codec, classes, limit, seed)
    node.state.save_others(samples, instruction.round)
    return reply(message, facts=as_json(round=instruction.round))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Reply with the scores of the global adapters on the node's held-out clips."""
    _, node = opened(message, context)
    weights = message.content.array_records["arrays"].to_torch_state_dict()
    return reply(message, report=as_json(scores=node.scores(weights)))


@app.query("assess")
def assess(message: Message, context: Context) -> Message:
    """Reply with the node's own audit of what it sent."""
    instruction, node = opened(message, context)
    return reply(message, report=as_json(audit=node.audit(instruction.round)))


@app.query("fit")
def fit(message: Message, context: Context) -> Message:
    """Train shared generators, from the weights and optimiser state in the message to those in the reply."""
    instruction, node = opened(message, context)
    states, history = node.fit_shared(states_from_records(message.content), instruction.round, instruction.phase)
    return reply(message, **states_to_records(states), report=as_json(generators=history))


@app.query("adopt")
def adopt(message: Message, context: Context) -> Message:
    """Keep the shared generators as they are at the end of the round."""
    instruction, node = opened(message, context)
    states = states_from_records(message.content)
    node.adopt(states, instruction.round)
    return reply(message, facts=as_json(adopted=sorted(states)))


def opened(message: Message, context: Context) -> tuple[Instruction, Node]:
    """Return the header of a message, and the node that this process is."""
    instruction = Instruction.of(message)
    return instruction, open_node(instruction.config, context.node_config)


def reply(message: Message, **records: Any) -> Message:
    """Return a reply with these records."""
    return Message(RecordDict(records), reply_to=message)


def as_json(**values: Any) -> ConfigRecord:
    """Return values as JSON texts: Flower's records take no nested ones."""
    return ConfigRecord({name: json.dumps(value) for name, value in values.items()})

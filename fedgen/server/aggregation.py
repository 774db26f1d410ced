"""Flower's strategies by name: how adapters are aggregated, and what a strategy remembers between rounds."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp.mod import fixedclipping_mod
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedgen.config.strategy import StrategyConfig
from fedgen.errors import ConfigError, suggestion
from fedgen.models.states import join, part_of

STRATEGY_CLASSES: dict[str, Any] = {
    "fedavg": flower.FedAvg,
    "fedprox": flower.FedProx,
    "fedadam": flower.FedAdam,
    "fedyogi": flower.FedYogi,
    "fedadagrad": flower.FedAdagrad,
    "fedavgm": flower.FedAvgM,
    "fedmedian": flower.FedMedian,
    "fedtrimmedavg": flower.FedTrimmedAvg,
    "krum": flower.Krum,
    "multikrum": flower.MultiKrum,
    "bulyan": flower.Bulyan,
}
CLIPPING_CLASSES: dict[str, Any] = {
    "server": flower.DifferentialPrivacyServerSideFixedClipping,
    "client": flower.DifferentialPrivacyClientSideFixedClipping,
}
MOMENTS = ("m_t", "v_t")  # of FedAdam, FedYogi, FedAdagrad: by array name
MOMENTUM = "momentum_vector"  # of FedAvgM: a list in the order of the arrays
NORM = "clipping_norm"  # in the config of a message: Flower's, for nodes that clip


def open_strategy(settings: StrategyConfig, min_nodes: int) -> Strategy:
    """Build the Flower strategy that ``settings`` name; it asks all nodes that it sees, at least ``min_nodes``.

    With ``settings.dp``, it is in Flower's wrapper that clips the nodes' changes, and adds noise to the average.

    Raises
    ------
    ConfigError
        For an option that the strategy does not take; the nearest it does take is suggested.
    """
    kind = STRATEGY_CLASSES[settings.name]
    takes = sorted(_own_options(kind))
    for name in settings.options:
        if name not in takes:
            known = f"it takes {', '.join(takes)}" if takes else "it takes none"
            raise ConfigError(
                f"strategy.options.{name} is no option of strategy={settings.name}: {known}.{suggestion(name, takes)}"
            )
    options: dict[str, Any] = {
        name: int(value) if name.startswith("num_") else value for name, value in settings.options.items()
    }
    strategy: Strategy = kind(
        fraction_evaluate=0.0, min_train_nodes=min_nodes, min_available_nodes=min_nodes, **options
    )
    if settings.noise_multiplier is None or settings.clipping_norm is None:
        return strategy
    norm = np.float64(settings.clipping_norm)  # Flower divides it by the length of a change, which may be 0
    wrapper = CLIPPING_CLASSES[settings.dp]
    return wrapper(strategy, settings.noise_multiplier, norm, min_nodes)


def clipped(message: Message, context: Context, answer: Callable[[Message, Context], Message]) -> Message:
    """Clip a node's change of the adapters where the server asks for it, by Flower's mod, which divides by its norm."""
    reply, settings = answer(message, context), message.content.config_records["config"]
    before, after = (each.content.array_records["arrays"] for each in (message, reply))
    if NORM not in settings or not after or after == before:
        return reply
    message.content = RecordDict({"arrays": before, "config": settings})  # Flower's mod takes one record of settings
    return fixedclipping_mod(message, context, lambda *_: reply)


def _own_options(kind: Any) -> set[str]:
    """Return the numeric options that ``kind`` has beyond FedAvg's."""
    common = set(inspect.signature(flower.FedAvg.__init__).parameters)
    return {n for n in inspect.signature(kind.__init__).parameters if n not in common} - {"selection_rule"}


def strategy_state(strategy: Strategy) -> dict[str, Tensor]:
    """Return the strategy's state between rounds; empty if it is stateless."""
    parts = {moment: dict(getattr(strategy, moment, None) or {}) for moment in MOMENTS}
    parts[MOMENTUM] = {str(place): value for place, value in enumerate(getattr(strategy, MOMENTUM, None) or [])}
    return join({part: {n: torch.from_numpy(np.array(v)) for n, v in values.items()} for part, values in parts.items()})


def load_strategy_state(strategy: Strategy, state: dict[str, Tensor]) -> None:
    """Give ``strategy`` back what `strategy_state` returned."""
    for moment in MOMENTS:
        if found := {name: value.numpy() for name, value in part_of(state, moment).items()}:
            setattr(strategy, moment, found)
    if momentum := part_of(state, MOMENTUM):
        setattr(strategy, MOMENTUM, [momentum[str(place)].numpy() for place in range(len(momentum))])


def set_start(strategy: Strategy, arrays: ArrayRecord) -> None:
    """Tell FedAvgM which adapters the round starts from: its own last result lacks the training on the pool."""
    if isinstance(strategy, flower.FedAvgM):
        strategy.current_arrays = arrays

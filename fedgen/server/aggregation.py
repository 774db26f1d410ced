"""Flower's strategies by name: how adapters are aggregated, and what a strategy remembers between rounds."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
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
MOMENTS = ("m_t", "v_t")  # of FedAdam, FedYogi, FedAdagrad: by array name
MOMENTUM = "momentum_vector"  # of FedAvgM: a list in the order of the arrays


def open_strategy(settings: StrategyConfig, min_nodes: int) -> Strategy:
    """Build the Flower strategy that ``settings`` name; it asks all nodes that it sees, at least ``min_nodes``.

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
    return strategy


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

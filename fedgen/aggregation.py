"""Flower's strategies by name: how adapters are aggregated, and what a strategy remembers between rounds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.clientapp.mod import fixedclipping_mod
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from flwr.serverapp.strategy.dp_fixed_clipping import DifferentialPrivacyFixedClippingBase
from torch import Tensor

from fedgen.errors import AggregationError, ConfigError, suggestion
from fedgen.strategy_settings import StrategyConfig

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
NORM = "clipping_norm"  # in the config of a message: Flower's, for nodes that clip
WEIGHT = "weight"  # the same for every node: the noise is for that
ROUNDING = 1e-4, 1e-6  # what float32 may add to a clipped norm: its share, and that of the weights' own norm


def open_strategy(settings: StrategyConfig, min_nodes: int) -> Strategy:
    """Build the Flower strategy that ``settings`` name; it asks every node that is there, at least ``min_nodes``.

    With ``settings.dp``, in Flower's wrapper, which needs just ``min_nodes`` nodes.

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
    if settings.dp != "none":
        options["weighted_by_key"] = WEIGHT
    strategy: Strategy = kind(
        fraction_evaluate=0.0, min_train_nodes=min_nodes, min_available_nodes=min_nodes, **options
    )
    if settings.noise_multiplier is None or settings.clipping_norm is None:
        return strategy
    wrapper = ServerClipping if settings.dp == "server" else ClientClipping
    return wrapper(strategy, settings.noise_multiplier, settings.clipping_norm, min_nodes)


class _Sure(DifferentialPrivacyFixedClippingBase):
    """What Flower's wrappers only warn of, or take for granted: that all nodes reply, weigh the same, and are clipped.

    References
    ----------
    McMahan et al., "Learning differentially private recurrent language models", ICLR 2018.
    """

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Note what the nodes start from."""
        self._sent = arrays
        return super().configure_train(server_round, arrays, config, grid)  # type: ignore[safe-super]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the replies, one weight for all, and add noise.

        Raises
        ------
        AggregationError
            A node is missing, or was to clip what it sends, and has not.
        """
        good = list(replies)
        if len(good) != self.num_sampled_clients:
            raise AggregationError(
                f"{len(good)} good replies: strategy.dp needs those of all {self.num_sampled_clients} nodes"
            )
        for reply in good:
            ((key, record),) = reply.content.array_records.items()
            reply.content[key] = ArrayRecord({name: record[name] for name in self._sent})  # Flower pairs by place
            next(iter(reply.content.metric_records.values()))[WEIGHT] = 1.0
            self._check(reply)
        with np.errstate(divide="ignore"):  # by the norm of a change that is none
            return super().aggregate_train(server_round, good)  # type: ignore[safe-super]

    def _check(self, reply: Message) -> None:
        """Raise `AggregationError` where the node had to do something, and has not."""


class ServerClipping(_Sure, flower.DifferentialPrivacyServerSideFixedClipping):
    """Flower's wrapper that clips nodes' changes on the server."""

    def __init__(self, strategy: Strategy, noise_multiplier: float, norm: float, nodes: int) -> None:
        super().__init__(strategy, noise_multiplier, np.float64(norm), nodes)  # a plain number cannot be divided by 0


class ClientClipping(_Sure, flower.DifferentialPrivacyClientSideFixedClipping):
    """Flower's wrapper for nodes that clip their changes themselves, which is verified."""

    def _check(self, reply: Message) -> None:
        (record,) = reply.content.array_records.values()
        now, before = (np.concatenate([r[name].numpy().ravel() for name in self._sent]) for r in (record, self._sent))
        moved, share = float(np.linalg.norm((now - before).astype(float))), ROUNDING[0] * self.clipping_norm
        if moved > self.clipping_norm + share + ROUNDING[1] * float(np.linalg.norm(now)):
            raise AggregationError(
                f"Flower node {reply.metadata.src_node_id} changed its adapters by {moved:.4g}, and has not clipped "
                f"that to strategy.clipping_norm={self.clipping_norm:g}"
            )


def clipped(message: Message, context: Context, answer: Callable[[Message, Context], Message]) -> Message:
    """Clip the change that a node has made of the adapters, as Flower's mod does, where the server asks for it.

    For ``@app.train(mods=[clipped])``. A change of nothing, by which Flower's mod divides, stays.
    """
    reply = answer(message, context)
    asked = any(NORM in settings for settings in message.content.config_records.values())
    if not asked or reply.has_error():
        return reply
    before, after = (
        {n: a.data for r in m.content.array_records.values() for n, a in r.items()} for m in (message, reply)
    )
    if not after or before == after:
        return reply
    records = message.content.config_records
    for name in [name for name, settings in records.items() if NORM not in settings]:
        del records[name]  # Flower's mod takes one record
    return fixedclipping_mod(message, context, lambda *_: reply)


def _own_options(kind: Any) -> set[str]:
    """Return the numeric options that ``kind`` has beyond FedAvg's."""
    common = set(inspect.signature(flower.FedAvg.__init__).parameters)
    return {n for n in inspect.signature(kind.__init__).parameters if n not in common} - {"selection_rule"}


def strategy_state(strategy: Strategy) -> dict[str, Tensor]:
    """Return what ``strategy`` remembers between rounds; empty for one that remembers nothing."""
    state = {}
    for moment in MOMENTS:
        for name, value in (getattr(strategy, moment, None) or {}).items():
            state[f"{moment}.{name}"] = torch.from_numpy(np.array(value))
    for position, value in enumerate(getattr(strategy, MOMENTUM, None) or []):
        state[f"{MOMENTUM}.{position}"] = torch.from_numpy(np.array(value))
    return state


def load_strategy_state(strategy: Strategy, state: dict[str, Tensor]) -> None:
    """Give ``strategy`` back what `strategy_state` returned."""
    for moment in MOMENTS:
        found = {
            name.removeprefix(f"{moment}."): v.numpy() for name, v in state.items() if name.startswith(f"{moment}.")
        }
        if found:
            setattr(strategy, moment, found)
    momentum = [state[f"{MOMENTUM}.{i}"].numpy() for i in range(sum(name.startswith(MOMENTUM) for name in state))]
    if momentum:
        setattr(strategy, MOMENTUM, momentum)


def set_start(strategy: Strategy, arrays: ArrayRecord) -> None:
    """Tell ``strategy`` which adapters the round starts from.

    FedAvgM goes on from its own last result, which lacks what the server learnt from the pool after it; all others
    look at what is sent.
    """
    if isinstance(strategy, flower.FedAvgM):
        strategy.current_arrays = arrays

"""A strategy around any of Flower's: it aggregates adapters, this one pools synthetic samples and trains on them."""

from __future__ import annotations

import inspect
import json
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from fedgen.config import StrategyConfig
from fedgen.errors import AggregationError, ConfigError, PayloadError, suggestion
from fedgen.exchange.payload import codec_fingerprint, read_array, samples_from_record
from fedgen.models.codec import Codec
from fedgen.models.samples import PooledTokens, SyntheticTokens
from fedgen.phases import Phase
from fedgen.recorder import RoundReport

logger = logging.getLogger(__name__)

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


def open_strategy(settings: StrategyConfig, min_nodes: int) -> Strategy:
    """Build the Flower strategy that ``settings`` name; it asks every node that is there, at least ``min_nodes``.

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
    options = {name: int(value) if name.startswith("num_") else value for name, value in settings.options.items()}
    return kind(fraction_evaluate=0.0, min_train_nodes=min_nodes, min_available_nodes=min_nodes, **options)


def _own_options(kind: Any) -> set[str]:
    """Return the numeric options that ``kind`` has beyond FedAvg's."""
    common = set(inspect.signature(flower.FedAvg.__init__).parameters)
    return {n for n in inspect.signature(kind.__init__).parameters if n not in common} - {"selection_rule"}


@dataclass(frozen=True)
class Member:
    """What the server knows of a node: its number (partition), and its clips of each global class id."""

    number: int
    counts: dict[int, int]


class SyntheticPooling(Strategy):
    """Wrap a Flower strategy; after it has aggregated the adapters, pool the nodes' samples and train on the pool.

    The samples travel in an exchange of their own (``query.synthesize``), so that the training replies stay as every
    Flower strategy and privacy wrapper expects them.

    Parameters
    ----------
    strategy : Strategy
        Aggregates the adapters.
    phase : Phase
        What the rounds of this strategy do.
    members : dict[int, Member]
        The federation by Flower's node id.
    min_nodes : int
        Good replies that a round needs.
    timeout : float
        Seconds that the exchange of samples waits.
    shape : tuple[int, int]
        ``(S, D)`` that samples must decode to.
    samples_limit : int
        Most samples that are taken from a node in a round.
    samples_seed : Callable[[int], int]
        Seed of the residual noise in decoding, by the round.
    train_on_pool : Callable
        ``(round, arrays, pool) -> (arrays, losses)``; None leaves the aggregated adapters as they are.
    settings : dict
        What every message of the phase carries, such as the configuration.
    device : str
        Where samples are decoded.
    """

    def __init__(
        self,
        strategy: Strategy,
        phase: Phase,
        members: dict[int, Member],
        min_nodes: int,
        timeout: float,
        shape: tuple[int, int],
        samples_limit: int,
        samples_seed: Callable[[int], int],
        train_on_pool: Callable[[int, ArrayRecord, PooledTokens], tuple[ArrayRecord, dict[str, float]]] | None,
        settings: dict[str, Any],
        device: str = "cpu",
    ) -> None:
        self.strategy, self.phase, self.members, self.settings = strategy, phase, members, settings
        self.min_nodes, self.timeout, self.shape, self.device = min_nodes, timeout, shape, device
        self.samples_limit, self.samples_seed, self.train_on_pool = samples_limit, samples_seed, train_on_pool
        self.codecs: dict[str, Codec] = {}  # of the pool, by fingerprint: these do not travel again
        self.pool: dict[int, SyntheticTokens] = {}  # the latest samples of each node, by number
        self.report = RoundReport(phase.offset)

    def summary(self) -> None:
        """Log the settings of the wrapped strategy."""
        logger.debug("%s around %s", type(self).__name__, type(self.strategy).__name__)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the wrapped strategy choose the nodes; note what was sent to whom."""
        self._grid, self._arrays, self._started = grid, arrays, time.monotonic()
        self.report = RoundReport(self.phase.offset + server_round)
        config.update({**self.settings, "round": self.report.round})
        self._config = config
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self._asked = [message.metadata.dst_node_id for message in messages]
        self.report.bytes_sent += sum(_size(message) for message in messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check the replies, aggregate them, and train the result on the pool where the phase says so.

        Raises
        ------
        AggregationError
            If fewer than ``min_nodes`` good replies came; names who is missing, and why.
        """
        good = self._accept(replies, self._check_training)
        for number, reply in good.items():
            metrics = next(iter(reply.content.metric_records.values()))
            self.report.metrics[number] = {key: float(value) for key, value in metrics.items()}  # type: ignore[arg-type]
            self.report.generators[number] = _history(reply)
        self.report.answered = list(good)
        arrays, metrics_record = self._aggregate(server_round, list(good.values()))
        if self.phase.mode.synthesizes:
            arrays = self._learn_from_pool(arrays)
        self.report.seconds = time.monotonic() - self._started
        return arrays, metrics_record

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Leave it to the wrapped strategy."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Leave it to the wrapped strategy."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def _aggregate(self, server_round: int, replies: list[Message]) -> tuple[ArrayRecord, MetricRecord | None]:
        if not self.phase.mode.trains_adapters:
            return self._arrays, None
        _keep_shared_metrics(replies)
        arrays, metrics = self.strategy.aggregate_train(server_round, replies)
        if arrays is None or set(arrays) != set(self._arrays):
            raise AggregationError(f"round {self.report.round}: {type(self.strategy).__name__} returned no adapters")
        types = {name: array.dtype for name, array in self._arrays.items()}  # FedAdam's moments make float64 of float32
        return ArrayRecord(
            {n: Array(array.numpy().astype(types[n], copy=False)) for n, array in arrays.items()}
        ), metrics

    def _learn_from_pool(self, arrays: ArrayRecord) -> ArrayRecord:
        self.codecs = {codec_fingerprint(samples.codec): samples.codec for samples in self.pool.values()}
        content = RecordDict({"config": ConfigRecord({**self._config, "codecs": " ".join(self.codecs)})})
        messages = [Message(content, node_id, "query.synthesize") for node_id in self._asked]
        self.report.bytes_sent += sum(_size(message) for message in messages)
        self._accept(self._grid.send_and_receive(messages, timeout=self.timeout), self._take_samples)
        pool = PooledTokens([self.pool[number] for number in sorted(self.pool)])
        self.report.samples = pool.counts()
        if self.train_on_pool is None:
            return arrays
        arrays, self.report.global_losses = self.train_on_pool(self.report.round, arrays, pool)
        return arrays

    def _accept(self, replies: Iterable[Message], check: Callable[[int, Message], None]) -> dict[int, Message]:
        """Return the good replies by node number, in order; note why others are lost; demand ``min_nodes``."""
        good: dict[int, Message] = {}
        lost: dict[int, str] = {}
        for reply in replies:
            member = self.members.get(reply.metadata.src_node_id)
            if reply.has_error():
                if member is not None:
                    lost[member.number] = reply.error.reason or f"error {reply.error.code}"
                continue
            self.report.bytes_received += _size(reply)
            if member is None:
                node_id = reply.metadata.src_node_id
                logger.warning("round %d: refused a reply of unknown node %d", self.report.round, node_id)
                continue
            try:
                check(member.number, reply)
                good[member.number] = reply
            except PayloadError as error:
                lost[member.number] = f"refused: {error}"
        asked = [self.members[node_id].number for node_id in self._asked if node_id in self.members]
        for number in sorted(set(asked) - set(good)):
            self.report.lost[number] = lost.get(number, "no reply in time")
            logger.warning("round %d: node %d is missing: %s", self.report.round, number, self.report.lost[number])
        if len(good) < self.min_nodes:
            missing = "; ".join(f"node {number}: {reason}" for number, reason in sorted(self.report.lost.items()))
            raise AggregationError(
                f"round {self.report.round}: {len(good)} good replies, strategy.min_nodes={self.min_nodes} are needed. "
                f"Missing: {missing or 'nodes that were not asked'}"
            )
        return dict(sorted(good.items()))

    def _check_training(self, number: int, reply: Message) -> None:
        """Refuse adapters of other names, shapes or types than were sent, values that are not finite, odd metrics."""
        records = list(reply.content.array_records.values())
        metrics = list(reply.content.metric_records.values())
        if len(records) != 1 or len(metrics) != 1:
            raise PayloadError("a training reply needs one ArrayRecord and one MetricRecord")
        wanted = self._arrays if self.phase.mode.trains_adapters else ArrayRecord()
        if set(records[0]) != set(wanted):
            raise PayloadError(f"adapters have other arrays than were sent: {sorted(set(records[0]) ^ set(wanted))}")
        for name, array in records[0].items():
            read_array(array, name, np.dtype(wanted[name].dtype), tuple(wanted[name].shape))
        self._check_metrics(number, metrics[0])
        _history(reply)

    def _check_metrics(self, number: int, metrics: MetricRecord) -> None:
        """Refuse a weight in the average that the node's clips do not justify, and metrics that are not numbers."""
        clips, most = metrics.get("num-examples"), sum(self._member(number).counts.values())
        if not isinstance(clips, int) or not 1 <= clips <= most:
            raise PayloadError(f"num-examples is {clips}, expected a whole number from 1 to the node's {most} clips")
        for name, value in metrics.items():
            if not isinstance(value, int | float):
                raise PayloadError(f"metric {name} is {value}, expected a number")

    def _take_samples(self, number: int, reply: Message) -> None:
        """Validate a node's samples and put them into the pool in place of its earlier ones."""
        records = list(reply.content.array_records.values())
        if len(records) != 1:
            raise PayloadError(f"a reply with samples needs one ArrayRecord, got {len(records)}")
        classes = self._member(number).counts.keys()
        seed = self.samples_seed(self.report.round) + number
        codec = None if "codec.mean" in records[0] else self._known_codec(reply)
        samples = samples_from_record(records[0], self.shape, classes, self.samples_limit, seed, self.device, codec)
        if not 1 <= len(samples) <= self.samples_limit:
            raise PayloadError(f"{len(samples)} samples, expected 1 to synthesis.max_samples={self.samples_limit}")
        self.pool[number] = samples

    def _known_codec(self, reply: Message) -> Codec:
        """Return the codec that a reply names instead of sending it."""
        facts = reply.content.config_records.get("facts", ConfigRecord())
        name = str(facts.get("codec", ""))
        if name not in self.codecs:
            raise PayloadError(f"samples come without their codec, and codec {name!r} has not been sent before")
        return self.codecs[name]

    def _member(self, number: int) -> Member:
        return next(member for member in self.members.values() if member.number == number)


def _history(reply: Message) -> list[dict[str, float | str]]:
    """Return the losses of the node's generators.

    Raises
    ------
    PayloadError
        They are not a JSON list of mappings.
    """
    texts = [str(record["generators"]) for record in reply.content.config_records.values() if "generators" in record]
    try:
        history = json.loads(texts[0]) if texts else []
    except (ValueError, RecursionError) as error:
        raise PayloadError(f"the losses of generators are no JSON: {error}") from error
    if not isinstance(history, list) or not all(isinstance(epoch, dict) for epoch in history):
        raise PayloadError(f"the losses of generators are not a list of mappings: {texts[0][:100]}")
    return history


def _keep_shared_metrics(replies: list[Message]) -> None:
    """Drop metrics that not every reply has: Flower's strategies end the run over them."""
    records = [next(iter(reply.content.metric_records.values())) for reply in replies]
    shared = set.intersection(*(set(record) for record in records))
    for record in records:
        for name in set(record) - shared:
            del record[name]


def _size(message: Message) -> int:
    """Return the bytes of a message's records."""
    records = message.content
    arrays = sum(record.count_bytes() for record in records.array_records.values())
    metrics = sum(record.count_bytes() for record in records.metric_records.values())
    words = [part for record in records.config_records.values() for item in record.items() for part in item]
    return arrays + metrics + sum(len(str(word)) for word in words)

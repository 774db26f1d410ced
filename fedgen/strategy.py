"""A strategy around any of Flower's: it aggregates adapters, this one pools synthetic samples and trains on them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedgen.aggregation import set_start
from fedgen.border import (
    Member,
    check_training,
    keep_shared_metrics,
    message_bytes,
    read_losses,
    read_spent,
    read_statistics,
)
from fedgen.errors import AggregationError, PayloadError
from fedgen.exchange.payload import codec_fingerprint, samples_from_record
from fedgen.filling import Filling
from fedgen.models.codec import Codec
from fedgen.models.samples import PooledTokens, SyntheticTokens
from fedgen.phases import Generators, Phase
from fedgen.recorder import RoundReport
from fedgen.shared_codec import SharedCodec
from fedgen.sharing import SharedGenerators
from fedgen.training.losses import generator_loss

logger = logging.getLogger(__name__)


Losses = dict[str, float]
TrainOnPool = Callable[[int, ArrayRecord, PooledTokens, dict[int, ArrayRecord]], tuple[ArrayRecord, Losses]]


class SyntheticPooling(Strategy):
    """Wrap a Flower strategy; after it has aggregated the adapters, pool the nodes' samples and train on the pool.

    The samples travel in an exchange of their own (``query.synthesize``), and so do generators that nodes share, so
    that the training replies stay as every Flower strategy and privacy wrapper expects them.

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
        Seconds that each exchange waits.
    shape : tuple[int, int]
        ``(L, D)`` that samples must decode to.
    samples_limit : int
        Most samples that are taken from a node in a round.
    samples_seed : Callable[[int], int]
        Seed of the residual noise in decoding, by the round.
    train_on_pool : Callable
        ``(round, arrays, pool, teachers) -> (arrays, losses)``, ``teachers`` being each node's adapters by number;
        None leaves the aggregated adapters as they are.
    settings : dict
        What every message of the phase carries, such as the configuration.
    device : str
        Where samples are decoded.
    shared : SharedGenerators, optional
        Generators that nodes share; by default each node has its own.
    common : SharedCodec, optional
        The codec that nodes share where their generators are their own.
    filling : Filling, optional
        Hands nodes each other's samples before they train; by default they train on their clips alone.
    done : int
        Rounds of the phase that were finished before, by an interrupted run.
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
        train_on_pool: TrainOnPool | None,
        settings: dict[str, Any],
        device: str = "cpu",
        shared: SharedGenerators | None = None,
        common: SharedCodec | None = None,
        filling: Filling | None = None,
        done: int = 0,
    ) -> None:
        self.strategy, self.phase, self.members, self.settings = strategy, phase, members, settings
        self.min_nodes, self.timeout, self.shape, self.device = min_nodes, timeout, shape, device
        self.samples_limit, self.samples_seed, self.train_on_pool = samples_limit, samples_seed, train_on_pool
        self.shared, self.common, self.done = shared, shared.common if shared else common, done
        self.filling = filling
        self.codecs: dict[str, Codec] = {}  # of the pool, by fingerprint: these do not travel again
        self.pool: dict[int, SyntheticTokens] = {}  # the latest samples of each node, by number
        self.report = RoundReport(phase.offset + done)

    def summary(self) -> None:
        """Log the settings of the wrapped strategy."""
        logger.debug("%s around %s", type(self).__name__, type(self.strategy).__name__)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the wrapped strategy choose the nodes; note what was sent to whom."""
        self._grid, self._arrays, self._started = grid, arrays, time.monotonic()
        self.report = RoundReport(self.phase.offset + self.done + server_round)
        config.update({**self.settings, "round": self.report.round})
        self._config = config
        set_start(self.strategy, arrays)
        fills = self.filling is not None and bool(self.pool)
        config["filled"] = int(fills)
        messages = list(self.strategy.configure_train(self.done + server_round, arrays, config, grid))
        self._asked = [message.metadata.dst_node_id for message in messages]
        if self.common is not None and self.shared is None and self.phase.mode.generators is Generators.TRAIN:
            self.common.give(self._ask, self._asked_members(), self.min_nodes)
        if self.filling is not None and fills:
            self.filling.give(self._ask, self._asked_members(), self.pool, self.report.round, self.min_nodes)
        ready = [message for message in messages if not self._is_lost(message.metadata.dst_node_id)]
        self._asked = [message.metadata.dst_node_id for message in ready]
        self.report.bytes_sent += sum(message_bytes(message) for message in ready)
        return ready

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check the replies, aggregate them, and train the result on the pool where the phase says so.

        Raises
        ------
        AggregationError
            If fewer than ``min_nodes`` good replies came; names who is missing, and why.
        """
        wanted = self._arrays if self.phase.mode.trains_adapters else ArrayRecord()
        good = self._accept(replies, self._asked, lambda member, reply: check_training(member, reply, wanted))
        for number, reply in good.items():
            metrics = next(iter(reply.content.metric_records.values()))
            self.report.metrics[number] = {key: float(value) for key, value in metrics.items()}  # type: ignore[arg-type]
            self.report.generators[number] = read_losses(reply)
            if spent := read_spent(reply):
                self.report.spent[number] = spent
        self.report.answered = list(good)
        arrays, metrics_record = self._aggregate(self.done + server_round, list(good.values()))
        if self.shared is not None and self.phase.mode.generators is Generators.TRAIN:
            self.report.generators |= self.shared.round(self._ask, self._asked_members(), self.min_nodes)
            for number in self.report.metrics:
                self.report.metrics[number] |= generator_loss(self.report.generators[number])
        if self.phase.mode.synthesizes:
            teachers = {number: next(iter(reply.content.array_records.values())) for number, reply in good.items()}
            arrays = self._learn_from_pool(arrays, teachers)
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

    def _aggregate(self, number: int, replies: list[Message]) -> tuple[ArrayRecord, MetricRecord | None]:
        if not self.phase.mode.trains_adapters:
            return self._arrays, None
        keep_shared_metrics(replies)
        arrays, metrics = self.strategy.aggregate_train(number, replies)
        if arrays is None or set(arrays) != set(self._arrays):
            raise AggregationError(f"round {self.report.round}: {type(self.strategy).__name__} returned no adapters")
        types = {name: array.dtype for name, array in self._arrays.items()}  # FedAdam's moments make float64 of float32
        return ArrayRecord(
            {n: Array(array.numpy().astype(types[n], copy=False)) for n, array in arrays.items()}
        ), metrics

    def _is_lost(self, node_id: int) -> bool:
        """Return whether a node has missed what the training of this round needs."""
        return node_id in self.members and self.members[node_id].number in self.report.lost

    def _asked_members(self) -> dict[int, Member]:
        """Return the nodes that the wrapped strategy has chosen for this round, by Flower's node id."""
        return {node_id: self.members[node_id] for node_id in self._asked if node_id in self.members}

    def _learn_from_pool(self, arrays: ArrayRecord, teachers: dict[int, ArrayRecord]) -> ArrayRecord:
        codecs = [samples.codec for samples in self.pool.values()]
        if self.common is not None and self.common.codec is not None:
            codecs.append(self.common.codec)
        self.codecs = {codec_fingerprint(codec): codec for codec in codecs}
        content = RecordDict({"config": ConfigRecord({"codecs": " ".join(self.codecs)})})
        self._ask(dict.fromkeys(self._asked, content), "query.synthesize", self._take_samples, self.min_nodes)
        # the noise of each part starts anew, so that samples of a node that is missing are decoded as after a restart
        pool = PooledTokens([self.pool[number].to(self.device) for number in sorted(self.pool)])
        self.report.samples = pool.counts()
        if self.train_on_pool is None:
            return arrays
        arrays, self.report.global_losses = self.train_on_pool(self.report.round, arrays, pool, teachers)
        return arrays

    def _ask(
        self,
        contents: Mapping[int, RecordDict],
        message_type: str,
        check: Callable[[Member, Message], None],
        needed: int,
        before: int = 0,
    ) -> dict[int, Message]:
        """Send each node its content with the round's settings, and return the good replies by node number."""
        messages = []
        for node_id, content in contents.items():
            own = content.config_records.get("config", ConfigRecord())
            message = RecordDict({**content, "config": ConfigRecord({**self._config, **own})})
            messages.append(Message(message, node_id, message_type))
        self.report.bytes_sent += sum(message_bytes(message) for message in messages)
        replies = self._grid.send_and_receive(messages, timeout=self.timeout)
        return self._accept(replies, contents, check, needed, before)

    def _accept(
        self,
        replies: Iterable[Message],
        asked: Iterable[int],
        check: Callable[[Member, Message], None],
        needed: int | None = None,
        before: int = 0,
    ) -> dict[int, Message]:
        """Return the good replies by node number, in order; note why others are lost; demand ``needed`` in all."""
        good: dict[int, Message] = {}
        lost: dict[int, str] = {}
        needed = self.min_nodes if needed is None else needed
        for reply in replies:
            member = self.members.get(reply.metadata.src_node_id)
            if reply.has_error():
                if member is not None:
                    lost[member.number] = reply.error.reason or f"error {reply.error.code}"
                continue
            self.report.bytes_received += message_bytes(reply)
            if member is None:
                node_id = reply.metadata.src_node_id
                logger.warning("round %d: refused a reply of unknown node %d", self.report.round, node_id)
                continue
            try:
                check(member, reply)
                good[member.number] = reply
            except PayloadError as error:
                lost[member.number] = f"refused: {error}"
        numbers = {self.members[node_id].number for node_id in asked if node_id in self.members}
        for number in sorted(numbers - set(good)):
            self.report.lost[number] = lost.get(number, "no reply in time")
            if self.common is not None:
                self.common.given.discard(number)  # it may come back without what it had
            logger.warning("round %d: node %d is missing: %s", self.report.round, number, self.report.lost[number])
        if before + len(good) < needed:
            missing = "; ".join(f"node {number}: {reason}" for number, reason in sorted(self.report.lost.items()))
            raise AggregationError(
                f"round {self.report.round}: {before + len(good)} good replies, "
                f"strategy.min_nodes={self.min_nodes} are needed. Missing: {missing or 'nodes that were not asked'}"
            )
        return dict(sorted(good.items()))

    def _take_samples(self, member: Member, reply: Message) -> None:
        """Validate a node's samples and put them into the pool in place of its earlier ones."""
        records = list(reply.content.array_records.values())
        if len(records) != 1:
            raise PayloadError(f"a reply with samples needs one ArrayRecord, got {len(records)}")
        classes, statistics = member.counts.keys(), read_statistics(reply)
        seed = self.samples_seed(self.report.round) + member.number
        codec = None if "codec.mean" in records[0] else self._known_codec(reply)
        samples = samples_from_record(records[0], self.shape, classes, self.samples_limit, seed, self.device, codec)
        if not 1 <= len(samples) <= self.samples_limit:
            raise PayloadError(f"{len(samples)} samples, expected 1 to synthesis.max_samples={self.samples_limit}")
        self.pool[member.number] = samples
        self.report.statistics[member.number] = {**statistics, "counts": samples.counts()}

    def _known_codec(self, reply: Message) -> Codec:
        """Return the codec that a reply names instead of sending it."""
        facts = reply.content.config_records.get("facts", ConfigRecord())
        name = str(facts.get("codec", ""))
        if name not in self.codecs:
            raise PayloadError(f"samples come without their codec, and codec {name!r} has not been sent before")
        return self.codecs[name]

"""A strategy around any of Flower's: it aggregates adapters, this one pools synthetic samples and trains on them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedgen.config.phases import Generators, Phase
from fedgen.config.strategy import StrategyConfig
from fedgen.data.progress import show_step
from fedgen.errors import AggregationError, PayloadError
from fedgen.messages.checks import (
    Member,
    change,
    check_records,
    check_training,
    excessive,
    keep_shared_metrics,
    message_bytes,
    read_losses,
    read_spent,
)
from fedgen.messages.samples import samples_from_record
from fedgen.models.codec import Codec
from fedgen.models.generators.bank import generator_loss
from fedgen.models.samples import PooledTokens, SyntheticTokens
from fedgen.report.recorder import REFUSED, RoundReport
from fedgen.server.aggregation import set_start
from fedgen.server.federation import ExchangeRound
from fedgen.server.grid import RoundGrid
from fedgen.server.pool import Filling
from fedgen.server.secure import SecureGrid
from fedgen.server.sharing import SharedGenerators

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
    codec : Codec, optional
        The public one, in which samples are; needed where the phase has any.
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
    filling : Filling, optional
        Hands nodes each other's samples before they train; by default they train on their clips alone.
    done : int
        Rounds of the phase that were finished before, by an interrupted run.
    admit : Callable, optional
        Called with the number of each round before it: nodes that have come meanwhile are then among ``members``.
    rules : StrategyConfig, optional
        How many nodes a round asks, and what is refused.
    seed : int
        Which nodes a round asks.
    """

    def __init__(
        self,
        strategy: Strategy,
        phase: Phase,
        members: dict[int, Member],
        min_nodes: int,
        timeout: float,
        codec: Codec | None,
        samples_limit: int,
        samples_seed: Callable[[int], int],
        train_on_pool: TrainOnPool | None,
        settings: dict[str, Any],
        device: str = "cpu",
        shared: SharedGenerators | None = None,
        filling: Filling | None = None,
        done: int = 0,
        admit: Callable[[int], None] | None = None,
        rules: StrategyConfig | None = None,
        seed: int = 0,
    ) -> None:
        self.strategy, self.phase, self.members, self.settings = strategy, phase, members, settings
        self.min_nodes, self.timeout, self.codec, self.device = min_nodes, timeout, codec, device
        self.samples_limit, self.samples_seed, self.train_on_pool = samples_limit, samples_seed, train_on_pool
        self.shared, self.done = shared, done
        self.filling, self.admit, self.rules, self.seed = filling, admit, rules or StrategyConfig(), seed
        self.seen: tuple[ArrayRecord, dict[int, ArrayRecord]] | None = None  # adapters of the last round, and replies
        self.pool: dict[int, SyntheticTokens] = {}  # the latest samples of nodes, by number; the oldest come first
        self.report = RoundReport(phase.offset + done)

    @property
    def averages(self) -> bool:
        """Whether adapters come from the nodes."""
        return self.phase.mode.trains_adapters and self.rules.send == "all"

    def summary(self) -> None:
        """Log the settings of the wrapped strategy."""
        logger.debug("%s around %s", type(self).__name__, type(self.strategy).__name__)

    def start(self, grid: Grid, *args: Any, **options: Any) -> Result:
        """Run the rounds as Flower does, with replies that come one by one."""
        secure, rounds = self.rules.secure, RoundGrid(grid)
        if secure.used and self.averages:
            rounds = SecureGrid(grid, secure, self.members, equal=self.rules.dp != "none")
        return super().start(rounds, *args, **options)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the wrapped strategy address the nodes of this round; note what was sent to whom.

        Raises
        ------
        AggregationError
            Fewer than ``min_nodes`` nodes are connected.
        """
        self._arrays, self._started = arrays, time.monotonic()
        self.report = RoundReport(self.phase.offset + self.done + server_round)
        if self.admit is not None:
            self.admit(self.report.round)
        grid = grid if isinstance(grid, RoundGrid) else RoundGrid(grid)
        self._round = ExchangeRound(grid, self.members, self.report, self.rules, self.min_nodes, self.timeout)
        self._round.choose(self.seed)
        config.update({**self.settings, "round": self.report.round})
        self._round.config = config
        set_start(self.strategy, arrays)
        fills = self.filling is not None and bool(self.pool)
        config["filled"] = int(fills)
        messages = list(self.strategy.configure_train(self.done + server_round, arrays, config, grid))
        if self.filling is not None and fills:
            self.filling.give(self._round.ask, self._round.left(), self.pool, self.report.round, self.min_nodes)
        left = self._round.left()
        ready = [message for message in messages if message.metadata.dst_node_id in left]
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
        wanted = self._arrays if self.averages else ArrayRecord()
        changes: dict[int, float] = {}

        def check(member: Member, reply: Message) -> None:
            check_records(reply, arrays=1, metrics=1)
            check_training(member, reply, wanted)
            changes[member.number] = change(reply, wanted)

        good = self._round.collect(replies, self._round.left(), check)
        # where changes are clipped, a long one does no harm, and the noise counts on every node
        if self.rules.max_change is not None and self.rules.dp == "none":
            for number, why in excessive(changes, wanted, self.rules.max_change).items():
                del good[number]
                self._round.lose(number, f"{REFUSED}{why}")
        self._round.demand(len(good))
        for number, reply in good.items():
            metrics = next(iter(reply.content.metric_records.values()))
            self.report.metrics[number] = {key: float(value) for key, value in metrics.items()}  # type: ignore[arg-type]
            if wanted:
                self.report.metrics[number]["change"] = changes[number]
            self.report.generators[number] = read_losses(reply)
            if spent := read_spent(reply):
                self.report.spent[number] = spent
        self.report.answered = list(good)
        # before they are aggregated: some strategies take the arrays out of the replies
        teachers = {n: ArrayRecord(dict(next(iter(r.content.array_records.values())))) for n, r in good.items()}
        if wanted:
            self.seen = self._arrays, teachers
        arrays, metrics_record = self._aggregate(self.done + server_round, list(good.values()))
        if self.shared is not None and self.phase.mode.generators is Generators.TRAIN:
            self.report.generators |= self.shared.round(self._round.ask, self._round.left(), self.min_nodes)
            for number in self.report.metrics:
                self.report.metrics[number] |= generator_loss(self.report.generators[number])
        if self.phase.mode.synthesizes:
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
        if not self.averages:
            return self._arrays, None
        show_step("averaging")
        keep_shared_metrics(replies)
        if self.rules.dp != "none":  # whose noise is for nodes that weigh the same
            for reply in replies:
                next(iter(reply.content.metric_records.values()))["num-examples"] = 1
        arrays, metrics = self.strategy.aggregate_train(number, replies)
        if arrays is None or set(arrays) != set(self._arrays):
            raise AggregationError(f"round {self.report.round}: {type(self.strategy).__name__} returned no adapters")
        types = {name: array.dtype for name, array in self._arrays.items()}  # FedAdam's moments make float64 of float32
        return ArrayRecord(
            {n: Array(array.numpy().astype(types[n], copy=False)) for n, array in arrays.items()}
        ), metrics

    def _learn_from_pool(self, arrays: ArrayRecord, teachers: dict[int, ArrayRecord]) -> ArrayRecord:
        self._fresh: dict[int, SyntheticTokens] = {}
        asked = self._round.left()
        self._round.ask(dict.fromkeys(asked, RecordDict()), "query.synthesize", self._take_samples, self.min_nodes)
        for number in sorted(self._fresh):
            self.pool.pop(number, None)
            self.pool[number] = self._fresh[number]
        for number in list(self.pool)[: -max(self.rules.pool_nodes, len(asked))]:
            del self.pool[number]
        # the noise of each part starts anew, so that samples of a node that is missing are decoded as after a restart
        pool = PooledTokens([self.pool[number].to(self.device) for number in sorted(self.pool)])
        self.report.samples = pool.counts()
        if self.train_on_pool is None:
            return arrays
        show_step("training on the server")
        arrays, self.report.global_losses = self.train_on_pool(self.report.round, arrays, pool, teachers)
        return arrays

    def _take_samples(self, member: Member, reply: Message) -> None:
        """Validate a node's samples and keep them for the pool; the reply is empty then."""
        check_records(reply, arrays=1, metrics=0)
        records = list(reply.content.array_records.values())
        assert self.codec is not None
        classes, seed = member.counts.keys(), self.samples_seed(self.report.round) + member.number
        samples = samples_from_record(records[0], self.codec, classes, self.samples_limit, seed, self.device)
        if not 1 <= len(samples) <= self.samples_limit:
            raise PayloadError(f"{len(samples)} samples, expected 1 to synthesis.max_samples={self.samples_limit}")
        self._fresh[member.number], reply.content = samples, RecordDict()
        self.report.statistics[member.number] = samples.statistics()

"""A strategy around any of Flower's: the inner one averages adapters, this one trains the average on samples."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedgen.config.phases import Generators, Phase
from fedgen.data.progress import show_step
from fedgen.errors import AggregationError
from fedgen.messages.checks import (
    TrainingReply,
    keep_shared_metrics,
    message_bytes,
    norm_outliers,
    read_training,
)
from fedgen.models.generators.bank import generator_loss
from fedgen.runs.folder import RunState
from fedgen.server.aggregation import load_strategy_state, set_start, strategy_state
from fedgen.server.analytic import Sums
from fedgen.server.federation import Failure, Federation
from fedgen.server.pool import SamplePool
from fedgen.server.sharing import SharedGenerators

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class SyntheticPooling(Strategy):
    """Wrap a Flower strategy; after it has averaged the adapters, train them on the pool of synthetic samples.

    Samples and shared generators travel in messages of their own, so that the replies to ``train`` stay as every Flower
    strategy expects them.
    """

    inner: Strategy  # averages the adapters
    phase: Phase  # what the rounds of this strategy do
    federation: Federation  # the nodes; it counts the rounds
    pool: SamplePool | None = None  # needed where the phase makes samples
    sharing: SharedGenerators | None = None  # generators that nodes share; by default each node has its own
    sent: ArrayRecord = field(default_factory=ArrayRecord, init=False)  # the adapters that the round started from
    # the adapters in the replies, by partition id; empty where no adapters leave the nodes
    received: dict[int, ArrayRecord] = field(default_factory=dict, init=False)
    _started: float = field(default=0.0, init=False)  # when the round began, by the monotonic clock

    @property
    def averages(self) -> bool:
        """Whether adapters, or sums that make some, come from the nodes."""
        mode = self.phase.mode
        return (mode.trains_adapters or mode.sums) and self.federation.config.strategy.send == "all"

    def summary(self) -> None:
        """Log the settings of the wrapped strategy."""
        logger.debug("%s around %s", type(self).__name__, type(self.inner).__name__)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Begin a round, send nodes each other's samples, and let the inner strategy address the nodes.

        Raises
        ------
        AggregationError
            Fewer than ``strategy.min_nodes`` nodes are connected, or have taken the samples.
        """
        self.sent, self._started, federation = arrays, time.monotonic(), self.federation
        federation.begin_round(self.phase)
        config.update(federation.instruction.to_record())
        if self.pool is not None and self.pool.shares(self.phase):
            config["filled"] = True
            self.pool.share(federation)
        set_start(self.inner, arrays)
        messages = list(self.inner.configure_train(self._place, arrays, config, federation.grid))
        active = federation.active
        ready = [message for message in messages if message.metadata.dst_node_id in active]
        federation.report.bytes_sent += sum(message_bytes(message) for message in ready)
        return ready

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check the replies, average their adapters, and train the average on the pool where the phase says so.

        Raises
        ------
        AggregationError
            If fewer than ``strategy.min_nodes`` good replies came; names the nodes that are missing, and why.
        """
        good = self._checked(replies)
        # before the inner strategy: some take the arrays out of the replies
        kept = good.items() if self.averages and not self.phase.mode.sums else ()
        self.received = {n: ArrayRecord(dict(r.message.content["arrays"])) for n, r in kept}
        arrays, metrics = self._averaged([reply.message for reply in good.values()])
        if self.sharing is not None and self.phase.mode.generators is Generators.TRAIN:
            self._note_losses(self.sharing.round(self.federation))
        if self.pool is not None:
            arrays = self.pool.train(self.federation, arrays, self.received)
        self.federation.report.seconds = time.monotonic() - self._started
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Leave it to the inner strategy."""
        return self.inner.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Leave it to the inner strategy."""
        return self.inner.aggregate_evaluate(server_round, replies)

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the tensors that the inner strategy keeps between rounds."""
        return {"strategy": strategy_state(self.inner)}, {}

    def load(self, state: RunState) -> None:
        """Go on from what `state` returned."""
        load_strategy_state(self.inner, state.tensors.get("strategy", {}))

    @property
    def _place(self) -> int:
        """The round's number in its phase, from 1; Flower's own starts anew in a resumed run."""
        return self.federation.report.round - self.phase.offset

    def _checked(self, replies: Iterable[Message]) -> dict[int, TrainingReply]:
        """Return the good replies by partition id, and note what they report."""
        federation, sent = self.federation, self.sent if self.averages else ArrayRecord()
        sent = self.inner.expected if isinstance(self.inner, Sums) else sent
        rules, report = federation.config.strategy, federation.report
        good = federation.collect(replies, federation.active, lambda node, reply: read_training(node, reply, sent))
        if rules.max_change is not None and not self.phase.mode.sums:
            norms = {number: reply.norm for number, reply in good.items()}
            for number, why in norm_outliers(norms, sent, rules.max_change).items():
                del good[number]
                federation.fail(number, Failure("refused", why))
        federation.require(len(good))
        report.answered = list(good)
        for number, reply in good.items():
            report.metrics[number] = {**reply.metrics, **({"change": reply.norm} if self.averages else {})}
            report.generators[number] = reply.losses
            if reply.spent:
                report.spent[number] = reply.spent
        return good

    def _averaged(self, replies: list[Message]) -> tuple[ArrayRecord, MetricRecord | None]:
        if not self.averages:
            return self.sent, None
        show_step("averaging")
        keep_shared_metrics(replies)
        arrays, metrics = self.inner.aggregate_train(self._place, replies)
        if arrays is None or set(arrays) != set(self.sent):
            name = type(self.inner).__name__
            raise AggregationError(f"round {self.federation.report.round}: {name} returned no adapters")
        types = {name: array.dtype for name, array in self.sent.items()}  # FedAdam makes float64 of float32
        return ArrayRecord(
            {n: Array(array.numpy().astype(types[n], copy=False)) for n, array in arrays.items()}
        ), metrics

    def _note_losses(self, losses: dict[int, Any]) -> None:
        """Note the losses of shared generators, by partition id."""
        report = self.federation.report
        report.generators |= losses
        for number, metrics in report.metrics.items():
            metrics |= generator_loss(report.generators[number])

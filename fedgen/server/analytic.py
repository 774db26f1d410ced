"""The sums of ``mode=analytic`` on the server, and the adapters that they make."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from fedgen.data.tokens import summary_size
from fedgen.messages.masks import SUMS
from fedgen.models.analytic import set_adapters, solve, sums_size
from fedgen.runs.folder import RunState
from fedgen.server.federation import Federation
from fedgen.task import Task

TOTAL = "all"  # names the sum over nodes where secure aggregation hides the nodes' own


class Sums(FedAvg):
    """A strategy that solves for the adapters, in place of averaging them; it keeps the nodes' sums, or their total.

    Raises
    ------
    ConfigError
        The adapters are too small for a solution: said before any exchange.
    """

    def __init__(self, task: Task, federation: Federation | None = None) -> None:
        least = task.config.min_nodes
        super().__init__(fraction_evaluate=0.0, min_train_nodes=least, min_available_nodes=least)
        self.task, self.federation = task, federation
        self.parts: dict[str, Tensor] = {}  # int64, by partition id
        weights = torch.zeros(self.features, len(task.classes))
        set_adapters(task.adapters(), weights, weights[0], task.targets.heads)

    @property
    def features(self) -> int:
        """Numbers of a summary."""
        return summary_size(self.task.store.shape[1], self.task.bands)

    @property
    def size(self) -> int:
        """Numbers of the sums."""
        return sums_size(self.features, len(self.task.classes))

    @property
    def expected(self) -> ArrayRecord:
        """What a reply must look like."""
        return ArrayRecord({SUMS: Array(np.zeros(self.size, np.int64))})

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Keep the sums in ``replies``, and return the adapters that they make."""
        assert self.federation is not None
        found = {reply.metadata.src_node_id: reply.content.array_records["arrays"][SUMS].numpy() for reply in replies}
        if self.task.config.strategy.secure.used:  # every reply has the total in place of its own
            self.parts = {TOTAL: torch.from_numpy(next(iter(found.values())))}
        else:
            numbers = {node: str(self.federation.nodes[node].partition_id) for node in found}
            self.parts = {numbers[node]: torch.from_numpy(own) for node, own in found.items()}
        return self.adapters(), None

    def adapters(self) -> ArrayRecord:
        """Return the adapters of the sum of all parts."""
        adapters, total = self.task.adapters(), torch.stack([*self.parts.values()]).sum(dim=0)
        weights, offsets = solve(total, self.features, len(self.task.classes))
        set_adapters(adapters, weights, offsets, self.task.targets.heads)
        return ArrayRecord(adapters.state_dict())

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the sums."""
        return {SUMS: self.parts} if self.parts else {}, {}

    def load(self, state: RunState) -> None:
        """Go on from what `state` returned."""
        self.parts = dict(state.tensors.get(SUMS, {}))

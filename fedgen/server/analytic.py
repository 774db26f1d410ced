"""The sums of ``mode=analytic`` on the server, and the adapters that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message
from torch import Tensor

from fedgen.messages.masks import SUMS
from fedgen.models.adapters import Adapters
from fedgen.models.analytic import set_adapters, solve, sums_size
from fedgen.runs.folder import RunState
from fedgen.task import Task

TOTAL = "all"  # names the sum over nodes where secure aggregation hides the nodes' own


@dataclass(eq=False)
class Sums:
    """Sums of the nodes, by partition id, or their total."""

    task: Task
    parts: dict[str, Tensor] = field(default_factory=dict)  # int64

    def __post_init__(self) -> None:
        self._written(torch.zeros(self.size, dtype=torch.int64))  # what cannot be written is said before any exchange

    @property
    def size(self) -> int:
        """Numbers of the sums."""
        return sums_size(self.task.adapters().narrow.in_features, len(self.task.classes))

    @property
    def expected(self) -> ArrayRecord:
        """What a reply must look like."""
        return ArrayRecord({SUMS: Array(np.zeros(self.size, np.int64))})

    def take(self, replies: Mapping[int, Message]) -> ArrayRecord:
        """Keep the sums in ``replies``, and return the adapters that they make."""
        found = {n: torch.from_numpy(r.content.array_records["arrays"][SUMS].numpy()) for n, r in replies.items()}
        if self.task.config.strategy.secure.used:  # every reply has the total in place of its own
            self.parts = {TOTAL: next(iter(found.values()))}
        else:
            self.parts = {str(number): own for number, own in found.items()}
        return self.adapters()

    def adapters(self) -> ArrayRecord:
        """Return the adapters of the sum of all parts."""
        return ArrayRecord(self._written(torch.stack([*self.parts.values()]).sum(dim=0)).state_dict())

    def _written(self, sums: Tensor) -> Adapters:
        adapters = self.task.adapters()
        weights, offsets = solve(sums, adapters.narrow.in_features, len(self.task.classes))
        set_adapters(adapters, weights, offsets, self.task.targets.heads)
        return adapters

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the sums."""
        return {SUMS: self.parts} if self.parts else {}, {}

    def load(self, state: RunState) -> None:
        """Go on from what `state` returned."""
        self.parts = dict(state.tensors.get(SUMS, {}))

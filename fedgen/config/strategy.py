"""How adapters are aggregated: the settings of ``strategy``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fedgen.errors import choose, require
from fedgen.models.settings import check_ranges

STRATEGIES = [
    "fedavg", "fedprox", "fedadam", "fedyogi", "fedadagrad", "fedavgm",
    "fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan",
]  # fmt: skip
SUMS = STRATEGIES[:6]  # these need no node's own adapters
MODULUS = 2**32  # masked numbers are of 32 bits, and sums wrap around
FEWEST = 3  # nodes: of a sum of two, each learns the other's part


@dataclass(frozen=True)
class SecureSettings:
    """Secure aggregation of adapters, by masks that cancel in the sum."""

    name: str = "none"  # or secagg
    # nodes whose shares give a secret back, and fewest nodes in a sum; above half of all, just above by default. With
    # more, more nodes would have to side with the server to see another's adapters, and fewer may drop out
    threshold: int | None = None
    clipping_range: float = 8.0  # largest absolute value that a weight of the adapters may have
    quantization: int = 2**22  # steps from -clipping_range to clipping_range

    def __post_init__(self) -> None:
        choose(self.name, ["none", "secagg"], "strategy.secure.name")
        check_ranges(self, "strategy.secure", {"threshold": 2})
        good = 0 < self.clipping_range < math.inf
        require(good, f"strategy.secure.clipping_range={self.clipping_range} must be a finite number above 0")
        good = 2 <= self.quantization < MODULUS
        require(good, f"strategy.secure.quantization={self.quantization} must be from 2 to below {MODULUS}")

    @property
    def used(self) -> bool:
        """Whether adapters are masked."""
        return self.name != "none"

    def needed(self, nodes: int) -> int:
        """Return how many shares give a secret back in a round of ``nodes`` nodes, among which it is divided."""
        return max(self.threshold or 0, nodes // 2 + 1)


@dataclass(frozen=True)
class StrategyConfig:
    """How adapters are aggregated."""

    name: str = "fedavg"  # a strategy of Flower; it aggregates adapters, whatever else travels
    # what leaves a node: all, or samples alone; then nodes keep the adapters that they train, and the server trains the
    # global ones on the samples only
    send: str = "all"
    min_nodes: int | None = None  # good replies that a round needs; all nodes that it asks by default
    nodes_per_round: int | None = None  # nodes that a round asks, drawn anew from `seed` in each; all by default
    # nodes whose latest samples the server keeps, never fewer than a round asks: its memory does not grow with more
    pool_nodes: int = 100
    timeout: float = 3600.0  # seconds that the server waits for replies
    wait: float = 300.0  # seconds that a run waits for its nodes to appear, and a round for `min_nodes` of them
    max_payload_mb: float = 512.0  # megabytes (10^6 bytes) of a reply above which it is refused
    # how many times the median change of a round's adapters a node's may be before it is refused; None: any. See
    # `fedgen.messages.checks.norm_outliers`
    max_change: float | None = 10.0
    options: dict[str, float] = field(default_factory=dict)  # of the Flower class, such as `proximal_mu` or `eta`
    secure: SecureSettings = field(default_factory=SecureSettings)  # whether the server sees the sum of adapters only

    def __post_init__(self) -> None:
        choose(self.name, STRATEGIES, "strategy.name")
        choose(self.send, ["all", "samples"], "strategy.send")
        least = dict.fromkeys(("min_nodes", "nodes_per_round", "pool_nodes"), 1)
        check_ranges(self, "strategy", least, positive=("max_payload_mb", "timeout", "wait"))
        most = self.max_change
        require(most is None or most > 1, f"strategy.max_change={most} must be above 1")

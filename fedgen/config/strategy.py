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
AVERAGES = STRATEGIES[:2]  # a node changes them by its share of its own change
SUMS = STRATEGIES[:6]  # these need no node's own adapters
MODULUS = 2**32  # masked numbers are of 32 bits, and sums wrap around
FEWEST = 3  # nodes: of a sum of two, each learns the other's part


@dataclass(frozen=True)
class SecureSettings:
    """Secure aggregation of adapters by SecAgg+.

    Parameters
    ----------
    name : str
        ``none``, or ``secagg``.
    shares : int, optional
        Nodes among which the secrets of a node are divided, itself included; all by default. Fewer, and odd, where
        there are many nodes: a node's work grows with it.
    threshold : int, optional
        Shares that give a secret back, and fewest nodes in a sum; above half of ``shares``, just above by default.
        Higher: more nodes would have to side with the server to see another's adapters, and fewer may drop out.
    clipping_range : float
        Largest absolute value that a weight of the adapters may have.
    quantization : int
        Steps from ``-clipping_range`` to ``clipping_range``.
    """

    name: str = "none"
    shares: int | None = None
    threshold: int | None = None
    clipping_range: float = 8.0
    quantization: int = 2**22

    def __post_init__(self) -> None:
        choose(self.name, ["none", "secagg"], "strategy.secure.name")
        check_ranges(self, "strategy.secure", {"shares": FEWEST, "threshold": 2})
        good = 0 < self.clipping_range < math.inf
        require(good, f"strategy.secure.clipping_range={self.clipping_range} must be a finite number above 0")
        good = 2 <= self.quantization < MODULUS
        require(good, f"strategy.secure.quantization={self.quantization} must be from 2 to below {MODULUS}")

    @property
    def used(self) -> bool:
        """Whether adapters are masked."""
        return self.name != "none"

    def round(self, nodes: int) -> tuple[int, int]:
        """Return how many shares secrets have in a round of ``nodes`` nodes, and how many of them give one back."""
        shares = min(self.shares or nodes, nodes)
        return shares, max(self.threshold or 0, shares // 2 + 1)


@dataclass(frozen=True)
class StrategyConfig:
    """How adapters are aggregated.

    Parameters
    ----------
    name : str
        A strategy of Flower; it aggregates adapters, whatever else travels.
    send : str
        What leaves a node: ``all``, or ``samples`` alone. Then nodes keep the adapters that they train, and the server
        trains the global ones on the samples only.
    min_nodes : int, optional
        Good replies that a round needs; all nodes that it asks by default.
    nodes_per_round : int, optional
        Nodes that a round asks, drawn anew from ``seed`` in each; all by default.
    pool_nodes : int
        Nodes whose latest samples the server keeps, never fewer than a round asks: its memory does not grow with more.
    timeout : float
        Seconds that the server waits for replies.
    wait : float
        Seconds that a run waits for its nodes to appear, and a round for ``min_nodes`` of them.
    max_payload_mb : float
        Megabytes (10^6 bytes) of a reply above which it is refused.
    max_change : float, optional
        How many times the median change of a round's adapters a node's may be before it is refused; see `excessive`.
        None: any. Without meaning under ``dp``, which shortens every change.
    options : dict[str, float]
        Further arguments of the Flower class, such as ``proximal_mu`` or ``eta``.
    dp : str
        Who shortens what a node's adapters have learnt before their average gets noise that hides any single node:
        ``none``, ``server`` or ``client``.
    clipping_norm : float, optional
        Longest that a node's change of the adapters may be (Euclidean norm of all weights together).
    noise_multiplier : float, optional
        Deviation of the noise on the sum of all nodes' changes over ``clipping_norm``.
    delta : float, optional
        At which the epsilon that this spends is told; below one over the nodes.
    secure : SecureSettings
        Whether the server sees the sum of adapters only.
    """

    name: str = "fedavg"
    send: str = "all"
    min_nodes: int | None = None
    nodes_per_round: int | None = None
    pool_nodes: int = 100
    timeout: float = 3600.0
    wait: float = 300.0
    max_payload_mb: float = 512.0
    max_change: float | None = 10.0
    options: dict[str, float] = field(default_factory=dict)
    dp: str = "none"
    clipping_norm: float | None = None
    noise_multiplier: float | None = None
    delta: float | None = None
    secure: SecureSettings = field(default_factory=SecureSettings)

    def __post_init__(self) -> None:
        choose(self.name, STRATEGIES, "strategy.name")
        choose(self.send, ["all", "samples"], "strategy.send")
        choose(self.dp, ["none", "server", "client"], "strategy.dp")
        least = dict.fromkeys(("min_nodes", "nodes_per_round", "pool_nodes"), 1)
        check_ranges(self, "strategy", least, positive=("max_payload_mb", "timeout", "wait"))
        most = self.max_change
        require(most is None or most > 1, f"strategy.max_change={most} must be above 1")
        for name in ("clipping_norm", "noise_multiplier", "delta"):
            value, needs = getattr(self, name), "no such number" if self.dp == "none" else "a finite number above 0"
            good = value is None if self.dp == "none" else value is not None and 0 < value < math.inf
            require(good, f"strategy.{name}={value}: strategy.dp={self.dp} needs {needs}")

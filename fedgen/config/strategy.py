"""How adapters are aggregated: the settings of ``strategy``, and what they refuse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fedgen.config.phases import MODES, Generators
from fedgen.errors import ConfigError, choose, require, suggestion

PROTOCOLS = ["none", "secagg"]
MODULUS = 2**32  # masked numbers are of 32 bits, and sums wrap around
FEWEST = 3  # nodes: of a sum of two, each learns the other's part
SUMS = ["fedavg", "fedprox", "fedadam", "fedyogi", "fedadagrad", "fedavgm"]  # these need no node's own adapters


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
        choose(self.name, PROTOCOLS, "strategy.secure.name")
        good = self.shares is None or self.shares >= FEWEST
        require(good, f"strategy.secure.shares={self.shares} must be at least {FEWEST}")
        most, least = self.shares, 2 if self.shares is None else self.shares // 2 + 1
        good = self.threshold is None or least <= self.threshold <= (most or self.threshold)
        require(
            good,
            f"strategy.secure.threshold={self.threshold} must be above half of strategy.secure.shares={most}, "
            "and not above it",
        )
        good = 0 < self.clipping_range < float("inf")
        require(good, f"strategy.secure.clipping_range={self.clipping_range} must be a finite number above 0")
        good = 2 <= self.quantization < MODULUS
        require(good, f"strategy.secure.quantization={self.quantization} must be from 2 to below {MODULUS}")

    @property
    def used(self) -> bool:
        """Whether adapters are masked."""
        return self.name != "none"

    def check(self, nodes: int, min_nodes: int, strategy: str, dp: str, trains: bool, teaching: str) -> None:
        """Refuse what needs single nodes' adapters, and federations in which nothing would be hidden.

        Parameters
        ----------
        nodes, min_nodes : int
            Of the federation, and of a round.
        strategy, dp : str
            ``strategy.name`` and ``strategy.dp``.
        trains : bool
            Whether adapters leave nodes in any phase.
        teaching : str
            ``global_training.name`` where samples are sent, else ``none``.

        Raises
        ------
        ConfigError
        """
        if not self.used:
            return
        chosen = f"strategy.secure.name={self.name}"
        require(trains, f"{chosen} means nothing here: no adapters leave a node")
        require(nodes >= FEWEST, f"{chosen} needs at least {FEWEST} nodes, got partition.nodes={nodes}")
        shares = min(self.shares or nodes, nodes)
        good = self.shares is None or self.shares == nodes or (self.shares < nodes and self.shares % 2 == 1)
        require(good, f"strategy.secure.shares={self.shares} must be odd and below partition.nodes={nodes}, or that")
        need = self.threshold or shares // 2 + 1
        require(
            shares // 2 < need <= shares,
            f"strategy.secure.threshold={need} must be above half of {shares} shares, and not above them",
        )
        require(min_nodes >= need, f"strategy.min_nodes={min_nodes} is below strategy.secure.threshold={need}")
        good = nodes * self.quantization < MODULUS
        require(
            good,
            f"strategy.secure.quantization={self.quantization} times partition.nodes={nodes} must be below {MODULUS}",
        )
        good = strategy in SUMS
        require(
            good,
            f"{chosen} needs strategy={'|'.join(SUMS)}: strategy={strategy} looks at single nodes' adapters, "
            "which the server does not see",
        )
        require(dp != "server", f"{chosen} hides what strategy.dp=server would have to clip: use strategy.dp=client")
        require(teaching != "distil", f"{chosen} hides nodes' adapters: global_training=distil has no teachers")

    def round(self, nodes: int) -> tuple[int, int]:
        """Return how many shares secrets have in a round of ``nodes`` nodes, and how many of them give one back."""
        shares = min(self.shares or nodes, nodes)
        return shares, max(self.threshold or 0, shares // 2 + 1)


STRATEGIES = [
    "fedavg", "fedprox", "fedadam", "fedyogi", "fedadagrad", "fedavgm",
    "fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan",
]  # fmt: skip
SENT = ["all", "samples"]
CLIPPING = ["none", "server", "client"]
AVERAGES = ["fedavg", "fedprox"]  # a node changes them by its share of its own change


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
        if self.name not in STRATEGIES:
            raise ConfigError(
                f"strategy.name={self.name!r} is not one of {', '.join(STRATEGIES)}.{suggestion(self.name, STRATEGIES)}"
            )
        for name in ("min_nodes", "nodes_per_round", "pool_nodes"):
            number = getattr(self, name)
            require(number is None or number >= 1, f"strategy.{name}={number} must be at least 1")
        least, asked, most = self.min_nodes, self.nodes_per_round, self.max_change
        require(None in (least, asked) or least <= asked, f"strategy.min_nodes={least} is more than {asked} a round")  # type: ignore[operator]
        require(self.max_payload_mb > 0, f"strategy.max_payload_mb={self.max_payload_mb} must be above 0")
        require(most is None or most > 1, f"strategy.max_change={most} must be above 1")
        require(self.timeout > 0, f"strategy.timeout={self.timeout} must be above 0")
        require(self.wait > 0, f"strategy.wait={self.wait} must be above 0")
        choose(self.send, SENT, "strategy.send")
        choose(self.dp, CLIPPING, "strategy.dp")
        for name in ("clipping_norm", "noise_multiplier", "delta"):
            value, needs = getattr(self, name), "no such number" if self.dp == "none" else "a finite number above 0"
            good = value is None if self.dp == "none" else value is not None and 0 < value < float("inf")
            require(good, f"strategy.{name}={value}: strategy.dp={self.dp} needs {needs}")
        good = self.dp == "none" or self.name in AVERAGES
        require(good, f"strategy.dp={self.dp} needs strategy={'|'.join(AVERAGES)}, got strategy={self.name}")

    def check(self, nodes: int, modes: Sequence[str], teaching: str) -> None:
        """Refuse a run for which ``dp`` or ``secure`` would not hold, or mean nothing.

        Parameters
        ----------
        nodes : int
            Of the partition.
        modes : Sequence[str]
            Of the run's phases.
        teaching : str
            ``global_training.name``.

        Raises
        ------
        ConfigError
        """
        least, chosen = self.min_nodes, f"strategy.dp={self.dp}"
        for name in ("min_nodes", "nodes_per_round"):
            number = getattr(self, name)
            require(number is None or number <= nodes, f"strategy.{name}={number} is more than partition.nodes={nodes}")
        sources = {MODES[mode].generators for mode in modes}
        require(
            self.nodes_per_round in (None, nodes) or not {Generators.TRAIN, Generators.LOAD} <= sources,
            f"strategy.nodes_per_round={self.nodes_per_round}: nodes that are not asked while generators are trained "
            "have none in the phase that only uses them: train them in a run of its own, with every node",
        )
        taught = teaching if any(MODES[mode].synthesizes for mode in modes) else "none"
        self._check_send(modes, teaching)
        trains = self.send == "all" and any(MODES[m].federated and MODES[m].trains_adapters for m in modes)
        asked = self.nodes_per_round or nodes
        self.secure.check(asked, least or asked, self.name, self.dp, trains, taught)
        if self.dp == "none":
            return
        assert self.delta is not None
        require(trains, f"{chosen} means nothing here: no adapters leave a node")
        good = {least or nodes, asked} == {nodes}
        require(good, f"{chosen} needs every node: leave strategy.min_nodes and strategy.nodes_per_round out")
        require(self.delta < 1 / nodes, f"strategy.delta={self.delta} must be below one over partition.nodes={nodes}")
        require(taught != "distil", f"{chosen}: with global_training=distil nodes' adapters teach without noise")

    def _check_send(self, modes: Sequence[str], teaching: str) -> None:
        """Refuse ``samples`` where the global adapters would not learn from any."""
        if self.send == "all":
            return
        idle = [mode for mode in modes if not MODES[mode].synthesizes]
        require(not idle, f"strategy.send=samples: mode={''.join(idle[:1])} sends none; use one_shot or generate")
        good = teaching == "supervised"
        require(good, f"strategy.send=samples needs global_training=supervised: with {teaching} nothing is learnt")

"""Whether and how adapters are masked, and with what that does not go together."""

from __future__ import annotations

from dataclasses import dataclass

from fedgen.errors import choose, require

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

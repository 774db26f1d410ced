"""Sequence lengths: what a generator models, what a sample has, and how one becomes the other."""

from __future__ import annotations

from dataclasses import dataclass

from fedgen.errors import choose, require

UPSAMPLING = ("linear", "nearest", "cubic", "learned")


@dataclass(frozen=True)
class Lengths:
    """Tokens of the sequences that are modelled and made; None: as many as the encoder gives.

    Parameters
    ----------
    training, output : int, optional
    upsampling : str
        ``linear``, ``nearest``, ``cubic`` or ``learned``.
    """

    training: int | None = None
    output: int | None = None
    upsampling: str = "linear"

    def __post_init__(self) -> None:
        for name in ("training", "output"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"generator.{name}_length={value} must be at least 1")
        choose(self.upsampling, UPSAMPLING, "generator.upsampling")

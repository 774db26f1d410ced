"""The schedule that all training shares: linear warm-up of the learning rate, then a cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Where one call stands in a longer training: call ``index`` (from 0) of ``calls`` of equal length."""

    index: int = 0
    calls: int = 1

    def progress(self, step: int, steps: int) -> float:
        """Return the share of the whole training, from 0, that is done at ``step`` of ``steps`` in this call."""
        return (self.index + step / steps) / self.calls

    def rate(self, step: int, steps: int, warmup: float) -> float:
        """Return the factor on the learning rate at ``step`` of ``steps`` in this call: linear warm-up, then cosine."""
        total = steps * self.calls
        now = self.index * steps + step
        rising = max(1, round(warmup * total))
        if now < rising:
            return (now + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (now - rising) / max(1, total - rising)))

"""Losses of generators as nodes report them: one entry for each generator and epoch."""

from __future__ import annotations

from typing import Any

History = list[dict[str, float | str]]
"""Entries with ``generator`` (its key), ``epoch`` and the losses by component."""


def last_losses(history: History) -> dict[str, dict[str, Any]]:
    """Return the last epoch of each generator, by its key."""
    return {str(epoch["generator"]): {k: v for k, v in epoch.items() if k != "generator"} for epoch in history}


def generator_loss(history: History) -> dict[str, float]:
    """Return the mean over generators of the last epoch's loss, by its metric name; empty without generators."""
    last = [float(epoch["loss"]) for epoch in last_losses(history).values()]
    return {"generator_loss": sum(last) / len(last)} if last else {}

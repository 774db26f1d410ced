"""What adapters that are averaged with Flower's noise have spent of their privacy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedgen.errors import CheckpointError
from fedgen.models.privacy.accountant import compose, epsilon
from fedgen.phases import MODES
from fedgen.run_folder import RunFolder
from fedgen.settings import Config


def adapters_spent(config: Config) -> dict[str, Any]:
    """Return what the adapters of a run have spent at its end, for one node; empty without ``strategy.dp``.

    Each round that trains adapters is one Gaussian mechanism; those of the run that this one goes on from count too.
    ``epsilon`` is for neighbours of which one lacks a node, ``epsilon_replaced`` for those in which one is another.

    Raises
    ------
    CheckpointError
        The run that this one goes on from has trained adapters without ``strategy.dp``.
    ConfigError
        That run has not finished; the accountant is not installed.
    """
    settings = config.strategy
    if settings.noise_multiplier is None or settings.delta is None:
        return {}
    rounds = sum(phase.rounds for phase in config.phase_list if MODES[phase.mode].trains_adapters)
    earlier = _earlier_spent(Path(config.checkpoint.load)) if config.checkpoint.load else []
    own = {"noise_multiplier": settings.noise_multiplier, "clipping_norm": settings.clipping_norm, "rounds": rounds}
    noise = compose([part["noise_multiplier"] for part in [*earlier, own] for _ in range(part["rounds"])])
    spent = {"epsilon": epsilon(noise, settings.delta), "epsilon_replaced": epsilon(noise / 2, settings.delta)}
    return {"unit": "node", "clipped_by": settings.dp, **own, **spent, "delta": settings.delta, "earlier": earlier}


def _earlier_spent(load: Path) -> list[dict[str, Any]]:
    """Return noise and rounds of the run in the folder ``load``, and of those before it."""
    folder = RunFolder(load)
    results, came_from = folder.results(), folder.config().checkpoint.load
    spent = results.get("privacy", {}).get("adapters")
    if spent:
        return [*spent["earlier"], {name: spent[name] for name in ("noise_multiplier", "clipping_norm", "rounds")}]
    if came_from or any(MODES[phase["mode"]].trains_adapters for phase in results["phases"]):
        raise CheckpointError(
            f"checkpoint.load={load}: its adapters learnt without strategy.dp, so they are not private"
        )
    return []

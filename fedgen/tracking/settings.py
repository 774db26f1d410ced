"""The settings of tracking."""

from __future__ import annotations

from dataclasses import dataclass

from fedgen.errors import choose, require

TRACKERS = ("none", "tensorboard", "wandb")


@dataclass(frozen=True)
class TrackingSettings:
    """Where a run's metrics go besides its folder; the server's process alone sends them.

    Parameters
    ----------
    name : str
        ``none``, ``tensorboard`` or ``wandb``.
    project : str
        Of Weights & Biases.
    entity : str, optional
        Team or user there; the user's default by default.
    group : str, optional
        What runs are grouped by there; of a sweep its folder by default.
    offline : bool
        Whether the run is kept on this machine until ``wandb sync``; ``WANDB_MODE=offline`` does the same.
    """

    name: str = "none"
    project: str = "fedgen"
    entity: str | None = None
    group: str | None = None
    offline: bool = False

    def __post_init__(self) -> None:
        choose(self.name, TRACKERS, "tracking")
        require(bool(self.project), "tracking.project='' must be a name")

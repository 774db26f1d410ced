"""What a run does: a list of phases, each a row of the mode table with a number of rounds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from fedgen.errors import ConfigError, choose, require
from fedgen.models.settings import Schedule


class Generators(Enum):
    """What happens to a node's generators in a round."""

    NONE = "none"
    TRAIN = "train"
    LOAD = "load"


@dataclass(frozen=True)
class Mode:
    """One row of the mode table.

    Attributes
    ----------
    name : str
    trains_adapters : bool
        Whether nodes train adapters on their own clips.
    generators : Generators
        Whether nodes train and save generators, use saved ones, or have none.
    synthesizes : bool
        Whether nodes send synthetic samples, on which the server trains the global adapters.
    federated : bool
        Whether it runs as a federation. References do not: they need no Flower.
    sums : bool
        Whether nodes send sums over their clips, of which the server makes adapters in closed form.
    """

    name: str
    trains_adapters: bool
    generators: Generators
    synthesizes: bool
    federated: bool = True
    sums: bool = False


MODES = {
    mode.name: mode
    for mode in (
        #    name                adapters  generators        synthetic  federated
        Mode("federate", True, Generators.NONE, False),
        Mode("train_generators", True, Generators.TRAIN, False),
        Mode("generators_only", False, Generators.TRAIN, False),
        Mode("generate", True, Generators.LOAD, True),
        Mode("combined", True, Generators.TRAIN, True),
        Mode("one_shot", True, Generators.TRAIN, True),
        Mode("analytic", False, Generators.NONE, False, sums=True),
        Mode("standalone", True, Generators.NONE, False, False),
        Mode("centralised", True, Generators.NONE, False, False),
    )
}


@dataclass(frozen=True)
class PhaseSettings:
    """A mode and how many rounds it lasts."""

    mode: str
    rounds: int = 1

    def __post_init__(self) -> None:
        choose(self.mode, MODES, "mode")
        require(self.rounds >= 1, f"rounds={self.rounds} of mode={self.mode} must be at least 1")
        few = self.mode == "analytic" and self.rounds > 1
        require(not few, f"mode=analytic is one exchange: rounds={self.rounds} must be 1")
        if self.mode == "one_shot" and self.rounds > 1:
            raise ConfigError(
                f"mode=one_shot is one round: rounds={self.rounds} is mode=combined, once called one_shot"
            )


@dataclass(frozen=True)
class Phase:
    """A mode, its rounds, and the number of rounds finished before it."""

    mode: Mode
    rounds: int
    offset: int = 0

    @property
    def last(self) -> int:
        """Number of the phase's last round, counted over the whole run."""
        return self.offset + self.rounds

    def schedule(self, round_number: int) -> Schedule:
        """Return the place of a round in the learning-rate schedule that the rounds of the phase share."""
        return Schedule(round_number - self.offset - 1, self.rounds)


def plan(settings: list[PhaseSettings], finished: int = 0) -> list[Phase]:
    """Return the phases of a run that goes on after ``finished`` rounds."""
    phases: list[Phase] = []
    for item in settings:
        phases.append(Phase(MODES[item.mode], item.rounds, phases[-1].last if phases else finished))
    return phases


def uses_samples(settings: list[PhaseSettings]) -> bool:
    """Return whether any phase makes or uses generators: then the run has a codec."""
    return any(MODES[item.mode].generators is not Generators.NONE for item in settings)

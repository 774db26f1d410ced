"""The header of every message to a node: the run's configuration, the round, and what the node does in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache

from flwr.app import ConfigRecord, Message

from fedgen.config.compose import from_yaml
from fedgen.config.phases import MODES, Phase
from fedgen.config.settings import Config

MU = "proximal-mu"  # the entry that Flower's FedProx adds


@dataclass(frozen=True)
class Instruction:
    """The record ``config`` of a message.

    Every message has the whole configuration: in a deployment each message starts a new process on the node, which
    would otherwise have to keep the configuration on its disk and be asked whether it has it.
    """

    yaml: str  # the resolved configuration
    finished: int = 0  # rounds of the run that this one goes on from
    mode: str = "federate"  # of the phase that the round belongs to
    rounds: int = 0  # of the phase
    offset: int = 0  # rounds before the phase
    round: int = 0  # counted over the whole run, from 1; 0 before any training
    filled: bool = False  # whether adapters are trained on samples of other nodes too
    rejoined: Sequence[int] = ()  # partition ids of the nodes that have been in this run before
    codec: Sequence[float] = ()  # sketch of the server's codec; empty in a run without samples
    proximal_mu: float = 0.0  # FedProx's weight; 0 under other strategies

    @property
    def config(self) -> Config:
        """The configuration of the run."""
        return _config(self.yaml)

    @property
    def phase(self) -> Phase:
        """The phase that the round belongs to."""
        return Phase(MODES[self.mode], self.rounds, self.offset)

    def to_record(self) -> ConfigRecord:
        """Return the record; FedProx itself adds its weight."""
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        del values["proximal_mu"]
        return ConfigRecord(values)

    @classmethod
    def of(cls, message: Message) -> Instruction:
        """Read the record of a message; strategies may have added entries of their own."""
        record = message.content.config_records["config"]
        known = {field.name: record[field.name] for field in fields(cls) if field.name in record}
        return cls(**{**known, "proximal_mu": float(str(record.get(MU, 0.0)))})  # type: ignore[arg-type]


@lru_cache(maxsize=4)
def _config(text: str) -> Config:
    return from_yaml(text, "the server's message")

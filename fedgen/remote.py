"""What a server without clips asks its nodes to measure: scores of adapters, and what samples give away."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping
from typing import Any, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedgen.assessment import Assessment
from fedgen.audit.gate import FAILED, PASSED, UNKNOWN
from fedgen.border import Member, read_scores, read_verdict
from fedgen.errors import AggregationError, PayloadError, said
from fedgen.evaluation.zero_shot import Scores, pooled_scores
from fedgen.round_grid import RoundGrid
from fedgen.settings import Config

logger = logging.getLogger(__name__)

Found = TypeVar("Found")


class RemoteMeasures:
    """Asks nodes for figures of their own clips.

    Parameters
    ----------
    grid : Grid
    members : Mapping[int, Member]
        The federation by Flower's node id.
    config : Config
    settings : dict
        What every message carries, such as the configuration.
    """

    def __init__(self, grid: Grid, members: Mapping[int, Member], config: Config, settings: dict[str, Any]) -> None:
        self.grid, self.members, self.config, self.settings = grid, members, config, settings

    def scores(
        self, arrays: ArrayRecord, classes: list[str], heads: list[str], round_number: int, missing: Container[int] = ()
    ) -> Scores:
        """Return the scores of adapters on the held-out clips of all nodes that answer; ``missing`` are not asked.

        Raises
        ------
        AggregationError
            None does.
        """
        testers = {
            node_id: member
            for node_id, member in self.members.items()
            if member.held_out and member.number not in missing
        }
        content = {"arrays": arrays, "config": self._words(round_number)}
        found = self._ask(testers, content, "evaluate", lambda m, reply: read_scores(m, reply, classes, heads))
        if not found:
            raise AggregationError(
                f"round {round_number}: no node has tested the adapters; give the server a data.store"
            )
        return pooled_scores([found[number] for number in sorted(found)], classes)

    def assessment(self, counts: Mapping[int, int], classes: list[str], round_number: int) -> Assessment | None:
        """Return every node's audit of what it sent; None if nothing is to be judged.

        Parameters
        ----------
        counts : Mapping[int, int]
            Samples by node number.
        classes : list[str]
        round_number : int
            The round whose samples these are.
        """
        setting = self.config.gate
        owners = {node_id: member for node_id, member in self.members.items() if counts.get(member.number)}
        if setting == "off" or not owners:
            return None
        found: dict[int, dict[str, Any]] = {}
        reasons = ["privacy=dp: what is sent follows from the private release alone, and is held against no clip"]
        if not self.config.privacy.used:
            found = self._ask(owners, {"config": self._words(round_number)}, "query.assess", read_verdict)
            verdicts = {number: (told["verdict"], told["reasons"]) for number, told in found.items()}
            silent = {member.number for member in owners.values()} - set(found)
            verdicts |= {number: (UNKNOWN, ["has not audited what it sent"]) for number in silent}
            reasons = [f"node {number}: {text}" for number, (_, told) in sorted(verdicts.items()) for text in told]
        told = [values["verdict"] for values in found.values()]
        complete = len(found) == len(owners) and set(told) == {PASSED}
        verdict = FAILED if FAILED in told else PASSED if complete else UNKNOWN
        worst = [
            f"node {n}: {values['summary']}" for n, values in sorted(found.items()) if values["verdict"] == verdict
        ]
        gate: dict[str, Any] = {
            "setting": setting,
            "verdict": verdict,
            "reasons": reasons,
            "summary": (worst or [verdict])[0],
        }
        aucs = [values["auc"] for values in found.values() if values["auc"] is not None]
        gate["auc"] = max(aucs) if aucs else None
        audits = {str(number): found[number]["audit"] for number in sorted(found)}
        return Assessment({"samples": sum(counts.values()), "gate": gate}, None, classes, by_node=audits)

    def _words(self, round_number: int) -> ConfigRecord:
        return ConfigRecord({**self.settings, "round": round_number})

    def _ask(
        self,
        members: Mapping[int, Member],
        content: Mapping[str, Any],
        message_type: str,
        read: Callable[[Member, Message], Found],
    ) -> dict[int, Found]:
        """Return what nodes reply, by number; a node that does not is named in the log."""
        messages = [Message(RecordDict(dict(content)), node_id, message_type) for node_id in members]
        found = {}
        for reply in RoundGrid(self.grid).send_and_receive(messages, timeout=self.config.strategy.timeout):
            member = members[reply.metadata.src_node_id]
            try:
                if reply.has_error():
                    raise PayloadError(str(reply.error.reason))
                found[member.number] = read(member, reply)
            except PayloadError as error:
                logger.warning("%s: node %d is missing: %s", message_type, member.number, said(error))
        return found

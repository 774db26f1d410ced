"""Generators that all nodes train together: the server hands them from node to node, or averages them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from flwr.app import Message, RecordDict
from torch import Tensor

from fedgen.config.settings import SharingConfig
from fedgen.errors import DataError, PayloadError
from fedgen.messages.checks import Member, read_losses
from fedgen.messages.states import States, states_from_records, states_to_records
from fedgen.models.generators import KINDS
from fedgen.models.generators.bank import Bank, History
from fedgen.server.federation import Ask

logger = logging.getLogger(__name__)


class SharedGenerators:
    """The shared generators between rounds: weights and optimiser state by generator.

    In ``cyclic`` order each node goes on from the state of the one before it. With ``average`` all nodes start from the
    same state, and what they make of it is averaged, weighted by their clips.

    Parameters
    ----------
    settings : SharingConfig
    bank : Bank
        An empty bank of the run's generator settings, to check what nodes send.
    """

    def __init__(self, settings: SharingConfig, bank: Bank) -> None:
        self.settings, self.bank = settings, bank
        self.kind = KINDS[bank.settings.kind]
        self.states: States = {}  # by granularity and key
        self.seen: dict[str, list[str]] = {}  # classes that each generator was trained on

    def round(self, ask: Ask, members: Mapping[int, Member], min_nodes: int) -> dict[int, History]:
        """Train the generators for one round on all ``members`` (by Flower's node id).

        Returns
        -------
        dict
            Losses of each node's training by its number.

        Raises
        ------
        AggregationError
            Fewer than ``min_nodes`` good replies.
        """
        ordered = dict(sorted(members.items(), key=lambda item: item[1].number))
        if self.kind.restarts:
            self.states, self.seen = {}, {}
        train = self._cycle if self.settings.scheme == "cyclic" else self._average
        losses = train(ask, ordered, min_nodes)
        contents = {node_id: self._content(member) for node_id, member in ordered.items()}
        ask(contents, "query.adopt", lambda member, reply: None, min_nodes)
        return losses

    def tensors(self) -> dict[str, Tensor]:
        """Return the states as tensors by name, to be saved."""
        return {f"{key}\n{name}": v for key, state in self.states.items() for name, v in state.items()}

    def load(self, tensors: Mapping[str, Tensor], seen: Mapping[str, list[str]]) -> None:
        """Take over what `tensors` returned, and the classes that each generator was trained on."""
        self.seen = {key: list(names) for key, names in seen.items()}
        self.states = {key: {} for key in self.seen}
        for name, value in tensors.items():
            key, own = name.split("\n", 1)
            self.states.setdefault(key, {})[own] = value

    def _cycle(self, ask: Ask, members: Mapping[int, Member], min_nodes: int) -> dict[int, History]:
        losses: dict[int, History] = {}
        for position, (node_id, member) in enumerate(members.items()):
            self._reset_on_change([member])
            needed = min_nodes - (len(members) - position - 1)  # stop as soon as too few can answer
            good = ask({node_id: self._content(member)}, "query.fit", self._check, needed, before=len(losses))
            for number, reply in good.items():
                for key, state in self._states(member, reply).items():
                    self._keep(key, state, [member])
                losses[number] = read_losses(reply)
        return losses

    def _average(self, ask: Ask, members: Mapping[int, Member], min_nodes: int) -> dict[int, History]:
        self._reset_on_change(members.values())
        contents = {node_id: self._content(member) for node_id, member in members.items()}
        good = ask(contents, "query.fit", self._check, min_nodes)
        trained = [member for member in members.values() if member.number in good]
        states = {member.number: self._states(member, good[member.number]) for member in trained}
        for key in sorted({key for own in states.values() for key in own}):
            owners = [member for member in trained if key in states[member.number]]
            weights = [self._clips(member, key) for member in owners]
            self._keep(key, self.kind.merge([states[m.number][key] for m in owners], weights), owners)
        return {number: read_losses(reply) for number, reply in good.items()}

    def _reset_on_change(self, members: Iterable[Member]) -> None:
        """Forget generators that are about to meet classes they were not trained on, if the settings say so.

        The decision is the server's, and a generator without a state starts with the same weights on every node.
        """
        if not self.settings.reset_on_class_change:
            return
        for key in list(self.states):
            classes = {name for member in members for name in _slots(member).get(key, [])}
            unseen = sorted(classes - set(self.seen[key]))
            if unseen and not self.kind.restarts:
                logger.info("shared generator %s starts anew: it was not trained on %s", key, ", ".join(unseen))
                del self.states[key], self.seen[key]

    def _keep(self, key: str, state: dict[str, Tensor], members: list[Member]) -> None:
        classes = {name for member in members for name in _slots(member)[key]}
        self.states[key] = state
        self.seen[key] = sorted(classes | set(self.seen.get(key, [])))

    def _content(self, member: Member) -> RecordDict:
        """Return the states that concern ``member``, under the node's own keys."""
        own = {key.split("/", 1)[1]: self.states[key] for key in _slots(member) if key in self.states}
        return states_to_records(own)

    def _check(self, member: Member, reply: Message) -> None:
        """Refuse states of other generators than the node has, and such as no generator can take over."""
        for key, state in states_from_records(reply.content, member.slots).items():
            try:
                self.bank.new_generator().load_shared_state(state)
            except DataError as error:
                raise PayloadError(f"generator {key!r}: {error}") from error
        read_losses(reply)

    def _states(self, member: Member, reply: Message) -> States:
        found = states_from_records(reply.content, member.slots)
        return {f"{member.granularity}/{key}": state for key, state in found.items()}

    def _clips(self, member: Member, key: str) -> float:
        ids = [self.bank.class_names.index(name) for name in _slots(member)[key]]
        return float(sum(member.counts[label] for label in ids))


def _slots(member: Member) -> dict[str, list[str]]:
    """Return the classes of each generator of a node by its granularity and key: a class may be called as a group."""
    return {f"{member.granularity}/{key}": names for key, names in member.slots.items()}

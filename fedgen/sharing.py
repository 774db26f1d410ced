"""Generators that all nodes train together: the server hands them from node to node, or averages them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from operator import add
from typing import Any, Protocol

from flwr.app import ArrayRecord, Message, RecordDict
from torch import Tensor

from fedgen.border import Member, read_losses
from fedgen.config import SharingConfig
from fedgen.errors import DataError, PayloadError
from fedgen.exchange.moments import core_moments_from_record, moments_from_record
from fedgen.exchange.states import States, bases_to_record, states_from_records, states_to_records
from fedgen.models.bases import Bases
from fedgen.models.codec import Codec
from fedgen.models.generators import KINDS
from fedgen.training.bank import Bank
from fedgen.training.losses import History

logger = logging.getLogger(__name__)


class Ask(Protocol):
    """How the server asks nodes: it sends each Flower node id its records as a message of a type, and checks replies.

    Returns the good replies by the node's number. With those of ``before``, there must be ``needed`` of them.
    """

    def __call__(
        self,
        contents: Mapping[int, RecordDict],
        message_type: str,
        check: Callable[[Member, Message], None],
        needed: int,
        before: int = 0,
    ) -> dict[int, Message]:
        """Ask and return the good replies."""
        ...


class SharedGenerators:
    """The shared generators between rounds: a codec for all nodes, weights and optimiser state by generator.

    In ``cyclic`` order each node goes on from the state of the one before it. With ``average`` all nodes start from the
    same state, and what they make of it is averaged, weighted by their clips.

    Parameters
    ----------
    settings : SharingConfig
    bank : Bank
        An empty bank of the run's generator settings, to check what nodes send.
    shape : tuple[int, int]
        ``(S, D)`` of the nodes' tokens.
    """

    def __init__(self, settings: SharingConfig, bank: Bank, shape: tuple[int, int]) -> None:
        self.settings, self.bank, self.shape = settings, bank, shape
        self.kind = KINDS[bank.settings.kind]
        self.codec: Codec | None = None
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
        if self.codec is None:
            self.codec = self._fit_codec(ask, ordered, min_nodes)
        if self.kind.restarts:
            self.states, self.seen = {}, {}
        train = self._cycle if self.settings.scheme == "cyclic" else self._average
        losses = train(ask, ordered, min_nodes)
        contents = {node_id: self._content(member) for node_id, member in ordered.items()}
        ask(contents, "query.adopt", lambda member, reply: None, min_nodes)
        return losses

    def tensors(self) -> dict[str, Tensor]:
        """Return codec and states as tensors by name, to be saved."""
        named = {f"codec.{name}": value for name, value in (self.codec.state() if self.codec else {}).items()}
        return named | {f"{key}\n{name}": v for key, state in self.states.items() for name, v in state.items()}

    def load(self, tensors: Mapping[str, Tensor], seen: Mapping[str, list[str]]) -> None:
        """Take over what `tensors` returned, and the classes that each generator was trained on."""
        codec = {name.removeprefix("codec."): v for name, v in tensors.items() if "\n" not in name}
        self.codec = Codec.from_state(codec) if codec else None
        self.seen = {key: list(names) for key, names in seen.items()}
        self.states = {key: {} for key in self.seen}
        for name, value in tensors.items():
            if "\n" in name:
                key, own = name.split("\n", 1)
                self.states.setdefault(key, {})[own] = value

    def _fit_codec(self, ask: Ask, members: Mapping[int, Member], min_nodes: int) -> Codec:
        """Fit one codec to the clips of all nodes, from sums over each node's."""
        settings, shape = self.bank.settings, self.shape

        def sums(content: RecordDict, read: Callable[[ArrayRecord, int], Any]) -> Any:
            found = {}

            def check(member: Member, reply: Message) -> None:
                records = list(reply.content.array_records.values())
                if len(records) != 1:
                    raise PayloadError(f"a reply with moments needs one ArrayRecord, got {len(records)}")
                found[member.number] = read(records[0], sum(member.counts.values()))

            good = ask(dict.fromkeys(members, content), "query.moments", check, min_nodes)
            return reduce(add, [found[number] for number in good])

        moments = sums(RecordDict(), lambda record, clips: moments_from_record(record, shape, clips))
        bases = Bases.from_moments(moments, settings.codec, settings.lengths)
        flat, width = bases.channels is None, shape[1] if bases.channels is None else bases.channels.shape[1]
        size = bases.positions.shape[1] * width  # values of a core
        content = RecordDict({"bases": bases_to_record(bases)})
        cores = sums(content, lambda record, clips: core_moments_from_record(record, size, clips, flat))
        codec = Codec.from_moments(bases, cores, settings.codec)
        logger.info("a codec of %d coefficients is shared by %d nodes", codec.size, len(members))
        return codec

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
        """Return the codec and the states that concern ``member``, under the node's own keys."""
        own = {key.split("/", 1)[1]: self.states[key] for key in _slots(member) if key in self.states}
        return states_to_records(own, self.codec)

    def _check(self, member: Member, reply: Message) -> None:
        """Refuse states of other generators than the node has, and such as no generator can take over."""
        assert self.codec is not None
        for key, state in states_from_records(reply.content, member.slots).items():
            try:
                self.bank.new_generator(self.codec.size).load_shared_state(state)
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

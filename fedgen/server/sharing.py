"""Generators that all nodes train together: the server hands them from node to node, or averages them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message, RecordDict
from torch import Tensor

from fedgen.config.settings import SharingConfig
from fedgen.errors import DataError, PayloadError
from fedgen.messages.checks import NodeInfo, read_losses
from fedgen.messages.states import States, states_from_records, states_to_records
from fedgen.models.generators.bank import Bank, History
from fedgen.runs.folder import RunState
from fedgen.server.federation import Federation

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class SharedGenerators:
    """The shared generators between rounds: weights and optimiser state by generator.

    In ``cyclic`` order each node goes on from the state of the one before it. With ``average`` all nodes start from the
    same state, and the results are averaged, weighted by their clips.
    """

    settings: SharingConfig
    bank: Bank  # an empty one of the run's generator settings, to check the nodes' states
    states: States = field(default_factory=dict)  # by granularity and key
    seen: dict[str, list[str]] = field(default_factory=dict)  # classes that each generator was trained on

    def round(self, federation: Federation) -> dict[int, History]:
        """Train the generators for one round on all active nodes, and return their losses by partition id.

        Raises
        ------
        AggregationError
            Too few good replies.
        """
        nodes = dict(sorted(federation.active.items(), key=lambda item: item[1].partition_id))
        if self.bank.kind.restarts:
            self.states, self.seen = {}, {}
        losses = (self._cycle if self.settings.scheme == "cyclic" else self._average)(federation, nodes)
        contents = {node_id: self._content(node) for node_id, node in nodes.items()}
        federation.ask("query.adopt", contents, lambda node, reply: None)
        return losses

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the states as tensors by key and name, and the classes that each generator was trained on."""
        tensors = {f"{key}\n{name}": v for key, state in self.states.items() for name, v in state.items()}
        return {"shared": tensors}, {"seen": self.seen}

    def load(self, state: RunState) -> None:
        """Go on from what `state` returned."""
        self.seen = {key: list(names) for key, names in state.facts["seen"].items()}
        self.states = {key: {} for key in self.seen}
        for name, value in state.tensors["shared"].items():
            key, own = name.split("\n", 1)
            self.states.setdefault(key, {})[own] = value

    def _cycle(self, federation: Federation, nodes: dict[int, NodeInfo]) -> dict[int, History]:
        losses: dict[int, History] = {}
        for position, (node_id, node) in enumerate(nodes.items()):
            self._reset_on_change([node])
            good = federation.ask("query.fit", {node_id: self._content(node)}, self._read, needed=0)
            for number, (states, history) in good.items():
                for key, state in states.items():
                    self._keep(key, state, [node])
                losses[number] = history
            waiting = len(nodes) - position - 1
            federation.require(len(losses), federation.config.min_nodes - waiting)  # stop as soon as too few can answer
        return losses

    def _average(self, federation: Federation, nodes: dict[int, NodeInfo]) -> dict[int, History]:
        self._reset_on_change(nodes.values())
        contents = {node_id: self._content(node) for node_id, node in nodes.items()}
        good = federation.ask("query.fit", contents, self._read)
        trained = [(node, good[node.partition_id][0]) for node in nodes.values() if node.partition_id in good]
        for key in sorted({key for _, states in trained for key in states}):
            owners = [(node, states[key]) for node, states in trained if key in states]
            weights = [self._clips(node, key) for node, _ in owners]
            merged = self.bank.kind.merge([state for _, state in owners], weights)
            self._keep(key, merged, [node for node, _ in owners])
        return {number: history for number, (_, history) in good.items()}

    def _reset_on_change(self, nodes: Iterable[NodeInfo]) -> None:
        """Forget generators that are about to meet classes they were not trained on, if the settings say so.

        The decision is the server's, and a generator without a state starts with the same weights on every node.
        """
        if not self.settings.reset_on_class_change:
            return
        for key in list(self.states):
            classes = {name for node in nodes for name in _slots(node).get(key, [])}
            unseen = sorted(classes - set(self.seen[key]))
            if unseen and not self.bank.kind.restarts:
                logger.info("shared generator %s starts anew: it was not trained on %s", key, ", ".join(unseen))
                del self.states[key], self.seen[key]

    def _keep(self, key: str, state: dict[str, Tensor], nodes: list[NodeInfo]) -> None:
        classes = {name for node in nodes for name in _slots(node)[key]}
        self.states[key] = state
        self.seen[key] = sorted(classes | set(self.seen.get(key, [])))

    def _content(self, node: NodeInfo) -> RecordDict:
        """Return the states that concern ``node``, under the node's own keys."""
        return states_to_records({key.split("/", 1)[1]: self.states[key] for key in _slots(node) if key in self.states})

    def _read(self, node: NodeInfo, reply: Message) -> tuple[States, History]:
        """Return a reply's states and losses; reject states that no generator of the node can take over."""
        states = states_from_records(reply.content, node.slots)
        for key, state in states.items():
            try:
                self.bank.new_generator().load_shared_state(state)
            except DataError as error:
                raise PayloadError(f"generator {key!r}: {error}") from error
        return {f"{node.granularity}/{key}": state for key, state in states.items()}, read_losses(reply)

    def _clips(self, node: NodeInfo, key: str) -> float:
        ids = [self.bank.class_names.index(name) for name in _slots(node)[key]]
        return float(sum(node.counts[label] for label in ids))


def _slots(node: NodeInfo) -> dict[str, list[str]]:
    """Return the classes of each generator of a node by its granularity and key: a class may be called as a group."""
    return {f"{node.granularity}/{key}": names for key, names in node.slots.items()}

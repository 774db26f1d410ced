"""The codec that all nodes share: fitted to sums over their clips, then handed to every node."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from operator import add
from typing import Any, Protocol

from flwr.app import ArrayRecord, Message, RecordDict
from torch import Tensor

from fedgen.border import Member
from fedgen.errors import PayloadError
from fedgen.exchange.moments import core_moments_from_record, moments_from_record
from fedgen.exchange.payload import as_it_travels
from fedgen.exchange.states import bases_to_record, states_to_records
from fedgen.models.bases import Bases
from fedgen.models.codec import Codec
from fedgen.models.generators import GeneratorSettings

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


class SharedCodec:
    """One codec for all nodes, and who has it.

    It is fitted once, in two exchanges: from the summed second moments follow bases, and from the summed moments of the
    cores in these bases the components. What it loses of a clip of one node it loses of a clip of any other.

    Parameters
    ----------
    settings : GeneratorSettings
        Of the codec and its lengths.
    shape : tuple[int, int]
        ``(S, D)`` of the nodes' tokens.
    """

    def __init__(self, settings: GeneratorSettings, shape: tuple[int, int]) -> None:
        self.settings, self.shape = settings, shape
        self.codec: Codec | None = None
        self.given: set[int] = set()  # numbers of the nodes that have it

    def fit(self, ask: Ask, members: Mapping[int, Member], min_nodes: int) -> Codec:
        """Return the codec; the first time, fit it to the clips of all ``members`` (by Flower's node id).

        Raises
        ------
        AggregationError
            Fewer than ``min_nodes`` good replies.
        """
        if self.codec is not None:
            return self.codec

        def sums(content: RecordDict, read: Callable[[ArrayRecord, int], Any]) -> Any:
            found = {}

            def check(member: Member, reply: Message) -> None:
                records = list(reply.content.array_records.values())
                if len(records) != 1:
                    raise PayloadError(f"a reply with moments needs one ArrayRecord, got {len(records)}")
                found[member.number] = read(records[0], sum(member.counts.values()))

            good = ask(dict.fromkeys(members, content), "query.moments", check, min_nodes)
            return reduce(add, [found[number] for number in good])

        settings, shape = self.settings, self.shape
        moments = sums(RecordDict(), lambda record, clips: moments_from_record(record, shape, clips))
        bases = Bases.from_moments(moments, settings.codec, settings.lengths)
        flat, width = bases.channels is None, shape[1] if bases.channels is None else bases.channels.shape[1]
        size = bases.positions.shape[1] * width  # values of a core
        content = RecordDict({"bases": bases_to_record(bases)})
        cores = sums(content, lambda record, clips: core_moments_from_record(record, size, clips, flat))
        # rounded, so that it is the same codec wherever it came from: here, in a message, or beside samples
        self.codec = as_it_travels(Codec.from_moments(bases, cores, settings.codec))
        logger.info("a codec of %d coefficients is shared by %d nodes", self.codec.size, len(members))
        return self.codec

    def give(self, ask: Ask, members: Mapping[int, Member], min_nodes: int) -> None:
        """Hand the codec to those of ``members`` that do not have it, so that they fit their generators in it.

        Raises
        ------
        AggregationError
            Fewer than ``min_nodes`` of ``members`` have it then.
        """
        content = states_to_records({}, self.fit(ask, members, min_nodes))
        missing = {node_id: content for node_id, member in members.items() if member.number not in self.given}
        have = len(members) - len(missing)
        if missing:
            self.given |= ask(missing, "query.codec", lambda member, reply: None, min_nodes, have).keys()

    def tensors(self) -> dict[str, Tensor]:
        """Return the codec's tensors, to be saved; none if there is no codec yet."""
        return self.codec.state() if self.codec else {}

    def load(self, tensors: Mapping[str, Tensor], given: Iterable[int] = ()) -> None:
        """Take over what `tensors` returned, and the numbers of the nodes that have the codec."""
        self.codec = Codec.from_state(dict(tensors)) if tensors else None
        self.given = set(given)

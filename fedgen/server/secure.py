"""A round's grid over which training replies come with the average of all nodes' adapters, and not with their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.supercore.primitives.asymmetric import bytes_to_public_key

from fedgen.config.strategy import FEWEST, MODULUS, SecureSettings
from fedgen.errors import AggregationError, PayloadError
from fedgen.messages.checks import check_clips
from fedgen.messages.masks import LONG, SUMS, WORD, decode, mask, pair_mask, to_record
from fedgen.messages.samples import read_array
from fedgen.node.secure import MASKED
from fedgen.server.federation import Federation
from fedgen.server.grid import REFUSED, RoundGrid

Send = Callable[[list[Message]], Iterable[Message]]

MAX_KEY_BYTES = 10_000  # of a key or an encrypted share


@dataclass(eq=False)
class Round:
    """One secure sum: keys, shares of secrets, masked adapters, and the shares that take the masks off.

    A node may be lost at any point, and the others go on while enough are left: before it has sent masked adapters, its
    masks in the others' are taken off with its key; after, it counts.

    References
    ----------
    Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", CCS 2017.
    """

    send: Send  # sends messages and returns one reply of each node, as `RoundGrid.send_and_receive`
    messages: list[Message]  # a strategy's, to the nodes
    settings: SecureSettings
    clips: Mapping[int, int]  # of each node of the federation, by Flower's id: its largest weight in the average
    sums: int = 0  # numbers of sums over clips, where nodes send these in place of adapters

    def __post_init__(self) -> None:
        self.asked = {m.metadata.dst_node_id: m for m in self.messages if m.metadata.dst_node_id in self.clips}
        if len(self.asked) < FEWEST:
            raise AggregationError(f"secure aggregation needs at least {FEWEST} nodes, {len(self.asked)} are asked")
        self.most = max(self.clips[node] for node in self.asked)
        self.wanted = self.messages[0].content.array_records["arrays"]
        self.size = (self.sums or sum(int(np.prod(array.shape)) for array in self.wanted.values())) + 1
        self.word = LONG if self.sums else WORD
        self.threshold = self.settings.needed(len(self.asked))
        self.lost: dict[int, Message] = {}
        self.keys: dict[int, list[bytes]] = {}  # two public keys of each node
        self.letters: dict[int, dict[int, bytes]] = {}  # encrypted shares, by sender and receiver
        self.total = np.zeros(self.size, self.word)
        self.weight = 0.0
        self.replies: dict[int, Message] = {}  # of nodes whose adapters are in the sum

    def run(self) -> list[Message]:
        """Return a reply of each node: its own with the average in place of its adapters, or why it is lost."""
        self._exchange("keys", dict.fromkeys(self.asked, self._setup()), self._take_keys)
        self._need("keys", self.keys)
        keys = ConfigRecord({Key.STAGE: Stage.SHARE_KEYS, **{str(node): own for node, own in self.keys.items()}})
        self._exchange("shares", dict.fromkeys(self.keys, keys), self._take_letters)
        self._need("shares of secrets", self.letters)
        self._exchange("adapters", {node: self._training(node) for node in self.letters}, self._add)
        self._need("masked adapters", self.replies)
        self._unmask()
        if self.sums:
            arrays = ArrayRecord({SUMS: Array(self.total[:-1].view("<i8"))})
        else:
            average = decode(self.total, self.weight, self.settings.clipping_range, self.settings.quantization)
            arrays = to_record(average, self.wanted)
        for reply in self.replies.values():
            reply.content["arrays"] = ArrayRecord(dict(arrays.items()))
        return [*self.replies.values(), *self.lost.values()]

    def _exchange(self, what: str, contents: Mapping[int, Any], take: Callable[[int, Message], None]) -> None:
        """Send each node its content and take the replies; note which nodes are lost."""
        messages = []
        for node, content in contents.items():
            record = content if isinstance(content, RecordDict) else RecordDict({RECORD_KEY_CONFIGS: content})
            group = self.asked[node].metadata.group_id
            messages.append(Message(record, node, "train", group_id=group, ttl=self.asked[node].metadata.ttl))
        for reply in self.send(messages):
            node = reply.metadata.src_node_id
            if reply.has_error():
                self._lose(node, reply.error.code, reply.error.reason)
                continue
            try:
                take(node, reply)
            except Exception as error:  # whatever a node has made up
                self._lose(node, REFUSED, f"{what}: {error}")

    def _lose(self, node: int, code: int, reason: str | None) -> None:
        self.lost[node] = Message(Error(code, reason), reply_to=self.asked[node])

    def _need(self, what: str, alive: Mapping[int, Any]) -> None:
        """Raise unless so many nodes are left that they can be unmasked."""
        if len(alive) < max(2, self.threshold):
            reasons = "; ".join(f"Flower node {node}: {lost.error.reason}" for node, lost in self.lost.items())
            raise AggregationError(
                f"secure aggregation: {len(alive)} of {len(self.asked)} nodes sent {what}, {self.threshold} are "
                f"needed. Missing: {reasons or 'nodes that did not answer in time'}"
            )

    def _setup(self) -> ConfigRecord:
        return ConfigRecord(
            {
                Key.STAGE: Stage.SETUP,
                Key.SAMPLE_NUMBER: len(self.asked),
                Key.SHARE_NUMBER: len(self.asked),
                Key.THRESHOLD: self.threshold,
                Key.CLIPPING_RANGE: float(self.settings.clipping_range),
                Key.TARGET_RANGE: self.settings.quantization,
                Key.MOD_RANGE: MODULUS,
                Key.MAX_WEIGHT: float(self.most),
            }
        )

    def _take_keys(self, node: int, reply: Message) -> None:
        said = _said(reply)
        keys = [_bytes(said[name]) for name in (Key.PUBLIC_KEY_1, Key.PUBLIC_KEY_2)]
        for key in keys:  # the other nodes would stop at what is none
            if getattr(getattr(bytes_to_public_key(key), "curve", None), "name", "") != "secp384r1":
                raise PayloadError("no public key of the curve secp384r1")
        if set(keys) & {key for known in self.keys.values() for key in known}:
            raise PayloadError("a public key of another node")
        self.keys[node] = keys

    def _take_letters(self, node: int, reply: Message) -> None:
        said = _said(reply)
        receivers, texts = cast(list[int], said[Key.DESTINATION_LIST]), cast(list[Any], said[Key.CIPHERTEXT_LIST])
        wanted = sorted(set(self.keys) - {node})
        if sorted(receivers) != wanted:
            raise PayloadError(f"shares for nodes {sorted(receivers)}, expected {wanted}")
        self.letters[node] = dict(zip(receivers, map(_bytes, texts), strict=True))

    def _training(self, node: int) -> RecordDict:
        """Return the strategy's message to ``node``, and the other nodes' shares for it."""
        senders = sorted(set(self.letters) - {node})
        record = ConfigRecord(
            {
                Key.STAGE: Stage.COLLECT_MASKED_VECTORS,
                Key.SOURCE_LIST: senders,
                Key.CIPHERTEXT_LIST: [self.letters[sender][node] for sender in senders],
            }
        )
        return RecordDict({**self.asked[node].content, RECORD_KEY_CONFIGS: record})

    def _add(self, node: int, reply: Message) -> None:
        metrics, record = reply.content.metric_records["metrics"], reply.content.array_records["arrays"]
        if set(record) != {MASKED}:
            raise PayloadError(f"arrays {sorted(record)}, expected masked ones")
        vector = read_array(record[MASKED], MASKED, self.word, (self.size,))
        check_clips(self.clips[node], metrics)
        self.total = self.total + vector
        self.weight += int(str(metrics["num-examples"])) / self.most
        reply.content["arrays"] = ArrayRecord()  # one vector in memory, however many nodes
        self.replies[node] = reply

    def _unmask(self) -> None:
        """Take off the masks of the nodes in the sum, and those that lost nodes have left in it.

        Raises
        ------
        AggregationError
            Not enough shares came, or they do not give the secrets of the masks back.
        """
        alive, lost = set(self.replies), set(self.letters) - set(self.replies)
        found: dict[int, list[bytes]] = {node: [] for node in alive | lost}

        def take(node: int, reply: Message) -> None:
            owners, shares = cast(list[int], _said(reply)[Key.NODE_ID_LIST]), _said(reply)[Key.SHARE_LIST]
            if sorted(owners) != sorted(alive | lost):
                raise PayloadError(f"shares of nodes {sorted(owners)}")
            for owner, share in zip(owners, map(_bytes, cast(list[Any], shares)), strict=True):
                found[owner].append(share)

        lists = {Key.ACTIVE_NODE_ID_LIST: sorted(alive), Key.DEAD_NODE_ID_LIST: sorted(lost)}
        before = dict(self.lost)
        self._exchange("shares", dict.fromkeys(alive, ConfigRecord({Key.STAGE: Stage.UNMASK, **lists})), take)
        self.lost = before  # adapters of nodes that stop here are in the sum
        for node, shares in found.items():
            if len(shares) < self.threshold:
                raise AggregationError(f"secure aggregation: {len(shares)} shares came, {self.threshold} are needed")
            try:
                self._remove(node, combine_shares(shares[: self.threshold]), alive)
            except Exception as error:  # whatever nodes have made up
                raise AggregationError(f"secure aggregation: shares do not give a secret back: {error}") from error
        most = len(alive) * self.settings.quantization
        if int(self.total[-1]) != len(alive) or (not self.sums and int(self.total.max()) > most):
            raise AggregationError(
                "secure aggregation: masks are left in the sum: a node has sent something else than the protocol asks"
            )

    def _remove(self, node: int, secret: bytes, alive: set[int]) -> None:
        if node in alive:
            self.total = self.total - mask(secret, self.size, self.word)
            return
        for other in alive:
            self.total = self.total + pair_mask(secret, self.keys[other][0], node, other, self.size, self.word)


def _said(reply: Message) -> ConfigRecord:
    return reply.content.config_records[RECORD_KEY_CONFIGS]


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes) or len(value) > MAX_KEY_BYTES:
        raise PayloadError(f"expected at most {MAX_KEY_BYTES} bytes, got {str(value)[:50]}")
    return value


class SecureGrid(RoundGrid):
    """A grid for training messages alone: it asks for adapters by secure aggregation.

    Each reply has the average in place of the node's own adapters. A strategy that averages makes of equal adapters
    what it would have made of the nodes' own. A node weighs as much as its clips.
    """

    def __init__(self, federation: Federation, sums: int = 0) -> None:
        super().__init__(federation.grid)
        self.federation, self.sums = federation, sums

    def get_node_ids(self) -> list[int]:
        """Return the chosen nodes."""
        return list(self.grid.get_node_ids())

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Train in four exchanges, of ``timeout`` seconds each.

        Raises
        ------
        AggregationError
            Too few nodes are left to take the masks off.
        """
        asked, rules = list(messages), self.federation.config.strategy
        if not asked:
            return iter(())  # Flower's loop asks no node to evaluate
        send = partial(self.grid.send_and_receive, timeout=timeout)
        clips = {node_id: node.clips for node_id, node in self.federation.nodes.items()}
        return iter(Round(send, asked, rules.secure, clips, self.sums).run())

"""The node's side of SecAgg+: Flower's mod for keys, shares and unmasking; the masks are ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message
from flwr.client.mod.secure_aggregation.secaggplus_mod import (
    SecAggPlusState,
    check_configs,
    check_stage,
    secaggplus_mod,
)
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, RECORD_KEY_STATE, Key, Stage
from flwr.common.secure_aggregation.secaggplus_utils import share_keys_plaintext_separate

from fedgen.config.strategy import FEWEST, MODULUS, SecureSettings
from fedgen.errors import PayloadError, require
from fedgen.messages.masks import LONG, SUMS, encode, mask, pair_mask

MASKED = "masked"  # the array of a masked reply
OWN_KEY = "secure-aggregation"  # in the node configuration: fewest nodes in a sum that this node is part of

Answer = Callable[[Message, Context], Message]


def masked(message: Message, context: Context, answer: Answer) -> Message:
    """Take part in secure aggregation where the server asks for it; a mod of the ClientApp.

    Raises
    ------
    PayloadError
        The server asks for anything that would uncover this node, or out of turn.
    """
    asked = message.content.config_records.get(RECORD_KEY_CONFIGS)
    if asked is None:
        return answer(message, context)
    stage = asked.get(Key.STAGE)
    _check(str(stage), asked, fewest(context.node_config.get(OWN_KEY)))
    if stage == Stage.COLLECT_MASKED_VECTORS:
        return _mask(message, context, answer)
    reply = secaggplus_mod(message, context, answer)
    if stage == Stage.UNMASK:  # keys and others' shares are of no more use
        context.state.config_records[RECORD_KEY_STATE] = ConfigRecord({"current_stage": Stage.UNMASK})
    return reply


def fewest(value: Any) -> int:
    """Return the fewest nodes in a sum by a node configuration; `ConfigError` if that is no whole number from 3."""
    if value is None:
        return 0
    good = str(value).isdecimal() and int(str(value)) >= FEWEST
    require(good, f"the node configuration's {OWN_KEY}={value!r} must be a whole number of at least {FEWEST}")
    return int(str(value))


def check_node(settings: SecureSettings, value: Any) -> None:
    """Raise `ConfigError` for a run without secure aggregation where the node configuration demands it."""
    least, refused = fewest(value), f"strategy.secure.name={settings.name}"
    require(settings.used or not least, f"the node configuration's {OWN_KEY}={least} refuses {refused}")


def check_asked(settings: SecureSettings, message: Message) -> None:
    """Raise `ConfigError` where the server asks for adapters in the clear in a run with secure aggregation."""
    good = not settings.used or RECORD_KEY_CONFIGS in message.content.config_records
    require(good, f"strategy.secure.name={settings.name}, but the server asks for adapters in the clear")


def _check(stage: str, asked: ConfigRecord, least: int) -> None:
    """Refuse settings and questions by which the server would learn more than a sum of enough nodes."""
    if stage == Stage.SETUP:
        shares, threshold, modulus, steps = (
            int(str(asked[key])) for key in (Key.SHARE_NUMBER, Key.THRESHOLD, Key.MOD_RANGE, Key.TARGET_RANGE)
        )
        _demand(FEWEST <= shares < 2 * threshold, f"{threshold} of {shares} shares give a secret back")
        _demand(shares >= least, f"{shares} shares, {OWN_KEY}={least}")
        _demand(modulus == MODULUS, f"a modulus of {modulus}, expected {MODULUS}")
        reach = float(str(asked[Key.CLIPPING_RANGE]))
        _demand(reach > 0 and 2 <= steps < MODULUS, f"{steps} steps from -{reach} to {reach}")
    if stage == Stage.COLLECT_MASKED_VECTORS:
        nodes = len(_different(asked[Key.SOURCE_LIST])) + 1
        _demand(nodes >= least, f"{nodes} nodes, {OWN_KEY}={least}")
    if stage == Stage.UNMASK:
        alive, dead = _different(asked[Key.ACTIVE_NODE_ID_LIST]), _different(asked[Key.DEAD_NODE_ID_LIST])
        both = sorted(set(alive) & set(dead))
        _demand(not both, f"both secrets of nodes {both}")
        _demand(len(alive) >= least, f"the sum of {len(alive)} nodes, {OWN_KEY}={least}")


def _different(nodes: Any) -> list[int]:
    good = isinstance(nodes, list) and len(set(nodes)) == len(nodes)
    _demand(good, f"nodes {nodes}, which are not all different")
    return list(nodes)


def _demand(good: bool, what: str) -> None:
    if not good:
        raise PayloadError(f"secure aggregation refused: the server asks for {what}")


def _mask(message: Message, context: Context, answer: Answer) -> Message:
    """Keep the others' shares, let the node train, and reply with its adapters under masks."""
    asked = message.content.config_records[RECORD_KEY_CONFIGS]
    stored: dict[str, Any] = dict(context.state.config_records.get(RECORD_KEY_STATE, ConfigRecord()))
    state = SecAggPlusState(**stored)
    check_stage(state.current_stage, asked)
    check_configs(Stage.COLLECT_MASKED_VECTORS, asked)
    state.current_stage = Stage.COLLECT_MASKED_VECTORS
    others = _keep_shares(state, asked)

    reply = answer(message, context)
    if reply.has_error():
        return reply
    clips = reply.content.metric_records["metrics"]["num-examples"]
    share = float(str(clips)) / state.max_weight
    _demand(0 < share <= 1, f"a largest weight of {state.max_weight:g}, this node's is {clips}")
    arrays = reply.content.array_records["arrays"]
    if set(arrays) == {SUMS}:
        vector = np.append(arrays[SUMS].numpy().astype("<i8").view(LONG), LONG.type(1))
    else:
        vector = encode(arrays, share, state.clipping_range, state.target_range)
    word = vector.dtype
    vector = vector + mask(state.rd_seed, len(vector), word)
    for other in others:
        vector = vector + pair_mask(state.sk1, state.public_keys_dict[other][0], state.nid, other, len(vector), word)
    reply.content["arrays"] = ArrayRecord({MASKED: Array(vector)})
    context.state.config_records[RECORD_KEY_STATE] = ConfigRecord(state.to_dict())
    return reply


def _keep_shares(state: SecAggPlusState, asked: ConfigRecord) -> list[int]:
    """Store the shares that other nodes have sent this one through the server, and return these nodes."""
    sources, texts = _different(asked[Key.SOURCE_LIST]), cast(list[bytes], asked[Key.CIPHERTEXT_LIST])
    _demand(len(sources) + 1 >= state.threshold, f"the sum of {len(sources) + 1} nodes")
    _demand(set(sources) <= set(state.ss2_dict), f"shares of nodes {sorted(set(sources) - set(state.ss2_dict))}")
    for source, text in zip(sources, texts, strict=True):
        sender, receiver, seed, key = share_keys_plaintext_separate(decrypt(state.ss2_dict[source], text))
        _demand((sender, receiver) == (source, state.nid), f"shares from {sender} to {receiver} as {source}'s")
        state.rd_seed_share_dict[source], state.sk1_share_dict[source] = seed, key
    return sources

"""fedgen from Python: run a configuration, and open what a run has left."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict, UserConfigValue
from flwr.clientapp import ClientApp
from flwr.common.constant import NUM_PARTITIONS_KEY, PARTITION_ID_KEY, SUPERLINK_NODE_ID, ErrorCode
from flwr.server.utils.validator import validate_message
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedgen.client_app import app as client_app
from fedgen.config.compose import load_config, to_yaml
from fedgen.config.phases import plan
from fedgen.config.settings import Config
from fedgen.data.progress import RoundsBar, leave_log
from fedgen.errors import require
from fedgen.report.saved_run import load_run
from fedgen.runs.folder import RunFolder
from fedgen.runtimes.references import run_reference
from fedgen.server_app import app as server_app

logger = logging.getLogger(__name__)

# Flower draws node ids at random. Ours are fixed, and far from the partition ids, so that nobody mistakes one for the
# other; 1 is the server itself.
FIRST_NODE_ID = 1001


class LocalGrid(Grid):
    """A Flower ``Grid`` whose nodes are calls of one ``ClientApp`` in this process.

    Every node has its own ``Context``, and both sides get copies of a message. Nodes answer one after the other, when
    their replies are pulled. As in Flower's simulation, a node that raises loses its changes of the context, and the
    server gets an error reply.

    Parameters
    ----------
    client_app : ClientApp
    num_nodes : int
    run_config : dict
        Flat; every node finds it in ``context.run_config``.
    node_configs : list of dict, optional
        More entries of each node's ``context.node_config``, besides ``partition-id`` and ``num-partitions``.

    Raises
    ------
    ConfigError
        Without nodes, or with another number of ``node_configs``.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_nodes: int,
        run_config: Mapping[str, UserConfigValue],
        node_configs: Sequence[Mapping[str, UserConfigValue]] | None = None,
    ) -> None:
        require(num_nodes >= 1, f"num_nodes={num_nodes}: a federation needs at least 1 node")
        configs: Sequence[Mapping[str, UserConfigValue]] = [{}] * num_nodes if node_configs is None else node_configs
        require(len(configs) == num_nodes, f"{len(configs)} node_configs for num_nodes={num_nodes}")
        self._client_app = client_app
        self._run = Run.create_empty(run_id=secrets.randbits(62) + 1)
        self._contexts = {}
        for i, config in enumerate(configs):
            facts = {PARTITION_ID_KEY: i, NUM_PARTITIONS_KEY: num_nodes, **config}
            node_id, own = FIRST_NODE_ID + i, dict(run_config)
            self._contexts[node_id] = Context(self._run.run_id, node_id, facts, RecordDict(), own)
        self._waiting: dict[str, Message] = {}  # pushed, not yet handled; in the order of pushing
        _assume_server_identity(self._run.run_id)

    @property
    def run(self) -> Run:
        """A copy of the description of this run."""
        return deepcopy(self._run)

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to; what the nodes remember stays."""
        self._run = run
        for context in self._contexts.values():
            context.run_id = run.run_id
        _assume_server_identity(run.run_id)

    def get_node_ids(self) -> list[int]:
        """Return the ids of all nodes, in the order of their partitions."""
        return list(self._contexts)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a new message (kept by Flower for older apps; prefer ``Message(...)``)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue a copy of each message and return their ids, in the same order.

        Raises
        ------
        ValueError
            For a message to an unknown node, or one that Flower's own validation refuses.
        """
        pushed = []
        for message in messages:
            _begin_life(message)  # it may have been made long before
            _stamp(message, self._run.run_id)
            _check(message, is_reply=False)
            if message.metadata.dst_node_id not in self._contexts:
                raise ValueError(f"no node {message.metadata.dst_node_id}; the nodes are {self.get_node_ids()}")
            self._waiting[message.metadata.message_id] = deepcopy(message)
            pushed.append(message.metadata.message_id)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Let one node handle its message and return the reply, one payload at a time; an empty list at the end."""
        for message_id in message_ids:
            if message_id in self._waiting:
                return [self._handle(self._waiting.pop(message_id))]
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push messages and return the replies in the same order, whatever the ``timeout``; `RoundGrid` has one."""
        return [self._handle(self._waiting.pop(message_id)) for message_id in self.push_messages(messages)]

    def _handle(self, message: Message) -> Message:
        """Let the node of ``message`` handle it; an exception or an unusable reply becomes an error reply."""
        node_id = message.metadata.dst_node_id
        _begin_life(message)  # and again when the node's turn comes
        context = deepcopy(self._contexts[node_id])  # kept only if the node succeeds
        try:
            # The app gets its own copy: what it changes must not reach the metadata that an error reply needs.
            reply = deepcopy(self._client_app(deepcopy(message), context))
            _stamp(reply, self._run.run_id)
            _check(reply, is_reply=True)
            if reply.metadata.reply_to_message_id != message.metadata.message_id:
                raise ValueError("the reply of the ClientApp answers another message")
        except Exception as error:
            logger.exception("Node %d (%s) raised an exception", node_id, context.node_config)
            reason = f"{type(error).__name__}: {error}"
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
            _stamp(reply, self._run.run_id)
        else:
            self._contexts[node_id] = context
        return reply


def run_server(server_app: ServerApp, grid: Grid, run_config: Mapping[str, UserConfigValue]) -> Context:
    """Run a ServerApp on a grid, as Flower's own server process does, and return the server's context after the run."""
    context = Context(grid.run.run_id, SUPERLINK_NODE_ID, {}, RecordDict(), dict(run_config))
    server_app(grid, context)
    return context


def _assume_server_identity(run_id: int) -> None:
    """Tell Flower that this process is the server: ``Message(...)`` reads these and raises without them."""
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    TaskIdentity.task_id = 1


def _stamp(message: Any, run_id: int) -> None:
    """Give a message the fields that the grid sets in Flower; several grids in a process keep their runs apart."""
    if not isinstance(message, Message):
        raise TypeError(f"the ClientApp returned {type(message).__name__}, not a Message")
    message.metadata.__dict__.update(_message_id=str(uuid4()), _run_id=run_id)


def _begin_life(message: Message) -> None:
    """Let the time that a message has to live begin now."""
    message.metadata.__dict__["_created_at"] = time.time()


def _check(message: Message, is_reply: bool) -> None:
    """Raise `ValueError` for a message that a SuperLink would refuse."""
    if errors := validate_message(message, is_reply_message=is_reply):
        raise ValueError(f"Flower refuses the {message.metadata.message_type} message: {'; '.join(errors)}")


def run_config(config: Config) -> dict[str, Any]:
    """Run ``config``, whose ``run_dir`` is set, and return the content of ``results.json``.

    Raises
    ------
    FedgenError
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)  # our own progress lines say it shorter
    try:
        if not plan(config.phase_list)[0].mode.federated:
            return run_reference(config)
        values = {"config": to_yaml(config)}
        grid = LocalGrid(client_app, config.partition.nodes, values)
        run_server(server_app, grid, values)
    finally:
        RoundsBar.stop()
        leave_log()
    return RunFolder(Path(str(config.run_dir))).results()


__all__ = ["load_run", "run"]


def run(*overrides: str, run_dir: str | Path | None = None) -> dict[str, Any]:
    """Run a configuration in this process and return its results.

    Parameters
    ----------
    *overrides : str
        As after ``fedgen run``, such as ``"mode=combined"`` and ``"rounds=5"``; no sweeps.
    run_dir : str or Path, optional
        The run folder; by default one below ``runs/`` that is named after the time.

    Returns
    -------
    dict
        The content of ``results.json``: ``accuracy``, ``per_class``, ``confusion``, ``history`` and the rest.

    Raises
    ------
    FedgenError
        What is wrong, in words that name the value, the choices and the configuration key.

    Examples
    --------
    >>> from fedgen import run
    >>> run("mode=combined", "rounds=2")["accuracy"]  # doctest: +SKIP
    0.65
    """
    config = load_config(list(overrides))
    folder = run_dir or config.run_dir or Path("runs") / time.strftime("%Y-%m-%d") / time.strftime("%H-%M-%S")
    return run_config(config if config.resume else replace(config, run_dir=str(folder)))

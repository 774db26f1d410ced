"""Federations in the tests: how one is started, and nodes whose replies a test changes on their way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from flwr.app import Context, Message

from fedgen.client_app import app as client_app
from fedgen.config.settings import Config

NodeApp = Callable[[Message, Context], Message]


class Federate(Protocol):
    """Runs a configuration in process, if asked with other nodes, and gives the content of ``results.json``."""

    def __call__(self, config: Config, run_dir: Path, app: NodeApp | None = None) -> dict[str, Any]: ...


class Nodes:
    """The project's nodes, with each reply handed to ``change`` (request, reply, node number) before it leaves."""

    def __init__(self, change: Callable[[Message, Message, int], Message | None]) -> None:
        self.change = change

    def __call__(self, message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        return self.change(message, reply, int(context.node_config["partition-id"])) or reply

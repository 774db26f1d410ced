"""Flower's ServerApp: compose the configuration, meet the nodes, run the phases."""

from __future__ import annotations

import json
import logging
import os
import shlex
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedgen.config import Config, from_yaml, load_config, to_yaml
from fedgen.errors import AggregationError, ConfigError, DataError
from fedgen.evaluation.zero_shot import Scores, zero_shot
from fedgen.models.samples import PooledTokens
from fedgen.models.schedule import Schedule
from fedgen.phases import Phase, plan
from fedgen.recorder import Recorder
from fedgen.run_folder import RunFolder
from fedgen.strategy import Member, SyntheticPooling, open_strategy
from fedgen.task import Task, prepare_task
from fedgen.training.adapters import train_adapters

logger = logging.getLogger(__name__)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run what ``overrides`` (text, as on the command line) or ``config`` (resolved YAML) of the run config say."""
    show_progress()
    values = context.run_config
    if "config" in values:
        config = from_yaml(str(values["config"]))
    else:
        config = load_config(shlex.split(str(values.get("overrides", ""))))
    if config.run_dir is None:
        home = Path(os.environ.get("FEDGEN_HOME") or "~/.cache/fedgen").expanduser()
        config = replace(config, run_dir=str(home / "runs" / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{context.run_id}"))
    federate(grid, config)


def show_progress() -> None:
    """Print fedgen's own log lines where nobody has set up logging, as in Flower's server process."""
    own = logging.getLogger("fedgen")
    if not logging.getLogger().handlers and not own.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("[%(asctime)s] %(message)s", "%H:%M:%S"))
        own.addHandler(handler)
        own.setLevel(logging.INFO)


def federate(grid: Grid, config: Config) -> dict[str, Any]:
    """Run all phases over ``grid`` and return the results, which ``results.json`` holds too.

    Raises
    ------
    ConfigError, DataError, CheckpointError
        Before any training.
    AggregationError
        A round without enough good replies.
    """
    references = [item.mode for item in config.phase_list if not plan([item])[0].mode.federated]
    if references:
        raise ConfigError(f"mode={references[0]} is a reference, not a federation: run it with `fedgen run`")
    config = replace(config, run_dir=str(Path(str(config.run_dir)).absolute()))
    task = prepare_task(config)
    folder = RunFolder.create(task.config)
    server = Server(grid, task, folder)
    return server.run()


class Server:
    """One run over a grid of nodes.

    Parameters
    ----------
    grid : Grid
    task : Task
        Prepared on this machine.
    folder : RunFolder
    """

    def __init__(self, grid: Grid, task: Task, folder: RunFolder) -> None:
        self.grid, self.task, self.config = grid, task, task.config
        self.adapters = task.adapters()
        self.finished = self._load() if self.config.checkpoint.load else 0
        self.test = task.test_tokens()
        self.recorder = Recorder(folder, task)

    def run(self) -> dict[str, Any]:
        """Meet the nodes, run every phase, and write the results."""
        members = self.meet()
        self.recorder.partition({member.number: member.counts for member in members.values()})
        arrays = ArrayRecord(self.adapters.state_dict())
        for number, phase in enumerate(plan(self.config.phase_list, self.finished)):
            arrays = self.run_phase(number, phase, members, arrays)
        return self.recorder.finish()

    def meet(self) -> dict[int, Member]:
        """Wait for all nodes and learn what each has.

        Raises
        ------
        AggregationError
            If fewer nodes than the partition needs appear in ``strategy.wait`` seconds.
        DataError
            If a node cannot do its part, or disagrees with the server about classes or tokens.
        """
        ids = self._wait_for_nodes()
        content = RecordDict({"config": ConfigRecord({"yaml": to_yaml(self.config)})})
        messages = [Message(content, node_id, "query.describe") for node_id in ids]
        replies = list(self.grid.send_and_receive(messages, timeout=self.config.strategy.timeout))
        problems = [str(reply.error.reason) for reply in replies if reply.has_error()]
        silent = len(ids) - len(replies)
        if problems or silent:
            if silent:
                limit = f"strategy.timeout={self.config.strategy.timeout:g} s"
                problems.append(f"{silent} nodes did not answer in {limit}")
            raise DataError("nodes cannot start: " + "; ".join(sorted(set(problems))))
        return self._members(replies)

    def run_phase(self, number: int, phase: Phase, members: dict[int, Member], arrays: ArrayRecord) -> ArrayRecord:
        """Run one phase from ``arrays`` and return the global adapters at its end."""
        learns = phase.mode.synthesizes and self.config.global_training.name != "none"
        settings: dict[str, Any] = {"yaml": to_yaml(self.config), "phase": number, "finished": self.finished}
        strategy = SyntheticPooling(
            open_strategy(self.config.strategy, self.config.min_nodes),
            phase,
            members,
            self.config.min_nodes,
            self.config.strategy.timeout,
            self.task.store.shape,
            self.config.synthesis.max_samples,
            lambda round_number: self.task.seed("decode", round_number),
            partial(self.train_on_pool, phase) if learns else None,
            settings,
            str(self.task.device),
        )

        def evaluate(server_round: int, current: ArrayRecord) -> MetricRecord | None:
            if server_round == 0 and number > 0:
                return None  # the phase before has just evaluated these
            scores = self.evaluate(current)
            self.recorder.round(phase, strategy.report, scores, current.to_torch_state_dict())
            return MetricRecord({"accuracy": scores.accuracy})

        result = strategy.start(
            self.grid,
            arrays,
            num_rounds=phase.rounds,
            timeout=self.config.strategy.timeout,
            evaluate_fn=evaluate,
        )
        return result.arrays

    def evaluate(self, arrays: ArrayRecord) -> Scores:
        """Return the zero-shot scores of the global adapters on the held-out clips."""
        self.adapters.load_state_dict(arrays.to_torch_state_dict())
        return zero_shot(self.adapters, self.test, self.task.targets.heads, self.task.classes)

    def train_on_pool(
        self, phase: Phase, round_number: int, arrays: ArrayRecord, pool: PooledTokens
    ) -> tuple[ArrayRecord, dict[str, float]]:
        """Train the aggregated adapters on everyone's synthetic samples, on the server's device.

        As on the nodes, the rounds of a phase share one learning-rate schedule.
        """
        self.adapters.load_state_dict(arrays.to_torch_state_dict())
        seed = self.task.seed("global", round_number)
        heads = self.task.targets.heads
        schedule = Schedule(round_number - phase.offset - 1, phase.rounds)
        losses, _ = train_adapters(self.adapters, pool, heads, self.config.global_training, seed, schedule=schedule)
        return ArrayRecord(self.adapters.state_dict()), losses

    def _load(self) -> int:
        folder = RunFolder(Path(str(self.config.checkpoint.load)))
        weights, finished = folder.load_adapters(self.task.identity())
        self.adapters.load_state_dict(weights)
        return finished

    def _wait_for_nodes(self) -> list[int]:
        needed, deadline = self.config.partition.nodes, time.monotonic() + self.config.strategy.wait
        while len(ids := list(self.grid.get_node_ids())) < needed:
            if time.monotonic() > deadline:
                raise AggregationError(
                    f"{len(ids)} nodes are there after strategy.wait={self.config.strategy.wait:g} s, "
                    f"partition.nodes={needed} are needed"
                )
            time.sleep(0.5)
        return sorted(ids)

    def _members(self, replies: list[Message]) -> dict[int, Member]:
        members = {}
        for reply in replies:
            node_id = reply.metadata.src_node_id
            try:
                said = json.loads(str(reply.content.config_records["facts"]["json"]))
                member = Member(int(said["number"]), {int(label): int(count) for label, count in said["counts"]})
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"Flower node {node_id} describes itself in a way that cannot be read: {error!r}"
                ) from error
            if said.get("classes") != self.task.classes or said.get("shape") != list(self.task.store.shape):
                shape = tuple(said.get("shape") or ())
                raise DataError(
                    f"node {member.number} has tokens {shape} of classes {said.get('classes')}; "
                    f"the server has {self.task.store.shape} of {self.task.classes}"
                )
            members[node_id] = member
        numbers = sorted(member.number for member in members.values())
        if len(set(numbers)) != len(numbers):
            raise DataError(f"two nodes have the same partition-id: {numbers}")
        return members

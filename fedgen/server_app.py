"""Flower's ServerApp: compose the configuration, wait for the nodes, run the phases."""

from __future__ import annotations

import shlex
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from fedgen.config.compose import from_yaml, load_config
from fedgen.config.phases import MODES, Phase, plan, uses_samples
from fedgen.config.settings import Config
from fedgen.data.files import home
from fedgen.data.progress import show_lines, show_step
from fedgen.errors import AggregationError, CheckpointError, ConfigError, DataError
from fedgen.evaluation.assessment import Assessment, assess
from fedgen.evaluation.audit import Sent
from fedgen.evaluation.zero_shot import Scores, zero_shot
from fedgen.models.states import check_tensors
from fedgen.report.recorder import Recorder
from fedgen.report.rounds import RoundReport
from fedgen.runs.folder import RunFolder, RunState
from fedgen.server.aggregation import open_strategy
from fedgen.server.analytic import Sums
from fedgen.server.federation import Federation, agreed
from fedgen.server.pool import SamplePool, train_on_pool
from fedgen.server.recording import RecordingGrid
from fedgen.server.secure import SecureGrid
from fedgen.server.sharing import SharedGenerators
from fedgen.strategy import SyntheticPooling
from fedgen.task import Task, prepare_task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run ``overrides`` (text, as on the command line) or ``config`` (resolved YAML) of the run config."""
    show_lines()
    values = context.run_config
    if "config" in values:
        config = from_yaml(str(values["config"]), "config of the run")
    else:
        config = load_config(shlex.split(str(values.get("overrides", ""))))
    if config.run_dir is None:
        name = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{context.run_id}"
        config = replace(config, run_dir=str(home() / "runs" / name))
    federate(grid, config)


def federate(grid: Grid, config: Config) -> dict[str, Any]:
    """Run all phases over ``grid`` and return the results, which ``results.json`` holds too.

    Raises
    ------
    ConfigError, DataError, CheckpointError
        Before any training.
    AggregationError
        A round without enough good replies.
    """
    references = [item.mode for item in config.phase_list if not MODES[item.mode].federated]
    if references:
        raise ConfigError(f"mode={references[0]} is a reference, not a federation: run it with `fedgen run`")
    if config.record is not None:
        grid = RecordingGrid(grid, Path(config.record))
    task = prepare_task(agreed(grid, config))
    folder, state = RunFolder.begin(task.config)
    if state is None:
        task = replace(task, config=replace(task.config, resume=None))
    return Server(grid, task, folder, state).run()


class Server:
    """One run over a grid of nodes; ``state`` is that of the run that was interrupted and goes on here, if any."""

    def __init__(self, grid: Grid, task: Task, folder: RunFolder, state: RunState | None = None) -> None:
        self.task, self.config, self.folder, self.state = task, task.config, folder, state
        self.adapters = task.adapters()
        self.recorder = Recorder(folder, task)
        self.federation = Federation(grid, task.config, self._note_nodes)
        self.pool = self._new_pool() if uses_samples(self.config.phase_list) else None
        self.sharing = self._shared_generators()
        exact = any(MODES[phase.mode].sums for phase in self.config.phase_list)
        self.sums = Sums(task, self.federation) if exact else None
        self.finished = self._load_earlier() if self.config.checkpoint.load and not state else 0
        if state is not None:
            self._load_state(state)
        self.seen: tuple[ArrayRecord, dict[int, ArrayRecord]] = ArrayRecord(), {}  # last adapters sent, and received
        self.test = task.summaries(task.test_indices) if len(task.store) else None
        self.counts: dict[int, dict[int, int]] = {}  # clips of each class id on each node, as noted last

    def run(self) -> dict[str, Any]:
        """Wait for the nodes, run every phase, and write the results; fail if what was sent leaks."""
        self.federation.join(self.task, self.finished)
        arrays = ArrayRecord(self.adapters.state_dict())
        done = self.state.round if self.state else self.finished
        for phase in plan(self.config.phase_list, self.finished):
            if phase.last > done:
                arrays = self.run_phase(phase, arrays, max(0, done - phase.offset))
        results = self.recorder.finish(assessment := self._assessment())
        if assessment is not None and assessment.leak is not None:
            raise assessment.leak
        return results

    def run_phase(self, phase: Phase, arrays: ArrayRecord, done: int = 0) -> ArrayRecord:
        """Run what is left of one phase after ``done`` of its rounds, and return the global adapters at its end."""
        federation = self.federation
        federation.report = RoundReport(phase.offset + done)
        strategy = self._strategy(phase, done)

        def evaluate(server_round: int, current: ArrayRecord) -> MetricRecord | None:
            if server_round == 0 and (phase.offset > self.finished or self.state is not None):
                return None  # these have been evaluated at the end of the round before
            scores = self.evaluate(current)
            self.recorder.round(phase, federation.report, scores, current.to_torch_state_dict())
            self._save_state(strategy, current)
            return MetricRecord({"accuracy": scores.accuracy})

        sums = self.sums.size if self.sums is not None and phase.mode.sums else 0
        secure = self.config.strategy.secure.used and (strategy.averages or sums)
        grid = SecureGrid(federation, sums) if secure else federation.grid
        rounds, timeout = phase.rounds - done, self.config.strategy.timeout
        try:
            result = strategy.start(grid, arrays, num_rounds=rounds, timeout=timeout, evaluate_fn=evaluate)
        except AggregationError as error:
            self.recorder.stopped(phase, federation.report, error)
            raise
        if strategy.received:
            self.seen = strategy.sent, strategy.received
        return result.arrays

    def evaluate(self, arrays: ArrayRecord) -> Scores:
        """Return the zero-shot scores of the global adapters on the held-out clips, here or on the nodes."""
        if self.test is None:
            return self.federation.scores(arrays, self.task)
        show_step("testing")
        self.adapters.load_state_dict(arrays.to_torch_state_dict())
        return zero_shot(self.adapters, self.test, self.task.targets.heads, self.task.classes)

    def _strategy(self, phase: Phase, done: int) -> SyntheticPooling:
        """Return the strategy of a phase, as it was after ``done`` of its rounds."""
        inner: Strategy = open_strategy(self.config.strategy, self.config.min_nodes)
        if self.sums is not None and phase.mode.sums:
            inner = self.sums
        if self.pool is not None and phase.mode.synthesizes:
            if not done:
                self.pool = self._new_pool()
            if self.config.global_training.name != "none":
                self.pool.learn = partial(train_on_pool, self.task, phase, self.federation.nodes)
        strategy = SyntheticPooling(
            inner, phase, self.federation, self.pool if phase.mode.synthesizes else None, self.sharing
        )
        if self.state is not None and done:
            strategy.load(self.state)
        return strategy

    def _new_pool(self) -> SamplePool:
        return SamplePool(self.task.space.codec, self.config, self.task.device)

    def _shared_generators(self) -> SharedGenerators | None:
        if self.config.sharing.name == "local":
            return None
        return SharedGenerators(self.config.sharing, self.task.new_bank(self.task.granularity))

    def _assessment(self) -> Assessment | None:
        """Return what the last samples are worth, and what was sent gives away."""
        samples = self.pool.samples if self.pool else {}
        if self.config.data.on_nodes:
            phases = plan(self.config.phase_list, self.finished)
            last = max((phase.last for phase in phases if phase.mode.synthesizes), default=0)
            counts = {number: len(own) for number, own in samples.items()}
            return self.federation.assessment(counts, self.task.classes, last)
        show_step("measuring samples")
        before, after = self.seen
        pairs = {n: (before.to_torch_state_dict(), reply.to_torch_state_dict()) for n, reply in after.items()}
        sent = {
            number: Sent(own.latents.cpu(), own.labels, [pairs[number]] if number in pairs else [])
            for number, own in samples.items()
        }
        probes = self.config.evaluation.probes if self.config.evaluation.quality else []
        return assess(self.task, sent, samples, self.recorder.nodes, probes)

    def _note_nodes(self, round_number: int) -> None:
        """Log which nodes have which clips, and which ones were not let in before a round."""
        federation = self.federation
        counts = {node.partition_id: node.counts for node in federation.nodes.values()}
        if counts != self.counts:
            self.counts = counts
            self.recorder.partition(counts)
        if federation.rejected:
            self.folder.log_metrics({"round": round_number, "server/refused_nodes": federation.rejected})
            federation.rejected = {}

    def _save_state(self, strategy: SyntheticPooling, arrays: ArrayRecord) -> None:
        """Save all that the run needs to go on after this round."""
        tensors: dict[str, Any] = {"adapters": arrays.to_torch_state_dict()}
        facts: dict[str, Any] = {"finished": self.finished, "classes": self.task.classes, "seeds": {}}
        for part in (strategy, self.pool, self.sharing, self.sums):
            if part is not None:
                own_tensors, own_facts = part.state()
                tensors |= own_tensors
                facts |= own_facts
        facts["recorder"] = self.recorder.state()
        self.folder.save_state(RunState(self.federation.report.round, tensors, facts))

    def _load_state(self, state: RunState) -> None:
        """Go on from the state of an interrupted run."""
        self.adapters.load_state_dict(state.tensors["adapters"])
        self.finished = int(state.facts["finished"])
        self.recorder.load(state.facts["recorder"])
        for part in (self.pool, self.sharing, self.sums):
            if part is not None:
                part.load(state)

    def _load_earlier(self) -> int:
        """Take over the adapters of ``checkpoint.load``, and return the number of rounds behind them."""
        chosen = self.config.checkpoint
        weights, finished = RunFolder(Path(str(chosen.load))).load_adapters(self.task.identity(), chosen.check)
        try:
            check_tensors(weights, {name: value.shape for name, value in self.adapters.state_dict().items()})
        except DataError as error:
            raise CheckpointError(f"checkpoint.load={chosen.load}: the adapters do not fit: {error}") from error
        self.adapters.load_state_dict(weights)
        return finished

"""Flower's ServerApp: compose the configuration, meet the nodes, run the phases."""

from __future__ import annotations

import logging
import shlex
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from fedgen.config.compose import from_yaml, load_config, to_yaml
from fedgen.config.phases import Phase, plan, uses_samples
from fedgen.config.settings import Config
from fedgen.data.files import home
from fedgen.data.progress import show_lines, show_step
from fedgen.errors import AggregationError, CheckpointError, ConfigError, require
from fedgen.evaluation.assessment import assess
from fedgen.evaluation.audit import Sent
from fedgen.evaluation.zero_shot import Scores, zero_shot
from fedgen.messages.checks import Member
from fedgen.models.generators.bank import Bank
from fedgen.models.samples import PooledTokens, SyntheticTokens
from fedgen.models.training import Schedule, Teachers, TrainingOptions, train_adapters
from fedgen.report.recorder import Recorder, RoundReport
from fedgen.runs.folder import RunFolder, RunState, pool_from_state
from fedgen.server.aggregation import load_strategy_state, open_strategy, strategy_state
from fedgen.server.federation import Meeting, RemoteMeasures, agreed
from fedgen.server.pool import Filling
from fedgen.server.recording import RecordingGrid
from fedgen.server.sharing import SharedGenerators
from fedgen.strategy import SyntheticPooling
from fedgen.task import Task, prepare_task

logger = logging.getLogger(__name__)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run what ``overrides`` (text, as on the command line) or ``config`` (resolved YAML) of the run config say."""
    show_lines()
    values = context.run_config
    if "config" in values:
        config = from_yaml(str(values["config"]), "config of the run")
    else:
        config = load_config(shlex.split(str(values.get("overrides", ""))))
    if config.run_dir is None:
        config = replace(
            config, run_dir=str(home() / "runs" / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{context.run_id}")
        )
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
    references = [item.mode for item in config.phase_list if not plan([item])[0].mode.federated]
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
    """One run over a grid of nodes.

    Parameters
    ----------
    grid : Grid
    task : Task
        Prepared on this machine.
    folder : RunFolder
    state : RunState, optional
        Of the run that was interrupted and goes on here.
    """

    def __init__(self, grid: Grid, task: Task, folder: RunFolder, state: RunState | None = None) -> None:
        self.grid, self.task, self.config, self.folder, self.state = grid, task, task.config, folder, state
        self._check_filling()
        self.codec = task.space.codec if uses_samples(self.config.phase_list) else None
        self.adapters = task.adapters()
        self.recorder = Recorder(folder, task)
        self.pool: dict[int, SyntheticTokens] = {}  # the last samples of each node
        self.shared = self._shared_generators()
        self.finished = self._load() if self.config.checkpoint.load and not state else 0
        if state is not None:
            self._restore(state)
        self.seen: tuple[ArrayRecord, dict[int, ArrayRecord]] | None = None  # adapters of the last round, and replies
        self.test = task.test_tokens() if len(task.store) else None
        self.members: dict[int, Member] = {}
        self.meeting = Meeting(grid, self.config)

    def run(self) -> dict[str, Any]:
        """Meet the nodes, run every phase, and write the results."""
        self.members = members = self.meet()
        self.recorder.partition({member.number: member.counts for member in members.values()})
        arrays = ArrayRecord(self.adapters.state_dict())
        done = self.state.round if self.state else self.finished
        for number, phase in enumerate(plan(self.config.phase_list, self.finished)):
            if phase.last > done:
                arrays = self.run_phase(number, phase, members, arrays, max(0, done - phase.offset))
        return self._finish()

    def _finish(self) -> dict[str, Any]:
        """Measure the last samples, write the results, and fail if the samples leak."""
        chosen = self.config.evaluation
        if self.config.data.on_nodes:
            counts = {number: len(samples) for number, samples in self.pool.items()}
            last = max((p.last for p in plan(self.config.phase_list, self.finished) if p.mode.synthesizes), default=0)
            assessment = self._remote().assessment(counts, self.task.classes, last)
        else:
            show_step("measuring samples")
            probes = chosen.probes if chosen.quality else []
            assessment = assess(self.task, self._sent(), self.pool, self.recorder.nodes, probes)
        results = self.recorder.finish(assessment)
        if assessment is not None and assessment.leak is not None:
            raise assessment.leak
        return results

    def _sent(self) -> dict[int, Sent]:
        """Return what each node sent last, as this server has seen it."""
        before, after = self.seen or (ArrayRecord(), {})
        pairs = {n: (before.to_torch_state_dict(), reply.to_torch_state_dict()) for n, reply in after.items()}
        return {
            number: Sent(samples.latents.cpu(), samples.labels, [pairs[number]] if number in pairs else [])
            for number, samples in self.pool.items()
        }

    def meet(self) -> dict[int, Member]:
        """Wait for the nodes and learn what each has.

        Raises
        ------
        AggregationError
            If too few nodes appear in ``strategy.wait`` seconds.
        DataError
            If too few nodes can do their part and agree with the server about classes, tokens and targets.
        """
        members = self.meeting.members(self.meeting.wait(), self.task, self.finished)
        self.meeting.demand(members)
        self._note_refused(self.finished)
        return members

    def _admit(self, round_number: int) -> None:
        """Let nodes in that have come before a round, and tell whose clips are there now."""
        before = dict(self.members)
        self.meeting.admit(self.members, self.task, self.finished)
        if self.members != before:
            self.recorder.partition({member.number: member.counts for member in self.members.values()})
        self._note_refused(round_number)

    def _note_refused(self, round_number: int) -> None:
        if self.meeting.refused:
            self.folder.log_metrics({"round": round_number, "server/refused_nodes": self.meeting.refused})
            self.meeting.refused = {}

    def run_phase(
        self, number: int, phase: Phase, members: dict[int, Member], arrays: ArrayRecord, done: int = 0
    ) -> ArrayRecord:
        """Run what is left of one phase after ``done`` of its rounds, and return the global adapters at its end."""
        strategy = self._strategy(number, phase, members, done)

        def evaluate(server_round: int, current: ArrayRecord) -> MetricRecord | None:
            if server_round == 0 and (number > 0 or self.state is not None):
                return None  # these have been evaluated at the end of the round before
            scores = self.evaluate(current, strategy.report)
            self.recorder.round(phase, strategy.report, scores, current.to_torch_state_dict())
            self._keep(number, strategy, current)
            return MetricRecord({"accuracy": scores.accuracy})

        rounds, timeout = phase.rounds - done, self.config.strategy.timeout
        try:
            result = strategy.start(self.grid, arrays, num_rounds=rounds, timeout=timeout, evaluate_fn=evaluate)
        except AggregationError as error:
            self.recorder.stopped(phase, strategy.report, error)
            raise
        self.seen = strategy.seen or self.seen
        return result.arrays

    def _strategy(self, number: int, phase: Phase, members: dict[int, Member], done: int) -> SyntheticPooling:
        """Return the strategy of a phase, as it was after ``done`` rounds."""
        learns = phase.mode.synthesizes and self.config.global_training.name != "none"
        settings: dict[str, Any] = {"yaml": to_yaml(self.config), "phase": number, "finished": self.finished}
        strategy = SyntheticPooling(
            open_strategy(self.config.strategy, self.config.min_nodes),
            phase,
            members,
            self.config.min_nodes,
            self.config.strategy.timeout,
            self.codec,
            self.config.synthesis.max_samples,
            lambda round_number: self.task.seed("decode", round_number),
            partial(self.train_on_pool, phase, members) if learns else None,
            settings,
            str(self.task.device),
            self.shared,
            self._filling(phase),
            done,
            self._admit,
            self.config.strategy,
            self.config.seed,
        )
        if self.state is not None and done:
            load_strategy_state(strategy.strategy, self.state.tensors.get("strategy", {}))
            strategy.pool = self.pool if phase.mode.synthesizes else {}
        return strategy

    def _keep(self, number: int, strategy: SyntheticPooling, arrays: ArrayRecord) -> None:
        """Save all that the run needs to go on after this round."""
        tensors = {"adapters": arrays.to_torch_state_dict(), "strategy": strategy_state(strategy.strategy)}
        seeds = {}
        self.pool = strategy.pool or self.pool
        for node, samples in self.pool.items():
            seeds[node] = samples.seed
            tensors[f"samples_node{node}"] = samples.state()
        facts: dict[str, Any] = {
            "finished": self.finished,
            "classes": self.task.classes,
            "seeds": seeds,
            "recorder": self.recorder.state(),
        }
        if self.shared is not None:
            tensors["shared"], facts["seen"] = self.shared.tensors(), self.shared.seen
        self.folder.states.save(RunState(strategy.report.round, tensors, facts))

    def _restore(self, state: RunState) -> None:
        """Go on from where an interrupted run was."""
        self.adapters.load_state_dict(state.tensors["adapters"])
        self.finished = int(state.facts["finished"])
        self.recorder.restore(state.facts["recorder"])
        self.pool = pool_from_state(state, self.codec)
        if self.shared is not None:
            self.shared.load(state.tensors["shared"], state.facts["seen"])

    def _shared_generators(self) -> SharedGenerators | None:
        if self.config.sharing.name == "local":
            return None
        conditions = self.task.targets.conditions()
        bank = Bank(self.config.generator, self.task.granularity, self.task.classes, self.task.space, conditions)
        return SharedGenerators(self.config.sharing, bank)

    def _filling(self, phase: Phase) -> Filling | None:
        fills = phase.mode.trains_adapters and phase.mode.synthesizes and self.config.synthesis.fill
        return Filling(self.config.synthesis.fill, self.config.seed) if fills else None

    def _check_filling(self) -> None:
        """Refuse samples of another length than the clips that they are to stand beside."""
        wanted, length, made = self.config.synthesis.fill, self.task.store.shape[0], self.config.generator.output_length
        fills = any(self._filling(phase) for phase in plan(self.config.phase_list))
        require(
            not fills or made in (None, length),
            f"synthesis.fill={wanted}: samples of generator.output_length={made} tokens cannot stand beside clips of "
            f"{length} tokens: set synthesis.fill=0",
        )

    def evaluate(self, arrays: ArrayRecord, report: RoundReport) -> Scores:
        """Return the zero-shot scores of the global adapters on the held-out clips, here or on the nodes.

        Nodes that are missing in the round are not waited for once more.
        """
        if self.test is None:
            heads = list(self.task.targets.heads)
            return self._remote().scores(arrays, self.task.classes, heads, report.round, report.lost)
        show_step("testing")
        self.adapters.load_state_dict(arrays.to_torch_state_dict())
        return zero_shot(self.adapters, self.test, self.task.targets.heads, self.task.classes)

    def _remote(self) -> RemoteMeasures:
        settings = {"yaml": to_yaml(self.config), "finished": self.finished}
        return RemoteMeasures(self.grid, self.members, self.config, settings)

    def train_on_pool(
        self,
        phase: Phase,
        members: dict[int, Member],
        round_number: int,
        arrays: ArrayRecord,
        pool: PooledTokens,
        replies: dict[int, ArrayRecord],
    ) -> tuple[ArrayRecord, dict[str, float]]:
        """Train the aggregated adapters on everyone's synthetic samples, on the server's device.

        With ``global_training=distil``, the adapters in the nodes' ``replies`` teach. As on the nodes, the rounds of a
        phase share one learning-rate schedule.
        """
        self.adapters.load_state_dict(arrays.to_torch_state_dict())
        seed = self.task.seed("global", round_number)
        heads = self.task.targets.heads
        schedule = Schedule(round_number - phase.offset - 1, phase.rounds)
        settings, limit = self.config.global_training, self.task.memory.batch_limit()
        teachers = None
        if settings.name == "distil":
            states = {number: reply.to_torch_state_dict() for number, reply in replies.items()}
            counts = {member.number: member.counts for member in members.values()}
            teachers = Teachers(self.adapters, states, counts, len(self.task.classes), settings.teacher_weight)
        options = TrainingOptions(schedule, limit=limit, teachers=teachers)
        losses, _ = train_adapters(self.adapters, pool, heads, settings, seed, options=options)
        return ArrayRecord(self.adapters.state_dict()), losses

    def _load(self) -> int:
        chosen = self.config.checkpoint
        folder = RunFolder(Path(str(chosen.load)))
        weights, finished = folder.load_adapters(self.task.identity(), chosen.check)
        expected = {name: tuple(value.shape) for name, value in self.adapters.state_dict().items()}
        found = {name: tuple(value.shape) for name, value in weights.items()}
        differ = [
            f"{name} is {found.get(name, 'missing')}, this run has {expected.get(name, 'no such weights')}"
            for name in sorted(set(found) | set(expected))
            if found.get(name) != expected.get(name)
        ]
        if differ:
            raise CheckpointError(f"checkpoint.load={chosen.load}: the adapters do not fit: {'; '.join(differ)}")
        self.adapters.load_state_dict(weights)
        return finished

"""Log of a run: progress, metrics, adapters, results and plots."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any

from torch import Tensor

from fedgen.config.phases import Phase
from fedgen.data.progress import RoundsBar, keep_log, quiet
from fedgen.evaluation.assessment import Assessment
from fedgen.evaluation.audit import AUDIT, named
from fedgen.evaluation.zero_shot import Scores
from fedgen.privacy.gate import PASSED
from fedgen.privacy.show import audit_table, draw_audit
from fedgen.report.plots import draw_run, samples_figure
from fedgen.report.rounds import RoundReport
from fedgen.report.tables import distribution_table, quality_table, show
from fedgen.report.tracking import GuardedTracker, check_installed, open_tracker
from fedgen.runs.folder import RunFolder
from fedgen.task import Task

logger = logging.getLogger(__name__)

PAGE = "report.html"  # which an earlier run in the same folder may have left


class Recorder:
    """Writes a run folder, shows progress and hands metrics to a tracker while the run goes on.

    Parameters
    ----------
    folder : RunFolder
    task : Task

    Raises
    ------
    ConfigError
        The tracker's package is not installed.
    """

    def __init__(self, folder: RunFolder, task: Task) -> None:
        self.folder, self.task = folder, task
        check_installed(task.config.tracking)
        (folder.path / PAGE).unlink(missing_ok=True)
        keep_log(folder.path)
        self._bar = RoundsBar(sum(phase.rounds for phase in task.config.phase_list))
        self._started, self._before = time.monotonic(), 0.0  # seconds before this process, if the run was interrupted
        self._interrupted: int | None = None  # the round after which it was
        self._history: list[dict[str, Any]] = []
        self._reports: list[RoundReport] = []
        self._refused: Counter[int] = Counter()  # replies of each node that were refused so far
        self._scores: Scores | None = None
        self.nodes: dict[str, dict[str, int]] = {}  # training clips of each class, by name, of each node

    def partition(self, counts: Mapping[int, Mapping[int, int]]) -> None:
        """Note how many clips of each class (by id) each node has, and show it for as many nodes as a line has room."""
        names = self.task.classes
        self.nodes = {
            str(number): {names[label]: count for label, count in counts[number].items()} for number in sorted(counts)
        }
        self.folder.save_json("partition.json", self.nodes)
        if len(self.nodes) <= 20 and not quiet():  # each is a column
            show(distribution_table(self.nodes, names))
        self._bar.start(len(self._reports))

    def round(self, phase: Phase, report: RoundReport, scores: Scores, weights: Mapping[str, Tensor] | None) -> None:
        """Note one round: its metrics, the scores after it, and the global adapters, if there are any."""
        self._scores = scores
        self._history.append(
            {"round": report.round, "accuracy": scores.accuracy, "balanced_accuracy": scores.balanced_accuracy}
        )
        if weights is not None:
            self.folder.save_adapters(weights, {**self.task.identity(), "round": report.round})
        place = {"round": report.round, "phase": phase.mode.name}
        if report.metrics:
            self._reports.append(report)
            for line in report.node_metrics():
                self._log(place | line)
        self._refused.update([*report.refused])
        self._log(place | report.server_metrics(scores) | {"server/refused_total": self._refused.total()})
        self._bar.show(len(self._reports))
        logger.info("%s", report.line(phase, scores, len(self.nodes)))

    def stopped(self, phase: Phase, report: RoundReport, error: Exception) -> None:
        """Note why the run stops in a round: who is missing, for what cause, and how it goes on."""
        line = {"round": report.round, "phase": phase.mode.name, "server/stopped": str(error)}
        self.folder.log_metrics(line | report.missing)
        self.folder.fail(str(error))
        self._bar.stop()
        self._tracker.close(finished=False)
        logger.error("the run stops; it goes on after the last finished round with resume=%s", self.folder.path)

    @cached_property
    def _tracker(self) -> GuardedTracker:
        """Opened when there is something to track: only then is it known whether the run was interrupted."""
        config = self.task.config
        return open_tracker(config.tracking, self.folder.path, asdict(config), self._interrupted)

    def _log(self, line: Mapping[str, Any]) -> None:
        self._tracker.log(line)
        self.folder.log_metrics(line)

    def state(self) -> dict[str, Any]:
        """Return the rounds so far as JSON values."""
        return {
            "seconds": self._seconds(),
            "history": self._history,
            "scores": asdict(self._scores) if self._scores else None,
            "reports": [report.state() for report in self._reports],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._before, self._history = float(state["seconds"]), list(state["history"])
        self._interrupted = int(self._history[-1]["round"])
        self._scores = Scores(**state["scores"]) if state["scores"] else None
        self._reports = [RoundReport.from_state(values) for values in state["reports"]]
        self._refused = Counter(number for report in self._reports for number in report.refused)

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._started

    def finish(self, assessment: Assessment | None = None) -> dict[str, Any]:
        """Write ``results.json`` and the plots, show what was measured of samples, and return the results."""
        config, scores = self.task.config, self._scores
        assert scores is not None
        results = {
            **asdict(scores),
            "classes": self.task.classes,
            "history": self._history,
            "mode": "+".join(phase.mode for phase in config.phase_list),
            "phases": [asdict(phase) for phase in config.phase_list],
            "nodes": self.nodes,
            "samples": {self.task.classes[k]: n for k, n in self._reports[-1].samples.items()} if self._reports else {},
            "lost": {str(r.round): {str(k): why for k, why in r.lost.items()} for r in self._reports if r.lost},
            "refused": {str(number): times for number, times in sorted(self._refused.items())},
            "bytes": {way: [getattr(r, f"bytes_{way}") for r in self._reports] for way in ("sent", "received")},
            "seconds": {"total": self._seconds(), "rounds": [report.seconds for report in self._reports]},
            "seed": config.seed,
        }
        if config.privacy.used:
            spent = {str(number): facts for report in self._reports for number, facts in report.spent.items()}
            results["privacy"] = {"epsilon": config.privacy.epsilon, "delta": config.privacy.delta, "nodes": spent}
        if assessment is not None:
            results["evaluation"] = assessment.results
        self.folder.save_json("results.json", results)
        self._bar.stop()
        drawn = {**results, "nodes": dict(list(self.nodes.items())[:20])}  # there is room for few
        draw_run(drawn, self.folder.path)
        if assessment is not None:
            show_samples(assessment, self.folder)
        self._tracker.results(results, int(self._history[-1]["round"]))
        self._tracker.close(finished=True)
        done = scores.accuracy, len(self._reports), self.folder.path
        logger.info("accuracy %.3f after %d rounds; run folder: %s", *done)
        if assessment is not None and "gate" in assessment.results:
            say_gate(assessment.results["gate"])
        return results


def show_samples(assessment: Assessment, folder: RunFolder) -> None:
    """Print and draw the measures of a run's samples and its audit, and write ``audit.json``."""
    report, audits = assessment.report, assessment.by_node
    if not quiet() and "utility" in assessment.results:
        show(quality_table(assessment.results))
    if report is not None:
        if not quiet():
            show(audit_table(report, assessment.classes))
        draw_audit(report, folder.path / "audit.png")
        folder.save_json(AUDIT, {"gate": assessment.results["gate"], **named(report, assessment.classes)})
    elif audits is not None:
        folder.save_json(AUDIT, {"gate": assessment.results["gate"], "by_node": audits})
    if assessment.records is not None and "fidelity" in assessment.results:
        samples_figure(assessment.records, assessment.classes).savefig(folder.path / "samples.png", dpi=120)


def say_gate(gate: Mapping[str, Any]) -> None:
    """Log the gate's verdict in one line: a warning unless everything passed."""
    logger.log(logging.INFO if gate["verdict"] == PASSED else logging.WARNING, "privacy %s", gate["summary"])

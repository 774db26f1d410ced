"""What a run leaves behind, from made-up rounds."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedgen.config.phases import Phase, PhaseSettings, plan
from fedgen.config.settings import Config
from fedgen.evaluation.zero_shot import Scores
from fedgen.report.recorder import Recorder
from fedgen.report.rounds import RoundReport
from fedgen.runs.folder import RunFolder
from fedgen.task import Task

(PHASE,) = plan([PhaseSettings("combined", 3)])


def scores(accuracy: float) -> Scores:
    heads = {"text": {"cosine": 0.2, "mse": 0.01}}
    return Scores(accuracy, accuracy / 2, {"dog": accuracy, "cow": 0.0}, heads, [[0] * 6] * 6)


def report(**changes: Any) -> RoundReport:
    values: dict[str, Any] = {
        "round": 1,
        "answered": [0, 2],
        "lost": {1: "no reply in time"},
        "metrics": {2: {"loss": 3.0, "text_loss": 3.0}, 0: {"loss": 1.0, "text_loss": 1.0, "generator_loss": 0.5}},
        "generators": {0: [{"generator": "unified", "epoch": 0, "loss": 0.5}]},
        "samples": {0: 6, 3: 4},
        "global_losses": {"loss": 2.0},
        "bytes_sent": 1000,
        "bytes_received": 2000,
        "seconds": 0.5,
    }
    return RoundReport(**values | changes)


@pytest.fixture
def recorder(task: Task, tiny: Callable[..., Config], tmp_path: Path) -> Recorder:
    config = replace(task.config, run_dir=str(tmp_path), mode="combined", rounds=3)
    return Recorder(RunFolder.create(config), replace(task, config=config))


def lines(recorder: Recorder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (recorder.folder.path / "metrics.jsonl").read_text().splitlines()]


def test_metrics_have_the_names_that_users_chart(recorder: Recorder) -> None:
    recorder.round(PHASE, report(), scores(0.5), None)
    first, second, server = lines(recorder)
    assert first == {
        "round": 1,
        "phase": "combined",
        "node": 0,
        "train/node_0/loss": 1.0,
        "train/node_0/text_loss": 1.0,
        "train/node_0/generator_loss": 0.5,
        "train/node_0/generator": [{"generator": "unified", "epoch": 0, "loss": 0.5}],
    }
    assert second["train/node_2/loss"] == 3.0
    assert server["server/synthetic_samples_total"] == 10
    assert server["server/synthetic_samples_classes"] == 2
    assert server["server/accuracy"] == 0.5
    assert server["server/text_cosine"] == 0.2
    assert server["server/global_loss"] == 2.0
    assert server["server/lost"] == {"1": "no reply in time"}
    assert "server/refused" not in server
    assert (server["server/bytes_sent"], server["server/bytes_received"], server["server/seconds"]) == (1000, 2000, 0.5)


def test_the_evaluation_before_the_first_round_has_no_nodes(recorder: Recorder) -> None:
    recorder.round(PHASE, RoundReport(0), scores(0.1), None)
    (server,) = lines(recorder)
    assert server["round"] == 0
    assert "server/synthetic_samples_total" not in server


def test_results(recorder: Recorder) -> None:
    recorder.partition({1: {3: 2}, 0: {0: 4, 1: 1}})
    recorder.round(PHASE, RoundReport(0), scores(0.1), None)
    recorder.round(PHASE, report(), scores(0.5), {"w": torch.zeros(1)})
    recorder.round(PHASE, report(round=2, lost={}), scores(0.75), {"w": torch.ones(1)})
    results = recorder.finish()
    assert results == json.loads((recorder.folder.path / "results.json").read_text())
    assert {"accuracy", "balanced_accuracy", "per_class", "heads", "phases", "bytes", "seconds"} <= set(results)
    assert results["accuracy"] == 0.75
    assert results["phases"] == [{"mode": "combined", "rounds": 3}]
    assert [entry["accuracy"] for entry in results["history"]] == [0.1, 0.5, 0.75]
    assert list(results["nodes"].items()) == [("0", {"dog": 4, "cow": 1}), ("1", {"crickets": 2})]
    assert results["samples"] == {"dog": 6, "crickets": 4}
    assert results["lost"] == {"1": {"1": "no reply in time"}}
    assert results["bytes"] == {"sent": [1000, 1000], "received": [2000, 2000]}
    assert results["seconds"]["rounds"] == [0.5, 0.5]
    for name in ("accuracy.png", "partition.png", "confusion.png", "partition.json", "config.yaml"):
        assert (recorder.folder.path / name).is_file()
    weights, finished = recorder.folder.load_adapters(recorder.task.identity())
    assert (float(weights["w"]), finished) == (1.0, 2)


def test_refused_replies_are_counted_also_by_a_run_that_goes_on(recorder: Recorder, no_plots: None) -> None:
    lost = {0: "refused: w is float64", 1: "no reply in time"}
    recorder.round(PHASE, report(lost=lost, refused={0: lost[0]}), scores(0.5), None)
    recorder.load(json.loads(json.dumps(recorder.state())))
    again = {0: "refused: again", 2: "refused: too"}
    recorder.round(PHASE, report(round=2, lost=again, refused=again), scores(0.5), None)
    first, second = (line for line in lines(recorder) if "node" not in line)
    assert first["server/refused"] == {"0": "refused: w is float64"}
    assert (first["server/refused_total"], second["server/refused_total"]) == (1, 3)
    assert recorder.finish()["refused"] == {"0": 2, "2": 1}


def test_the_partition_is_shown(recorder: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    recorder.partition({0: {0: 4}, 1: {3: 2}})
    shown = capsys.readouterr().out
    assert "crickets" in shown
    assert "node 1" in shown


def test_progress_line() -> None:
    line = report(round=3).line(Phase(PHASE.mode, 3, 2), scores(0.5), nodes=3)
    assert line == (
        "round 3/5 combined | nodes 2/3 | loss 2.000 | generator loss 0.500 | pool 10 | global loss 2.000 | "
        "accuracy 0.500 | sent 0.0 MB, received 0.0 MB | 0.5 s"
    )
    quiet = RoundReport(0).line(PHASE, scores(0.1), nodes=3)
    assert quiet == "round 0/3 combined | accuracy 0.100 | 0.0 s"

"""What trackers get of a run, read back from what they write; and that none of them ever stops one."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedgen.config.phases import PhaseSettings, plan
from fedgen.config.settings import Config, TrackingSettings
from fedgen.errors import ConfigError
from fedgen.evaluation.zero_shot import Scores
from fedgen.report.recorder import Recorder
from fedgen.report.rounds import RoundReport
from fedgen.report.tracking import GuardedTracker, TensorBoardTracker, summary
from fedgen.runs.folder import RunFolder
from fedgen.task import Task

(PHASE,) = plan([PhaseSettings("combined", 3)])
SCORES = Scores(0.5, 0.25, {"dog": 0.5}, {"text": {"cosine": 0.2, "mse": 0.01}}, [[0] * 6] * 6)
CHARTED = {
    "train/node_0/generator_loss": 0.5,
    "train/node_0/clip_loss": 3.0,
    "train/node_0/t5_loss": 4.0,
    "server/synthetic_samples_total": 10.0,
    "server/synthetic_samples_classes": 2.0,
    "server/accuracy": 0.5,
}


def report(round_number: int) -> RoundReport:
    metrics = {0: {"clip_loss": 3.0, "t5_loss": 4.0, "generator_loss": 0.5}}
    losses = {0: [{"generator": "unified", "epoch": 0, "loss": 0.5}]}
    return RoundReport(round_number, [0], metrics=metrics, generators=losses, samples={0: 6, 3: 4})


@pytest.fixture
def recorder(task: Task, no_plots: None, tmp_path: Path) -> Callable[..., Recorder]:
    """Makes recorders of a run with a tracker."""

    def make(afresh: bool = True, **tracking: Any) -> Recorder:
        config = replace(task.config, run_dir=str(tmp_path / "run"), tracking=TrackingSettings(**tracking))
        folder = RunFolder.create(config) if afresh else RunFolder(tmp_path / "run")
        return Recorder(folder, replace(task, config=config))

    return make


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulators.EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    return {name: [(event.step, event.value) for event in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_event_files_have_the_names_that_users_chart(recorder: Callable[..., Recorder]) -> None:
    pytest.importorskip("tensorboard")
    run = recorder(name="tensorboard")
    for number in (1, 2):
        run.round(PHASE, report(number), SCORES, None)
    run.finish()
    found = scalars(run.folder.path)
    for name, value in CHARTED.items():
        assert found[name] == [(1, pytest.approx(value)), (2, pytest.approx(value))], name
    assert found["result/heads/text/cosine"] == [(2, pytest.approx(0.2))]
    assert not [name for name in found if name.endswith(("/generator", "/answered"))]


def test_event_files_hold_the_configuration(recorder: Callable[..., Recorder]) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = recorder(name="tensorboard")
    run.round(PHASE, report(1), SCORES, None)
    run.finish()
    found = accumulators.EventAccumulator(str(run.folder.path / "tensorboard"))
    found.Reload()
    (config,) = found.Tensors("config/text_summary")
    assert b"samples_per_class" in config.tensor_proto.string_val[0]


def test_a_resumed_run_goes_on_in_its_charts_and_a_new_one_starts_them(recorder: Callable[..., Recorder]) -> None:
    pytest.importorskip("tensorboard")
    first = recorder(name="tensorboard")
    first.round(PHASE, report(1), SCORES, None)
    state = json.loads(json.dumps(first.state()))
    first.round(PHASE, report(2), replace(SCORES, accuracy=0.9), None)  # lost with the process
    again = recorder(afresh=False, name="tensorboard")
    again.load(state)
    again.round(PHASE, report(2), SCORES, None)
    again.finish()
    assert scalars(again.folder.path)["server/accuracy"] == [(1, 0.5), (2, 0.5)]
    new = recorder(name="tensorboard")
    new.round(PHASE, report(1), SCORES, None)
    new.finish()
    assert scalars(new.folder.path)["server/accuracy"] == [(1, 0.5)]


def records(folder: Path) -> list[Any]:
    """Everything that Weights & Biases would be sent, from what its process, which may be slow, keeps offline."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for file in folder.glob("wandb/offline-run-*/*.wandb"):
            try:
                found = kept(file)
            except Exception:  # half of it is written
                continue
            if any(record.WhichOneof("record_type") == "exit" for record in found):
                return found
        time.sleep(0.1)
    pytest.fail("no end of the run in what is kept offline")


def kept(file: Path) -> list[Any]:
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    store, found = DataStore(), []
    store.open_for_scan(str(file))
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        found.append(record)
    return found


@pytest.mark.parametrize("by", ["setting", "environment"])
def test_weights_and_biases_offline(
    by: str, recorder: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    if by == "environment":
        monkeypatch.setenv("WANDB_MODE", "offline")
    run = recorder(name="wandb", project="sounds", group="tuesday", offline=by == "setting")
    run.partition({0: {0: 4}})
    run.round(PHASE, report(1), SCORES, None)
    run.finish()
    sent = records(run.folder.path)
    logged: dict[str, Any] = {}
    for record in sent:
        if record.WhichOneof("record_type") == "history":
            logged |= {"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
    assert logged["round"] == 1
    assert {name: logged[name] for name in CHARTED} == pytest.approx(CHARTED)
    (opened,) = [record.run for record in sent if record.WhichOneof("record_type") == "run"]
    assert (opened.project, opened.run_group) == ("sounds", "tuesday")
    assert json.loads((run.folder.path / "wandb.json").read_text()) == {"id": opened.run_id}
    assert json.loads({item.key: item.value_json for item in opened.config.update}["seed"]) == 0
    assert logged["result/accuracy"] == 0.5


class Broken:
    """Fails from its second line on."""

    def __init__(self) -> None:
        self.lines = 0

    def log(self, values: Mapping[str, float], round_number: int) -> None:
        self.lines += 1
        if self.lines > 1:
            raise OSError("no network")

    def close(self, finished: bool) -> None:
        raise AssertionError("it was given up")


def test_a_tracker_that_fails_is_given_up_with_one_warning(
    recorder: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Broken()
    monkeypatch.setattr("fedgen.report.recorder.open_tracker", lambda *a: GuardedTracker("wandb", lambda: broken))
    run = recorder()
    for number in (1, 2, 3):
        run.round(PHASE, report(number), SCORES, None)
    assert run.finish()["accuracy"] == 0.5
    assert broken.lines == 2
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "tracking=wandb failed and is given up: OSError: no network"
    ]


def test_a_tracker_that_cannot_start_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def start() -> TensorBoardTracker:
        raise RuntimeError("api_key not configured")

    tracker = GuardedTracker("wandb", start)
    tracker.log({"round": 1, "server/accuracy": 0.5})
    tracker.results({"accuracy": 0.5}, 1)
    tracker.close(finished=True)
    assert caplog.messages == ["tracking=wandb failed and is given up: RuntimeError: api_key not configured"]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_an_error_before_anything_is_trained(
    name: str, recorder: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedgen.report.tracking.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"tracking={name} needs a package: pip install 'fedgen\[{name}\]'"):
        recorder(name=name)


def test_nothing_is_imported_or_written_without_a_tracker(recorder: Callable[..., Recorder], tmp_path: Path) -> None:
    before = {name for name in sys.modules if name.split(".")[0] in ("wandb", "tensorboard")}
    run = recorder()
    run.round(PHASE, report(1), SCORES, None)
    run.finish()
    assert before == {name for name in sys.modules if name.split(".")[0] in ("wandb", "tensorboard")}
    assert {path.name for path in run.folder.path.iterdir()} & {"wandb", "wandb.json", "tensorboard"} == set()


def test_final_results_by_path() -> None:
    results = {
        "accuracy": 0.5,
        "history": [{"round": 1}],
        "nodes": {"0": {"dog": 4}},
        "per_class": {"dog": 1.0},
        "evaluation": {"gate": {"verdict": "passed"}, "privacy": {"near_copies": 0, "per_class": {"dog": {"x": 1.0}}}},
    }
    assert summary(results) == {
        "result/accuracy": 0.5,
        "result/per_class/dog": 1.0,
        "result/evaluation/privacy/near_copies": 0.0,
    }


def test_settings(tiny: Callable[..., Config]) -> None:
    assert tiny().tracking == TrackingSettings()
    assert tiny("tracking=wandb", "tracking.offline=true").tracking == TrackingSettings("wandb", offline=True)
    with pytest.raises(ConfigError, match="Did you mean 'wandb'"):
        TrackingSettings("wand")
    with pytest.raises(ConfigError, match=r"tracking\.project"):
        TrackingSettings("wandb", project="")

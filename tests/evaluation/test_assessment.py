"""What samples are worth and what was sent tells: at a run's end and later, and a run that leaks fails where asked."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedgen.cli import main
from fedgen.config.settings import Config
from fedgen.errors import LeakError
from fedgen.evaluation.assessment import assess
from fedgen.evaluation.audit import Sent
from fedgen.models.generators.bank import Bank
from fedgen.models.samples import SyntheticTokens
from fedgen.privacy.gate import FAILED, UNKNOWN
from fedgen.task import Task, prepare_task

Federate = Callable[..., dict[str, Any]]
Tiny = Callable[..., Config]
HALVES = ["data.clips_per_class=20", "evaluation.controls=0.5", "evaluation.shadows=0", "evaluation.min_controls=2"]


@pytest.fixture(scope="module")
def halves(tiny: Tiny) -> Task:
    """Clips of which nodes train on one half."""
    return prepare_task(tiny(*HALVES))


def copies(task: Task, node: int) -> SyntheticTokens:
    """A node's own clips as its samples."""
    clips = task.tokens(task.parts[node])
    codec = task.space.codec
    return SyntheticTokens(codec, codec.encode_all(clips), clips.labels)


def sent(samples: SyntheticTokens) -> Sent:
    return Sent(samples.latents, samples.labels)


def counts(task: Task) -> dict[str, dict[str, int]]:
    labels = [[task.classes[label] for label in task.store.labels[part]] for part in task.parts]
    return {str(n): {name: own.count(name) for name in own} for n, own in enumerate(labels)}


def gated(task: Task, gate: str) -> Task:
    return replace(task, config=replace(task.config, evaluation=replace(task.config.evaluation, gate=gate)))


def test_copies_of_one_node_fail(halves: Task) -> None:
    samples = copies(halves, 1)
    found = assess(gated(halves, "fail"), {1: sent(samples)}, {1: samples}, counts(halves), [])
    assert found is not None
    assert found.report is not None
    assert found.results["gate"]["verdict"] == FAILED
    assert list(found.report.attacks[0].nodes) == [1]
    assert found.results["gate"]["auc"] > 0.9
    assert isinstance(found.leak, LeakError)
    assert "evaluation.gate=warn lets such a run pass" in str(found.leak)


@pytest.mark.parametrize("gate", ["auto", "warn", "off"])
def test_the_gate_may_stay_open(gate: str, halves: Task) -> None:
    samples = copies(halves, 1)
    task = gated(halves, gate)
    if gate == "off":  # no controls are held back then
        samples = copies(task, 1)
    found = assess(task, {1: sent(samples)}, {1: samples}, counts(task), ["pooled"])
    assert found is not None
    assert found.leak is None
    assert ("gate" in found.results) == (gate != "off")
    assert set(found.results["utility"]) == {"pooled"}


def test_nothing_to_measure(halves: Task) -> None:
    samples = copies(halves, 1)
    assert assess(halves, {}, {}, counts(halves), ["pooled"]) is None
    assert assess(gated(halves, "off"), {1: sent(samples)}, {1: samples}, counts(halves), []) is None


def test_clips_that_the_server_does_not_have_cannot_be_judged(halves: Task) -> None:
    samples, others = copies(halves, 1), {**counts(halves), "1": {"dog": 99}}
    found = assess(halves, {1: sent(samples)}, {1: samples}, others, [])
    assert found is not None
    assert found.results["gate"]["verdict"] == UNKNOWN
    assert found.results["gate"]["reasons"] == ["node 1 trains on clips that this machine does not have"]


def test_shared_generators_may_leak_anybodys_clips(halves: Task) -> None:
    """Both nodes hand out what node 1 trained on."""
    shared = replace(halves, config=replace(halves.config, sharing=replace(halves.config.sharing, name="shared")))
    samples = copies(halves, 1)
    every = {node: samples for node in (0, 1)}
    found = assess(shared, {n: sent(own) for n, own in every.items()}, every, counts(halves), [])
    assert found is not None
    assert found.results["gate"]["verdict"] == FAILED


def test_at_the_end_of_a_run_and_later(
    tiny: Tiny, federate: Federate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Few controls: not judged, and said so. Later the same figures come from the saved samples."""
    results = federate(
        tiny("evaluation.quality=true", "evaluation.controls=0.5", "evaluation.max_auc=1"), tmp_path / "run"
    )
    evaluation = results["evaluation"]
    assert evaluation["samples"] == 36
    assert evaluation["gate"]["verdict"] == UNKNOWN
    assert "controls are fewer than evaluation.min_controls=30" in evaluation["gate"]["reasons"][0]
    assert set(evaluation["utility"]) == {"pooled", "segments"}
    assert (tmp_path / "run" / "samples.png").read_bytes().startswith(b"\x89PNG")
    audit = json.loads((tmp_path / "run" / "audit.json").read_text())
    capsys.readouterr()

    assert main(["evaluate", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "36 synthetic samples" in printed
    assert "accuracy, adapter probe" in printed
    again = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert again["accuracy"] == results["accuracy"]
    assert again["evaluation"]["gate"]["auc"] == pytest.approx(evaluation["gate"]["auc"])
    assert again["evaluation"]["fidelity"] == evaluation["fidelity"]
    assert set(again["evaluation"]["utility"]) == {"pooled", "segments", "adapter"}
    later = json.loads((tmp_path / "run" / "audit.json").read_text())
    found, known = ({a["name"]: a["overall"]["auc"] for a in each["attacks"]} for each in (later, audit))
    assert found == pytest.approx(known)


def test_runs_without_samples(
    tiny: Callable[..., Config], federate: Federate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for mode in ("federate", "centralised"):
        results = federate(tiny(f"mode={mode}"), tmp_path / mode)
        assert "evaluation" not in results
        assert main(["evaluate", str(tmp_path / mode)]) == 0
        assert "synthetic samples" not in capsys.readouterr().out
        assert "evaluation" not in json.loads((tmp_path / mode / "evaluation.json").read_text())


def test_a_run_that_leaks_fails_after_everything_is_saved(
    tiny: Callable[..., Config],
    federate: Federate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nodes whose generator hands out its clips."""

    def fit(bank: Bank, source: Any, *rest: Any, **named: Any) -> list[dict[str, float | str]]:
        losses = learn(bank, source, *rest, **named)
        leaked.append((source.labels, bank.codec.encode_all(source)))
        return losses

    def sample(bank: Bank, wanted: dict[int, int], seed: int, *rest: Any, **named: Any) -> SyntheticTokens:
        labels, latents = next((y, x) for y, x in leaked if set(wanted) == set(y.tolist()))
        return SyntheticTokens(bank.codec, latents, labels, seed)

    leaked: list[tuple[torch.Tensor, torch.Tensor]] = []
    learn = Bank.fit
    monkeypatch.setattr(Bank, "fit", fit)
    monkeypatch.setattr(Bank, "sample", sample)
    config = tiny(*HALVES, "evaluation.gate=fail")
    with pytest.raises(LeakError, match=r"what nodes sent tells their clips: attack by .* evaluation.max_auc"):
        federate(config, tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["evaluation"]["gate"]["verdict"] == FAILED
    assert (tmp_path / "run" / "checkpoints" / "adapters.safetensors").is_file()
    assert main(["evaluate", str(tmp_path / "run")]) == 1
    assert "what nodes sent tells their clips" in capsys.readouterr().err

"""The samples of a run: measured at its end and later, and a run whose samples leak fails."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedgen.assessment import assess
from fedgen.audit.gate import FAILED, UNKNOWN
from fedgen.cli import main
from fedgen.errors import LeakError
from fedgen.models.samples import SyntheticTokens
from fedgen.settings import Config
from fedgen.task import Task
from fedgen.training.bank import Bank

Federate = Callable[..., dict[str, Any]]


def copies(task: Task, node: int) -> SyntheticTokens:
    """A node's own clips as its samples."""
    clips = task.tokens(task.parts[node])
    codec = task.space.codec
    return SyntheticTokens(codec, codec.encode_all(clips), clips.labels)


def counts(task: Task) -> dict[str, dict[str, int]]:
    labels = [[task.classes[label] for label in task.store.labels[part]] for part in task.parts]
    return {str(n): {name: own.count(name) for name in own} for n, own in enumerate(labels)}


def strict(task: Task, **changes: Any) -> Task:
    settings = replace(task.config.evaluation, min_held_out=2, **changes)
    return replace(task, config=replace(task.config, evaluation=settings))


def test_copies_of_one_node_fail(task: Task) -> None:
    found = assess(strict(task), {1: copies(task, 1)}, counts(task), [], quality=False)
    assert found is not None
    assert found.results["gate"]["verdict"] == FAILED
    assert set(found.results["privacy"]["nodes"]) == {"1"}
    assert isinstance(found.leak, LeakError)
    assert "near copies" in str(found.leak)


@pytest.mark.parametrize("gate", ["warn", "off"])
def test_the_gate_may_stay_open(gate: str, task: Task) -> None:
    found = assess(strict(task, gate=gate), {1: copies(task, 1)}, counts(task), ["pooled"], quality=True)
    assert found is not None
    assert found.leak is None
    assert ("gate" in found.results) == (gate == "warn")
    assert set(found.results["utility"]) == {"pooled"}


def test_nothing_to_measure(task: Task) -> None:
    assert assess(task, {}, counts(task), [], quality=True) is None
    assert assess(strict(task, gate="off"), {1: copies(task, 1)}, counts(task), [], quality=False) is None


def test_clips_that_the_server_does_not_have_cannot_be_judged(task: Task) -> None:
    others = {**counts(task), "1": {"dog": 99}}
    found = assess(strict(task), {1: copies(task, 1)}, others, [], quality=False)
    assert found is not None
    assert found.results["gate"]["verdict"] == UNKNOWN
    assert found.results["gate"]["reasons"] == ["node 1 trains on clips that this machine does not have"]


def test_shared_generators_may_leak_anybodys_clips(task: Task) -> None:
    """Node 0 hands out what node 1 trained on."""
    sharing = replace(task.config.sharing, name="shared")
    shared = replace(strict(task), config=replace(strict(task).config, sharing=sharing))
    found = assess(shared, {0: copies(task, 1)}, counts(task), [], quality=False)
    assert found is not None
    assert found.results["gate"]["verdict"] == FAILED


def test_at_the_end_of_a_run_and_later(
    tiny: Callable[..., Config], federate: Federate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """12 held-out clips: not judged, and said so. Later the same figures come from the saved samples."""
    results = federate(tiny("evaluation.quality=true"), tmp_path / "run")
    evaluation = results["evaluation"]
    assert evaluation["samples"] == 36
    assert evaluation["gate"]["verdict"] == UNKNOWN
    assert "12 held-out records are fewer than evaluation.min_held_out=30" in evaluation["gate"]["reasons"][0]
    assert set(evaluation["utility"]) == {"pooled", "segments"}
    assert (tmp_path / "run" / "samples.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()

    assert main(["evaluate", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "36 synthetic samples" in printed
    assert "accuracy, adapter probe" in printed
    again = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert again["accuracy"] == results["accuracy"]
    assert again["evaluation"]["privacy"] == evaluation["privacy"]
    assert again["evaluation"]["fidelity"] == evaluation["fidelity"]
    assert set(again["evaluation"]["utility"]) == {"pooled", "segments", "adapter"}


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
    config = tiny("evaluation.min_held_out=2")
    with pytest.raises(LeakError, match=r"near copies .* evaluation.max_near_copies"):
        federate(config, tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["evaluation"]["gate"]["verdict"] == FAILED
    assert (tmp_path / "run" / "checkpoints" / "adapters.safetensors").is_file()
    assert main(["evaluate", str(tmp_path / "run")]) == 1
    assert "the synthetic samples leak" in capsys.readouterr().err

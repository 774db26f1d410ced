"""A recorded run is attacked as who sees every message would: no matrix in it holds a node's clips."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from federations import Federate

from fedgen import load_run
from fedgen.cli import main
from fedgen.config.settings import Config
from fedgen.data.tensors import load_tensors
from fedgen.errors import ConfigError, DataError
from fedgen.evaluation.assessment import clips_of
from fedgen.evaluation.audit import Sent, audit_run
from fedgen.evaluation.zero_shot import zero_shot
from fedgen.messages.recorded import Recorded, read_recorded, sent_in
from fedgen.node.data import NodeData
from fedgen.node.node import Node
from fedgen.privacy.result import Attack, Report
from fedgen.report.saved_run import SavedRun
from fedgen.runs.folder import RunFolder
from fedgen.runtimes.local import run_config as run
from fedgen.task import prepare_task

Tiny = Callable[..., Config]
Record = Callable[[str], tuple[Path, Path]]  # runs one of `RUNS`: its folder, and that of its messages

MANY = ["data.clips_per_class=20", "evaluation.controls=0.5", "evaluation.shadows=2"]
RUNS = {
    "gaussian": ["generator=gaussian", "rounds=2"],
    "vae": ["generator=vae"],
    "conditioned_vae": ["generator=conditioned_vae", "granularity=per_class"],
    "multimodal_vae": ["generator=multimodal_vae"],
    "gan": ["generator=gan"],
    "shared generators": ["sharing=shared", "generator=vae"],
    "shared statistics": ["sharing=shared", "generator=gaussian", "generator.covariance=public"],
    "samples alone": ["strategy.send=samples", "generator.covariance=public"],
    "two phases": ["phases=[{mode: train_generators, rounds: 1}, {mode: generate, rounds: 1}]"],
}


def attacks(report: Report | None, name: str) -> list[Attack]:
    assert report is not None
    return [attack for attack in report.attacks if attack.name.startswith(name)]


@pytest.fixture(scope="module")
def recorded(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Run one of `RUNS` once, recorded: its folder and its messages."""
    done: dict[str, tuple[Path, Path]] = {}

    def start(name: str) -> tuple[Path, Path]:
        if name not in done:
            folder = tmp_path_factory.mktemp("recorded")
            config = tiny(*MANY, *RUNS[name])
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("fedgen.report.recorder.draw_run", lambda results, folder: [])
                run(replace(config, run_dir=str(folder / "run"), record=str(folder / "messages")))
            done[name] = folder / "run", folder / "messages"
        return done[name]

    return start


@pytest.mark.parametrize("name", RUNS)
def test_of_all_matrices_only_the_adapters_first_layer_spans_clips(name: str, recorded: Record) -> None:
    """Its change is a sum of summaries of clips, of which there are few here: the audit sees that."""
    run_folder, messages = recorded(name)
    folder = RunFolder(run_folder)
    saved = SavedRun.open(folder, folder.config())
    sent = sent_in(read_recorded(messages))
    assert sorted(sent) == [0, 1, 2]
    assert all(len(own.latents) and own.latents.shape[1] == saved.codec.size for own in sent.values())
    for attack in attacks(audit_run(saved.task, sent, clips_of(saved.task)), "projection"):
        found = attack.overall
        if "adapters/narrow.weight" in attack.name:
            assert found.auc > 0.7 or "shared" in name  # shared generators make one release of all nodes
        else:
            assert found.auc - 4 * found.error < 0.5, attack.name  # a dozen matrices are tried


def test_a_codec_that_is_fitted_to_the_clips_would_be_found(recorded: Record) -> None:
    run_folder, _ = recorded("gaussian")
    folder = RunFolder(run_folder)
    saved = SavedRun.open(folder, folder.config())
    task, clips = saved.task, clips_of(saved.task)
    sent = {}
    for node, own in clips.items():
        cores = task.space.codec.bases.project(task.tokens(own.members).batch(torch.arange(len(own.members))))
        basis = torch.linalg.svd(cores - cores.mean(dim=0), full_matrices=False)[2]
        sent[node] = Sent(saved.pool[node].latents, saved.pool[node].labels, arrays={"codec.components": basis[:-1]})
    (attack,) = attacks(audit_run(task, sent, clips), "projection: codec.components, rows of cores")
    assert attack.overall.auc > 0.95


def test_what_is_recorded_is_what_passed(recorded: Record) -> None:
    run_folder, messages = recorded("gaussian")
    passed = list(read_recorded(messages))
    kinds = {(message.kind, message.reply) for message in passed}
    assert kinds == {(f"query.{k}", r) for k in ("describe", "synthesize", "fill") for r in (False, True)} | {
        ("train", False),
        ("train", True),
    }
    sent = sent_in(passed)
    assert [len(own.adapters) for own in sent.values()] == [2, 2, 2]  # one pair a round
    before, after = sent[0].adapters[1]
    assert any(not torch.equal(before[name], after[name]) for name in before)
    pool = load_run(run_folder).pool
    last = len(pool[0].labels)
    torch.testing.assert_close(sent[0].latents[-last:], pool[0].latents)
    assert sent[0].labels[-last:].tolist() == pool[0].labels.tolist()


def test_messages_are_not_mixed_with_other_files(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "messages").mkdir()
    (tmp_path / "messages" / "other").write_text("")
    config = replace(tiny("mode=federate"), run_dir=str(tmp_path / "run"), record=str(tmp_path / "messages"))
    with pytest.raises(ConfigError, match=r"record=.* holds files already"):
        run(config)
    with pytest.raises(ConfigError, match="holds no recorded messages: `fedgen run record="):
        list(read_recorded(tmp_path))


def test_samples_alone_travel(recorded: Record) -> None:
    _, messages = recorded("samples alone")
    replies = [message for message in read_recorded(messages) if message.reply]
    (trained,) = {frozenset(values_in(reply)) for reply in replies if reply.kind == "train"}
    assert trained == {"metrics/num-examples", "metrics/seconds", "report/generators", "report/privacy"}
    assert not any(reply.tensors for reply in replies if reply.kind == "train")
    assert all(json.loads(reply.values["report"]["generators"]) == [] for reply in replies if reply.kind == "train")
    assert all(own.adapters == [] for own in sent_in(read_recorded(messages)).values())


def values_in(message: Recorded) -> set[str]:
    return {f"{record}/{name}" for record, values in message.values.items() for name in values}


def test_the_server_learns_from_samples_alone(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    few = ["strategy.send=samples", "rounds=3", "global_training.epochs=6", "evaluation.gate='off'"]
    results = federate(tiny(*few), tmp_path)
    assert [entry["round"] for entry in results["history"]] == [0, 1, 2, 3]
    learnt, _ = load_tensors(tmp_path / "checkpoints" / "adapters.safetensors")
    start = prepare_task(tiny(*few)).adapters().state_dict()
    assert not any(torch.equal(learnt[name], start[name]) for name in start if name.endswith("weight"))
    own = (tmp_path / "state" / "node0" / "adapters").glob("round_*.safetensors")
    assert sorted(path.name for path in own) == ["round_2.safetensors", "round_3.safetensors"]  # nodes keep theirs


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["mode=federate", "strategy.send=samples"], "strategy.send=samples: mode=federate sends none"),
        (["strategy.send=samples", "global_training=distil"], "needs global_training=supervised"),
        (["strategy.send=samples", "global_training=none"], "needs global_training=supervised"),
        (["strategy.send=sample"], "strategy.send='sample' is not one of all, samples"),
        (["strategy.send=samples", "strategy.secure.name=secagg"], "no adapters leave a node"),
    ],
)
def test_samples_alone_are_refused_where_nothing_would_be_learnt(tiny: Tiny, overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny(*overrides)


def test_a_run_opens_without_its_data(recorded: Record, tmp_path: Path, esc10: Path) -> None:
    run_folder, _ = recorded("gaussian")
    moved = tmp_path / "elsewhere"
    shutil.copytree(run_folder, moved)
    text = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(text.replace(str(RunFolder(run_folder).config().data.store), "/nowhere"))
    opened = load_run(moved)
    assert opened.classes == RunFolder(run_folder).results()["classes"]
    files = sorted((esc10 / "audio").iterdir())[:2]
    tokens = opened.tokens(*files)
    assert tokens.shape == (2, *opened.task.store.shape)
    assert opened.codec.decode(opened.codec.encode(tokens)).shape == tokens.shape
    (output,) = opened(*files).values()
    assert output.shape[0] == 2
    assert set(opened.nearest(*files)) <= set(opened.classes)
    assert opened.samples("dog", 3).shape == (3, *opened.codec.shape)
    with pytest.raises(ConfigError, match=r"'dgo' is not one of .* Did you mean 'dog'"):
        opened.samples("dgo", 1)
    with pytest.raises(ConfigError, match="samples of dog, not 1000"):
        opened.samples("dog", 1000)


def test_nearest_is_what_the_accuracy_counts(recorded: Record) -> None:
    run_folder, _ = recorded("gaussian")
    folder = RunFolder(run_folder)
    saved = SavedRun.open(folder, folder.config())
    test = saved.task.summaries(saved.task.test_indices)
    scores = zero_shot(saved.adapters, test, saved.task.targets.heads, saved.classes)
    assert scores.accuracy == pytest.approx(folder.results()["accuracy"])


def test_audit_on_the_command_line(recorded: Record, caplog: pytest.LogCaptureFixture) -> None:
    run_folder, messages = recorded("gaussian")
    (run_folder / "audit.json").unlink()
    with caplog.at_level(logging.INFO):
        assert main(["audit", str(run_folder), "--messages", str(messages)]) == 0  # gate=auto only warns here
    found = json.loads((run_folder / "audit.json").read_text())
    assert found["gate"]["setting"] == "warn"
    assert {attack["name"] for attack in found["attacks"]} >= {"nearest", "density", "likelihood_ratio", "loss_drop"}
    assert found["names"] == RunFolder(run_folder).results()["classes"]
    assert (run_folder / "audit.png").stat().st_size > 5000
    assert caplog.messages[-1] == f"privacy {found['gate']['summary']}"


def test_a_run_ends_with_what_an_attacker_learns(
    tiny: Tiny, federate: Federate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        results = federate(tiny(*MANY), tmp_path)
    gate = results["evaluation"]["gate"]
    assert gate["setting"] == "warn"
    assert caplog.messages[-1] == f"privacy {gate['summary']}"
    assert (caplog.records[-1].levelno == logging.INFO) == (gate["verdict"] == "passed")


def test_no_control_is_ever_trained_on(tiny: Tiny, tmp_path: Path) -> None:
    task = prepare_task(tiny(*MANY))
    for number in range(3):
        node = Node.open(NodeData(task, number), tmp_path)
        own = set(task.shares[number].tolist())
        assert set(node.data.indices) | set(node.data.controls) == own
        assert not set(node.data.indices) & set(node.data.controls)
        assert len(node.data.controls) == pytest.approx(len(own) / 2, abs=4)
        recordings = [
            {task.store.recordings[clip] for clip in part} for part in (node.data.indices, node.data.controls)
        ]
        assert not recordings[0] & recordings[1]
        assert set(task.store.labels[node.data.controls]) == set(task.store.labels[node.data.indices])
    for free in (["evaluation.gate='off'"], ["mode=federate"], ["evaluation.controls=0"]):
        assert not len(NodeData(prepare_task(tiny(*MANY, *free)), 0).controls)


def test_an_audit_needs_the_clips(tiny: Tiny, recorded: Record, tmp_path: Path) -> None:
    run_folder, _ = recorded("gaussian")
    saved = load_run(run_folder)
    on_nodes = replace(saved.task.config, data=replace(saved.task.config.data, name="nodes", root=None))
    elsewhere = replace(saved, task=replace(saved.task, config=on_nodes))
    with pytest.raises(DataError, match=r"the clips are on the nodes, whose audits are in audit\.json"):
        elsewhere.audit()

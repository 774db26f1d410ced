"""A run that dies and is resumed ends as one that was never stopped: figures, samples, weights, metrics."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from federations import Federate
from flwr.app import Context, Message

from fedgen.cli import main
from fedgen.client_app import app as client_app
from fedgen.config.compose import load_config
from fedgen.config.settings import Config
from fedgen.data.tensors import load_tensors
from fedgen.errors import ConfigError
from fedgen.node.node import Node
from fedgen.runs.folder import RunFolder
from fedgen.runtimes.local import run_config as run

Tiny = Callable[..., Config]


class Death(BaseException):
    """Ends the process, as no error of a node does."""


class Dies:
    """Nodes of a process that dies when its ``fatal``-th message of a type has been handled, before it is answered."""

    def __init__(self, message_type: str, fatal: int) -> None:
        self.message_type, self.left = message_type, fatal

    def __call__(self, message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        self.left -= message.metadata.message_type == self.message_type
        if self.left == 0 and message.metadata.message_type == self.message_type:
            raise Death
        return reply


RUNS: dict[str, tuple[list[str], str, int]] = {  # overrides, and the message that the process dies of
    "moments of a strategy": (["mode=federate", "strategy=fedadam", "rounds=3"], "train", 8),
    "momentum of a strategy": (["mode=combined", "strategy=fedavgm", "rounds=3"], "train", 8),
    "before the first round is over": (["mode=federate", "rounds=2"], "train", 2),
    "adapters and generators": (["mode=combined", "generator=vae", "rounds=3"], "train", 9),
    "while samples travel": (["mode=combined", "generator=vae", "rounds=3"], "query.synthesize", 8),
    "generators alone": (["mode=generators_only", "generator=vae", "granularity=per_class", "rounds=3"], "train", 5),
    "a second phase": (
        ["phases=[{mode: train_generators, rounds: 1}, {mode: generate, rounds: 3}]"],
        "query.synthesize",
        5,
    ),
    "a node after node": (["mode=combined", "generator=vae", "sharing=shared", "rounds=3"], "query.fit", 5),
    "an average": (
        ["mode=combined", "generator=vae", "sharing=shared", "sharing.scheme=average", "rounds=3"],
        "query.adopt",
        4,
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_federation_goes_on_after_its_last_finished_round(
    name: str, tiny: Tiny, federate: Federate, tmp_path: Path
) -> None:
    overrides, message_type, fatal = RUNS[name]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = federate(tiny(*overrides), whole)
    with pytest.raises(Death):
        federate(tiny(*overrides), broken, Dies(message_type, fatal))
    assert not (broken / "results.json").exists()
    found = run(load_config([f"resume={broken}"]))
    same_run(whole, broken)
    assert without_times(found) == without_times(expected)


def test_it_may_die_in_every_round(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    overrides = ["mode=combined", "generator=vae", "granularity=per_class", "rounds=4"]
    federate(tiny(*overrides), tmp_path / "whole")
    broken, config = tmp_path / "broken", tiny(*overrides)
    for _ in range(3):  # each time one round further
        with pytest.raises(Death):
            federate(config, broken, Dies("query.synthesize", 5))
        config = load_config([f"resume={broken}"])
    run(config)
    same_run(tmp_path / "whole", broken)


def test_a_run_that_goes_on_from_another(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    federate(tiny("mode=train_generators", "generator=vae", "rounds=2"), tmp_path / "first")
    overrides = ["mode=combined", "generator=vae", "rounds=2", f"checkpoint.load={tmp_path / 'first'}"]
    federate(tiny(*overrides), tmp_path / "whole")
    with pytest.raises(Death):
        federate(tiny(*overrides), tmp_path / "broken", Dies("train", 5))
    run(load_config([f"resume={tmp_path / 'broken'}"]))
    same_run(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize("mode", ["standalone", "centralised"])
def test_a_reference_goes_on(
    mode: str, tiny: Tiny, federate: Federate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federate(tiny(f"mode={mode}", "rounds=3"), tmp_path / "whole")
    train = Node.train

    def dies(node: Node, weights: Any, round_number: int, *rest: Any) -> Any:
        trained = train(node, weights, round_number, *rest)
        if round_number == 2:
            raise Death
        return trained

    monkeypatch.setattr(Node, "train", dies)
    with pytest.raises(Death):
        federate(tiny(f"mode={mode}", "rounds=3"), tmp_path / "broken")
    monkeypatch.setattr(Node, "train", train)
    run(load_config([f"resume={tmp_path / 'broken'}"]))
    same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_finished_run_has_nothing_left_to_do(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    first = federate(tiny("mode=combined", "rounds=2"), tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert without_times(run(load_config([f"resume={tmp_path}"]))) == without_times(first)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_only_what_does_not_change_the_results_may_be_given(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    federate(tiny("mode=federate", "rounds=1"), tmp_path)
    assert load_config([f"resume={tmp_path}", "threads=2"]).threads == 2
    with pytest.raises(ConfigError, match=r"rounds cannot be changed when a run is resumed.*checkpoint\.load="):
        load_config([f"resume={tmp_path}", "rounds=9"])
    with pytest.raises(ConfigError, match=r"resume=.*nowhere is no run folder"):
        load_config([f"resume={tmp_path / 'nowhere'}"])
    assert main(["run", "-m", f"resume={tmp_path}"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kill_after", [1, 2])
def test_a_process_that_is_killed(kill_after: int, tiny_overrides: list[str], tmp_path: Path) -> None:
    """The command itself: SIGKILL once a round is in the metrics, then ``fedgen run resume=``."""
    overrides = [*tiny_overrides, "mode=combined", "generator=vae", "rounds=4", "generator.training.epochs=40"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = [sys.executable, "-m", "fedgen.cli", "run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *overrides, f"hydra.run.dir={whole}"], check=True, env=environment, capture_output=True)
    process = subprocess.Popen([*command, *overrides, f"hydra.run.dir={broken}"], env=environment)
    deadline = time.monotonic() + 120
    while f'"round": {kill_after}, ' not in _text(broken / "metrics.jsonl") and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    subprocess.run([*command, f"resume={broken}"], check=True, env=environment, capture_output=True)
    same_run(whole, broken)


def same_run(whole: Path, broken: Path) -> None:
    """Compare everything that two runs left behind but clocks and their own names."""
    results = [without_times(RunFolder(folder).results()) for folder in (whole, broken)]
    assert results[0] == results[1]
    assert _metrics(whole) == _metrics(broken)
    for part in ("checkpoints", "state"):
        names = [
            sorted(path.relative_to(folder) for path in (folder / part).rglob("*.safetensors"))
            for folder in (whole, broken)
        ]
        assert names[0] == names[1]
        for name in names[0]:
            first, second = (load_tensors(folder / name)[0] for folder in (whole, broken))
            assert first.keys() == second.keys()
            for key, value in first.items():
                assert torch.equal(value, second[key]), f"{name}: {key}"


def without_times(results: dict[str, Any]) -> dict[str, Any]:
    left_out = ("seconds", "bytes")  # messages carry the folder's name
    return {key: value for key, value in results.items() if key not in left_out}


def _metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if not k.endswith(("seconds", "bytes_sent", "bytes_received"))} for line in lines
    ]


def _files(folder: Path, part: str) -> list[Path]:
    return sorted(path.relative_to(folder) for path in (folder / part).rglob("*.safetensors"))


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""

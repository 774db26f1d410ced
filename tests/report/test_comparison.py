"""Tables of several runs: what is said of their settings, and what becomes of those without results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedgen.cli import main
from fedgen.config.settings import Config
from fedgen.report.comparison import compared, mean_results
from fedgen.runs.folder import RunFolder

Sweep = Callable[[str, list[str]], None]


@pytest.fixture
def sweep(tiny: Callable[..., Config], tmp_path: Path) -> Sweep:
    """Leaves the folder of a finished run of the given settings; nothing is trained."""
    scores = {"accuracy": 0.5, "balanced_accuracy": 0.5, "per_class": {"dog": 0.5}, "samples": {}, "mode": "combined"}
    scores |= {"heads": {"text": {"cosine": 0.1}}, "bytes": {"sent": [], "received": []}, "seconds": {"total": 1.0}}

    def leave(name: str, overrides: list[str]) -> None:
        config = tiny(*overrides, f"run_dir={tmp_path / 'sweep' / name}")
        folder = RunFolder.create(config)
        folder.save_json("results.json", {**scores, "phases": [{"mode": config.mode, "rounds": config.rounds}]})

    return leave


@pytest.mark.parametrize(
    ("jobs", "wanted"),
    [
        (
            [["generator=gaussian"], ["generator=gaussian", "seed=1"], ["generator=vae"], ["generator=vae", "seed=1"]],
            [{"generator.kind": "gaussian"}, {"generator.kind": "vae"}],
        ),
        (  # what a choice brings is said by it; what is chosen besides is not
            [["privacy.name=dp", "privacy.delta=0.001", f"privacy.epsilon={number}"] for number in (2, 8)] + [[]],
            [{"privacy.name": "dp", "privacy.epsilon": f"{n}.0"} for n in (2, 8)]
            + [{"privacy.name": "none", "privacy.epsilon": "null"}],
        ),
        (  # the store follows from the encoder
            [["encoder.stride=16", "data.store=/a", "threads=2"], ["encoder.stride=10", "data.store=/b", "threads=1"]],
            [{"encoder.stride": "16"}, {"encoder.stride": "10"}],
        ),
        ([["data.store=/a"], ["data.store=/b"]], [{"data.store": "/a"}, {"data.store": "/b"}]),
        ([["mode=federate", "rounds=2"], ["mode=combined", "rounds=3"]], [{}, {}]),  # columns of their own
        (
            [["granularity=per_group", "granularity.groups.pets=[dog]"], ["granularity=per_group"]],
            [{"granularity.groups": "{pets: [dog]}"}, {"granularity.groups": "{}"}],
        ),
        (
            [["seed=0"], ["synthesis.fill=8", "seed=1"]],
            [{"synthesis.fill": "32", "seed": "0"}, {"synthesis.fill": "8", "seed": "1"}],
        ),
    ],
    ids=["choices", "keys of a choice", "a store that follows", "stores", "modes", "groups", "single seeds"],
)
def test_rows_say_in_what_they_differ(
    jobs: list[list[str]], wanted: list[dict[str, str]], sweep: Sweep, tmp_path: Path
) -> None:
    for number, overrides in enumerate(jobs):
        sweep(str(number), overrides)
    found = compared([RunFolder(tmp_path / "sweep" / str(number)) for number in range(len(jobs))])
    assert sorted(map(str, (row["settings"] for row in found.values()))) == sorted(map(str, wanted))


def test_runs_without_results_are_left_out_and_named(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for name in "0123":
        sweep(name, [f"synthesis.fill={name}"])
    folders = [tmp_path / "sweep" / name for name in "0123"]
    for folder in folders[1:]:
        (folder / "results.json").unlink()
    RunFolder(folders[1]).fail("RuntimeError: no memory")
    RunFolder(folders[2]).fail("round 1: 0 good replies")
    (folders[3] / "config.yaml").unlink()
    (tmp_path / "sweep" / "multirun.yaml").touch()
    assert main(["compare", *map(str, sorted((tmp_path / "sweep").iterdir()))]) == 0
    assert str(folders[0]) in capsys.readouterr().out
    first, second, third = (record.getMessage() for record in caplog.records)
    assert first == f"left out: {folders[1]} has no results.json: the run failed: RuntimeError: no memory"
    assert second == f"left out: {folders[2]} has no results.json: the run failed: round 1: 0 good replies"
    assert third == f"left out: {folders[3]} is no run folder: it has no config.yaml"
    assert main(["compare", *map(str, folders[2:])]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert all(str(folder) in line for folder in folders[2:])
    caplog.clear()
    assert main(["report", *map(str, folders[1:]), f"--out={tmp_path / 'page.html'}"]) == 0  # of unfinished ones, too
    assert f"left out: {folders[3]} is no run folder" in caplog.text
    assert all(f"sweep/{name}" in (tmp_path / "page.html").read_text() for name in "12")


def test_the_deviation_over_seeds_is_the_sample_s() -> None:
    scores = {"balanced_accuracy": 0.5, "per_class": {}, "heads": {}, "seconds": {"total": 1.0}}
    sizes = {"bytes": {"sent": [1], "received": [1]}}
    found = mean_results([{"accuracy": accuracy, **scores, **sizes} for accuracy in (0.5, 0.6, 0.8)])
    assert found["accuracy"] == pytest.approx(0.6333, abs=1e-4)
    assert found["deviation"] == pytest.approx(0.1528, abs=1e-4)  # divided by n - 1; 0.1247 by n

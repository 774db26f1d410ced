"""Tables say what the results say."""

from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from fedgen.report.tables import comparison_table, distribution_table, show


def results(**changes: Any) -> dict[str, Any]:
    return {
        "mode": "combined",
        "phases": [{"mode": "combined", "rounds": 2}],
        "accuracy": 0.5,
        "balanced_accuracy": 0.4321,
        "per_class": {"dog": 0.75, "rain": 0.125},
        "heads": {"clip": {"cosine": 0.2, "mse": 1.0}, "t5": {"cosine": 0.4, "mse": 1.0}},
        "samples": {"dog": 10, "rain": 6},
        "bytes": {"sent": [1_000_000, 2_000_000], "received": [500_000, 0]},
        "seconds": {"total": 12.3, "rounds": [1.0, 2.0]},
    } | changes


def text(table: Table, width: int = 200) -> str:
    stream = StringIO()
    Console(file=stream, width=width).print(table)
    return stream.getvalue()


def cells(table: Table, row: int) -> list[str]:
    return [str(list(column.cells)[row]) for column in table.columns]


def test_comparison() -> None:
    empty = {"sent": [0], "received": [0]}
    table = comparison_table({"a": results(), "b": results(mode="standalone", samples={}, bytes=empty)})
    assert cells(table, 0) == ["a", "combined", "2", "0.500", "·", "0.432", "0.125", "0.300", "16", "3.0", "0.5", "12"]
    assert cells(table, 1)[8:11] == ["·", "·", "·"]


@pytest.mark.parametrize(
    ("gate", "shown"),
    [
        ({"auc": 0.987, "verdict": "failed"}, "0.99"),
        ({"auc": 0.512, "verdict": "not judged"}, "0.51?"),
        ({"auc": None, "verdict": "not judged"}, "·"),
    ],
)
def test_what_the_strongest_attack_finds_stands_beside_the_accuracy(gate: dict[str, Any], shown: str) -> None:
    table = comparison_table({"a": results(evaluation={"gate": gate})})
    assert cells(table, 0)[3:5] == ["0.500", shown]


def test_settings_in_which_runs_differ_are_beside_their_names() -> None:
    many = {f"key{number}": "1" for number in range(9)}
    own = {"a": {"generator.kind": "vae", "data.classes": "[dog, rain]"}, "b": {"checkpoint.load": "x" * 99}, "c": many}
    table = comparison_table({name: results(settings=settings) for name, settings in own.items()})
    shown = text(table, 300)
    assert "generator.kind=vae data.classes=[dog, rain]" in shown
    assert f" checkpoint.load={'x' * 40}... " in shown
    assert "key5=1 and 3 more" in shown
    assert "settings" not in text(comparison_table({"a": results(settings={})}))


@pytest.mark.parametrize(("width", "last"), [(50, "accuracy"), (80, "attack"), (145, "s"), (300, "s")])
def test_a_narrow_terminal_leaves_figures_out_and_cuts_none(width: int, last: str) -> None:
    settings = {"generator.kind": "multimodal_vae", "synthesis.samples_per_class": "64"}
    row = results(settings=settings, deviation=0.0123)
    table = comparison_table({"multirun/2026-01-01/12-00-00/* (seeds 0, 1, 2)": row}, width)
    shown = text(table, width)
    assert "…" not in shown
    assert "0.500 ± 0.012" in shown
    assert table.columns[-1].header == last
    assert ("no room for" in shown) == (last != "s")
    assert max(map(len, shown.splitlines())) <= width


def test_rounds_of_all_phases_are_counted() -> None:
    phases = [{"mode": "train_generators", "rounds": 2}, {"mode": "generate", "rounds": 3}]
    assert cells(comparison_table({"a": results(phases=phases)}), 0)[2] == "5"


def test_distribution() -> None:
    table = distribution_table({"0": {"dog": 4}, "1": {"dog": 1, "rain": 3}}, ["dog", "rain"])
    assert [cells(table, row) for row in range(3)] == [["dog", "4", "1"], ["rain", "·", "3"], ["all", "4", "4"]]
    assert "node 1" in text(table)


def test_without_a_terminal_nothing_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    name = "runs/" + "a-long-name-" * 12
    show(comparison_table({name: results()}))
    assert name in capsys.readouterr().out

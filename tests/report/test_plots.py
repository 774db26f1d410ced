"""Pictures are drawn from results alone."""

import math
from pathlib import Path
from xml.etree import ElementTree

from matplotlib.figure import Figure

from fedgen.report.page import chart
from fedgen.report.plots import COLOURS, as_svg, confusion_axes, draw_run, line_figure, partition_axes, summed_up

RESULTS = {
    "classes": ["dog", "sea_waves"],
    "history": [{"round": 0, "accuracy": 0.25}, {"round": 1, "accuracy": 0.75}],
    "nodes": {"0": {"dog": 4}, "1": {"sea_waves": 3}},
    "confusion": [[3, 1], [0, 2]],
}


def test_three_pictures(tmp_path: Path) -> None:
    paths = draw_run(RESULTS, tmp_path)
    assert [path.name for path in paths] == ["accuracy.png", "partition.png", "confusion.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_accuracy_over_rounds() -> None:
    figure = line_figure({"a": [(0.0, 0.25), (1.0, 0.75)], "silent": [], "_$b": [(0.0, 0.5)]}, "accuracy", (0, 1))
    (axes,) = figure.axes
    assert axes.lines[0].get_xydata().tolist() == [[0, 0.25], [1, 0.75]]
    assert axes.get_ylim() == (0, 1)
    assert axes.lines[2].get_color() == COLOURS[2]  # as in charts in which all have points
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", " $b"]


def test_no_two_of_many_runs_look_alike() -> None:
    (axes,) = line_figure({str(n): [(1.0, 0.5)] for n in range(24)}, "accuracy").axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 24


def test_many_nodes_are_summed_up() -> None:
    series = {f"node {n}": [(1.0, float(n))] for n in range(8)} | {"silent": []}
    assert summed_up(series) == {"mean of 8": [(1.0, 3.5)], "lowest": [(1.0, 0.0)], "highest": [(1.0, 7.0)]}


def test_numbers_that_cannot_be_drawn_are_left_out_and_their_lines_named() -> None:
    series = {"a": [(1.0, 0.5)], "b": [], "c": [(1.0, math.nan), (2.0, math.inf), (3.0, 1e300)], "d": [(1.0, 1e30)]}
    made = chart("Losses", series)
    assert made["without"] == ["b", "c"]
    assert made["picture"]["about"] == "Losses. a ends at 0.5; d ends at 1e+30"
    assert chart("it", {"b": [], "c": [(1.0, math.nan)]}) == {"title": "it", "picture": None, "without": []}


def test_names_in_charts_are_no_markup() -> None:
    text = as_svg(line_figure({"<b>&": [(1.0, 0.5)]}, "accuracy")).decode()
    assert "<b>" not in text
    ElementTree.fromstring(text)


def test_matrices_show_the_numbers_and_the_names() -> None:
    axes = Figure().subplots()
    confusion_axes(axes, RESULTS["confusion"], RESULTS["classes"])
    shown = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
    assert shown == {(0, 0): "3", (0, 1): "1", (1, 1): "2"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dog", "sea waves"]

    axes = Figure().subplots()
    partition_axes(axes, RESULTS["nodes"], RESULTS["classes"])
    assert axes.images[0].get_array().tolist() == [[4, 0], [0, 3]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["node 0", "node 1"]


def test_one_round_and_one_class(tmp_path: Path) -> None:
    single = {
        "classes": ["dog"],
        "history": [{"round": 1, "accuracy": 1.0}],
        "nodes": {"0": {"dog": 1}},
        "confusion": [[0]],
    }
    assert len(draw_run(single, tmp_path)) == 3

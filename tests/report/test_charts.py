"""Charts: numbers on the axes can be told apart and have room, and whatever a node sends is drawn or left out."""

from __future__ import annotations

import math
import re

import pytest

from fedgen.report.charts import COLOURS, DIGIT, TURNED, Points, line_chart, looks, summed_up
from fedgen.report.page import chart

TEXT = re.compile(r'<text class="(\w+)(?: \w+)*" x="(-?[\d.]+)" y="(-?[\d.]+)">([^<]*)</text>')


def texts(values: Points, kind: str) -> list[tuple[float, str]]:
    """Return where the words of a kind are from left to right, and the words: ``end`` of the y axis, ``mid`` others."""
    found = TEXT.findall(line_chart("it", {"a": values}, "loss"))
    return [(float(x), words) for this, x, _, words in found if this == kind]


def rounds(last: int, first: int = 1) -> list[str]:
    return [words for _, words in texts([(first, 0.0), (last, 1.0)], "mid") if words not in ("round", "loss")]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.855, 0.86, "0.855 0.856 0.857 0.858 0.859 0.860"),
        (-0.0125, 0.01, "-0.015 -0.010 -0.005 0.000 0.005 0.010"),
        (1.0, 1.01, "1.000 1.002 1.004 1.006 1.008 1.010"),
        (0.0, 0.11, "0.000 0.025 0.050 0.075 0.100 0.125"),
        (1000.0, 4000.0, "1000 2000 3000 4000"),
        (1000.001, 1000.002, "1000.0010 1000.0012 1000.0014 1000.0016 1000.0018 1000.0020"),
        (0.0, 1e-5, "0 2.0e-06 4.0e-06 6.0e-06 8.0e-06 1.0e-05"),
        (-2e8, 2e8, "-2e+08 -1e+08 0 1e+08 2e+08"),
        (0.7, 0.7, "0.6 0.8"),
        (0.0, 0.0, "0.0 0.2"),
        (1e-200, 2e-200, "0.0 0.2"),
    ],
)
def test_numbers_of_the_y_axis_are_told_apart_and_have_room(low: float, high: float, expected: str) -> None:
    found = texts([(0, low), (1, high)], "end")
    assert " ".join(words for _, words in found) == expected
    for end, words in found:
        assert end - DIGIT * len(words) >= TURNED - 6  # right of the turned label


@pytest.mark.parametrize(("low", "high"), [(-1e100, 1e100), (1e20, 1e20 + 1e5), (5.0, 5.0 + 1e-9), (3e-90, 5e-90)])
def test_numbers_of_any_size_have_an_axis(low: float, high: float) -> None:
    words = [words for _, words in texts([(0, low), (1, high)], "end")]
    assert len(set(words)) == len(words) >= 2
    assert float(words[0]) <= low <= high <= float(words[-1])


def test_the_axis_of_rounds_ends_with_the_last_round() -> None:
    assert rounds(1) == ["1"]
    assert rounds(2) == ["1", "2"]
    assert rounds(9) == ["2", "4", "6", "8"]
    assert rounds(20) == ["5", "10", "15", "20"]
    assert rounds(3, first=0) == ["0", "1", "2", "3"]
    assert all(len(rounds(last)) <= 8 for last in range(1, 400))


def test_a_single_round_is_in_the_middle() -> None:
    drawing = line_chart("it", {"a": [(1, 0.5)]}, "loss")
    across = re.search(r'<circle cx="([\d.]+)"', drawing)
    assert across is not None
    assert f'<text class="mid" x="{across[1]}" y="228.0">1</text>' in drawing


def test_what_cannot_be_drawn_is_left_out_and_named() -> None:
    series = {"a": [(1.0, 0.5)], "b": [], "c": [(1.0, math.nan), (2.0, math.inf), (3.0, 1e300)], "d": [(1.0, 0.25)]}
    made = chart("it", series)
    assert made["legend"] == [("a", looks(0)), ("d", looks(3))]  # each as it looks in charts in which all have points
    assert made["without"] == ["b", "c"]
    assert (made["names"], made["rows"]) == (["a", "d"], [("1", ["0.500", "0.250"])])
    assert made["svg"].count("<polyline") == 2
    nothing = chart("it", {"b": [], "c": [(1.0, math.nan)]})
    assert (nothing["legend"], nothing["svg"]) == ([], "<p>No figures.</p>")


def test_small_figures_have_the_digits_that_tell_them_apart() -> None:
    assert chart("it", {"a": [(1.0, 0.000123), (2.0, 0.000456)]})["rows"] == [("1", ["0.000123"]), ("2", ["0.000456"])]


def test_no_two_of_many_runs_look_alike() -> None:
    legend = chart("it", {str(n): [(1.0, 0.5)] for n in range(3 * COLOURS)}, (0, 1), shorten=False)["legend"]
    assert len({drawn for _, drawn in legend}) == 3 * COLOURS


def test_many_nodes_are_summed_up() -> None:
    series = {f"node {n}": [(1.0, float(n))] for n in range(COLOURS)} | {"silent": [], "nan": [(1.0, math.nan)]}
    assert summed_up(series) == {"mean of 8": [(1.0, 3.5)], "lowest": [(1.0, 0.0)], "highest": [(1.0, 7.0)]}
    assert chart("it", series)["without"] == ["silent", "nan"]

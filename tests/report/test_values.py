"""Values as text: nothing on the page looks like Python."""

from __future__ import annotations

from fedgen.report.page import counted, figure, flattened, of_nodes

MECHANISMS = [{"name": "means", "sensitivity": 8.0688937}, {"name": "widths", "sensitivity": 49.5}]


def test_lists_of_mappings_go_by_their_names_or_places() -> None:
    assert flattened({"mechanisms": MECHANISMS}) == {
        "mechanisms.means.sensitivity": "8.06889",
        "mechanisms.widths.sensitivity": "49.5",
    }
    assert flattened({"phases": ({"mode": "generate", "rounds": 1}, {"mode": "generate", "rounds": 2})}) == {
        "phases.0.mode": "generate",
        "phases.0.rounds": "1",
        "phases.1.mode": "generate",
        "phases.1.rounds": "2",
    }
    assert flattened({"a": [{"name": "x", "b": 1}, {"name": "x", "b": 2}]})["a.1.b"] == "2"  # no names of their own
    assert flattened({"a": [{"name": ["x"], "b": 1}]}) == {"a.0.name": "[x]", "a.0.b": "1"}  # a node may say anything


def test_values_are_written_as_in_the_configuration() -> None:
    values = {"a": None, "b": True, "c": [["dog", "pig"], ["cow"]], "d": [], "e": {}, "f": 1e-5, "g": (), "h": 0}
    written = {"a": "·", "b": "true", "c": "[[dog, pig], [cow]]", "d": "·", "e": "·", "f": "1e-05", "g": "·", "h": "0"}
    assert flattened(values) == written


def test_a_column_for_each_node() -> None:
    table = of_nodes({"0": {"epsilon": 8.0, "mechanisms": MECHANISMS}, "2": {"epsilon": 7.5, "clips": 20}})
    assert table["heads"] == [("what", False), ("node 0", True), ("node 2", True)]
    assert ("epsilon", "8", "7.5") in table["rows"]
    assert ("mechanisms.means.sensitivity", "8.06889", "·") in table["rows"]
    assert ("clips", "·", "20") in table["rows"]


def test_figures_and_counts() -> None:
    assert [figure(value) for value in (0.5, 3, None, float("nan"))] == ["0.500", "3", "·", "·"]
    assert [counted(number, "round") for number in (0, 1, 2)] == ["0 rounds", "1 round", "2 rounds"]

"""Pictures are drawn from results alone."""

from pathlib import Path

from matplotlib.figure import Figure

from fedgen.report.plots import accuracy_axes, confusion_axes, draw_run, partition_axes

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
    axes = Figure().subplots()
    accuracy_axes(axes, RESULTS["history"])
    assert axes.lines[0].get_xydata().tolist() == [[0, 0.25], [1, 0.75]]
    assert axes.get_ylim() == (0, 1)


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

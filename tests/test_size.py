"""The package stays small."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
MOST_LINES = 18_000  # of the package's Python files, with comments and docstrings


@pytest.fixture(scope="module")
def measure() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measure", ROOT / "benchmarks" / "measure.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_package_has_a_limit_of_lines(measure: ModuleType) -> None:
    lines = measure.package_lines()
    assert lines <= MOST_LINES, (
        f"fedgen/ has {lines} lines, {lines - MOST_LINES} above the limit: take something out; "
        f"if the change is worth more code, raise MOST_LINES in {Path(__file__).name}"
    )


def test_every_figure_is_measured(measure: ModuleType) -> None:
    figures = measure.measures()
    assert figures["modules at the root"] == 6
    assert figures["methods of Node"] > 0
    assert figures["arguments of the strategy"] > 0
    assert figures["modules in the longest chain of imports"] > 5

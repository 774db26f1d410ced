"""The old file: strict JSON, or an error that says where it is not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedgen.config.migrate import read_old, table_name
from fedgen.config.migrate_table import TABLE
from fedgen.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"rounds": 3,\n "seed": }', "line 2 column 10"),
        ('{"rounds": 3 // more\n}', "line 1 column 14"),
        ("{'rounds': 3}", "line 1 column 2"),
        ("", "line 1 column 1"),
        ('{"rounds": 3, "rounds": 4}', "'rounds' stands twice"),
        ('{"a": {"seed": 1, "seed": 1}}', "'seed' stands twice"),
        ("[1]", "holds no keys"),
    ],
)
def test_what_is_not_a_configuration(text: str, words: str, write: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        read_old(write(text))
    assert "old.json" in str(raised.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json cannot be read"):
        read_old(tmp_path / "nowhere.json")


def test_a_file_of_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_bytes('{"rounds": "ü"}'.encode("latin-1"))
    with pytest.raises(ConfigError, match="is not JSON: 'utf-8' codec"):
        read_old(tmp_path / "old.json")


def test_entries_know_where_they_stood(write: Callable[..., Path]) -> None:
    old = {"seed": 1, "feda2v": {"generator_class_groups": {"a": ["é"]}}, "nodes": {"0": {"dataset": "x"}}}
    assert [str(entry) for entry in read_old(write(old))] == [
        "seed=1",
        'feda2v.generator_class_groups={"a": ["é"]}',
        "nodes=1",
        'nodes.0.dataset="x"',
    ]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("rounds", "rounds"),
        ("any.where.rounds", "rounds"),
        ("dataset.name", "dataset.name"),
        ("experiment.name", "experiment.name"),
        ("name", ""),
        ("rewind.epochs", "rewind.*"),
        ("feda2v._comment", "_*"),
    ],
)
def test_names_in_the_table(path: str, name: str) -> None:
    assert table_name(path) == name
    assert not name or name in TABLE

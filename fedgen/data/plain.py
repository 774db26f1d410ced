"""Text and names from other parties as plain data: bounded, without tags, anchors or interpolations."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml  # type: ignore[import-untyped]
from yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent  # type: ignore[import-untyped]

from fedgen.errors import ConfigError, require, said

LONGEST = 4_000_000  # characters of YAML or JSON that are read
MOST = 100_000  # values in YAML
DEEPEST = 12  # mappings and lists within each other in YAML; a configuration has 5
LONGEST_NAME = 200  # characters of a class's or a group's name
UNSEEN = re.compile(  # marks and letters that print as nothing
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
TAG = "tag:yaml.org,2002:"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads null, booleans and decimal numbers; all else is text, also `<<`, dates, `yes`, `0x10` and `1:30`.

    PyYAML writes quotes around any text that this loader would not read as text.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        values: dict[Any, Any] = super().construct_mapping(node, deep)
        if len(values) < len(node.value):
            raise ValueError("a key stands twice in one place")
        return values


for _kind, _shape, _first in (
    ("null", r"^(?:null|~|)$", ["n", "~", ""]),
    ("bool", r"^(?:true|false)$", list("tf")),
    ("int", r"^-?(?:0|[1-9][0-9]{0,29})$", list("-0123456789")),
    ("float", r"^-?(?:[0-9]+\.[0-9]*(?:e[-+][0-9]+)?|\.inf|\.nan)$", list("-.0123456789")),
):
    _Loader.add_implicit_resolver(TAG + _kind, re.compile(_shape), _first)


def read_text(file: Path) -> str:
    """Return the text of a file, up to the most that is parsed; `ConfigError` if it is unreadable or not UTF-8."""
    try:
        with file.open("rb") as opened:
            return opened.read(LONGEST + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {said(error)}") from error


def read_yaml(text: str, where: str) -> Any:
    """Return the mappings, lists, texts, numbers, booleans and nulls of ``text``, which errors call ``where``.

    Raises
    ------
    ConfigError
        It is longer or deeper than any configuration, is no YAML, or has tags, anchors, aliases, or a key twice.
    """
    try:
        _refuse(text)
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{where} is no plain YAML: {said(error)}") from error


def _refuse(text: str) -> None:
    """Raise `ValueError` for text that `read_yaml` rejects, before any object is constructed."""
    if len(text) > LONGEST:
        raise ValueError(f"it has more than {LONGEST} characters")
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=_Loader)):
        if number > MOST:
            raise ValueError(f"it has more than {MOST} values")
        if isinstance(event, AliasEvent) or (isinstance(event, NodeEvent) and event.anchor):
            raise ValueError("it has anchors or aliases")
        if getattr(event, "tag", None):
            raise ValueError(f"it has the tag {event.tag}")
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"it is deeper than {DEEPEST} mappings and lists")


def read_json(text: str | bytes) -> Any:
    """Return the value of JSON ``text``; `ValueError` if it is no JSON, too long, or nested too deeply."""
    if len(text) > LONGEST:
        raise ValueError(f"{len(text)} characters, expected at most {LONGEST}")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def bounded(value: Any) -> Any:
    """Return a JSON value with each of its texts on one line, escaped and bounded."""
    if isinstance(value, dict):
        return {said(key): bounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [bounded(item) for item in value]
    return said(value) if isinstance(value, str) else value


def check_names(names: Iterable[object], what: str) -> None:
    """Raise `ConfigError` unless ``names`` are one line of visible text each, without an interpolation.

    ``what`` is the configuration key of the names, or their owner.
    """
    for name in names:
        fault = _fault(name)
        require(fault is None, f"{what}: the name {said(repr(name), 80)} {fault}")


def _fault(name: object) -> str | None:
    if not isinstance(name, str) or not name.strip():
        return "is no text, or an empty one"
    if len(name) > LONGEST_NAME:
        return f"has more than {LONGEST_NAME} characters"
    if "${" in name:
        return "holds ${, which reads as an interpolation"
    unseen = [c for c in name if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") or UNSEEN.match(c)]
    return f"holds U+{ord(unseen[0]):04X}, which does not print" if unseen else None


def mismatches(found: Mapping[str, Any], expected: Mapping[str, Any], whose: str = "this run") -> list[str]:
    """Return a phrase for each entry of ``expected`` that ``found`` does not have."""
    pairs = [(name, found.get(name), value) for name, value in expected.items()]
    return [f"{name} is {theirs}, {whose} has {ours}" for name, theirs, ours in pairs if theirs != ours]

"""Old configurations as files, translated with and without composing the result, which takes most of a second."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedgen.config.migrate import Translation, gather, read_old, translate

Migrate = Callable[..., Translation]
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write an old configuration, given as keys or as text, to a file."""

    def write(old: str | dict[str, Any] | None = None, **keys: Any) -> Path:
        file = tmp_path / "old.json"
        file.write_text(old if isinstance(old, str) else json.dumps({**(old or {}), **keys}), encoding="utf-8")
        return file

    return write


@pytest.fixture
def gathered(write: Write) -> Migrate:
    """Translate an old configuration without composing the result."""
    return lambda *old, **keys: gather(read_old(write(*old, **keys)))


@pytest.fixture
def migrated(write: Write) -> Migrate:
    """Translate an old configuration and compose the result."""
    return lambda *old, **keys: translate(write(*old, **keys))

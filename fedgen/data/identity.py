"""What made tokens, and when two of that are the same.

The revision of a model is a name for its files, and their digest says what they are: the same files have other names,
and in a folder none. So a revision counts only where both sides say one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

REVISION = "revision"
USUAL_REVISION = "main"


def differing(one: Mapping[str, Any], other: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """Return those of ``keys`` on which two identities differ; a revision that is not said is unknown."""
    said = REVISION in one and REVISION in other
    return [key for key in keys if one.get(key) != other.get(key) and (said or key != REVISION)]


def content(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of an encoder's identity decides the tokens: all but the revision."""
    return {key: value for key, value in identity.items() if key != REVISION}

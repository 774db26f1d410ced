"""Names of checkpoints and of their files."""

from __future__ import annotations

import hashlib
import re
from urllib.parse import quote

SUFFIX = ".safetensors"
LONGEST = 120  # characters of a key in a file name; all of a name must stay below 256
SLOT = {"unified": "", "per_class": "_class_{key}", "per_group": "_group_{key}"}


def checkpoint_name(base_name: str, node: int, round: int | None = None) -> str:
    """Return the name of a node's checkpoint: of its latest, or of the one kept of ``round``."""
    return f"{base_name}_node{node}" + ("" if round is None else f"_round_{round}")


def generator_file(base_name: str, node: int, granularity: str, key: str, round: int | None = None) -> str:
    """Return the file name of the generator ``key``; what no file system likes and what reads as a round is quoted.

    Of a long key, the beginning stands there with a digest.
    """
    quoted = re.sub(r"_(?=round_\d+$)", "%5F", quote(key, safe=" "))
    if len(quoted) > LONGEST:
        quoted = f"{quoted[: LONGEST - 17]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    return _file(base_name, node, SLOT[granularity].format(key=quoted), round)


def _file(base_name: str, node: int, part: str, round: int | None) -> str:
    return f"{base_name}_node{node}{part}{'' if round is None else f'_round_{round}'}{SUFFIX}"

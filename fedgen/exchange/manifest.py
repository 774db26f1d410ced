"""The manifest of a folder of checkpoints: which files belong together, what they hold, and their checksums."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from fedgen.errors import CheckpointError
from fedgen.exchange.names import SUFFIX, checkpoint_name
from fedgen.files import write_atomically

FORMAT = 3  # 2 held a codec that was fitted to clips
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Part:
    """One file of a checkpoint: a generator.

    Attributes
    ----------
    key : str
        ``unified``, its class or its group.
    classes : list[str]
        What a generator was fitted to.
    parameters : int
        Numbers in the file, the optimiser's left out.
    standardisation : list[str]
        The file's tensors with the statistics that inputs are standardised by.
    bytes, sha256
        Size and checksum of the file.
    """

    key: str
    classes: list[str]
    parameters: int
    standardisation: list[str]
    bytes: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """The generators of a node after a round; see ``docs/checkpoints.md`` for every field."""

    base_name: str
    node: int
    time: str
    kind: str
    granularity: str
    class_ids: dict[str, int]
    sizes: dict[str, Any]
    lengths: dict[str, Any]
    metadata: dict[str, Any]
    files: dict[str, Part] = field(default_factory=dict)

    @property
    def round(self) -> int:
        """Rounds that were finished when it was saved."""
        return int(self.metadata["round"])

    @property
    def classes(self) -> dict[str, list[str]]:
        """Classes of each generator, by its key."""
        return {part.key: part.classes for part in self.files.values()}

    def header(self, part: Part) -> dict[str, Any]:
        """Return what the file of ``part`` says of itself: everything but the other files and its own checksum."""
        about = {name: value for name, value in vars(self).items() if name != "files"}
        own = {name: value for name, value in vars(part).items() if name not in ("bytes", "sha256")}
        return {"format": FORMAT, **about, **own}


@dataclass(frozen=True)
class Manifest:
    """What a folder's ``manifest.json`` says.

    Attributes
    ----------
    checkpoints : dict[str, Checkpoint]
        By `checkpoint_name`, in the order of saving.
    removed : list[str]
        Files that belong to no checkpoint any more: they may be gone, or still wait to be removed.
    """

    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Return the manifest of ``folder``; one without checkpoints if there is no file.

        Raises
        ------
        CheckpointError
            It is not JSON, of another format, lacks a field, has one of another type, or names a file elsewhere.
        """
        path = folder / MANIFEST
        try:
            values = json.loads(path.read_bytes()) if path.is_file() else {"format": FORMAT, "checkpoints": {}}
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is not JSON: {error}") from error
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
        _check_format(values, path)
        found = _typed(cls, {"removed": [], **values}, str(path))
        for file in found.files():
            if Path(file).name != file or not file.endswith(SUFFIX):
                raise CheckpointError(f"{path} names {file!r}, which is not a {SUFFIX} file of the folder")
        return found

    def write(self, folder: Path) -> None:
        """Put the manifest into place, whole."""
        content = json.dumps({"format": FORMAT, **asdict(self)}, indent=1, ensure_ascii=False)
        write_atomically(folder / MANIFEST, content.encode())

    def files(self) -> Iterator[str]:
        """Yield every file name: those of the checkpoints and those to remove."""
        for checkpoint in self.checkpoints.values():
            yield from checkpoint.files
        yield from self.removed

    def parts(self) -> dict[str, Part]:
        """Return what each file of the checkpoints has to be."""
        return {file: part for checkpoint in self.checkpoints.values() for file, part in checkpoint.files.items()}

    def find(self, base_name: str, node: int, round: int | None = None) -> Checkpoint | None:
        """Return a node's latest checkpoint, or that of ``round``: a kept one, or the latest if it is of that round."""
        latest = self.checkpoints.get(checkpoint_name(base_name, node))
        kept = self.checkpoints.get(checkpoint_name(base_name, node, round))
        return latest if kept is None and latest is not None and latest.round == round else kept

    def rounds(self, base_name: str, node: int) -> dict[int, str]:
        """Return the names of the checkpoints that were kept of single rounds of a node, in the order of saving."""
        latest = checkpoint_name(base_name, node)
        return {
            checkpoint.round: name
            for name, checkpoint in self.checkpoints.items()
            if name != latest and (checkpoint.base_name, checkpoint.node) == (base_name, node)
        }


def _check_format(values: Any, path: Path) -> None:
    if not isinstance(values, dict) or "format" not in values:
        raise CheckpointError(f"{path} is not a manifest: it says no format")
    if values["format"] != FORMAT:
        raise CheckpointError(
            f"{path} is of format {values['format']!r}, this version of fedgen reads format {FORMAT}, which holds no "
            "codec: one that was fitted to a node's clips gives them away. Train the generators again"
        )


def _typed(cls: type, values: Any, where: str) -> Any:
    """Return ``values``, which come from JSON, as the dataclass ``cls``; `CheckpointError` names what is wrong."""
    made = {}
    for name, hint in get_type_hints(cls).items():
        if not isinstance(values, dict) or name not in values:
            raise CheckpointError(f"{where} has no {name!r}")
        made[name] = _value(hint, values[name], f"{where}: {name}")
    if cls is Checkpoint and type(made["metadata"].get("round")) is not int:
        raise CheckpointError(f"{where}: metadata has no round, a whole number")
    return cls(**made)


def _value(hint: Any, value: Any, where: str) -> Any:
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Part, Checkpoint):
        return _typed(kind, value, where)
    if kind is not Any and type(value) is not kind:  # not `isinstance`: True is no number
        raise CheckpointError(f"{where} is {type(value).__name__}, not {kind.__name__}")
    if kind is dict:
        return {key: _value(inner[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is list:
        return [_value(inner[0], item, where) for item in value]
    return value

"""``fedgen checkpoints``: a line for each checkpoint of a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from fedgen.errors import CheckpointError, choose, visible
from fedgen.report.tables import PlainTable
from fedgen.runs.checkpoint import MANIFEST, Checkpoint, Manifest, checkpoint_name

NAMED = 5  # classes that a line of the overview names
NUMBERS = ("node", "round", "files", "size")  # columns that are flush right


def checkpoint_folder(folder: Path) -> Path:
    """Return the folder of checkpoints that ``folder`` is, or that the run in it has.

    Raises
    ------
    CheckpointError
        There is no such folder, or no checkpoint in it.
    """
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}")
    for place in (folder, folder / "checkpoints"):
        if (place / MANIFEST).is_file():
            return place
    raise CheckpointError(
        f"{folder} holds no checkpoints of generators: neither it nor its folder 'checkpoints' has a {MANIFEST}; "
        "`fedgen run mode=train_generators` makes them in its run folder"
    )


def overview(folder: Path, names: Sequence[str] = ()) -> Table:
    """Return one line for each checkpoint (of ``names``, if given) that the manifest in ``folder`` names."""
    columns = ("node", "kind", "granularity", "round", "classes", "files", "size", "encoder", "target", "time (UTC)")
    title = f"checkpoints in {folder}"
    table = PlainTable(title=visible(title), min_width=len(title))
    table.add_column("name", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right" if column in NUMBERS else "left", overflow="fold")
    for name, checkpoint in _chosen(Manifest.read(folder), names).items():
        table.add_row(name, *_overview(checkpoint))
    return table


def _chosen(manifest: Manifest, names: Sequence[str]) -> dict[str, Checkpoint]:
    for name in names:
        choose(name, manifest.checkpoints, "checkpoint")
    found = [name for name in manifest.checkpoints if not names or name in names]
    return {name: manifest.checkpoints[name] for name in sorted(found, key=lambda name: _place(manifest, name))}


def _place(manifest: Manifest, name: str) -> tuple[str, int, int]:
    """Sort by node, its latest before those of single rounds, and round 9 before round 10."""
    checkpoint = manifest.checkpoints[name]
    latest = name == checkpoint_name(checkpoint.base_name, checkpoint.node)
    return checkpoint.base_name, checkpoint.node, -1 if latest else checkpoint.round


def _overview(checkpoint: Checkpoint) -> list[str]:
    classes = [name for served in checkpoint.classes.values() for name in served]
    more = f" and {len(classes) - NAMED} more" if len(classes) > NAMED else ""
    encoder = checkpoint.metadata.get("encoder")
    return [
        str(checkpoint.node),
        checkpoint.kind,
        checkpoint.granularity,
        str(checkpoint.round),
        ", ".join(classes[:NAMED]) + more,
        str(len(checkpoint.files)),
        _size(sum(part.bytes for part in checkpoint.files.values())),
        str(encoder.get("name", "?")) if isinstance(encoder, Mapping) else str(encoder or "?"),
        str(checkpoint.metadata.get("target", "?")),
        checkpoint.time[:16].replace("T", " "),
    ]


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"

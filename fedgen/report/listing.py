"""``fedgen checkpoints``: a line for each checkpoint of a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from fedgen.errors import CheckpointError, choose, visible
from fedgen.report.tables import PlainTable
from fedgen.runs.checkpoint import Checkpoint, checkpoint_name, checkpoints, holds_checkpoints

MAX_CLASSES = 5  # that a line names
COLUMNS = ("node", "kind", "granularity", "round", "classes", "files", "size", "encoder", "target", "time (UTC)")
NUMBERS = ("node", "round", "files", "size")  # columns that are flush right


def checkpoint_folder(folder: Path) -> Path:
    """Return ``folder``, or ``checkpoints`` of the run in it: the one that holds checkpoints.

    Raises
    ------
    CheckpointError
        There is no such folder, or no checkpoint in it.
    """
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}")
    for place in (folder, folder / "checkpoints"):
        if holds_checkpoints(place):
            return place
    raise CheckpointError(
        f"{folder} holds no checkpoints of generators, nor does its folder 'checkpoints'; "
        "`fedgen run mode=train_generators` makes them in its run folder"
    )


def overview(folder: Path, names: Sequence[str] = ()) -> Table:
    """Return one line for each checkpoint in ``folder``, or for all of the nodes ``names``, such as ``vae_node0``."""
    title = f"checkpoints in {folder}"
    table = PlainTable(title=visible(title), min_width=len(title))
    table.add_column("name", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in NUMBERS else "left", overflow="fold")
    found = [(checkpoint_name(own.base_name, own.node), path.name, own) for path, own in checkpoints(folder).items()]
    for name in names:
        choose(name, sorted({node for node, _, _ in found}), "checkpoint")
    for node, name, own in sorted(found, key=lambda row: (row[2].base_name, row[2].node, row[2].round)):
        if not names or node in names:
            table.add_row(name, *_cells(own))
    return table


def _cells(checkpoint: Checkpoint) -> list[str]:
    classes = [name for served in checkpoint.classes.values() for name in served]
    more = f" and {len(classes) - MAX_CLASSES} more" if len(classes) > MAX_CLASSES else ""
    encoder = checkpoint.metadata.get("encoder")
    size = sum(file.bytes for file in checkpoint.files.values())
    return [
        str(checkpoint.node),
        checkpoint.kind,
        checkpoint.granularity,
        str(checkpoint.round),
        ", ".join(classes[:MAX_CLASSES]) + more,
        str(len(checkpoint.files)),
        f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB",
        str(encoder.get("name", "?") if isinstance(encoder, Mapping) else encoder or "?"),
        str(checkpoint.metadata.get("target", "?")),
        checkpoint.time[:16].replace("T", " "),
    ]

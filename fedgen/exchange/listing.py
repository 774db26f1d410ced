"""Checkpoints for people: what a folder holds, everything about one of them, and whether every file is whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from safetensors import SafetensorError, safe_open

from fedgen.errors import CheckpointError, choose, visible
from fedgen.evaluation.tables import PlainTable
from fedgen.exchange.files import load_tensors
from fedgen.exchange.manifest import MANIFEST, Checkpoint, Manifest
from fedgen.exchange.names import SUFFIX, checkpoint_name
from fedgen.exchange.parts import STAGED, read_part
from fedgen.files import readable

NAMED = 5  # classes that a line of the overview names
NUMBERS = ("node", "round", "files", "size", "parameters")  # columns that are flush right


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
    table = _table(f"checkpoints in {folder}", "name", *columns)
    table.columns[0].no_wrap = True  # `show` wants it in full
    for name, checkpoint in _chosen(Manifest.read(folder), names).items():
        table.add_row(name, *_overview(checkpoint))
    return table


def details(folder: Path, names: Sequence[str] = ()) -> Iterator[Table]:
    """Yield tables of everything about each checkpoint: metadata, files, and the tensors of the files."""
    for name, checkpoint in _chosen(Manifest.read(folder), names).items():
        yield _facts(name, checkpoint)
        yield _files(checkpoint)
        yield from _tensors(folder, checkpoint)


def verification(folder: Path, names: Sequence[str] = ()) -> tuple[Table, bool]:
    """Read every file, and return a table of what is wrong with each and whether all are well.

    Without ``names``, tensor files that the manifest does not name, such as adapters, are read too; these have no
    checksum.
    """
    with readable(folder):
        manifest = Manifest.read(folder)
        found = list(_verify(folder, _chosen(manifest, names)))
        if not names:
            found += _verify_others(folder, manifest)
    problems = sum(not sound for _, sound, _ in found)
    table = _table(
        f"{len(found)} files in {folder}: {problems or 'no'} problem{'s' * (problems != 1)}", "file", "result"
    )
    for file, sound, result in found:
        table.add_row(file, result, style="" if sound else "red")
    return table, not problems


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


def _facts(name: str, checkpoint: Checkpoint) -> Table:
    table = _table(name, "", "")
    table.show_header = False
    facts = {key: value for key, value in vars(checkpoint).items() if key not in ("files", "metadata")}
    for key, value in (facts | checkpoint.metadata).items():
        table.add_row(key, _text(value))
    return table


def _files(checkpoint: Checkpoint) -> Table:
    table = _table("files", "file", "key", "classes", "parameters", "standardised by", "size", "sha256")
    for file, part in checkpoint.files.items():
        classes, statistics = ", ".join(part.classes), ", ".join(part.standardisation)
        table.add_row(file, part.key, classes, f"{part.parameters:,}", statistics, _size(part.bytes), part.sha256[:12])
    return table


def _tensors(folder: Path, checkpoint: Checkpoint) -> Iterator[Table]:
    """Yield a table of names, shapes and types for each group of files that are alike in them."""
    alike: dict[tuple[tuple[str, str, str], ...], list[str]] = {}
    for file in checkpoint.files:
        alike.setdefault(tuple(_inside(folder, file)), []).append(file)
    for tensors, files in alike.items():
        more = f" and {len(files) - 1} more files" if len(files) > 1 else ""
        table = _table(f"tensors of {files[0]}{more}", "tensor", "shape", "type")
        for row in tensors:
            table.add_row(*row)
        yield table


def _inside(folder: Path, file: str) -> Iterator[tuple[str, str, str]]:
    """Yield name, shape and type of the tensors of a file; of its header alone, as `verification` reads the rest."""
    staged = folder / (file + STAGED)
    try:
        with safe_open(staged if staged.is_file() else folder / file, framework="pt") as reader:
            for name in sorted(reader.keys()):
                tensor = reader.get_slice(name)
                yield name, _text(tensor.get_shape()) or "number", str(tensor.get_dtype())
    except (SafetensorError, OSError) as error:
        yield f"the file cannot be read: {error}", "", ""


def _verify(folder: Path, checkpoints: Mapping[str, Checkpoint]) -> Iterator[tuple[str, bool, str]]:
    """Yield name, soundness and result for each file of checkpoints."""
    for checkpoint in checkpoints.values():
        for file in checkpoint.files:
            try:
                read_part(folder, checkpoint, file)
                yield file, True, "ok"
            except CheckpointError as error:
                yield file, False, str(error).removeprefix(f"{file} ")


def _verify_others(folder: Path, manifest: Manifest) -> Iterator[tuple[str, bool, str]]:
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        if path.name not in manifest.parts():
            try:
                load_tensors(path)
                yield path.name, True, "ok; not in the manifest, so without a checksum"
            except CheckpointError as error:
                yield path.name, False, str(error).removeprefix(f"{path} ")


def _table(title: str, *columns: str) -> Table:
    table = PlainTable(title=visible(title), min_width=len(title))
    for column in columns:
        table.add_column(column, justify="right" if column in NUMBERS else "left", overflow="fold")
    return table


def _text(value: Any) -> str:
    """Return a JSON value as people write it; what is nested twice gets a line for each part."""
    if isinstance(value, Mapping):
        lines = any(isinstance(item, Mapping) for item in value.values())
        told = [f"{key}: {_text(item)}" if lines else f"{key}={_text(item)}" for key, item in value.items()]
        return ("\n" if lines else ", ").join(told) or "none"
    if isinstance(value, list):
        return " x ".join(map(str, value)) if all(type(item) is int for item in value) else ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return "default" if value is None else str(value)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"

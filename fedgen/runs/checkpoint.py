"""Checkpoints of generators: saved whole whatever dies meanwhile, loaded whole or not at all.

A checkpoint is one file for each generator, and an entry in the folder's ``manifest.json``; ``_round_{n}`` follows in
the names of those that are kept of single rounds::

    {base}_node{id}.safetensors                    granularity=unified
    {base}_node{id}_class_{class}.safetensors      granularity=per_class
    {base}_node{id}_group_{group}.safetensors      granularity=per_group

``docs/checkpoints.md`` describes the formats.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints
from urllib.parse import quote

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedgen.data.files import locked, readable, sync_folder, write_atomically, write_synced
from fedgen.data.tensors import header_of, not_tensors, parse, serialise
from fedgen.errors import CheckpointError, FedgenError, choose
from fedgen.models.generators import Generator
from fedgen.models.generators.bank import Bank, slots
from fedgen.models.generators.marginals import Marginals

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


STAGED = ".new"  # suffix of a file that the manifest may already name, not yet in its place


def stage(folder: Path, file: str, content: bytes) -> None:
    """Write ``content`` beside ``file``; it counts as soon as the manifest has its checksum."""
    write_synced(folder / (file + STAGED), content)


def tidy(folder: Path, manifest: Manifest, named: Collection[str] = ()) -> None:
    """Make the files of ``folder`` what ``manifest`` says, whatever died before: needs the folder's lock.

    Staged files that the manifest names take their places, other staged files go, and so do those it lists as removed.
    That the manifest means a staged file, and not one of an earlier save, its checksum tells; for those in ``named``,
    which the caller has just written, that is known.
    """
    parts = manifest.parts()
    for staged in list(folder.glob(f"*{SUFFIX}{STAGED}")):
        place = staged.with_name(staged.name.removesuffix(STAGED))
        part = parts.get(place.name)
        if place.name in named or (part is not None and _content(staged, part) is not None):
            os.replace(staged, place)
        else:
            staged.unlink()
    for file in manifest.removed:
        (folder / file).unlink(missing_ok=True)
    sync_folder(folder)


def read_part(folder: Path, checkpoint: Checkpoint, file: str) -> dict[str, Tensor]:
    """Return the tensors of one file of ``checkpoint``.

    Raises
    ------
    CheckpointError
        The file is missing, is not the one that was saved (and what it is instead), or holds NaN or infinite values.
    """
    part = checkpoint.files[file]
    paths = [path for path in (folder / file, folder / (file + STAGED)) if path.is_file()]
    if not paths:
        raise CheckpointError(f"{file} is missing")
    try:
        contents = [content for path in paths if (content := _content(path, part)) is not None]
        if not contents:
            raise CheckpointError(f"{file} {_fault(paths[0], part, checkpoint.header(part))}")
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    tensors, header = parse(contents[0], Path(file))
    _check(file, tensors, _differences(header, checkpoint.header(part)))
    return tensors


def digest(content: bytes) -> str:
    """Return the checksum of a file's content."""
    return hashlib.sha256(content).hexdigest()


def _check(file: str, tensors: Mapping[str, Tensor], differences: list[str]) -> None:
    if differences:
        raise CheckpointError(f"{file} is another file than the manifest says: {', '.join(differences)}")
    for name, value in tensors.items():
        if not value.sum(dtype=torch.float64).isfinite():  # one pass; no float32 is large enough to overflow it
            raise CheckpointError(f"{file} holds values that are not finite, in {name}")


def _content(path: Path, part: Part) -> bytes | None:
    """Return the content of a file if it has the size and the checksum that the manifest gives it."""
    if path.stat().st_size != part.bytes:
        return None
    content = path.read_bytes()
    return content if digest(content) == part.sha256 else None


def _fault(path: Path, part: Part, header: Mapping[str, Any]) -> str:
    """Say what is wrong with a file that has not its checksum; nothing but its header is read, nothing is unpickled."""
    size = path.stat().st_size
    told = (
        "its checksum is not the manifest's" if size == part.bytes else f"{size} bytes, the manifest says {part.bytes}"
    )
    try:
        with safe_open(path, framework="pt") as reader:
            differences = _differences(header_of(reader.metadata() or {}), header)
    except (SafetensorError, ValueError) as error:
        with path.open("rb") as file:
            return f"is damaged: {told}, {not_tensors(file.read(8), error)}"
    if differences:
        return f"is damaged or another file ({told}): {', '.join(differences)}"
    return f"is damaged: {told}"


def _differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Return how the header of a file differs from what the manifest says."""
    there, here = _flat(found), _flat(expected)
    return [
        f"{name} is {there.get(name)!r} instead of {here.get(name)!r}"
        for name in {**here, **there}
        if there.get(name) != here.get(name)
    ]


def _flat(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return a header with the entries of its metadata beside the others, so that each can be named."""
    inner = header.get("metadata")
    rest = {name: value for name, value in header.items() if name != "metadata"}
    return rest | ({f"metadata.{name}": value for name, value in inner.items()} if isinstance(inner, dict) else {})


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


CHECKS = ("strict", "warn")
WARNINGS = ("encoder", "target", "dataset", "split")  # metadata that may differ with ``check=warn``


def disagreements(
    checkpoint: Checkpoint, bank: Bank, classes: list[str], expected: Mapping[str, Any], check: str
) -> tuple[list[str], list[str]]:
    """Return what forbids to load ``checkpoint`` into ``bank``, and what is only worth a warning.

    Parameters
    ----------
    checkpoint : Checkpoint
    bank : Bank
        Bank of the run's settings.
    classes : list[str]
        Classes that it must serve.
    expected : Mapping
        Metadata that it must carry.
    check : str
        ``strict``: nothing may differ. ``warn``: encoder, target, dataset and split may, and it may serve more classes
        than needed.
    """
    choose(check, CHECKS, "checkpoint.check")
    plain = json.loads(json.dumps(dict(expected)))  # as JSON gives it back: lists for tuples
    metadata = {name: (checkpoint.metadata.get(name), value) for name, value in plain.items()}
    fatal = differ(_essentials(checkpoint, bank)) + _missing(checkpoint, bank, classes)
    fatal += differ({name: pair for name, pair in metadata.items() if name not in WARNINGS})
    mild = differ({name: pair for name, pair in metadata.items() if name in WARNINGS})
    mild += _surplus(checkpoint, bank, classes)
    return (fatal + mild, []) if check == "strict" else (fatal, mild)


def model_sizes(bank: Bank) -> dict[str, Any]:
    """Return the sizes that the settings give every generator; JSON."""
    conditions = {name: list(shape) for name, shape in bank.condition_sizes.items()}
    return {"width": bank.settings.width, "latents": bank.settings.latents, "conditions": conditions}


def sequence_lengths(bank: Bank) -> dict[str, Any]:
    """Return the lengths that the settings ask for; JSON, None being the encoder's."""
    lengths = bank.settings.lengths
    return {"training": lengths.training, "output": lengths.output, "upsampling": lengths.upsampling}


def _essentials(checkpoint: Checkpoint, bank: Bank) -> dict[str, tuple[Any, Any]]:
    """Return what must be the same, by name: the checkpoint's and the run's."""
    return {
        "kind": (checkpoint.kind, bank.settings.kind),
        "granularity": (checkpoint.granularity, bank.granularity.name),
        "size of conditions": (checkpoint.sizes.get("conditions"), model_sizes(bank)["conditions"]),
        "generator.training_length": (checkpoint.lengths.get("training"), bank.settings.training_length),
    }


def differ(pairs: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Say which pairs of the checkpoint's and the run's value are not equal."""
    return [f"{name} is {found}, this run has {here}" for name, (found, here) in pairs.items() if found != here]


def _missing(checkpoint: Checkpoint, bank: Bank, classes: list[str]) -> list[str]:
    """Say which classes no generator serves in its slot, and which ones go by another id."""
    if checkpoint.granularity != bank.granularity.name:
        return []  # other slots: told already
    problems = []
    served = checkpoint.classes
    wanted = slots(bank.granularity, classes)
    absent = {key: [name for name in names if name not in served.get(key, [])] for key, names in wanted.items()}
    if any(absent.values()):
        told = ", ".join(f"{name} (generator {key})" for key, names in absent.items() for name in names)
        problems.append(f"classes is {served}, this run has {wanted}: not served are {told}")
    for name in classes:
        found, here = checkpoint.class_ids.get(name), bank.class_names.index(name)
        if found is not None and found != here:
            problems.append(f"id of class {name} is {found}, this run has {here}: its classes are in another order")
    return problems


def _surplus(checkpoint: Checkpoint, bank: Bank, classes: list[str]) -> list[str]:
    served = checkpoint.classes
    more = [name for names in served.values() for name in names if name not in classes]
    if not more or checkpoint.granularity != bank.granularity.name:
        return []
    return [f"classes is {served}, this run has {slots(bank.granularity, classes)}: {', '.join(more)} not needed"]


log = logging.getLogger(__name__)


def load_bank(
    folder: Path,
    base_name: str,
    node: int,
    bank: Bank,
    classes: list[str],
    expected: Mapping[str, Any],
    round: int | None = None,
    check: str = "strict",
) -> dict[str, Any]:
    """Fill ``bank`` with the checkpoint of ``node``, all of it or nothing.

    Parameters
    ----------
    folder, base_name, node
        As given to `save_bank`.
    bank : Bank
        Bank of the run's settings; takes over the generators.
    classes : list[str]
        Classes of which the node has clips; the checkpoint must serve these, with the bank's granularity.
    expected : Mapping
        Metadata that the checkpoint must carry, such as ``{"encoder": identity, "target": "sd"}``.
    round : int, optional
        Which round's; the latest by default.
    check : str
        ``strict`` refuses whatever differs; ``warn`` logs what may work all the same: another encoder, target, data set
        or split (as far as ``expected`` has them), classes beyond those needed.

    Returns
    -------
    dict
        The metadata given to `save_bank`.

    Raises
    ------
    CheckpointError
        Lists every problem found: a file missing (and the command that makes it), damaged, or of another kind,
        granularity, class, size, encoder or target. The bank is then as it was before.
    """
    with readable(folder):
        checkpoint = _find(folder, base_name, node, bank, classes, round)
        problems, warnings = disagreements(checkpoint, bank, classes, expected, check)
        states = _read(folder, checkpoint, problems)
    generators, marginals = _generators(checkpoint, states, bank, problems)
    name = f"checkpoint {checkpoint_name(base_name, node, round)} in {folder}"
    if problems:
        raise CheckpointError(f"{name}: {'; '.join(problems)}")
    for warning in warnings:
        log.warning("%s: %s", name, warning)
    bank.generators, bank.marginals, bank.classes = generators, marginals, checkpoint.classes
    return checkpoint.metadata


def has_bank(folder: Path, base_name: str, node: int, round: int | None = None) -> bool:
    """Return whether the manifest of ``folder`` names a checkpoint of ``node`` (of ``round``, if given).

    Raises
    ------
    CheckpointError
        There is a manifest, but it is damaged or of another format.
    """
    return Manifest.read(folder).find(base_name, node, round) is not None


def _find(folder: Path, base_name: str, node: int, bank: Bank, classes: list[str], round: int | None) -> Checkpoint:
    manifest = Manifest.read(folder)
    found = manifest.find(base_name, node, round)
    if found is not None:
        return found
    latest = manifest.find(base_name, node)
    if latest is not None:
        rounds = ", ".join(map(str, sorted({*manifest.rounds(base_name, node), latest.round})))
        raise CheckpointError(
            f"no checkpoint {checkpoint_name(base_name, node, round)} in {folder}: checkpoint.round={round} is not one "
            f"of the rounds there are: {rounds}"
        )
    granularity = bank.granularity.name
    files = [generator_file(base_name, node, granularity, key) for key in slots(bank.granularity, classes)]
    known = ", ".join(sorted(manifest.checkpoints)) or "none"
    raise CheckpointError(
        f"no checkpoint {checkpoint_name(base_name, node)} in {folder}, which should hold {', '.join(files)} "
        f"(found: {known}); make it with "
        f"`fedgen run mode=train_generators generator={bank.settings.kind} granularity={granularity}`"
    )


def _read(folder: Path, checkpoint: Checkpoint, problems: list[str]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each file that is whole, adding to ``problems`` what is wrong with the others."""
    states = {}
    for file in checkpoint.files:
        try:
            states[file] = read_part(folder, checkpoint, file)
        except CheckpointError as error:
            problems.append(str(error))
    return states


def _generators(
    checkpoint: Checkpoint,
    states: Mapping[str, dict[str, Tensor]],
    bank: Bank,
    problems: list[str],
) -> tuple[dict[str, Generator], dict[str, Marginals]]:
    """Return new generators with the states; of another kind they cannot be told to fit."""
    generators: dict[str, Generator] = {}
    marginals: dict[str, Marginals] = {}
    if checkpoint.kind != bank.settings.kind:
        return generators, marginals
    faults = []
    for file in (file for file in checkpoint.files if file in states):
        key = checkpoint.files[file].key
        try:
            generators[key], own = bank.of_state(states[file])
        except FedgenError as error:
            faults.append(f"{file}: {error}")
            continue
        if own is not None:
            marginals[key] = own
    if faults:  # what a user can change, before the tensors that show it
        here = model_sizes(bank)
        names = ("width", "latents")
        problems += differ({f"generator.{name}": (checkpoint.sizes.get(name), here[name]) for name in names})
    problems += faults
    return generators, marginals


STATISTICS = ("mean", "deviation")  # tensors of a generator by which it standardises its inputs


def save_bank(
    folder: Path,
    base_name: str,
    node: int,
    bank: Bank,
    metadata: Mapping[str, Any],
    frequency: int = 0,
    keep_last: int | None = None,
) -> None:
    """Save every generator of ``node`` as one checkpoint, replacing the node's earlier one.

    The files are written beside the old ones, then the manifest names them, then they take their places: whenever the
    process dies, the manifest and the files it names belong together.

    Parameters
    ----------
    folder : Path
        Folder of the checkpoints; several nodes may share it, also at the same time.
    base_name : str
        First part of every file name.
    node : int
        Number of the node.
    bank : Bank
        A fitted bank.
    metadata : Mapping
        JSON values: ``round`` (finished rounds; required), ``encoder`` (identity), ``target`` (name), ``dataset``
        (identity), ``split``, ``tokens`` (shape of a clip's tokens), ``counts`` (clips by class name), ``seed``,
        ``mode``, ``metrics`` (last losses).
    frequency : int
        Every so many rounds, the checkpoint is also kept under names with ``_round_{n}``; 0: never.
    keep_last : int, optional
        How many of these stay, the last saved ones; all by default.

    Raises
    ------
    CheckpointError
        The bank is not fitted, or the files cannot be written: then the last whole checkpoint stays.
    """
    if not bank.generators:
        raise CheckpointError(f"node {node} has no fitted generators to save")
    about = _describe(base_name, node, bank, metadata)
    rounds: list[int | None] = [None, about.round] if frequency and about.round % frequency == 0 else [None]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            tidy(folder, Manifest.read(folder))  # what an earlier save that died had left to do
            named: set[str] = set()
            try:
                saved = _stage(folder, about, bank, rounds)
                _updated(Manifest.read(folder), saved, keep_last).write(folder)
                named = {file for checkpoint in saved.values() for file in checkpoint.files}
            finally:
                tidy(folder, Manifest.read(folder), named)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {checkpoint_name(base_name, node)} cannot be saved in {folder}: {error.strerror or error} "
            f"({error.filename or 'while writing'}); the last whole one stays"
        ) from error


def _describe(base_name: str, node: int, bank: Bank, metadata: Mapping[str, Any]) -> Checkpoint:
    """Return the checkpoint without its files."""
    if type(metadata.get("round")) is not int:
        raise CheckpointError(f"metadata of node {node} has no round, a whole number: {metadata.get('round')!r}")
    served = sorted(name for names in bank.classes.values() for name in names)
    return Checkpoint(
        base_name=base_name,
        node=node,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        kind=bank.settings.kind,
        granularity=bank.granularity.name,
        class_ids={name: bank.class_names.index(name) for name in served},
        sizes={"components": bank.codec.size, **model_sizes(bank)},
        lengths={"tokens": list(bank.codec.shape), **sequence_lengths(bank)},
        metadata=dict(metadata),
    )


def _stage(folder: Path, about: Checkpoint, bank: Bank, rounds: list[int | None]) -> dict[int | None, Checkpoint]:
    """Write every file beside its place, one at a time, and return the checkpoints with them, by round."""
    files: dict[int | None, dict[str, Part]] = {round: {} for round in rounds}
    for part, tensors in _parts(bank):
        content = serialise(tensors, about.header(part))
        written = replace(part, bytes=len(content), sha256=digest(content))
        for round in rounds:
            file = _part_file(about, part, round)
            stage(folder, file, content)
            files[round][file] = written
    sync_folder(folder)
    return {round: replace(about, files=files[round]) for round in rounds}


def _parts(bank: Bank) -> Iterator[tuple[Part, dict[str, Tensor]]]:
    for key in bank.generators:
        state = bank.state(key)
        statistics = [name for name in STATISTICS if name in state]
        yield Part(key, list(bank.classes[key]), _numbers(state), statistics), state


def _part_file(about: Checkpoint, part: Part, round: int | None) -> str:
    return generator_file(about.base_name, about.node, about.granularity, part.key, round)


def _numbers(state: Mapping[str, Tensor]) -> int:
    return sum(value.numel() for name, value in state.items() if not name.startswith("optimizer."))


def _updated(manifest: Manifest, saved: Mapping[int | None, Checkpoint], keep_last: int | None) -> Manifest:
    """Return the manifest with the ``saved`` checkpoints and without those of earlier rounds that are not kept."""
    checkpoints = dict(manifest.checkpoints)
    for round, checkpoint in saved.items():
        name = checkpoint_name(checkpoint.base_name, checkpoint.node, round)
        checkpoints.pop(name, None)  # so that it becomes the last
        checkpoints[name] = checkpoint
    if keep_last is not None:
        newest = saved[None]
        for name in list(Manifest(checkpoints).rounds(newest.base_name, newest.node).values())[:-keep_last]:
            del checkpoints[name]
    return Manifest(checkpoints, sorted(set(manifest.parts()) - set(Manifest(checkpoints).parts())))

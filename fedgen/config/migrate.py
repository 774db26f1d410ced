"""Translate a configuration of FedA2V: every entry is set, decided upon with others, or listed with a reason."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path, PurePath
from typing import Any

from fedgen.config.compose import choices, known_keys, load_config, nested_yaml, quoted
from fedgen.config.migrate_table import LENGTH, NULLS, TABLE, Remark
from fedgen.config.phases import MODES, Generators, Mode
from fedgen.config.settings import Config
from fedgen.errors import ConfigError, require, suggestion, visible

MAPPINGS = ("generator_class_groups", "class_labels", "class_remapping")  # their values are mappings, not sections
FOLDS = 5  # of ESC-50; the predecessor counted them from 0
BARE = re.compile(r"(?!(?:true|false|null|nan|inf)$)[A-Za-z_./][\w./-]*", re.ASCII | re.IGNORECASE)

DEMANDS: dict[tuple[str, Any], Callable[[Mode], bool]] = {  # of an old value on the mode
    ("generator_training_mode", True): lambda mode: mode.generators is Generators.TRAIN,
    ("generator_only_mode", True): lambda mode: not mode.trains_adapters,
    ("train_adapters", False): lambda mode: not mode.trains_adapters,
    ("use_pretrained_generators", True): lambda mode: mode.generators is Generators.LOAD,
    ("global_model_train", True): lambda mode: mode.synthesizes,
    ("adapter_aggregation_mode", "none"): lambda mode: not (mode.federated and mode.trains_adapters),
    ("adapter_aggregation_mode", "avg"): lambda mode: mode.federated,
    ("adapter_aggregation_mode", "kd"): lambda mode: mode.synthesizes,
}
# The first that meets every demand is taken.
PREFERENCE = ["federate", "train_generators", "standalone", "generators_only", "combined", "generate"]
DECISIVE = {  # the keys that decide most about a run, and where their values stand
    **{key: f"{key}.name" for key in ("data", "target", "encoder")},
    "generator": "generator.kind",
    **{key: key for key in ("rounds", "adapter.training.epochs", "generator.training.epochs")},
    **{key: key for key in ("synthesis.samples_per_class", "seed")},
}


@dataclass(frozen=True)
class Entry:
    """A key of the old file and its value."""

    path: str  # the key with the sections around it, such as feda2v.generator_type
    name: str  # the key as the table has it; empty if it is unknown
    value: Any  # as JSON gives it
    node: int | None = None  # the node whose entry it is; None: it holds for all
    new: Any = None  # the value as fedgen takes it

    def __str__(self) -> str:
        return f"{self.path}={json.dumps(self.value, ensure_ascii=False)}"


Told = list[tuple[Entry | str, str]]


@dataclass
class Translation:
    """What became of an old file."""

    # Entries that set something, of single nodes and (None) of all, by the table's key.
    read: dict[int | None, dict[str, list[Entry]]] = field(default_factory=lambda: {None: {}})
    settings: dict[str, Any] = field(default_factory=dict)  # values by new key
    sources: dict[str, list[Entry]] = field(default_factory=dict)  # the entries that each setting comes from
    changed: Told = field(default_factory=list)  # entries whose meaning changed, and how
    dropped: Told = field(default_factory=list)  # entries that set nothing here, and why
    unknown: Told = field(default_factory=list)  # entries of keys that no version had, with the nearest one
    problems: list[str] = field(default_factory=list)  # values that cannot be translated, with the old and the new key
    config: Config = field(default_factory=Config)  # the composition of the settings without the problems

    def given(self, *names: str, node: int | None = None) -> list[Entry]:
        """Return the entries of the old keys ``names`` that set something, for all nodes or for one."""
        return [entry for name in names for entry in self.read.get(node, {}).get(name, [])]

    def get(self, name: str, node: int | None = None) -> Any:
        """Return the value of the old key ``name`` as fedgen takes it, for all nodes or for one; None if unset."""
        return next((entry.new for entry in self.given(name, node=node)), None)

    def set(self, key: str, value: Any, *sources: Entry, unless: bool = False) -> None:
        """Set a new key; a second value is a problem. If ``unless``, the entries are dropped with the table's note."""
        if unless:
            self.dropped += [(entry, TABLE[entry.name].note) for entry in sources]
            return
        known, entries = self.settings.setdefault(key, value), self.sources.setdefault(key, [])
        if known == value:
            entries += [entry for entry in sources if entry not in entries]
        else:
            both = f"{joined(entries)} and {joined(sources)}"
            self.problems.append(f"{both} contradict each other: {key}={known} or {key}={value}?")

    def finished(self, origin: str) -> dict[str, Any]:
        """Return the new values by key; raise `ConfigError` with the first of the problems if there are any."""
        first, more = next(iter(self.problems), ""), len(self.problems) - 1
        also = f" ({more} more of this kind: see above)" if more > 0 else ""
        require(not self.problems, f"{origin} cannot be translated: {first}{also}")
        return self.settings


def translate(path: Path) -> Translation:
    """Translate an old configuration and compose the result; settings that are refused are in ``problems``."""
    result = gather(read_old(path))
    kept = dict(result.settings)
    while True:
        try:
            result.config = load_config(overrides(kept))
            return result
        except ConfigError as error:
            named = [key for key in kept if re.sub(r"nodes\.\d+", "nodes.*", key) in str(error)]
            if not named:
                result.problems.append(str(error))
                return result
            guilty = max(named, key=len)
            wanted = overrides({guilty: kept.pop(guilty)})[0]
            result.problems.append(f"{joined(result.sources[guilty])} would be {wanted}: {error}")


def read_old(path: Path) -> list[Entry]:
    """Return every entry of the file.

    Raises
    ------
    ConfigError
        The file cannot be read, is not JSON (line and column are named), has a key twice in one place, or holds
        something else than keys and values.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    require(isinstance(values, dict), f"{path} holds no keys: a configuration is {{...}}")
    return list(_entries(values, "", None, str(path)))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"key {', '.join(map(repr, twice))} stands twice in one place: only one value can be meant")
    return dict(pairs)


def _entries(values: Mapping[str, Any], prefix: str, node: int | None, file: str) -> Iterator[Entry]:
    """Yield the entries of a section, which may have any name; of nodes their number, then the entries of each."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        if key in ("nodes", "nodes_tasks") and isinstance(value, dict | list):
            nodes = _nodes(value, path, file)
            yield Entry(path, "nodes", len(nodes))
            for number, own in nodes.items():
                yield from _entries(own, f"{path}.{number}.", number, file)
        elif isinstance(value, dict) and key not in MAPPINGS:
            yield from _entries(value, f"{path}.", node, file)
        else:
            yield Entry(path, table_name(path), value, node)


def _nodes(nodes: Mapping[str, Any] | list[Any], path: str, file: str) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for key, own in nodes.items() if isinstance(nodes, Mapping) else enumerate(nodes):
        number = re.fullmatch(r"(?:node[_ ]?)?(\d+)", str(key), re.IGNORECASE)
        if not number or not isinstance(own, dict):
            raise ConfigError(f"{file}: {path}.{key} is no node: nodes are numbers with keys of their own")
        found[int(number.group(1))] = own
    numbers, numbered = ", ".join(map(str, sorted(found))), sorted(found) == list(range(len(nodes)))
    require(numbered, f"{file}: {path} has the nodes {numbers}; nodes are numbered 0, 1, 2 ... here")
    return found


def table_name(path: str) -> str:
    """Return the key of the table that ``path`` is: the key in its section, its whole section, or the key anywhere."""
    *sections, key = path.split(".")
    section = sections[-1] if sections else ""
    known = (f"{section}.{key}", f"{section}.*", key, "_*" if key.startswith("_") else "")
    return next((name for name in known if name in TABLE), "")


def gather(entries: list[Entry]) -> Translation:
    """Return the translation of the entries of an old file, not composed yet."""
    result = Translation()
    for entry in entries:
        _take(entry, result)
    for decide in DECISIONS:
        decide(result)
    taken = [entry for own in result.read.values() for alike in own.values() for entry in alike]
    for entry in taken:
        _set_alone(entry, result)
    told = [*result.changed, *result.dropped, *((entry, "") for known in result.sources.values() for entry in known)]
    listed = " ".join([*(str(entry) for entry, _ in told), *result.problems])
    result.dropped += [(entry, "nothing follows from it") for entry in taken if str(entry) not in listed]
    return result


def _take(entry: Entry, result: Translation) -> None:
    """Read the value of an entry and file it under its name."""
    if not entry.name:
        nearest = suggestion(entry.path.split(".")[-1], TABLE).strip() or "No key like it is known."
        result.unknown.append((entry, nearest))
        return
    row, value = TABLE[entry.name], entry.value
    try:
        if not row.new:
            value = Remark(changed=False)
        elif value is None:
            value = NULLS.get(entry.name, Remark("null is as good as no key", changed=False))
        else:
            value = row.read(value)
    except ValueError as error:
        result.problems.append(f"{entry} {error} ({row.new})")
        return
    if isinstance(value, Remark):
        (result.changed if value.changed else result.dropped).append((entry, value.text or row.note))
        return
    alike = result.read.setdefault(entry.node if row.node else None, {}).setdefault(entry.name, [])
    if alike and alike[0].new != value:
        result.problems.append(f"{alike[0]} and {entry} contradict each other ({row.new})")
    else:
        alike.append(replace(entry, new=value))


def _set_alone(entry: Entry, result: Translation) -> None:
    """Set an entry that needs no other to be decided."""
    row = TABLE[entry.name]
    if row.joint:
        return
    for counting in result.given(row.unless)[:1]:
        result.dropped.append((entry, f"{counting.path} counts"))
        return
    result.set(row.new if entry.node is None or not row.node else f"nodes.{entry.node}.{row.node}", entry.new, entry)
    if row.note and entry.new is not False:
        result.changed.append((entry, row.note))


def decide_mode(result: Translation) -> None:
    """Take the row of the mode table that meets every demand; demands that no row meets are a problem."""
    asked = [(result.given(name)[0], DEMANDS[name, value]) for name, value in DEMANDS if result.get(name) == value]
    frozen = result.get("generator_only_mode") or result.get("train_adapters") is False
    fitting = [MODES[name] for name in PREFERENCE if frozen or MODES[name].trains_adapters]
    modes = [mode for mode in fitting if all(demand(mode) for _, demand in asked)]
    if not modes:
        result.problems.append(f"{joined(entry for entry, _ in asked)} contradict each other: no mode does all")
        return
    mode, loads = modes[0], result.given("use_pretrained_generators")
    flags = result.given("generator_training_mode", "generator_only_mode", "train_adapters")
    result.set("mode", mode.name, *flags, *loads, *result.given("adapter_aggregation_mode", "global_model_train"))
    if mode.name == "combined":
        text = "the server learns from synthetic samples alone, so nodes train generators and send samples at once"
        result.changed += [(entry, text) for entry in result.given("global_model_train")]
    result.changed += [(entry, TABLE[entry.name].note) for entry in loads[:1] if entry.new]
    if mode.federated and mode.trains_adapters and result.get("adapter_aggregation_mode") is None:
        text = "adapters of nodes were averaged only where it said so; here they are, unless mode=standalone"
        result.changed.append(("no adapter_aggregation_mode", text))


def decide_aggregation(result: Translation) -> None:
    """Find the strategy, and what the server trains the global adapters on."""
    how, trains = result.given("adapter_aggregation_mode"), result.given("global_model_train")
    teachers = result.given("global_model_train_from_nodes_adapters")
    counts = any(entry.new for entry in trains) and any(entry.new for entry in teachers)
    if how and how[0].new == "avg":
        result.set("strategy", "fedavg", *how)
    if distils := [entry for entry in how if entry.new == "kd"] + teachers * counts:
        result.set("global_training", "distil", *distils)
    elif trains and MODES[result.settings.get("mode", "federate")].synthesizes:
        result.set("global_training", "supervised" if trains[0].new else "none", *trains)
    result.dropped += [(entry, TABLE[entry.name].note) for entry in teachers if not counts]


def decide_generator(result: Translation) -> None:
    """Find the kind of generator from its type and whether it is conditioned."""
    entries = result.given("generator_type", "use_conditioned_vae")
    kind, conditioned = result.get("generator_type") or "vae", result.get("use_conditioned_vae")
    if kind == "vae" and conditioned:
        kind = "conditioned_vae"
    elif conditioned not in (None, kind in ("conditioned_vae", "multimodal_vae")):
        result.problems.append(f"{joined(entries)} contradict each other (generator)")
        return
    if entries:
        result.set("generator", kind, *entries)
    if entries and kind == "conditioned_vae" and result.get("generator_granularity") in ("per_class", "per_group"):
        text = "here the same for every granularity; the predecessor took what is generator=multimodal_vae here"
        result.changed.append((entries[-1], text))


def decide_training(result: Translation) -> None:
    """Find the noise on inputs, the length of samples, and whether nodes share generators."""
    noise, switch = result.given("generator_augmentation_noise"), result.given("generator_augmentation")
    if switch and not switch[0].new:
        result.set("generator.training.noise", 0.0, *switch)
        result.dropped += [(entry, f"{switch[0]} turns it off") for entry in noise]
    elif noise:
        result.set("generator.training.noise", noise[0].new, *noise, *switch)
        result.changed.append((noise[0], TABLE[noise[0].name].note))
    else:
        result.changed += [(entry, "generator.training.noise says how much, 0 by default") for entry in switch]
    lengths = result.given("generator_training_sequence_length", "generator_target_sequence_length")
    if not result.given("generator_output_sequence_length"):
        result.changed += [(entry, LENGTH) for entry in lengths[:1]]
    for entry in result.given("shared_generator_in_only_mode"):
        result.set("sharing", entry.new, entry, unless=result.settings.get("mode") != "generators_only")
    for entry in result.given("reset_generator_on_class_change"):
        unshared = result.settings.get("sharing") != "shared"
        result.set("sharing.reset_on_class_change", entry.new, entry, unless=unshared)


def decide_files(result: Translation) -> None:
    """Split the old path of generator files; find the data set and, where no node lists its classes, its partition."""
    for entry in result.given("generator_checkpoint_path"):
        path = PurePath(entry.new)
        result.set("checkpoint.dir", str(path.parent), entry)
        result.set("checkpoint.base_name", path.stem, entry)
    for entry in result.given("esc50_path"):
        result.set("data", "esc50", entry)
        result.set("data.root", entry.new, entry)
    if not result.given("dataset", "dataset.name", "esc50_path"):
        text = "add data=esc50 or data=folder: the default, data=sounds, reads no files"
        result.changed += [(entry, text) for entry in result.given("dataset.path", "dataset_path")]
    for entry in result.given("dataset.partition"):
        result.set("partition", entry.new, entry, unless=bool(_listing(result)))


def decide_fold(result: Translation) -> None:
    """Find the one fold that is held out; folds count from 1 here."""
    tests, trains = result.given("test_folds", "test_fold"), result.given("train_folds")
    held_out = {fold for entry in tests for fold in entry.new}
    known = held_out.union(*(entry.new for entry in trains))
    first = int(FOLDS in known)  # a file that names fold 5 counts from 1 already
    every = set(range(first, first + FOLDS))
    if not known <= every:
        result.problems.append(f"{joined([*tests, *trains])} names folds that there are not (data.test_fold)")
        return
    if len(held_out) > 1:
        result.problems.append(f"{joined(tests)}: exactly one fold is held out here (data.test_fold)")
        return
    for fold in held_out:
        result.set("data.test_fold", fold + 1 - first, *tests)
        if not first:
            result.changed.append((tests[0], f"folds count from 1 here, so {fold} is {fold + 1}"))
    for entry in trains:
        as_here = held_out and set(entry.new) == every - held_out
        (result.dropped if as_here else result.changed).append((entry, TABLE[entry.name].note))


def decide_classes(result: Translation) -> None:
    """Find the classes of the run and of each node; only these are scored."""
    listing, excluded, wanted = _listing(result), result.given("excluded_classes"), _classes(result, None)
    if wanted:
        result.set("data.classes", wanted, *result.given("selected_classes"), *excluded)
    elif excluded and not listing:
        result.problems.append(f"{joined(excluded)}: list the classes that remain, as selected_classes (data.classes)")
    if listing:
        assignment = [_classes(result, node) for node in range(result.get("nodes") or 0)]
        sources = [*listing, *excluded]
        if missing := ", ".join(str(node) for node, classes in enumerate(assignment) if not classes):
            text = "list the classes of every node, as selected_classes (partition.assignment)"
            result.problems.append(f"{joined(sources)} leave nodes {missing} without classes: {text}")
            return
        result.set("partition", "explicit", *sources)
        result.set("partition.assignment", assignment, *sources)
        if not wanted:
            result.set("data.classes", list(dict.fromkeys(name for names in assignment for name in names)), *sources)


def decide_groups(result: Translation) -> None:
    """Give a node that names one group a group of that name with all of its classes."""
    for node in result.read:
        granularity = result.get("generator_granularity", node) or result.get("generator_granularity")
        classes = [] if node is None else _classes(result, node)
        for entry in result.given("generator_class_group", node=node):
            unused = node is None or granularity != "per_group"
            if classes or unused:
                result.set(f"nodes.{node}.groups", {entry.new: classes}, entry, unless=unused)
            else:
                result.problems.append(f"{entry}: selected_classes must say what is in it (nodes.{node}.groups)")


DECISIONS = (decide_mode, decide_aggregation, decide_generator, decide_training, decide_files, decide_fold,
             decide_classes, decide_groups)  # fmt: skip


def _listing(result: Translation) -> list[Entry]:
    """Return the entries of nodes that list classes, included or excluded."""
    names = ("selected_classes", "excluded_classes")
    return [entry for node in result.read if node is not None for entry in result.given(*names, node=node)]


def _classes(result: Translation, node: int | None) -> list[str]:
    """Return the classes that a node lists and does not exclude, or (None) that are listed for all."""
    excludes = result.given("excluded_classes", node=node)
    without = result.get("excluded_classes", node if excludes else None) or []
    return [name for name in result.get("selected_classes", node) or [] if name not in without]


def joined(entries: Iterable[Entry]) -> str:
    """Return the entries as text."""
    return ", ".join(map(str, entries))


def overrides(settings: Mapping[str, Any]) -> list[str]:
    """Return ``settings`` as overrides: groups first, then keys, both in the configuration's own order."""
    return [f"{key}={written(settings[key])}" for key in ordered(settings)]


def command(texts: Sequence[str]) -> str:
    """Return the command line that runs with these overrides, quoted for a shell."""
    return shlex.join(["fedgen", "run", *texts])


def experiment(settings: Mapping[str, Any], name: str, origin: str) -> str:
    """Return the text of an experiment file ``name.yaml`` with the ``settings`` from a file ``origin``."""
    groups = choices()
    lines = ["# @package _global_", f"# fedgen run experiment={name}", f"# Translated from {origin}.", "defaults:"]
    lines += [f"  - override /{key}: {settings[key]}" for key in ordered(settings) if key in groups]
    keys = {key: settings[key] for key in ordered(settings) if key not in groups}
    return "\n".join([*lines, "", nested_yaml(keys) if keys else ""]).rstrip() + "\n"


def ordered(settings: Mapping[str, Any]) -> list[str]:
    """Return the keys: groups before keys within them, both in the configuration's own order."""
    order, groups = known_keys(), choices()

    def place(key: str) -> tuple[bool, int, str]:
        return key not in groups, order.index(key if key in order else key.split(".")[0]), key

    return sorted(settings, key=place)


def written(value: Any) -> str:
    """Return a JSON value in the grammar of Hydra's overrides, quoted where it has to be."""
    if isinstance(value, Mapping):
        keys = {key: re.sub(r"([\\()\[\]{}:=,\t])", r"\\\1", key) for key in value}  # which take no quotes
        return "{" + ", ".join(f"{keys[key]}: {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    if not isinstance(value, str):
        return json.dumps(value)
    return value if BARE.fullmatch(value) else quoted(value)


def report(result: Translation) -> None:
    """Print on standard error what became of each key, in sections; none is left out."""
    open_keys = [key for key in DECISIVE if key not in result.settings]
    sources = [joined(result.sources[key]) or "nothing in the file" for key in ordered(result.settings)]
    sections: dict[str, Iterable[tuple[Entry | str, str]]] = {
        "Translated": zip(overrides(result.settings), (f"from {text}" for text in sources), strict=True),
        "Changed in meaning": result.changed,
        "Without effect here": result.dropped,
        "Unknown, left out": result.unknown,
        "Not in the file, so the default of fedgen holds": [
            (f"{key}={attrgetter(DECISIVE[key])(result.config)}", "") for key in open_keys
        ],
        "Cannot be translated": [(problem, "") for problem in result.problems],
    }
    for title, rows in sections.items():
        lines = [f"  {entry}: {text}" if text else f"  {entry}" for entry, text in rows]
        if lines:
            print(visible("\n".join([title, *lines, ""])), file=sys.stderr)

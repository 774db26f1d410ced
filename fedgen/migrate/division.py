"""What old keys decide together about data: where it lies, which fold is held out, and which node has which classes."""

from __future__ import annotations

from typing import Any

from fedgen.migrate.result import Translation, joined
from fedgen.migrate.table import TABLE

FOLDS = 5  # of ESC-50; the predecessor counted them from 0


def decide_data(result: Translation) -> None:
    """Find the data set and, where no node lists its classes, how it is dealt."""
    for entry in result.given("esc50_path"):
        result.set("data", "esc50", entry)
        result.set("data.root", result.get(entry.name), entry)
    for entry in result.given("dataset.path", "dataset_path"):
        if not result.given("dataset", "dataset.name", "esc50_path"):
            result.changed.append((entry, "add data=esc50 or data=folder: the default, data=sounds, reads no files"))
    for entry in result.given("dataset.partition"):
        if _listing(result):
            result.dropped.append((entry, "the classes that nodes list count"))
        else:
            result.set("partition", result.get(entry.name), entry)


def decide_fold(result: Translation) -> None:
    """Find the one fold that is held out; folds count from 1 here."""
    tests, trains = result.given("test_folds", "test_fold"), result.given("train_folds")
    known = {fold for entry in [*tests, *trains] for fold in result.values[entry.path]}
    first = 0 if FOLDS not in known else 1  # a file that names fold 5 counts from 1 already
    if not known <= set(range(first, first + FOLDS)):
        result.problems.append(f"{joined([*tests, *trains])} names folds that there are not (data.test_fold)")
        return
    held_out = {fold for entry in tests for fold in result.values[entry.path]}
    if len(held_out) > 1:
        result.problems.append(f"{joined(tests)}: exactly one fold is held out here (data.test_fold)")
        return
    for fold in held_out:
        result.set("data.test_fold", fold + 1 - first, *tests)
        if not first:
            result.changed.append((tests[0], f"folds count from 1 here, so {fold} is {fold + 1}"))
    others = set(range(first, first + FOLDS)) - held_out
    for entry in trains:
        if set(result.values[entry.path]) != others or not held_out:
            result.changed.append((entry, TABLE[entry.name].note))
        else:
            result.dropped.append((entry, TABLE[entry.name].note))


def decide_classes(result: Translation) -> None:
    """Find the classes of the run and of each node; only these are scored."""
    excluded = result.given("excluded_classes")
    without = result.get("excluded_classes") or []
    wanted = [name for name in result.get("selected_classes") or [] if name not in without]
    if excluded and not wanted and not _listing(result):
        result.problems.append(f"{joined(excluded)}: list the classes that remain, as selected_classes (data.classes)")
    if wanted:
        result.set("data.classes", wanted, *result.given("selected_classes"), *excluded)
    if not _listing(result):
        return
    nodes = result.get("nodes") or 0
    assignment = [_classes(result, node) for node in range(nodes)]
    names = ("selected_classes", "excluded_classes")
    lists = [entry for own in result.of_nodes.values() for name in names for entry in own.get(name, [])]
    sources = [*lists, *excluded]
    missing = [str(node) for node, classes in enumerate(assignment) if not classes]
    if missing:
        text = "list the classes of every node, as selected_classes (partition.assignment)"
        result.problems.append(f"{joined(sources)} leave nodes {', '.join(missing)} without classes: {text}")
        return
    result.set("partition", "explicit", *sources)
    result.set("partition.assignment", assignment, *sources)
    if not wanted:
        result.set("data.classes", list(dict.fromkeys(name for classes in assignment for name in classes)), *sources)


def decide_groups(result: Translation) -> None:
    """Give a node that names one group a group of that name with all of its classes."""
    for entry in result.given("generator_class_group"):
        result.dropped.append((entry, TABLE[entry.name].note))
    for node, own in result.of_nodes.items():
        granularity = _own(result, node).get("generator_granularity", result.get("generator_granularity"))
        classes = _classes(result, node)
        for entry in own.get("generator_class_group", []):
            if granularity != "per_group":
                result.dropped.append((entry, TABLE[entry.name].note))
            elif classes:
                result.set(f"nodes.{node}.groups", {result.values[entry.path]: classes}, entry)
            else:
                result.problems.append(f"{entry}: selected_classes must say what is in it (nodes.{node}.groups)")


def _listing(result: Translation) -> bool:
    """Say whether some node lists its classes, or those that it does without."""
    return any({"selected_classes", "excluded_classes"} & set(own) for own in result.of_nodes.values())


def _classes(result: Translation, node: int) -> list[str]:
    """Return the classes that a node lists and does not exclude."""
    own = _own(result, node)
    without = own.get("excluded_classes", result.get("excluded_classes") or [])
    return [name for name in own.get("selected_classes", []) if name not in without]


def _own(result: Translation, node: int) -> dict[str, Any]:
    """Return the new values of a node's own entries, by the table's key."""
    return {name: result.values[alike[0].path] for name, alike in result.of_nodes.get(node, {}).items()}


DIVISIONS = [decide_data, decide_fold, decide_classes, decide_groups]

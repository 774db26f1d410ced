"""All measures put together."""

import json
from collections.abc import Callable

from fedgen.evaluation.quality import AdapterTask, quality
from fedgen.evaluation.tables import quality_table
from fedgen.settings import Config
from fedgen.task import Task


def test_real_clips_as_samples(task: Task, tiny: Callable[..., Config]) -> None:
    """What is handed out is the training set itself: as useful and as like as can be, and a leak."""
    train, held_out = task.tokens(task.store.train_indices(3)), task.test_tokens()
    adapters = AdapterTask(task.targets.heads, task.adapters, tiny().adapter.training)
    found = quality(train, held_out, train, task.classes, adapters, ("pooled", "segments", "adapter"))
    assert json.loads(json.dumps(found)) == found
    for probe in found["utility"].values():
        assert probe["tstr"] == probe["trtr"]
        assert set(probe["per_class"]) == set(task.classes)
    assert found["fidelity"]["synthetic"] == found["fidelity"]["real"]
    assert found["privacy"]["near_copies"] == 1
    assert set(found["privacy"]["per_class"]) == set(task.classes)
    table = quality_table({"samples": len(train), **found})
    assert "near copies" in list(table.columns[0].cells)


def test_a_library_user_needs_no_adapters(task: Task) -> None:
    train, held_out = task.tokens(task.store.train_indices(3)), task.test_tokens()
    assert set(quality(train, held_out, train, task.classes)["utility"]) == {"pooled", "segments"}

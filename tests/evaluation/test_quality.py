"""Utility and fidelity put together."""

import json
from collections.abc import Callable

import pytest

from fedgen.config.settings import Config
from fedgen.evaluation.features import read_records
from fedgen.evaluation.quality import AdapterTask, Site, fidelity_report, segments_of, utility_report
from fedgen.report.tables import quality_table
from fedgen.task import Task


@pytest.mark.parametrize("probes", [("pooled", "segments", "adapter"), ("pooled",)])
def test_real_clips_as_samples(task: Task, tiny: Callable[..., Config], probes: tuple[str, ...]) -> None:
    """What is handed out is the training set itself: as useful and as like as can be."""
    clips = task.store.train_indices(3), task.test_indices, task.train_indices
    sources = train, _, _ = [task.tokens(indices) for indices in clips]
    site = Site(*(read_records(source, segments_of(*sources)) for source in sources))
    summaries = [task.summaries(indices) for indices in clips]
    adapters = AdapterTask(task.targets.heads, task.adapters, tiny().adapter.training)
    found = utility_report(site, task.classes, probes, summaries, adapters, 0)
    found |= {"fidelity": fidelity_report(site, task.classes, 0)}
    assert json.loads(json.dumps(found)) == found
    assert list(found["utility"]) == list(probes)
    for probe in found["utility"].values():
        assert probe["tstr"] == probe["trtr"]
        assert set(probe["per_class"]) == set(task.classes)
    assert found["fidelity"]["synthetic"] == found["fidelity"]["real"]
    assert set(found["fidelity"]["per_class"]) == set(task.classes)
    table = quality_table({"samples": len(train), **found})
    assert "frechet" in [str(cell) for cell in table.columns[0].cells]

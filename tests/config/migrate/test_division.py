"""Nodes of an old configuration: their classes, and what single ones do otherwise."""

from collections.abc import Callable
from typing import Any

import pytest

from fedgen.config.migrate import Translation, overrides
from fedgen.config.migrate_table import TABLE
from fedgen.errors import ConfigError

Migrate = Callable[..., Translation]


def said(result: Translation) -> set[str]:
    return set(overrides(result.finished("old.json")))


def test_classes_of_nodes(gathered: Migrate) -> None:
    nodes = {"0": {"selected_classes": ["dog", "rain"]}, "1": {"selected_classes": ["rain", "sea waves"]}}
    assert said(gathered(nodes=nodes)) == {
        "mode=federate",
        "partition=explicit",
        "partition.nodes=2",
        'partition.assignment=[[dog, rain], [rain, "sea waves"]]',
        'data.classes=[dog, rain, "sea waves"]',
    }


def test_nodes_as_a_list(gathered: Migrate) -> None:
    nodes = {"0": {"selected_classes": ["dog"]}, "1": {"selected_classes": ["cow"]}}
    as_mapping = said(gathered(nodes=nodes))
    assert said(gathered(nodes=list(nodes.values()))) == as_mapping
    assert said(gathered(nodes_tasks=nodes)) == as_mapping


def test_classes_that_a_node_excludes(gathered: Migrate) -> None:
    nodes = [{"selected_classes": ["dog", "cow"], "excluded_classes": ["cow"]}, {"selected_classes": ["hen"]}]
    assert gathered(nodes=nodes).settings.get("partition.assignment") == [["dog"], ["hen"]]
    nodes[0].pop("excluded_classes")
    assert gathered(nodes=nodes, excluded_classes=["dog"]).settings.get("partition.assignment") == [["cow"], ["hen"]]


@pytest.mark.parametrize("own", [{}, {"excluded_classes": ["dog"]}])
def test_every_node_has_to_list_classes_if_one_does(own: dict[str, Any], gathered: Migrate) -> None:
    (problem,) = gathered(nodes=[{"selected_classes": ["dog"]}, own]).problems
    assert 'nodes.0.selected_classes=["dog"]' in problem
    assert "leave nodes 1 without classes" in problem
    assert "(partition.assignment)" in problem


def test_what_nodes_list_counts_more_than_how_the_data_was_to_be_dealt(gathered: Migrate) -> None:
    result = gathered({"dataset": {"partition": "dir"}}, nodes=[{"selected_classes": ["dog"]}])
    assert result.settings.get("partition") == "explicit"
    assert [str(entry) for entry, _ in result.dropped] == ['dataset.partition="dir"']


def test_what_a_node_does_otherwise(migrated: Migrate) -> None:
    own = {
        "selected_classes": ["dog", "cow"],
        "generator_granularity": "per_group",
        "generator_class_group": "animals",
        "generator_train_classes": ["dog"],
        "synthetic_samples_per_class": 16,
    }
    result = migrated(nodes=[own], synthetic_samples_per_class=8)
    (node,) = result.config.nodes.values()
    assert node.granularity == "per_group"
    assert node.groups == {"animals": ["dog", "cow"]}
    assert node.classes == ["dog"]
    assert node.samples_per_class == "16"
    assert result.config.synthesis.samples_per_class == "8"


def test_groups_of_a_node(gathered: Migrate) -> None:
    assert gathered(nodes=[{"generator_class_groups": {"wild": ["crow"]}}]).settings.get("nodes.0.groups") == {
        "wild": ["crow"]
    }
    result = gathered(nodes=[{"selected_classes": ["dog"], "generator_class_group": "animals"}])
    assert [(str(entry), text) for entry, text in result.dropped] == [
        ('nodes.0.generator_class_group="animals"', TABLE["generator_class_group"].note)
    ]
    assert "(nodes.0.groups)" in gathered(
        generator_granularity="per_group", nodes=[{"generator_class_group": "animals"}]
    ).problems[0]  # fmt: skip


def test_what_nodes_agree_on_holds_for_all(gathered: Migrate) -> None:
    same = {"dataset": "ESC50", "diffusion_type": "flux", "test_folds": [3]}
    assert {"data=esc50", "target=flux", "data.test_fold=4"} <= said(gathered(nodes=[same, same]))
    (problem,) = gathered(nodes=[same, {"diffusion_type": "sd"}]).problems
    assert 'nodes.0.diffusion_type="flux" and nodes.1.diffusion_type="sd" contradict' in problem


@pytest.mark.parametrize("nodes", [{"1": {}}, {"0-4": {}}, {"0": {}, "2": {}}, {"0": "dog"}], ids=str)
def test_nodes_are_numbered(nodes: dict[str, Any], gathered: Migrate) -> None:
    with pytest.raises(ConfigError, match=r"old\.json: nodes"):
        gathered(nodes=nodes)

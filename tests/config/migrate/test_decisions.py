"""What several old keys say together, and what they contradict each other in."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from fedgen.config.migrate import Translation
from fedgen.errors import ConfigError

Migrate = Callable[..., Translation]

TRAIN, ONLY = "generator_training_mode", "generator_only_mode"
LOAD, POOL = "use_pretrained_generators", "global_model_train"
MODES: list[tuple[dict[str, Any], str]] = [
    ({}, "federate"),
    ({"adapter_aggregation_mode": "avg"}, "federate"),
    ({"adapter_aggregation_mode": "none"}, "standalone"),
    ({TRAIN: True}, "train_generators"),
    ({ONLY: True}, "generators_only"),
    ({TRAIN: True, ONLY: True}, "generators_only"),
    ({ONLY: True, "adapter_aggregation_mode": "none"}, "generators_only"),
    ({"train_adapters": False}, "generators_only"),
    ({LOAD: True}, "generate"),
    ({LOAD: True, POOL: True}, "generate"),
    ({LOAD: True, POOL: False}, "generate"),
    ({TRAIN: True, POOL: True}, "combined"),
    ({POOL: True}, "combined"),
]


def names(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict) else ""


@pytest.mark.parametrize(("old", "mode"), MODES, ids=names)
def test_the_mode_follows_from_the_mode_table(old: dict[str, Any], mode: str, gathered: Migrate) -> None:
    assert gathered(old).settings.get("mode") == mode


@pytest.mark.parametrize(("old", "mode"), MODES, ids=names)
def test_what_is_switched_off_asks_for_nothing(old: dict[str, Any], mode: str, gathered: Migrate) -> None:
    off = {key: False for key in (TRAIN, ONLY, LOAD) if key not in old}
    assert gathered({**old, **off}).settings.get("mode") == mode


@pytest.mark.parametrize(
    "old",
    [
        {TRAIN: True, LOAD: True},
        {ONLY: True, LOAD: True},
        {ONLY: True, POOL: True},
        {ONLY: True, "adapter_aggregation_mode": "kd"},
        {"adapter_aggregation_mode": "none", TRAIN: True},
        {"adapter_aggregation_mode": "none", LOAD: True},
        {"adapter_aggregation_mode": "none", POOL: True},
        {"train_adapters": False, LOAD: True},
        {"generator_type": "gan", "use_conditioned_vae": True},
        {"generator_type": "conditioned_vae", "use_conditioned_vae": False},
        {"rounds": 3, "num_rounds": 4},
        {"generator_training_sequence_length": 4, "generator_target_sequence_length": 8},
        {"global_model_train_epochs": 3, "kd_training_epochs": 4},
        {"adapter_aggregation_mode": "avg", "algorithm": "FedProx"},
        {"generator_checkpoint_dir": "a", "generator_checkpoint_path": "b/c.pt"},
        {"dataset": "folder", "esc50_path": "x"},
        {"num_clients": 3, "nodes": {"0": {}, "1": {}}},
    ],
    ids=" ".join,
)
def test_contradictions_name_both_keys(old: dict[str, Any], gathered: Migrate) -> None:
    (problem,) = gathered(old).problems
    assert "contradict each other" in problem
    assert all(key in problem for key in old)


def test_keys_beside_a_contradiction_are_listed(gathered: Migrate) -> None:
    result = gathered({TRAIN: True, LOAD: True, "train_adapters": True})
    assert [str(entry) for entry, _ in result.dropped] == ["train_adapters=true"]


def test_one_key_in_several_places(gathered: Migrate) -> None:
    assert gathered(federation={"rounds": 3}, rounds="3").settings.get("rounds") == 3
    with pytest.raises(ConfigError, match=r"federation\.rounds=3 and rounds=4 contradict each other"):
        gathered(federation={"rounds": 3}, rounds=4).finished("old.json")
    with pytest.raises(ConfigError, match=r"a\.rounds=3 and a\.rounds=4 contradict each other"):
        gathered({"a": {"rounds": 3}, "a.rounds": 4}).finished("old.json")


@pytest.mark.parametrize(
    ("old", "words"),
    [
        ({"generator_type": "diffusion"}, ["generator_type", "multimodal_vae", "(generator)"]),
        ({"generator_type": "vea"}, ["Did you mean 'vae'"]),
        ({"diffusion_type": "cogx"}, ["diffusion_type", "sd, flux", "(target)"]),
        ({"dataset": "VEGAS"}, ["VEGAS", "esc50", "folder", "(data)"]),
        ({"generator_only_mode": "perhaps"}, ["generator_only_mode", "neither true nor false", "(mode)"]),
        ({"rounds": 2.5}, ["rounds=2.5 is not a whole number (rounds)"]),
        ({"rounds": "many"}, ["is not a number"]),
        ({"rounds": "inf"}, ["is not a number"]),
        ({"rounds": float("nan")}, ["is not a number"]),
        ({"rounds": True}, ["is not a number"]),
        ({"selected_classes": [0, 1]}, ["classes go by name"]),
        ({"selected_classes": "dog"}, ["is not a list of class names"]),
        ({"generator_class_groups": {"a": []}}, ["generator_class_groups", "does not map names of groups to classes"]),
        ({"excluded_classes": ["dog"]}, ["excluded_classes", "selected_classes", "(data.classes)"]),
        ({"test_folds": [3, 4]}, ["test_folds=[3, 4]", "exactly one", "(data.test_fold)"]),
        ({"test_folds": [9]}, ["test_folds=[9]", "(data.test_fold)"]),
        ({"test_folds": [0], "train_folds": [1, 2, 3, 5]}, ["test_folds=[0]", "(data.test_fold)"]),
        ({"device": "cuda:1"}, ["CUDA_VISIBLE_DEVICES=1"]),
        ({"dataset_path": "${seed}"}, ["holds ${"]),
        ({"algorithm": "FedGFE"}, ["FedGFE", "fedavg"]),
    ],
    ids=names,
)
def test_values_that_have_no_counterpart(old: dict[str, Any], words: list[str], gathered: Migrate) -> None:
    with pytest.raises(ConfigError) as raised:
        gathered(old).finished("old.json")
    assert all(word in str(raised.value) for word in words)


def test_values_that_fedgen_refuses(migrated: Migrate) -> None:
    result = migrated(
        rounds=0,
        feda2v={"generator_training_epochs": 0, "generator_checkpoint_base_name": "a/b"},
        generator_class_groups={"a": ["dog"], "b": ["dog"]},
        nodes=[{"synthetic_samples_per_class": 0}],
        seed=3,
    )
    assert sorted(result.problems) == [
        'feda2v.generator_checkpoint_base_name="a/b" would be checkpoint.base_name=a/b: '
        "checkpoint.base_name='a/b' must be a name, not a path",
        "feda2v.generator_training_epochs=0 would be generator.training.epochs=0: "
        "generator.training.epochs=0 must be at least 1",
        'generator_class_groups={"a": ["dog"], "b": ["dog"]} would be granularity.groups={a: [dog], b: [dog]}: '
        "granularity.groups names dog more than once",
        "nodes.0.synthetic_samples_per_class=0 would be nodes.0.samples_per_class=0: "
        "nodes.*.samples_per_class='0' must be a positive whole number or auto",
        "rounds=0 would be rounds=0: rounds=0 of mode=federate must be at least 1",
    ]
    assert result.config.seed == 3


def test_the_result_composes(migrated: Migrate) -> None:
    config = migrated(
        generator_type="vae",
        generator_granularity="per_group",
        generator_class_groups={"all of them": ["dog", "cow"]},
        generator_only_mode=True,
        shared_generator_in_only_mode=True,
        synthetic_samples_per_class=16,
        generator_target_sequence_length=4,
        diffusion_type="flux",
        num_rounds=7,
    ).config
    assert (config.mode, config.rounds, config.sharing.name) == ("generators_only", 7, "shared")
    assert (config.generator.kind, config.generator.training_length) == ("vae", 4)
    assert (config.granularity.name, config.granularity.groups) == ("per_group", {"all of them": ["dog", "cow"]})
    assert (config.target.name, config.synthesis.samples_per_class) == ("flux", "16")

"""What each old key becomes, and that none of them is dropped without a word."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from fedgen.config.compose import choices, known_keys
from fedgen.config.migrate import Translation, overrides, report
from fedgen.config.migrate_table import TABLE, Key

Migrate = Callable[..., Translation]

ROWS: list[tuple[dict[str, Any], set[str]]] = [
    ({"generator_type": "vae"}, {"generator=vae"}),
    ({"generator_type": "GAN"}, {"generator=gan"}),
    ({"generator_type": "multimodal_vae"}, {"generator=multimodal_vae"}),
    ({"generator_type": "gaussian"}, {"generator=gaussian"}),
    ({"generator_type": "vae", "use_conditioned_vae": False}, {"generator=vae"}),
    ({"generator_type": "vae", "use_conditioned_vae": True}, {"generator=conditioned_vae"}),
    ({"use_conditioned_vae": True}, {"generator=conditioned_vae"}),
    ({"generator_granularity": "per_class"}, {"granularity=per_class"}),
    (
        {"generator_granularity": "per_group", "generator_class_groups": {"a b": ["dog"], "c": ["cow", "hen"]}},
        {"granularity=per_group", "granularity.groups={a b: [dog], c: [cow, hen]}"},
    ),
    ({"generator_training_mode": True}, {"mode=train_generators"}),
    ({"generator_only_mode": True}, {"mode=generators_only"}),
    ({"use_pretrained_generators": True}, {"mode=generate"}),
    ({"generator_training_epochs": 7}, {"generator.training.epochs=7"}),
    ({"generator_augmentation_noise": 0.1}, {"generator.training.noise=0.1"}),
    ({"generator_augmentation": False, "generator_augmentation_noise": 0.1}, {"generator.training.noise=0.0"}),
    ({"generator_training_sequence_length": 4}, {"generator.training_length=4"}),
    ({"generator_target_sequence_length": 4}, {"generator.training_length=4"}),
    ({"generator_output_sequence_length": 1214}, {"generator.output_length=1214"}),
    ({"use_learned_upsampling": True}, {"generator.upsampling=learned"}),
    ({"generator_checkpoint_dir": "a/b"}, {"checkpoint.dir=a/b"}),
    ({"generator_checkpoint_base_name": "mine"}, {"checkpoint.base_name=mine"}),
    ({"generator_checkpoint_frequency": 5}, {"checkpoint.frequency=5"}),
    ({"generator_save_checkpoint": False}, {"checkpoint.save=false"}),
    ({"generator_checkpoint_path": "a/b/mine.pt"}, {"checkpoint.dir=a/b", "checkpoint.base_name=mine"}),
    ({"synthetic_samples_per_class": 32}, {"synthesis.samples_per_class=32"}),
    ({"synthetic_samples_per_class": "auto"}, {"synthesis.samples_per_class=auto"}),
    ({"synthetic_samples_per_class": None}, {"synthesis.samples_per_class=auto"}),
    ({"generator_only_mode": True, "shared_generator_in_only_mode": True}, {"sharing=shared"}),
    ({"generator_only_mode": True, "shared_generator_in_only_mode": False}, {"sharing=local"}),
    (
        {"generator_only_mode": 1, "shared_generator_in_only_mode": 1, "reset_generator_on_class_change": 1},
        {"sharing=shared", "sharing.reset_on_class_change=true"},
    ),
    ({"use_pretrained_generators": True, "global_model_train": True}, {"global_training=supervised"}),
    ({"use_pretrained_generators": True, "global_model_train": False}, {"global_training=none"}),
    ({"global_model_train": True, "global_model_train_from_nodes_adapters": True}, {"global_training=distil"}),
    ({"global_model_train_epochs": 3}, {"global_training.epochs=3"}),
    ({"adapter_aggregation_mode": "none"}, {"mode=standalone"}),
    ({"adapter_aggregation_mode": "avg"}, {"mode=federate", "strategy=fedavg"}),
    ({"adapter_aggregation_mode": "kd"}, {"global_training=distil"}),
    ({"diffusion_type": "flux"}, {"target=flux"}),
    ({"diffusion_type": "sd"}, {"target=sd"}),
    ({"optimize_memory_usage": True}, {"memory=low"}),
    ({"rounds": 3}, {"rounds=3"}),
    ({"num_rounds": 3}, {"rounds=3"}),
    ({"global_rounds": 3}, {"rounds=3"}),
    ({"local_epochs": 2}, {"adapter.training.epochs=2"}),
    ({"num_clients": 5}, {"partition.nodes=5"}),
    ({"algorithm": "FedProx"}, {"strategy=fedprox"}),
    ({"learning_rate": 1e-05}, {"adapter.training.lr=1e-05"}),
    ({"adapters_learning_rate": 0.01, "learning_rate": 0.5}, {"adapter.training.lr=0.01"}),
    ({"weight_decay": 0.1}, {"adapter.training.weight_decay=0.1"}),
    ({"batch_size": 8}, {"adapter.training.batch_size=8"}),
    ({"generator_learning_rate": 0.1}, {"generator.training.lr=0.1"}),
    ({"generator_batch_size": 8}, {"generator.training.batch_size=8"}),
    ({"seed": 3}, {"seed=3"}),
    ({"device": "cuda:0"}, {"device=cuda"}),
    ({"dataset": "ESC-50", "dataset_path": "my data/x"}, {"data=esc50", 'data.root="my data/x"'}),
    ({"esc50_path": "/data/x"}, {"data=esc50", "data.root=/data/x"}),
    ({"dataset.name": "ESC50", "dataset.path": "x"}, {"data=esc50", "data.root=x"}),
    ({"dataset.partition": "dir", "dataset.dir_alpha": 0.3}, {"partition=dirichlet", "partition.alpha=0.3"}),
    ({"selected_classes": ["dog", "cow"]}, {"data.classes=[dog, cow]"}),
    ({"selected_classes": ["dog", "cow"], "excluded_classes": ["dog"]}, {"data.classes=[cow]"}),
    ({"test_folds": [4], "train_folds": [0, 1, 2, 3]}, {"data.test_fold=5"}),
    ({"test_fold": 0}, {"data.test_fold=1"}),
    ({"test_folds": [5]}, {"data.test_fold=5"}),
    ({"test_folds": [2], "train_folds": [1, 3, 4, 5]}, {"data.test_fold=2"}),
]


def names(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict) else ""


def said(result: Translation) -> set[str]:
    return set(overrides(result.finished("old.json")))


@pytest.mark.parametrize(("old", "new"), ROWS, ids=names)
def test_what_a_key_becomes(old: dict[str, Any], new: set[str], gathered: Migrate) -> None:
    assert new <= said(gathered(old))


@pytest.mark.parametrize("old", [old for old, _ in ROWS], ids=names)
def test_keys_may_stand_in_any_section(old: dict[str, Any], gathered: Migrate) -> None:
    assert said(gathered({"feda2v": old})) == said(gathered(old))


def test_a_nested_file_says_what_a_flat_one_does(gathered: Migrate) -> None:
    flat = {"seed": 3, "num_rounds": 5, "generator_type": "vae", "dataset": "ESC50", "dataset_path": "x"}
    nested = {
        "experiment": {"seed": 3},
        "federation": {"global_rounds": 5},
        "feda2v": {"generator_type": "vae"},
        "dataset": {"name": "ESC50", "path": "x"},
    }
    assert said(gathered(nested)) == said(gathered(flat))


@pytest.mark.parametrize("true", [True, "true", "True", 1, "1"])
@pytest.mark.parametrize("false", [False, "false", 0, "0"])
def test_true_and_false_in_any_spelling(true: object, false: object, gathered: Migrate) -> None:
    result = gathered(generator_only_mode=true, use_pretrained_generators=false, generator_save_checkpoint=false)
    assert said(result) == {"mode=generators_only", "checkpoint.save=false"}


@pytest.mark.parametrize("five", [5, "5", 5.0])
def test_numbers_in_any_spelling(five: object, gathered: Migrate) -> None:
    assert "rounds=5" in said(gathered(rounds=five))


@pytest.mark.parametrize(
    ("old", "words"),
    [
        ({"generator_load_checkpoint": True}, "checkpoint.load=RUN"),
        ({"use_pretrained_generators": True}, "checkpoint.load=RUN"),
        ({"generator_target_sequence_length": 4}, "an old name of generator_training_sequence_length"),
        ({"generator_training_sequence_length": 4}, "samples had the training length"),
        ({"generator_output_sequence_length": None}, "samples had the training length"),
        ({"generator_augmentation_noise": 0.1}, "standardised"),
        ({"generator_augmentation": True}, "0 by default"),
        ({"test_folds": [4]}, "folds count from 1 here, so 4 is 5"),
        ({"test_folds": [4], "train_folds": [0, 1]}, "all folds but data.test_fold train"),
        ({"use_folds": False}, "split by folds alone"),
        ({"seed": -1}, "always seeded"),
        ({"optimize_memory_usage": False}, "memory=auto"),
        ({"global_model_train": True}, "the server learns from synthetic samples alone"),
        ({"use_conditioned_vae": True, "generator_granularity": "per_class"}, "generator=multimodal_vae"),
        ({"dataset_path": "x"}, "data=sounds, reads no files"),
        ({}, "unless mode=standalone"),
    ],
    ids=names,
)
def test_changes_of_meaning_are_listed(old: dict[str, Any], words: str, gathered: Migrate) -> None:
    assert any(words in text for _, text in gathered(old).changed)


@pytest.mark.parametrize(
    ("old", "words"),
    [
        ({"global_model_train_from_generator": True}, "trained on nodes"),
        ({"clip_adapter_learning_rate": 0.1}, "adapter.training.lr"),
        ({"shared_generator_in_only_mode": True}, "generator_only_mode"),
        ({"reset_generator_on_class_change": True}, "sharing=shared"),
        ({"global_model_train_from_nodes_adapters": True}, "global_model_train=true"),
        ({"learning_rate": 1, "adapters_learning_rate": 2}, "adapters_learning_rate counts"),
        ({"algorithm": "FedA2V"}, "what fedgen does"),
        ({"wandb": {"disabled": True}}, "run folder"),
        ({"rewind": {"epochs": 3}}, "grew from"),
        ({"_comment": "mine"}, "a comment"),
        ({"rounds": None}, "as good as no key"),
        ({"selected_classes": []}, "as good as no key"),
    ],
    ids=names,
)
def test_keys_without_effect_are_listed(old: dict[str, Any], words: str, gathered: Migrate) -> None:
    assert any(words in text for _, text in gathered(old).dropped)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("generator_trainning_epochs", "Did you mean 'generator_training_epochs'?"),
        ("feda2v.generator_typ", "Did you mean 'generator_type'?"),
        ("xyzzy", "No key like it is known."),
    ],
)
def test_unknown_keys_come_with_the_nearest(key: str, nearest: str, gathered: Migrate) -> None:
    result = gathered({key: 1})
    assert [(str(entry), text) for entry, text in result.unknown] == [(f"{key}=1", nearest)]
    assert said(result) == {"mode=federate"}


def some_value(key: Key) -> Any:
    """Return a value that the key takes."""
    words = ["vae", "sd", "none", "esc50", "per_class", "fedavg", "cpu", "iid", "word"]
    for value in [True, 2, *words, ["dog"], [3], {"a": ["dog"]}]:
        try:
            key.read(value)
        except ValueError:
            continue
        return value
    raise AssertionError(f"no value for {key}")


@pytest.mark.parametrize("around", [lambda old: old, lambda old: {"nodes": [old]}], ids=["all nodes", "one node"])
@pytest.mark.parametrize(("name", "key"), TABLE.items(), ids=list(TABLE))
def test_no_key_vanishes(
    name: str, key: Key, around: Callable[..., Any], capsys: pytest.CaptureFixture[str], gathered: Migrate
) -> None:
    place = name.replace("*", "x")
    report(gathered(around({place: some_value(key)})))
    assert place in capsys.readouterr().err


def test_every_new_key_exists() -> None:
    for key in TABLE.values():
        for new in filter(None, key.new.split(", ")):
            assert new.replace(".N.", ".0.") in [*known_keys(), *choices()]
        assert not key.node or f"nodes.0.{key.node}" in known_keys()

"""What is printed: any text gets through the shell, Hydra and YAML as it is."""

import shlex
from pathlib import Path
from typing import Any

from fedgen.config.compose import load_config
from fedgen.config.migrate import command, experiment, overrides
from fedgen.config.settings import Config

WORDS = [
    "it's", 'say "x"', "a b", "a,b", "C:\\x\\", 'a\\"b', "null", "True", "1", "1e5", "{a: b}", "[x]", "$HOME", "é",
    "#1", "-x", "a=b", "on", "*", "a: b", "~",
]  # fmt: skip
SETTINGS: dict[str, Any] = {
    "rounds": 3,
    "mode": "generators_only",
    "sharing": "shared",
    "sharing.reset_on_class_change": True,
    "adapter.training.lr": 1e-05,
    "data.classes": WORDS,
    "granularity": "per_group",
    "granularity.groups": {
        name: [name] for name in ("a b", "a,b", "C:\\x", "{a: b}", "[x]", "$HOME", "-x", "a=b", "on")
    },
    "nodes.0.granularity": "per_class",
    "partition": "explicit",
    "partition.assignment": [WORDS, ["dog"]],
    "partition.nodes": 2,
}


def check(config: Config) -> None:
    """Hold a configuration against the settings."""
    assert (config.rounds, config.mode, config.adapter.training.lr) == (3, "generators_only", 1e-05)
    assert (config.sharing.name, config.sharing.reset_on_class_change) == ("shared", True)
    assert config.data.classes == WORDS
    assert config.granularity.groups == SETTINGS["granularity.groups"]
    assert config.partition.assignment == [WORDS, ["dog"]]
    assert config.nodes["0"].granularity == "per_class"


def test_the_command_composes() -> None:
    fedgen, run, *texts = shlex.split(command(overrides(SETTINGS)))
    assert (fedgen, run) == ("fedgen", "run")
    check(load_config(texts))


def test_the_experiment_composes_to_the_same(tmp_path: Path) -> None:
    file = tmp_path / "experiment" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(experiment(SETTINGS, "mine", "old.json"), encoding="utf-8")
    check(load_config([f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"]))


def test_groups_come_first_and_plain_words_have_no_quotes() -> None:
    settings = {"seed": 1, "data.root": "a/b", "generator": "vae", "checkpoint.save": False, "checkpoint.dir": "a b"}
    assert command(overrides(settings)) == (
        "fedgen run generator=vae data.root=a/b checkpoint.save=false 'checkpoint.dir=\"a b\"' seed=1"
    )


def test_how_an_experiment_looks() -> None:
    settings = {"mode": "generate", "generator.training.lr": 0.1, "seed": 1, "granularity.groups": {"a b": ["dog"]}}
    assert experiment(settings, "mine", "old.json").splitlines() == [
        "# @package _global_",
        "# fedgen run experiment=mine",
        "# Translated from old.json.",
        "defaults:",
        "  - override /mode: generate",
        "",
        "generator:",
        "  training:",
        "    lr: 0.1",
        "granularity:",
        "  groups:",
        "    a b:",
        "    - dog",
        "seed: 1",
    ]

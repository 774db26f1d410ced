"""What is printed: any text gets through the shell and Hydra as it is."""

import shlex
from typing import Any

from fedgen.config.compose import load_config
from fedgen.config.migrate import command, overrides
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


def test_groups_come_first_and_plain_words_have_no_quotes() -> None:
    settings = {"seed": 1, "data.root": "a/b", "generator": "vae", "checkpoint.save": False, "checkpoint.dir": "a b"}
    assert command(overrides(settings)) == (
        "fedgen run generator=vae data.root=a/b checkpoint.save=false 'checkpoint.dir=\"a b\"' seed=1"
    )

"""Every configuration file composes, and whatever is wrong is named with its key and the nearest known name."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fedgen.config.compose import choices, config_dir, from_dictconfig, from_yaml, known_keys, load_config, to_yaml
from fedgen.config.phases import MODES, PhaseSettings
from fedgen.config.settings import Config
from fedgen.errors import ConfigError
from fedgen.models.settings import GRANULARITIES
from fedgen.server.aggregation import STRATEGY_CLASSES

FILES = sorted(path.relative_to(config_dir()) for path in config_dir().glob("*/*.yaml"))
NEEDED = {"privacy=dp": ["privacy.epsilon=8", "privacy.delta=0.001"]}  # without a default, on purpose


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_composes(file: Path) -> None:
    group, choice = file.parent.name, file.stem
    config = load_config([f"{group}={choice}", *NEEDED.get(f"{group}={choice}", [])])
    if group == "mode":
        assert config.mode == choice
    elif group not in ("experiment", "adapter"):
        section = getattr(config, group)
        assert getattr(section, "kind", getattr(section, "name", None)) == choice


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_shows_a_command_with_its_name(file: Path) -> None:
    first = next(line for line in (config_dir() / file).read_text().splitlines() if not line.startswith("# @package"))
    assert first.startswith("# fedgen ")


def test_the_files_hold_the_defaults_of_the_code() -> None:
    composed, coded = load_config([]), Config()
    assert dataclasses.asdict(dataclasses.replace(composed, mode=coded.mode, rounds=coded.rounds)) == (
        dataclasses.asdict(coded)
    )


def test_there_is_a_file_for_each_choice() -> None:
    assert sorted(choices()["mode"]) == sorted(MODES)
    assert sorted(choices()["strategy"]) == sorted(STRATEGY_CLASSES)
    assert sorted(choices()["granularity"]) == sorted(GRANULARITIES)


def test_yaml_there_and_back(tiny: Callable[..., Config]) -> None:
    phases = "phases=[{mode: train_generators, rounds: 2}, {mode: generate}]"
    config = tiny(phases, "granularity.groups={a: [dog], b: [cow]}", "strategy.options.x=0.5", "checkpoint.load=a b")
    assert config.phase_list == [PhaseSettings("train_generators", 2), PhaseSettings("generate", 1)]
    assert config.granularity.groups == {"a": ["dog"], "b": ["cow"]}
    assert from_yaml(to_yaml(config)) == config


def test_mode_and_rounds_make_a_phase() -> None:
    assert load_config(["mode=federate", "rounds=3"]).phase_list == [PhaseSettings("federate", 3)]


def test_numbers_may_stand_where_text_is_meant() -> None:
    assert load_config(["synthesis.samples_per_class=16"]).synthesis.samples_per_class == "16"
    assert load_config(["synthesis.samples_per_class=auto"]).synthesis.samples_per_class == "auto"


def test_all_nodes_are_needed_unless_told_otherwise() -> None:
    assert load_config(["partition.nodes=5"]).min_nodes == 5
    assert load_config(["strategy.min_nodes=2"]).min_nodes == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sed=1", r"unknown configuration key 'sed'.*Did you mean 'seed'"),
        ("+sed=1", r"unknown configuration key 'sed'.*Did you mean 'seed'"),
        ("partition.node=2", r"unknown configuration key 'partition\.node'.*Did you mean 'partition\.nodes'"),
        ("+partition.node=2", r"unknown configuration key 'partition\.node'.*Did you mean 'partition\.nodes'"),
        ("generator.training.epoch=2", r"'generator\.training\.epoch'.*Did you mean 'generator\.training\.epochs'"),
        ("granularity=per_clas", r"granularity='per_clas' is not one of .*per_group.*Did you mean 'per_class'"),
        ("generator=vea", r"generator='vea' is not one of .*Did you mean 'vae'"),
        ("mode=one-shot", r"mode='one-shot' is not one of .*Did you mean 'one_shot'"),
        ("data=sound", r"data='sound' is not one of .*Did you mean 'sounds'"),
        ("strategy=fedavgg", r"strategy='fedavgg' is not one of .*Did you mean 'fedavg'"),
        ("strategy=median", r"strategy='median' is not one of .*Did you mean 'fedmedian'"),
        ("strategy=trimmed_mean", r"strategy='trimmed_mean' is not one of .*Did you mean 'fedtrimmedavg'"),
        ("experiment=esc", r"experiment='esc' is not one of .*esc10"),
        ("strtegy=fedavg", r"unknown configuration key 'strtegy'.*Did you mean 'strategy'"),
        ("seed=abc", r"seed.*abc"),
        ("synthesis.samples_per_class='²'", r"synthesis\.samples_per_class='²'"),
        ("granularity.groups={a: [dog], b: [dog]}", r"granularity\.groups names dog more than once"),
        ("granularity.group={a: [dog]}", r"'granularity\.group'.*Did you mean 'granularity\.groups'"),
        ("seed=[1", r"cannot read the override 'seed=\[1'"),
    ],
)
def test_bad_overrides(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        load_config([override])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("strategy.name=fedavgg", r"strategy\.name='fedavgg' is not one of .*Did you mean 'fedavg'"),
        ("granularity.name=per_clas", r"granularity='per_clas' is not one of .*Did you mean 'per_class'"),
        ("target.name=fluxx", r"target='fluxx' is not one of .*Did you mean 'flux'"),
        ("phases=[{mode: generat}]", r"mode='generat' is not one of .*Did you mean 'generate'"),
        ("seed=-1", r"seed=-1"),
        ("rounds=0", r"rounds=0"),
        ("device=gpu", r"device='gpu' is not one of auto, cpu, cuda"),
        ("threads=0", r"threads=0"),
        ("encoder.stride=0", r"encoder\.stride=0"),
        ("partition.nodes=0", r"partition\.nodes=0"),
        ("strategy.min_nodes=4", r"strategy\.min_nodes=4 is more than partition\.nodes=3"),
        ("strategy.min_nodes=0", r"strategy\.min_nodes=0"),
        ("strategy.timeout=0", r"strategy\.timeout=0"),
        ("strategy.wait=-1", r"strategy\.wait=-1"),
        ("synthesis.samples_per_class=0", r"synthesis\.samples_per_class='0'"),
        ("synthesis.samples_per_class=lots", r"synthesis\.samples_per_class='lots'.*or auto"),
        ("synthesis.max_samples=0", r"synthesis\.max_samples=0"),
        ("adapter.training.lr=0", r"adapter\.training\.lr=0"),
        ("global_training.epochs=0", r"global_training\.epochs=0"),
    ],
)
def test_bad_values(override: str, words: str) -> None:
    values = OmegaConf.merge(OmegaConf.create(to_yaml(Config())), OmegaConf.from_dotlist([override]))
    with pytest.raises(ConfigError, match=words):
        from_dictconfig(values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("overrides", "groups", "options"),
    [
        (["granularity.groups={a: [dog, cow], b: [rain]}"], {"a": ["dog", "cow"], "b": ["rain"]}, {}),
        (["granularity.groups.a=[dog]"], {"a": ["dog"]}, {}),
        (["strategy.options.eta=0.5"], {}, {"eta": 0.5}),
        (["strategy=fedadam", "strategy.options={tau: 0.1, eta: 1.0}"], {}, {"tau": 0.1, "eta": 1.0}),
    ],
)
def test_mappings_take_any_key(overrides: list[str], groups: dict[str, list[str]], options: dict[str, float]) -> None:
    config = load_config(overrides)
    assert (config.granularity.groups, config.strategy.options) == (groups, options)


def test_known_keys_are_those_of_the_files() -> None:
    composed = OmegaConf.create(to_yaml(load_config(["nodes.0.granularity=unified"])))
    assert {key for key in known_keys() if OmegaConf.select(composed, key, default="absent") == "absent"} == set()
    assert {"seed", "data.root", "codec.channels", "adapter.training.lr"} <= set(known_keys())


def test_reading_yaml_checks_it_too() -> None:
    with pytest.raises(ConfigError, match=r"unknown configuration key 'sed'.*Did you mean 'seed'"):
        from_yaml(to_yaml(Config()) + "sed: 1\n")
    with pytest.raises(ConfigError, match="rounds=0"):
        from_yaml(to_yaml(Config()).replace("rounds: 1", "rounds: 0"))

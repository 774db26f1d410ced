"""The mode table and lists of phases."""

import pytest

from fedgen.config.phases import MODES, PhaseSettings, plan
from fedgen.config.settings import Config
from fedgen.errors import ConfigError

#                    trains adapters, generators, sends samples, is a federation
TABLE = {
    "federate": (True, "none", False, True),
    "train_generators": (True, "train", False, True),
    "generators_only": (False, "train", False, True),
    "generate": (True, "load", True, True),
    "combined": (True, "train", True, True),
    "one_shot": (True, "train", True, True),
    "analytic": (False, "none", False, True),
    "standalone": (True, "none", False, False),
    "centralised": (True, "none", False, False),
}


def test_the_mode_table() -> None:
    found = {m.name: (m.trains_adapters, m.generators.value, m.synthesizes, m.federated) for m in MODES.values()}
    assert found == TABLE
    assert [mode.name for mode in MODES.values()] == list(MODES)
    assert [mode.name for mode in MODES.values() if mode.sums] == ["analytic"]


def test_one_shot_is_one_round_and_says_what_it_was() -> None:
    assert PhaseSettings("one_shot").rounds == 1
    with pytest.raises(
        ConfigError, match=r"mode=one_shot is one round: rounds=10 is mode=combined, once called one_shot"
    ):
        PhaseSettings("one_shot", 10)


def test_rounds_are_counted_over_the_run() -> None:
    phases = plan([PhaseSettings("train_generators", 2), PhaseSettings("generate", 3)], finished=4)
    assert [(phase.mode.name, phase.offset, phase.rounds, phase.last) for phase in phases] == [
        ("train_generators", 4, 2, 6),
        ("generate", 6, 3, 9),
    ]


@pytest.mark.parametrize("reference", ["standalone", "centralised"])
def test_a_reference_stands_alone(reference: str) -> None:
    assert len(plan(Config(phases=[PhaseSettings(reference, 2)]).phase_list)) == 1
    with pytest.raises(ConfigError, match=f"mode={reference} is a reference"):
        Config(phases=[PhaseSettings("federate"), PhaseSettings(reference)])


def test_unknown_modes_and_no_rounds() -> None:
    with pytest.raises(ConfigError, match=r"mode='oneshot' is not one of .*Did you mean 'one_shot'"):
        PhaseSettings("oneshot")
    with pytest.raises(ConfigError, match="rounds=0 of mode=federate"):
        PhaseSettings("federate", 0)

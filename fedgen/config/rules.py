"""The rules between settings of several sections, each with the message for a configuration that breaks it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedgen.config.phases import MODES, Generators, Mode
from fedgen.config.strategy import FEWEST, MODULUS, SUMS

if TYPE_CHECKING:
    from fedgen.config.settings import Config

Rules = Iterator[tuple[bool, str]]  # whether a rule holds, and the message if it does not


def rules(config: Config) -> Rules:
    """Yield the rules; later ones may rely on earlier ones."""
    modes = [MODES[phase.mode] for phase in config.phase_list]
    yield from _phases(config, modes)
    yield from _privacy(config)
    yield from _strategy(config, modes)
    yield from _secure(config, modes)


def _phases(config: Config, modes: list[Mode]) -> Rules:
    nodes, remote = config.partition.nodes, config.data.on_nodes
    reference = next((f"mode={mode.name}" for mode in modes if not mode.federated), "")
    yield not reference or len(modes) == 1, f"{reference} is a reference: it cannot be one of several phases"
    yield not (remote and reference), f"{reference} needs everyone's clips: not data=nodes"
    yield (
        not (config.privacy.used and reference),
        f"privacy=dp means nothing with {reference}: nothing leaves a node there",
    )
    yield (
        not any(mode.sums for mode in modes) or config.strategy.secure.used or config.privacy.used,
        "mode=analytic needs strategy.secure.name=secagg or privacy=dp: a node's own sums tell each of its clips",
    )
    for number in config.nodes:
        good = number.isdecimal() and int(number) < nodes
        yield good, f"nodes.{number} is no node: partition.nodes={nodes}, they are 0 to {nodes - 1}"


def _privacy(config: Config) -> Rules:
    if not config.privacy.used:
        return
    kind, sharing = config.generator.kind, config.sharing.name
    yield kind == "gaussian", f"privacy=dp needs generator=gaussian: generator.kind={kind} is trained on clips"
    yield sharing == "local", f"privacy=dp needs sharing=local: sharing={sharing} sends sums over clips"
    yield (
        not config.data.on_nodes or config.data.store is not None,
        "privacy=dp with data=nodes needs data.store, clips that the server tests on: scores of the nodes' own "
        "held-out clips are not covered by epsilon",
    )


def _strategy(config: Config, modes: list[Mode]) -> Rules:
    chosen, nodes, teaching = config.strategy, config.partition.nodes, config.global_training.name
    least, asked = chosen.min_nodes, chosen.nodes_per_round
    yield asked is None or (least or 1) <= asked, f"strategy.min_nodes={least} is more than {asked} a round"
    for name, number in (("min_nodes", least), ("nodes_per_round", asked)):
        yield number is None or number <= nodes, f"strategy.{name}={number} is more than partition.nodes={nodes}"
    yield (
        asked in (None, nodes) or not {Generators.TRAIN, Generators.LOAD} <= {mode.generators for mode in modes},
        f"strategy.nodes_per_round={asked}: nodes that are not asked while generators are trained have none in the "
        "phase that only uses them: train them in a run of its own, with every node",
    )
    if chosen.send == "samples":
        idle = next((mode.name for mode in modes if not mode.synthesizes), None)
        yield idle is None, f"strategy.send=samples: mode={idle} sends none; use combined, one_shot or generate"
        good = teaching == "supervised"
        yield good, f"strategy.send=samples needs global_training=supervised: with {teaching} nothing is learnt"


def _secure(config: Config, modes: list[Mode]) -> Rules:
    secure, strategy = config.strategy.secure, config.strategy
    if not secure.used:
        return
    chosen, nodes = f"strategy.secure.name={secure.name}", strategy.nodes_per_round or config.partition.nodes
    yield _sends_adapters(config, modes), f"{chosen} means nothing here: no adapters leave a node"
    yield nodes >= FEWEST, f"{chosen} needs at least {FEWEST} nodes, got partition.nodes={nodes}"
    need = secure.threshold or nodes // 2 + 1
    yield (
        nodes // 2 < need <= nodes,
        f"strategy.secure.threshold={need} must be above half of {nodes} nodes, and not above them",
    )
    least = config.min_nodes
    yield least >= need, f"strategy.min_nodes={least} is below strategy.secure.threshold={need}"
    yield (
        nodes * secure.quantization < MODULUS,
        f"strategy.secure.quantization={secure.quantization} times partition.nodes={nodes} must be below {MODULUS}",
    )
    yield (
        strategy.name in SUMS,
        f"{chosen} needs strategy={'|'.join(SUMS)}: strategy={strategy.name} looks at single nodes' adapters, "
        "which the server does not see",
    )
    yield not _distils(config, modes), f"{chosen} hides nodes' adapters: global_training=distil has no teachers"


def _sends_adapters(config: Config, modes: list[Mode]) -> bool:
    return config.strategy.send == "all" and any(
        mode.federated and (mode.trains_adapters or mode.sums) for mode in modes
    )


def _distils(config: Config, modes: list[Mode]) -> bool:
    return config.global_training.name == "distil" and any(mode.synthesizes for mode in modes)

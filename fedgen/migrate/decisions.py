"""What several old keys decide together: mode, generator, training on the server, sharing, data and nodes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import PurePath
from typing import Any

from fedgen.migrate.result import Translation, joined
from fedgen.migrate.table import LENGTH, TABLE
from fedgen.phases import MODES, Generators, Mode

# What an old value asks of the mode table. Adapters are trained unless a key says otherwise.
DEMANDS: dict[tuple[str, Any], Callable[[Mode], bool]] = {
    ("generator_training_mode", True): lambda mode: mode.generators is Generators.TRAIN,
    ("generator_only_mode", True): lambda mode: not mode.trains_adapters,
    ("train_adapters", False): lambda mode: not mode.trains_adapters,
    ("use_pretrained_generators", True): lambda mode: mode.generators is Generators.LOAD,
    ("global_model_train", True): lambda mode: mode.synthesizes,
    ("adapter_aggregation_mode", "none"): lambda mode: not (mode.federated and mode.trains_adapters),
    ("adapter_aggregation_mode", "avg"): lambda mode: mode.federated,
    ("adapter_aggregation_mode", "kd"): lambda mode: mode.synthesizes,
}
FROZEN = [("generator_only_mode", True), ("train_adapters", False)]
# The first that meets every demand is taken.
PREFERENCE = ["federate", "train_generators", "standalone", "generators_only", "one_shot", "generate"]

KINDS: dict[tuple[str | None, bool | None], str] = {
    ("vae", None): "vae",
    ("vae", False): "vae",
    ("vae", True): "conditioned_vae",
    (None, False): "vae",
    (None, True): "conditioned_vae",
    ("conditioned_vae", None): "conditioned_vae",
    ("conditioned_vae", True): "conditioned_vae",
    ("multimodal_vae", None): "multimodal_vae",
    ("multimodal_vae", True): "multimodal_vae",
    ("gan", None): "gan",
    ("gan", False): "gan",
    ("gaussian", None): "gaussian",
    ("gaussian", False): "gaussian",
}  # generator by generator_type and use_conditioned_vae; other pairs contradict each other


def decide_mode(result: Translation) -> None:
    """Take the row of the mode table that meets every demand; two demands that no row meets are a problem."""
    asked = [(result.old[name][0], DEMANDS[name, value]) for name, value in DEMANDS if result.get(name) == value]
    frozen = any(result.get(name) == value for name, value in FROZEN)
    modes = [MODES[name] for name in PREFERENCE if frozen or MODES[name].trains_adapters]
    for (one, first), (two, second) in combinations(asked, 2):
        if not any(first(mode) and second(mode) for mode in modes):
            result.problems.append(f"{one} and {two} contradict each other: no mode does both")
            return
    fitting = [mode for mode in modes if all(demand(mode) for _, demand in asked)]
    if not fitting:
        result.problems.append(f"{joined(entry for entry, _ in asked)} contradict each other: no mode does all")
        return
    names = ("use_pretrained_generators", "adapter_aggregation_mode", "global_model_train")
    flags = result.given("generator_training_mode", "generator_only_mode", "train_adapters", *names)
    result.set("mode", fitting[0].name, *flags)
    _remark_mode(fitting[0], result)


def _remark_mode(mode: Mode, result: Translation) -> None:
    """Say where the predecessor did something else than the mode."""
    if mode.name == "one_shot":
        for entry in result.given("global_model_train"):
            text = "the server learns from synthetic samples alone, so nodes train generators and send samples at once"
            result.changed.append((entry, text))
    if result.get("use_pretrained_generators"):
        result.changed.append((result.old["use_pretrained_generators"][0], TABLE["use_pretrained_generators"].note))
    if mode.federated and mode.trains_adapters and result.get("adapter_aggregation_mode") is None:
        text = "adapters of nodes were averaged only where it said so; here they are, unless mode=standalone"
        result.changed.append(("no adapter_aggregation_mode", text))


def decide_aggregation(result: Translation) -> None:
    """Find the strategy, and what the server trains the global adapters on."""
    how, trains = result.get("adapter_aggregation_mode"), result.get("global_model_train")
    teachers = result.given("global_model_train_from_nodes_adapters")
    counts = trains and result.get("global_model_train_from_nodes_adapters")
    distils = result.given("adapter_aggregation_mode") * (how == "kd") + teachers * bool(counts)
    if how == "avg":
        result.set("strategy", "fedavg", *result.given("adapter_aggregation_mode"))
    if distils:
        result.set("global_training", "distil", *distils)
    elif trains is not None and MODES[result.chosen("mode") or "federate"].synthesizes:
        result.set("global_training", "supervised" if trains else "none", *result.given("global_model_train"))
    if not counts:
        result.dropped += [(entry, TABLE[entry.name].note) for entry in teachers]


def decide_generator(result: Translation) -> None:
    """Find the kind of generator from its type and whether it is conditioned."""
    entries = result.given("generator_type", "use_conditioned_vae")
    if not entries:
        return
    pair = (result.get("generator_type"), result.get("use_conditioned_vae"))
    if pair not in KINDS:
        result.problems.append(f"{joined(entries)} contradict each other (generator)")
        return
    result.set("generator", KINDS[pair], *entries)
    if KINDS[pair] == "conditioned_vae" and result.get("generator_granularity") in ("per_class", "per_group"):
        text = "here the same for every granularity; the predecessor took what is generator=multimodal_vae here"
        result.changed.append((entries[-1], text))


def decide_training(result: Translation) -> None:
    """Find the noise on inputs, and say what the length of samples is."""
    noise, switch = result.given("generator_augmentation_noise"), result.given("generator_augmentation")
    if result.get("generator_augmentation") is False:
        result.set("generator.training.noise", 0.0, *switch)
        result.dropped += [(entry, f"{switch[0]} turns it off") for entry in noise]
    elif noise:
        result.set("generator.training.noise", result.get("generator_augmentation_noise"), *noise, *switch)
        result.changed.append((noise[0], TABLE["generator_augmentation_noise"].note))
    else:
        result.changed += [(entry, "generator.training.noise says how much, 0 by default") for entry in switch]
    lengths = result.given("generator_training_sequence_length", "generator_target_sequence_length")
    if "generator_output_sequence_length" not in result.old:
        result.changed += [(entry, LENGTH.text) for entry in lengths[:1]]


def decide_sharing(result: Translation) -> None:
    """Find whether nodes share generators; the predecessor did only while it trained nothing else."""
    only = result.chosen("mode") == "generators_only"
    for entry in result.given("shared_generator_in_only_mode"):
        if only:
            result.set("sharing", "shared" if result.get(entry.name) else "local", entry)
        else:
            result.dropped.append((entry, TABLE[entry.name].note))
    shared = result.chosen("sharing") == "shared"
    for entry in result.given("reset_generator_on_class_change"):
        if shared:
            result.set("sharing.reset_on_class_change", result.get(entry.name), entry)
        else:
            result.dropped.append((entry, TABLE[entry.name].note))


def decide_checkpoint(result: Translation) -> None:
    """Split the old path of generator files into folder and base name."""
    for entry in result.given("generator_checkpoint_path"):
        path = PurePath(result.get(entry.name))
        result.set("checkpoint.dir", str(path.parent), entry)
        result.set("checkpoint.base_name", path.stem, entry)


DECISIONS = [
    decide_mode,
    decide_aggregation,
    decide_generator,
    decide_training,
    decide_sharing,
    decide_checkpoint,
]

"""Whole federations in process: every mode, two runs as one, what fails and what goes on."""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federations import Federate, Nodes
from flwr.app import ArrayRecord, Context, Message

from fedgen.client_app import app as client_app
from fedgen.config.phases import MODES
from fedgen.config.settings import Config
from fedgen.errors import AggregationError, CheckpointError, ConfigError, DataError, FedgenError
from fedgen.messages.samples import samples_from_record
from fedgen.runs.checkpoint import generator_file
from fedgen.runs.folder import RunFolder
from fedgen.task import Task, prepare_task

Tiny = Callable[..., Config]
Figures = Callable[[dict[str, Any]], dict[str, Any]]

KEYS = {"accuracy", "balanced_accuracy", "per_class", "heads", "phases", "bytes", "seconds", "confusion", "nodes"}


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("mode", [name for name in MODES if name != "generate"])
def test_every_mode_runs(mode: str, tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    results = federate(tiny(f"mode={mode}", "rounds=1"), tmp_path)
    assert set(results) >= KEYS
    assert results["phases"] == [{"mode": mode, "rounds": 1}]
    assert set(results["per_class"]) == {"dog", "cow", "rain", "crickets", "siren", "engine"}
    models = 3 if mode == "standalone" else 1
    assert sum(map(sum, results["confusion"])) == models * 12  # two held-out clips of each class
    assert len(results["nodes"]) == (1 if mode == "centralised" else 3)
    assert sum(results["samples"].values()) == (36 if mode in ("combined", "one_shot") else 0)
    nodes = [line for line in metrics(tmp_path) if "node" in line and line["round"] == 1]
    assert [line["node"] for line in nodes] == list(range(len(results["nodes"])))  # all took part in round 1
    federated = MODES[mode].federated
    assert (results["bytes"]["sent"][0] > 0, results["bytes"]["received"][0] > 0) == (federated, federated)
    assert results["seconds"]["total"] >= results["seconds"]["rounds"][0] > 0


def test_metrics_have_the_names_that_users_chart(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    federate(tiny("mode=combined", "generator=vae", "target=small"), tmp_path)
    lines = metrics(tmp_path)
    for node in range(3):
        (line,) = (line for line in lines if line.get("node") == node)
        assert {f"train/node_{node}/generator_loss", f"train/node_{node}/text_loss"} <= set(line)
        epochs = line[f"train/node_{node}/generator"]
        assert len(epochs) == 3
        assert {"generator", "epoch", "loss"} < set(epochs[0])
    server = lines[-1]
    assert server["server/synthetic_samples_total"] == 36
    assert server["server/synthetic_samples_classes"] == 6
    assert 0 <= server["server/accuracy"] <= 1


@pytest.mark.parametrize("granularity", ["unified", "per_class", "per_group"])
@pytest.mark.parametrize("kind", ["gaussian", "vae", "conditioned_vae"])
def test_every_kind_in_every_granularity(
    kind: str, granularity: str, tiny: Tiny, federate: Federate, tmp_path: Path
) -> None:
    results = federate(tiny("mode=combined", f"generator.kind={kind}", f"granularity={granularity}"), tmp_path)
    assert results["samples"] == dict.fromkeys(results["classes"], 6)
    base, keys = {
        "unified": ("vae_unified", ["unified"]),
        "per_class": ("vae_perclass", ["dog", "cow"]),
        "per_group": ("vae_group", ["animals"]),
    }[granularity]
    for key in keys:
        assert [*(tmp_path / "checkpoints").glob(f"*/{generator_file(base, 0, granularity, key)}")]


def test_training_learns(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    results = federate(tiny("mode=centralised", "rounds=4", "adapter.training.epochs=10"), tmp_path)
    losses = [line["train/node_0/loss"] for line in metrics(tmp_path) if "node" in line]
    assert losses[-1] < 0.7 * losses[0]
    assert results["accuracy"] > 1 / 6


def test_the_same_seed_gives_the_same_figures(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    overrides = ["mode=combined", "rounds=2", "generator.kind=vae"]
    results = [federate(tiny(*overrides, f"seed={seed}"), tmp_path / str(i)) for i, seed in enumerate([3, 3, 4])]
    for result in results:
        del result["seconds"]
    assert results[0] == results[1]
    assert results[0]["heads"] != results[2]["heads"]
    adapters = [(tmp_path / str(i) / "checkpoints" / "adapters.safetensors").read_bytes() for i in range(2)]
    assert adapters[0] == adapters[1]


@pytest.mark.parametrize("granularity", ["unified", "per_class"])
@pytest.mark.parametrize("kind", ["gaussian", "vae"])
def test_two_commands_give_what_one_run_of_two_phases_gives(
    kind: str, granularity: str, tiny: Tiny, federate: Federate, figures: Figures, tmp_path: Path
) -> None:
    common = (f"generator.kind={kind}", f"granularity={granularity}", "generator.training.epochs=2")
    first, second, both = (tmp_path / name for name in ("first", "second", "both"))
    federate(tiny(*common, "mode=train_generators", "rounds=2"), first)
    apart = federate(tiny(*common, "mode=generate", "rounds=1", f"checkpoint.load={first}"), second)
    phases = "phases=[{mode: train_generators, rounds: 2}, {mode: generate, rounds: 1}]"
    together = federate(tiny(*common, phases), both)
    assert figures(apart) == figures(together)
    assert together["mode"] == "train_generators+generate"
    assert [entry["round"] for entry in together["history"]] == [0, 1, 2, 3]
    assert [entry["round"] for entry in apart["history"]] == [2, 3]
    adapters = [RunFolder(path).load_adapters({}) for path in (second, both)]
    assert adapters[0][1] == adapters[1][1] == 3
    torch.testing.assert_close(adapters[0][0], adapters[1][0], rtol=0, atol=0)


def test_frozen_adapters_between_two_trainings(
    tiny: Tiny, federate: Federate, figures: Figures, tmp_path: Path
) -> None:
    """Three commands, the second of which trains no adapters, are one run of three phases: moments are handed on."""
    modes = ["federate", "generators_only", "generate"]
    load = ""
    for mode in modes:
        overrides = [f"mode={mode}", "rounds=1", *([f"checkpoint.load={load}"] if load else [])]
        load = str(tmp_path / mode)
        apart = federate(tiny(*overrides), tmp_path / mode)
    phases = ", ".join(f"{{mode: {mode}, rounds: 1}}" for mode in modes)
    assert figures(apart) == figures(federate(tiny(f"phases=[{phases}]"), tmp_path / "both"))


def test_generators_alone_are_enough_to_generate(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    federate(tiny("mode=generators_only"), tmp_path / "first")
    results = federate(tiny("mode=generate", f"checkpoint.load={tmp_path / 'first'}"), tmp_path / "second")
    assert sum(results["samples"].values()) == 36


def test_frozen_adapters_stay_frozen(tiny: Tiny, federate: Federate, task: Task, tmp_path: Path) -> None:
    federate(tiny("mode=generators_only"), tmp_path)
    weights, _ = RunFolder(tmp_path).load_adapters({})
    torch.testing.assert_close(weights, task.adapters().state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("strategy", ["fedprox", "fedadam", "fedmedian", "krum"])
def test_other_strategies_with_samples(strategy: str, tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    results = federate(tiny("mode=combined", f"strategy={strategy}"), tmp_path)
    assert sum(results["samples"].values()) == 36
    weights, _ = RunFolder(tmp_path).load_adapters({})
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_fedprox_holds_the_nodes_back(tiny: Tiny, federate: Federate, task: Task, tmp_path: Path) -> None:
    moved = []
    for mu in (0.0, 1000.0):
        folder = tmp_path / str(mu)
        overrides = ["mode=federate", "rounds=1", "strategy=fedprox", f"strategy.options.proximal_mu={mu}"]
        federate(tiny(*overrides, "adapter.training.epochs=4"), folder)
        weights, _ = RunFolder(folder).load_adapters({})
        start = task.adapters().state_dict()
        moved.append(sum(float((weights[name] - start[name]).square().sum()) for name in weights))
    assert moved[1] < 0.7 * moved[0]


def test_no_reply_holds_a_real_embedding(tiny: Tiny, federate: Federate, task: Task, tmp_path: Path) -> None:
    """Neither a token nor a latent vector of a clip leaves a node, whatever array it may stand in."""
    replies: list[tuple[str, int, ArrayRecord]] = []

    def keep(message: Message, reply: Message, node: int) -> None:
        kind, records = message.metadata.message_type, reply.content.array_records.values()
        replies.extend((kind, node, record) for record in records if len(record))

    federate(tiny("mode=combined"), tmp_path, Nodes(keep))
    assert Counter(kind for kind, _, _ in replies) == {"train": 3, "query.synthesize": 3}
    for _kind, node, record in replies:
        tokens = task.store.tokens(task.parts[node]).float()  # (N, S, D)
        arrays = [array.numpy() for array in record.values()]
        assert sum(array.size for array in arrays) < tokens[:1].numel()
        values = {value for token in tokens[:, ::40].flatten(0, 1) for value in token[:8].tolist() if abs(value) > 1e-3}
        for array in arrays:
            if array.dtype.kind == "f":
                shared = np.isin(array.astype(np.float32), np.array(list(values), np.float32)).mean()
                assert shared < 0.2
        if "latents" in record:
            samples = samples_from_record(record, task.space.codec, range(6), 100)
            real = samples.codec.encode(tokens)  # (N, k)
            nearest = torch.cdist(samples.latents, real).min(dim=1).values
            assert float(nearest.min()) > 0.1


def crash(*numbers: int) -> Callable[[Message, Context], Message]:
    """Nodes of which some fail in training."""

    def app(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train" and context.node_config["partition-id"] in numbers:
            raise RuntimeError("disk full")
        return client_app(message, context)

    return app


def test_a_run_whose_nodes_all_fail_ends_in_an_error(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    with pytest.raises(AggregationError, match=r"round 1: 0 good replies.*node 0: RuntimeError: disk full.*node 2"):
        federate(tiny("mode=federate", "strategy.min_nodes=1"), tmp_path, crash(0, 1, 2))
    assert not (tmp_path / "results.json").exists()


def test_a_missing_node_is_named_and_the_run_goes_on(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    config = tiny("mode=federate", "rounds=2", "strategy.min_nodes=2")
    results = federate(config, tmp_path, crash(1))
    assert results["lost"] == {str(n): {"1": "RuntimeError: disk full"} for n in (1, 2)}
    lines = metrics(tmp_path)
    assert [line["node"] for line in lines if "node" in line] == [0, 2, 0, 2]
    assert [line["server/lost"] for line in lines if "server/lost" in line] == [{"1": "RuntimeError: disk full"}] * 2
    with pytest.raises(AggregationError, match=r"2 good replies, strategy\.min_nodes=3 are needed.*node 1"):
        federate(tiny("mode=federate"), tmp_path / "strict", crash(1))


def test_optimiser_and_generators_live_on_the_nodes_disk(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    """What a node knows of round 1 in round 2 is in its folder, not in its process or context."""
    steps = []

    def look(message: Message, reply: Message, node: int) -> None:
        if message.metadata.message_type == "train" and node == 0:
            state, metadata = _load(max((tmp_path / "state/node0/optimizer").iterdir()))
            steps.append((metadata["round"], float(state["step.narrow.weight"])))

    federate(tiny("mode=train_generators", "rounds=2"), tmp_path, Nodes(look))
    assert steps == [(1, 1.0), (2, 2.0)]  # one batch a round
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert {name for name in names if name.startswith("vae")} == {f"vae_unified_node{n}_round_2" for n in range(3)}


def _load(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    from fedgen.data.tensors import load_tensors

    return load_tensors(path)


BAD = [
    (["granularity=per_group", "granularity.groups={pets: [dog]}"], r"in no group of granularity\.groups: cow"),
    (["granularity=per_group", "granularity.groups={all: [dog, cow, rain, crickets, siren]}"], r"no group.*engine"),
    (["partition.nodes=7"], r"partition\.nodes=7 is more than the 6 classes"),
    (["partition=iid", "partition.nodes=25"], r"partition\.nodes=25 is more than the 24 clips"),
    (
        ["partition=explicit", "partition.nodes=2", "partition.assignment=[[dog], [dgo]]"],
        r"partition\.assignment\[1\]='dgo'.*mean 'dog'",
    ),
    (["partition=explicit", "partition.nodes=2", "partition.assignment=[[dog], []]"], r"node 1 has no clip"),
    (["data.classes=[dog, cat]"], r"cat"),
    (["data.test_fold=7"], r"data\.test_fold=7"),
    (["strategy=fedadam", "strategy.options.etta=1"], r"strategy\.options\.etta is no option.*mean 'eta'"),
    (["phases=[{mode: federate}, {mode: standalone}]"], r"mode=standalone is a reference"),
    (["device=cuda"], r"device=cuda, but torch sees no CUDA device"),
]


@pytest.mark.parametrize(("overrides", "words"), BAD, ids=[" ".join(overrides) for overrides, _ in BAD])
def test_bad_input_is_an_error_before_training(
    overrides: list[str], words: str, tiny: Tiny, federate: Federate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "device=cuda" in overrides:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    asked: list[str] = []
    nodes = Nodes(lambda message, reply, node: asked.append(message.metadata.message_type))
    with pytest.raises(FedgenError, match=words):
        federate(tiny("mode=combined", *overrides), tmp_path, nodes)
    assert set(asked) <= {"query.describe"}


def test_groups_that_the_data_does_not_have(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    """Half a group on each node: the data set's own groups do not fit by_class, but serve per_group."""
    config = tiny("mode=combined", "granularity=per_group", "partition.nodes=2")
    assert sum(federate(config, tmp_path)["samples"].values()) == 36


def test_a_store_of_another_encoder(tiny: Tiny, task: Task, federate: Federate, tmp_path: Path) -> None:
    config = tiny("mode=federate", f"data.store={task.store.path}", "encoder.stride=15")
    with pytest.raises(DataError, match=r"encoder"):
        federate(config, tmp_path)


class TestCheckpoints:
    @pytest.fixture(scope="class")
    def first(self, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
        from fedgen.runtimes.local import run_config as run

        folder = tmp_path_factory.mktemp("first")
        run(replace(tiny("mode=train_generators"), run_dir=str(folder)))
        return folder

    def test_missing_folder(self, tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
        config = tiny("mode=generate", f"checkpoint.load={tmp_path / 'nowhere'}")
        words = r"nowhere/checkpoints/adapters\.safetensors is missing.*fedgen run mode=train_generators"
        with pytest.raises(CheckpointError, match=words):
            federate(config, tmp_path / "run")

    def test_no_folder_at_all(self, tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
        with pytest.raises(FedgenError, match=r"vae_unified_node0.*fedgen run mode=train_generators"):
            federate(tiny("mode=generate"), tmp_path)

    def test_a_run_without_generators(self, tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
        federate(tiny("mode=federate", "rounds=1"), tmp_path / "first")
        config = tiny("mode=generate", f"checkpoint.load={tmp_path / 'first'}")
        with pytest.raises(FedgenError, match=r"vae_unified_node0.*fedgen run mode=train_generators"):
            federate(config, tmp_path / "second")

    @pytest.mark.parametrize(
        ("overrides", "words"),
        [
            (["target=sd"], r"target is small, this run has sd"),
            (["encoder.stride=15"], r"encoder is .*this run has"),
            (["generator=vae"], r"kind is gaussian, this run has vae"),
            (["granularity=per_class"], r"vae_perclass_node0.*fedgen run mode=train_generators"),
            (["partition.nodes=2"], r"classes is .*this run has"),
        ],
        ids=lambda value: value[0] if isinstance(value, list) else "",
    )
    def test_another_run(
        self, overrides: list[str], words: str, first: Path, tiny: Tiny, federate: Federate, tmp_path: Path
    ) -> None:
        with pytest.raises(FedgenError, match=words):
            federate(tiny("mode=generate", f"checkpoint.load={first}", *overrides), tmp_path)

    def test_more_nodes_than_the_run_had(self, first: Path, tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
        config = tiny("mode=federate", "partition.nodes=4", f"checkpoint.load={first}")
        with pytest.raises(FedgenError, match=r"knows nothing of node 3: checkpoint\.load="):
            federate(config, tmp_path)

    def test_a_damaged_file(self, first: Path, tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
        import shutil

        shutil.copytree(first, tmp_path / "copy")
        (file,) = (tmp_path / "copy" / "checkpoints").glob("*/vae_unified_node1.safetensors")
        file.write_bytes(file.read_bytes()[:-1] + b"?")
        config = tiny("mode=generate", f"checkpoint.load={tmp_path / 'copy'}")
        with pytest.raises(FedgenError, match=r"vae_unified_node1\.safetensors is damaged"):
            federate(config, tmp_path / "run")

    def test_its_own_folder(self, first: Path, tiny: Tiny, federate: Federate) -> None:
        with pytest.raises(ConfigError, match=r"is this run's own folder"):
            federate(tiny("mode=generate", f"checkpoint.load={first}"), first)
        assert (first / "checkpoints" / "adapters.safetensors").is_file()


def test_samples_per_class_auto_is_the_mean_number_of_clips(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    results = federate(tiny("mode=combined", "synthesis.samples_per_class=auto"), tmp_path)
    assert results["samples"] == dict.fromkeys(results["classes"], 4)


def test_a_class_on_several_nodes_is_pooled(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    shared = "partition.assignment=[[dog, rain], [siren, rain]]"
    results = federate(tiny("mode=combined", "partition=explicit", "partition.nodes=2", shared), tmp_path)
    assert results["samples"] == {"dog": 6, "rain": 12, "siren": 6}
    assert results["nodes"] == {"0": {"dog": 4, "rain": 2}, "1": {"rain": 2, "siren": 4}}


def test_the_limit_on_samples_names_its_key(tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    with pytest.raises(AggregationError, match=re.escape("synthesis.max_samples=11")):
        federate(tiny("mode=combined", "synthesis.max_samples=11"), tmp_path)


@pytest.mark.parametrize("form", ["mode", "phases"])
def test_centralised_has_one_node_however_it_is_asked_for(form: str, tiny: Tiny) -> None:
    override = "mode=centralised" if form == "mode" else "phases=[{mode: centralised, rounds: 1}]"
    assert len(prepare_task(tiny(override)).parts) == 1

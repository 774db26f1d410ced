"""A hostile or broken node, of every kind: refused with a reason, counted, and the model as if it had not answered."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federations import Nodes
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord

from fedgen.config.compose import to_yaml
from fedgen.config.settings import Config
from fedgen.data.tensors import load_tensors
from fedgen.runs.folder import RunFolder
from fedgen.runtimes.local import LocalGrid, run_server
from fedgen.server_app import app as server_app

Tiny = Callable[..., Config]
Change = Callable[[Message], None]

LIAR = 1
TRAIN, SAMPLES = "train", "query.synthesize"


def arrays(message: Message) -> ArrayRecord:
    (record,) = message.content.array_records.values()
    return record


def weights(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Change the first matrix of the adapters."""

    def apply(message: Message) -> None:
        name = next(name for name, array in arrays(message).items() if len(array.shape) == 2)
        arrays(message)[name] = Array(change(arrays(message)[name].numpy().copy()))

    return apply


def every_weight(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    def apply(message: Message) -> None:
        for name, array in list(arrays(message).items()):
            arrays(message)[name] = Array(change(array.numpy()))

    return apply


def sample(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    def apply(message: Message) -> None:
        arrays(message)[name] = Array(change(arrays(message)[name].numpy().copy()))

    return apply


def record(value: Any) -> Change:
    def apply(message: Message) -> None:
        message.content["surprise"] = value

    return apply


def first(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[(0,) * array.ndim] = value
        return array

    return change


def flood(message: Message) -> None:
    """Claim, and send, a million samples."""
    record = arrays(message)
    shape = record["latents"].numpy().shape
    counts = record["counts"].numpy().copy()
    counts[0] += 1_000_000 - shape[0]
    record["counts"] = Array(counts)
    record["latents"] = Array(np.zeros((1_000_000, shape[1]), np.int8))


def codec(message: Message) -> None:
    arrays(message)["codec.mean"] = Array(np.zeros(48, np.float32))


def metric(name: str, value: float) -> Change:
    def apply(message: Message) -> None:
        next(iter(message.content.metric_records.values()))[name] = value

    return apply


BIG = ArrayRecord({"x": Array(np.zeros(6_000_000, np.float32))})
KINDS: dict[str, tuple[str, Change, str]] = {  # the reply, what is done to it, and words of the reason
    "adapters with NaN": (TRAIN, weights(first(np.nan)), "1 values that are NaN or infinite"),
    "adapters with infinity": (TRAIN, weights(first(np.inf)), "1 values that are NaN or infinite"),
    "adapters of a wrong shape": (TRAIN, weights(lambda a: a[:-1]), "expected float32 of shape"),
    "adapters of a wrong type": (TRAIN, weights(lambda a: a.astype(np.float64)), "is float64 of shape"),
    "adapters times 1000": (
        TRAIN,
        every_weight(lambda a: a * np.float32(1000)),
        "is too long: the median of the round",
    ),
    "huge finite adapters": (TRAIN, every_weight(lambda a: np.full_like(a, 3e38)), "is too long"),
    "a weight beyond its clips": (TRAIN, metric("num-examples", 10**6), "num-examples is 1000000, expected"),
    "a record beside the adapters": (TRAIN, record(ArrayRecord()), "surprise: ArrayRecord"),
    "facts beside the adapters": (TRAIN, record(ConfigRecord({"a": 1})), "surprise: ConfigRecord"),
    "adapters over the limit": (TRAIN, record(BIG), "expected at most strategy.max_payload_mb=20"),
    "samples with NaN": (SAMPLES, sample("latent-scale", first(np.nan)), "latent-scale has 1 values that are NaN"),
    "a codec beside the samples": (SAMPLES, codec, "unexpected arrays ['codec.mean']"),
    "samples that decode to a giant": (SAMPLES, sample("latent-scale", lambda a: a * np.float32(1e20)), "core value"),
    "samples of a wrong shape": (SAMPLES, sample("latents", lambda a: a[:-1]), "latents is int8 of shape"),
    "samples of a wrong type": (SAMPLES, sample("latents", lambda a: a.astype(np.int16)), "latents is int16"),
    "a class that is not": (SAMPLES, sample("classes", first(99)), "class id 99 is not allowed here"),
    "a class of another node": (SAMPLES, sample("classes", first(0)), "class id 0 is not allowed here"),
    "a million samples": (SAMPLES, flood, "expected 0 to 100000"),
    "metrics beside the samples": (SAMPLES, record(MetricRecord({"a": 1})), "surprise: MetricRecord"),
    "samples over the limit": (SAMPLES, record(BIG), "expected at most strategy.max_payload_mb=20"),
}


class Liar(Nodes):
    """Node 1 does ``change`` to its first reply of a type."""

    def __init__(self, message_type: str, change: Change) -> None:
        def lie(message: Message, reply: Message, node: int) -> None:
            first_round = message.content.config_records["config"].get("round") == 1
            if node == LIAR and message.metadata.message_type == message_type and first_round:
                change(reply)

        super().__init__(lie)


def broken(message: Message) -> None:
    raise RuntimeError("no answer")


def ran(
    config: Config, folder: Path, app: Nodes
) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Return results, the server's lines in the metrics, and the final adapters."""
    config = replace(config, run_dir=str(folder))
    values = {"config": to_yaml(config)}
    run_server(server_app, LocalGrid(app, config.partition.nodes, values), values)  # type: ignore[arg-type]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    adapters = load_tensors(folder / "checkpoints" / "adapters.safetensors")[0]
    return RunFolder(folder).results(), [line for line in lines if "server/accuracy" in line], adapters


@pytest.fixture(scope="module")
def settings(tiny: Tiny) -> Config:
    return tiny("mode=combined", "rounds=2", "strategy.min_nodes=2", "strategy.max_payload_mb=20")


@pytest.fixture(scope="module")
def without(settings: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The final adapters where node 1 does not answer a message of a type in round 1."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedgen.report.recorder.draw_run", lambda results, folder: [])
        yield {
            kind: ran(settings, tmp_path_factory.mktemp("without"), Liar(kind, broken))[2] for kind in (TRAIN, SAMPLES)
        }


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_refused_counted_and_does_no_harm(
    kind: str, settings: Config, without: dict[str, Any], no_plots: None, tmp_path: Path
) -> None:
    message_type, change, words = KINDS[kind]
    results, lines, adapters = ran(settings, tmp_path, Liar(message_type, change))
    reason = results["lost"]["1"]["1"]
    assert reason.startswith("refused: ")
    assert words in reason
    assert lines[1]["server/refused"] == lines[1]["server/lost"] == {"1": reason}
    assert [line["server/refused_total"] for line in lines] == [0, 1, 1]
    assert results["refused"] == {"1": 1}
    assert lines[2]["server/answered"] == [0, 1, 2]  # it is back
    expected = without[message_type]
    assert adapters.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(adapters[name], value), name


def test_a_node_that_raises_is_told_apart_from_one_that_is_refused(
    settings: Config, no_plots: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    results, lines, _ = ran(settings, tmp_path, Liar(TRAIN, broken))
    assert lines[1]["server/lost"] == {"1": "RuntimeError: no answer"}
    assert "server/refused" not in lines[1]
    assert results["refused"] == {}
    assert "round 1: node 1 is missing: RuntimeError: no answer" in caplog.text

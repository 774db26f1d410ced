"""What leaves a node: all that is in the messages of every kind of run stands in a table of docs/security.md."""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federations import Nodes
from flwr.app import Array, ArrayRecord, Message, RecordDict
from spaces import toy_space

from fedgen.config.compose import load_config, to_yaml
from fedgen.config.settings import Config
from fedgen.models.codec import Codec
from fedgen.models.public import public_space
from fedgen.runtimes.local import LocalGrid, run_server
from fedgen.server_app import app as server_app
from fedgen.task import prepare_task

Names = dict[tuple[str, str], set[str]]  # by message and direction
DOCUMENT = Path(__file__).parents[2] / "docs" / "security.md"
TO, FROM = "to the node", "from the node"
SECURE = " by secure aggregation"

RUNS: dict[str, list[str]] = {
    "federate": ["mode=federate", "strategy=fedprox"],
    "generators_only": ["mode=generators_only", "generator=gan"],
    "phases": ["phases=[{mode: train_generators, rounds: 1}, {mode: generate, rounds: 2}]", "generator=vae"],
    "combined": ["mode=combined", "rounds=2", "granularity=per_class"],
    "shared generators": ["sharing=shared", "generator=vae"],
    "private": ["privacy=dp", "privacy.epsilon=8", "privacy.delta=0.01", "rounds=2"],
    "secure": ["mode=combined", "strategy.secure.name=secagg", "partition.nodes=3"],
}  # fmt: skip
QUICK = ["partition.nodes=2", "evaluation.gate=off"]
ON_NODES = "data on nodes"


def names_in(content: RecordDict) -> Iterator[str]:
    """Name everything in a message: ``record/name``, and ``record/name.key`` for what is JSON."""
    for key, record in content.items():
        for name, value in record.items():
            keys = keys_of(value) if isinstance(value, str) else set()
            yield from (f"{key}/{name}.{part}" for part in keys) if keys else [f"{key}/{name}"]


def keys_of(text: str) -> set[str]:
    try:
        found = json.loads(text)
    except ValueError:
        return set()
    parts = found if isinstance(found, list) else [found]
    return {str(key) for part in parts if isinstance(part, dict) for key in part}


def of_codec(record: ArrayRecord, codec: Codec) -> int:
    """Return the bytes of ``record`` that are of a codec: arrays of its names, or of its values in any precision."""
    known = [value.numpy() for value in codec.state().values()]
    return sum(len(array.data) for name, array in record.items() if "codec" in name or _among(array.numpy(), known))


def _among(values: np.ndarray, known: list[np.ndarray]) -> bool:
    """Say whether ``values`` are one of ``known``, or of its transpose."""
    sames = (own for one in known for own in (one, one.T) if own.shape == values.shape and own.any())
    return any(np.allclose(values, own, rtol=1e-2, atol=1e-2 * np.abs(own).max()) for own in sames)


def observe(config: Config, seen: Names, node_configs: list[dict[str, Any]] | None = None) -> int:
    """Run a federation, note what every message has, and return the bytes of replies that are of the codec."""
    codec, of_it = public_space(config.encoder, config.codec, config.generator.lengths).codec, [0]

    def note(request: Message, reply: Message, number: int) -> None:
        names = {TO: set(names_in(request.content)), FROM: set(names_in(reply.content))}
        secure = any(name.startswith("secaggplus") or name == "arrays/masked" for name in names[TO] | names[FROM])
        of_it[0] += sum(of_codec(record, codec) for record in reply.content.array_records.values())
        for direction, found in names.items():
            seen[request.metadata.message_type + SECURE * secure, direction] |= found

    values = {"config": to_yaml(config)}
    grid = LocalGrid(Nodes(note), config.partition.nodes, values, node_configs)  # type: ignore[arg-type]
    run_server(server_app, grid, values)
    return of_it[0]


@pytest.fixture(scope="module")
def observed(
    tiny_overrides: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Names], dict[str, int]]:
    """What was in the messages of each of `RUNS`, and bytes of the codec in the replies."""
    pytest.importorskip("dp_accounting")
    folder, found, of_codecs = tmp_path_factory.mktemp("runs"), {}, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedgen.report.recorder.draw_run", lambda results, folder: [])
        for name, overrides in RUNS.items():
            found[name] = defaultdict(set)
            config = replace(load_config([*tiny_overrides, *QUICK, *overrides]), run_dir=str(folder / name))
            of_codecs[name] = observe(config, found[name])
        stores = []
        for number, classes in enumerate(["dog, cow", "rain, crickets", "siren, engine"]):
            config = load_config(
                [*tiny_overrides, f"data.classes=[{classes}]", f"data.store={folder / f'store{number}'}"]
            )
            prepare_task(config)
            stores.append({"store": str(config.data.store), "state": str(folder / f"site{number}")})
        found[ON_NODES] = defaultdict(set)
        config = load_config([*tiny_overrides, "data=nodes", "data.classes=[]", f"run_dir={folder / 'on_nodes'}"])
        of_codecs[ON_NODES] = observe(config, found[ON_NODES], stores)
    return found, of_codecs


@pytest.fixture
def seen(observed: tuple[dict[str, Names], dict[str, int]]) -> dict[str, Names]:
    return observed[0]


def documented(text: str) -> Names:
    """Read the table: a row a message, with what goes to the node and what comes from it between backticks."""
    rows: Names = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        kind = cells[0].replace("`", "")
        if line.startswith("| `") and kind.split(" ")[0].split(".")[0] in {"train", "query", "evaluate"}:
            for direction, cell in zip((TO, FROM), cells[1:3], strict=True):
                rows[kind, direction] = set(cell.split("`")[1::2])
    return rows


TABLE = documented(DOCUMENT.read_text(encoding="utf-8")) if DOCUMENT.is_file() else {}


def test_every_message_is_in_the_table(seen: dict[str, Names]) -> None:
    assert {key for run in seen.values() for key in run} == set(TABLE)


@pytest.mark.parametrize("run", [*RUNS, ON_NODES])
def test_nothing_travels_that_is_not_in_the_table(run: str, seen: dict[str, Names]) -> None:
    for key, names in seen[run].items():
        strange = [name for name in sorted(names) if not any(fnmatchcase(name, known) for known in TABLE[key])]
        assert not strange, f"{key}: {strange} is not in {DOCUMENT.name}"


def test_nothing_is_in_the_table_that_never_travels(seen: dict[str, Names]) -> None:
    for key, known in TABLE.items():
        names = {name for run in seen.values() for name in run.get(key, ())}
        idle = [text for text in sorted(known) if not any(fnmatchcase(name, text) for name in names)]
        assert not idle, f"{key}: {idle} is in {DOCUMENT.name}, and no run has it"


def test_no_reply_of_any_kind_holds_a_byte_of_the_codec(observed: tuple[dict[str, Names], dict[str, int]]) -> None:
    _, of_codecs = observed
    assert of_codecs == dict.fromkeys([*RUNS, ON_NODES], 0)


def test_a_codec_would_be_found_whatever_it_is_called() -> None:
    codec = toy_space().codec
    plain = ArrayRecord({"x": Array(np.zeros((5, 4), np.float32)), "latents": Array(np.ones((3, 6), np.int8))})
    assert of_codec(plain, codec) == 0
    for value in (codec.channels.numpy(), codec.channels.T.half().contiguous().numpy(), codec.components.numpy()):
        assert of_codec(ArrayRecord({"w": Array(value)}), codec) >= value.nbytes
    assert of_codec(ArrayRecord({"codec.new": Array(np.zeros(3))}), codec) > 0


KINDS = {
    "federate": "describe train",
    "generators_only": "describe train",
    "phases": "describe train synthesize fill",
    "combined": "describe train synthesize fill",
    "shared generators": "describe train synthesize fit adopt",
    "private": "describe train synthesize fill",
    ON_NODES: "introduce describe train synthesize evaluate assess",
}


@pytest.mark.parametrize("run", KINDS)
def test_a_run_has_the_messages_of_its_mode(run: str, seen: dict[str, Names]) -> None:
    assert {kind.removeprefix("query.") for kind, _ in seen[run]} == set(KINDS[run].split())


def test_secure_runs_send_no_adapters_in_the_clear(seen: dict[str, Names]) -> None:
    assert ("train", FROM) not in seen["secure"]
    assert {name for name in seen["secure"]["train" + SECURE, FROM] if name.startswith("arrays/")} == {"arrays/masked"}


def test_private_nodes_send_no_figures_of_their_clips(seen: dict[str, Names]) -> None:
    assert not any("generators." in name for name in seen["private"]["train", FROM]), "losses on clips"


def test_the_table_is_read() -> None:
    text = "| message | a | b | c |\n|---|---|---|---|\n| `query.fill` | `config/*`, `x/y` | nothing | who |"
    assert documented(text) == {("query.fill", TO): {"config/*", "x/y"}, ("query.fill", FROM): set()}

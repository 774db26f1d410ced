"""Nothing that comes from a disk or a message is executed: pickles in place of what belongs there, everywhere."""

import ast
import io
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federations import Federate, Nodes
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from spaces import toy_space

from fedgen.client_app import app
from fedgen.config.compose import to_yaml
from fedgen.config.settings import Config
from fedgen.data.store import open_store
from fedgen.data.tensors import load_tensors
from fedgen.errors import AggregationError, CheckpointError, ConfigError, DataError, PayloadError
from fedgen.messages.samples import SAMPLES, read_array, read_values
from fedgen.node.state import NodeState
from fedgen.runs.folder import RunFolder
from fedgen.runtimes.local import LocalGrid
from fedgen.task import Task

Tiny = Callable[..., Config]
ROOT = Path(__file__).parents[2]


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def zipped(trap: Trap) -> bytes:
    """What ``torch.save`` writes: a ``.pt`` file."""
    stream = io.BytesIO()
    torch.save({"weights": trap}, stream)
    return stream.getvalue()


def objects(trap: Trap) -> bytes:
    """What ``np.save`` writes for an array of objects: a ``.npy`` file."""
    stream = io.BytesIO()
    np.save(stream, np.array([trap], dtype=object), allow_pickle=True)
    return stream.getvalue()


CRAFTED = [pickle.dumps, zipped, objects]


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """The folder that exists if anything was executed; a test that uses it fails then."""
    folder = tmp_path / "executed"
    yield folder
    assert not folder.exists(), "a pickle was executed"


@pytest.fixture(params=CRAFTED, ids=lambda craft: craft.__name__)
def crafted(request: pytest.FixtureRequest, canary: Path) -> bytes:
    """A file or array that makes the canary when it is unpickled."""
    content: bytes = request.param(Trap(canary))
    return content


@pytest.mark.parametrize("craft", CRAFTED)
def test_the_traps_work(craft: Callable[[Trap], bytes], tmp_path: Path) -> None:
    """Else the other tests would find nothing."""
    content = io.BytesIO(craft(Trap(tmp_path / "executed")))
    if craft is zipped:
        torch.load(content, weights_only=False)
    elif craft is objects:
        np.load(content, allow_pickle=True)
    else:
        pickle.load(content)
    assert (tmp_path / "executed").is_dir()


# Files


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


CHECKPOINT = ["adapters.safetensors", "manifest.json", "vae_unified_node0.safetensors"]


@pytest.mark.parametrize("name", CHECKPOINT)
def test_checkpoints(name: str, crafted: bytes, copy: Path, tiny: Tiny, federate: Federate, tmp_path: Path) -> None:
    (file, *_) = (copy / "checkpoints").rglob(name)
    file.write_bytes(crafted)
    config = tiny("mode=generate", f"checkpoint.load={copy}")
    with pytest.raises((CheckpointError, DataError), match=name.split(".")[0]):
        federate(config, tmp_path / "new")


@pytest.mark.parametrize("name", ["adapters.safetensors", "samples_node1.safetensors", "state.json"])
def test_the_state_of_a_run(name: str, crafted: bytes, copy: Path) -> None:
    (copy / "state" / "server" / "round_2" / name).write_bytes(crafted)
    with pytest.raises((CheckpointError, ConfigError), match=name):
        RunFolder(copy).state()


READERS: dict[str, Callable[[NodeState], Any]] = {
    "optimizer/round_2.safetensors": lambda state: state.load("optimizer", 3),
    "others.safetensors": lambda state: state.others(toy_space().codec),
    "release.safetensors": lambda state: state.release(),
}


@pytest.mark.parametrize("name", READERS)
def test_what_a_node_remembers(name: str, crafted: bytes, copy: Path) -> None:
    folder = copy / "state" / "node0"
    (folder / name).write_bytes(crafted)
    with pytest.raises(CheckpointError, match=Path(name).name):
        READERS[name](NodeState(folder))


def test_pickles_are_named(canary: Path, tmp_path: Path) -> None:
    file = tmp_path / "adapters.safetensors"
    file.write_bytes(zipped(Trap(canary)))
    with pytest.raises(CheckpointError, match="looks like a pickle, which is never opened"):
        load_tensors(file)


@pytest.mark.parametrize("name", ["index.json", "shard_00000.safetensors"])
def test_embedding_stores(name: str, crafted: bytes, task: Task, tmp_path: Path) -> None:
    """A shard of the right size even: only its content is a pickle."""
    folder = Path(shutil.copytree(task.store.path, tmp_path / "store"))
    file = folder / name
    file.write_bytes(crafted.ljust(file.stat().st_size, b"\0") if name.startswith("shard") else crafted)
    with pytest.raises(DataError, match=name):
        open_store(folder).tokens([0])


@pytest.mark.parametrize("where", ["config.yaml", "message"])
def test_yaml_makes_no_objects(where: str, canary: Path, copy: Path, tiny: Tiny) -> None:
    text = f"seed: !!python/object/apply:os.mkdir [{canary}]\n"
    if where == "message":
        (reply,) = asked(text, ArrayRecord())
        assert "has the tag" in str(reply.error.reason)
    else:
        (copy / where).write_text(text)
        with pytest.raises(Exception, match="has the tag"):
            RunFolder(copy).config()


# Messages


def array(data: bytes, stype: str = "numpy.ndarray") -> Array:
    return Array("float32", (1,), stype, data)


def header(text: str) -> bytes:
    """A ``.npy`` file of version 1.0 with a header of one's own."""
    content = text.ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content


@pytest.mark.parametrize("stype", ["numpy.ndarray", "pickle", "torch"])
def test_arrays_in_messages(stype: str, crafted: bytes) -> None:
    words = "expected numbers|not a NumPy array" if stype == "numpy.ndarray" else f"serialised as '{stype}'"
    with pytest.raises(PayloadError, match=words):
        read_values(array(crafted, stype), "w")
    with pytest.raises(PayloadError, match=words):
        read_array(array(crafted, stype), "w", np.dtype(np.float32), (1,))
    try:  # Flower's own way to read, which strategies and nodes use
        values = array(crafted, stype).numpy()
    except (ValueError, TypeError):
        return
    assert isinstance(values, np.lib.npyio.NpzFile), "a zip is listed, and nothing in it is opened"


def test_headers_are_not_evaluated(canary: Path) -> None:
    call = f"{{'descr': __import__('os').mkdir('{canary}'), 'fortran_order': False, 'shape': (1,)}}"
    with pytest.raises(PayloadError, match="not a NumPy array"):
        read_values(array(header(call) + b"\0" * 8), "w")
    with pytest.raises(ValueError, match="malformed node"):
        array(header(call) + b"\0" * 8).numpy()


@pytest.mark.parametrize("kind", ["train", "query.synthesize"])
def test_replies_of_nodes(
    kind: str, canary: Path, tiny: Tiny, federate: Federate, nodes_that: type[Nodes], tmp_path: Path
) -> None:
    """The server refuses them with the reason."""

    def change(request: Message, reply: Message, number: int) -> None:
        if number == 1 and request.metadata.message_type == kind:
            ((key, record),) = reply.content.array_records.items()
            reply.content[key] = ArrayRecord({name: array(objects(Trap(canary))) for name in record})

    config = tiny("mode=combined")
    with pytest.raises(AggregationError, match=r"node 1: refused: .*expected numbers"):
        federate(config, tmp_path, nodes_that(change))


def asked(yaml: str, arrays: ArrayRecord, kind: str = "train", name: str = "arrays") -> list[Message]:
    """Return what a node replies to a message of the server's."""
    config = ConfigRecord({"yaml": yaml, "mode": "federate", "rounds": 1, "round": 1})
    content = RecordDict({"config": config, name: arrays})
    grid = LocalGrid(app, 3, {})
    return list(grid.send_and_receive([Message(content, grid.get_node_ids()[0], kind)]))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("train", "arrays"),
        ("query.fill", "samples.1"),
        ("query.fit", "state.unified"),
        ("query.adopt", "state.unified"),
    ],
)
def test_messages_of_the_server(kind: str, name: str, crafted: bytes, tiny: Tiny, task: Task, tmp_path: Path) -> None:
    """Nodes do not trust their server with pickles, either."""
    config = replace(tiny("sharing=shared", "generator=vae"), data=task.config.data, run_dir=str(tmp_path))
    names = {"train": task.adapters().state_dict(), "query.fill": SAMPLES}.get(kind, ["mean"])
    arrays = ArrayRecord({n: array(crafted) for n in names})
    (reply,) = asked(to_yaml(config), arrays, kind, name)
    words = "pickled|allow_pickle|not a NumPy array|expected numbers|got NpzFile"
    assert re.search(words, str(reply.error.reason))


# Code


FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "code"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_NAMES = {"torch.load", "torch.save", "torch.hub", "torch.package", "torch.jit.load", "yaml.load",
                   "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen", "np.load", "numpy.load",
                   "np.fromfile", "np.loadtxt", "np.genfromtxt", "pd.read_pickle"}  # fmt: skip
FILES = sorted([*(ROOT / "fedgen").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])


def dangers(source: str) -> list[str]:
    """Return what a file names that could execute what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found += [module] if module.split(".")[0] in FORBIDDEN_MODULES else []
            found += [n for a in node.names if (n := f"{module}.{a.name}") in FORBIDDEN_NAMES]
        elif isinstance(node, ast.Attribute):
            found += [name for name in [ast.unparse(node)] if name in FORBIDDEN_NAMES]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found += [node.func.id] if node.func.id in FORBIDDEN_CALLS else []
        elif isinstance(node, ast.keyword) and node.arg in {"allow_pickle", "shell", "trust_remote_code"}:
            found += [] if isinstance(node.value, ast.Constant) and node.value.value is False else [str(node.arg)]
        elif isinstance(node, ast.keyword) and node.arg in {"weights_only", "use_safetensors"}:  # else a .bin is read
            found += [] if isinstance(node.value, ast.Constant) and node.value.value is True else [str(node.arg)]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_file_can_execute_what_it_reads(file: Path) -> None:
    assert dangers(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from pickle import loads", "torch.load(f)", "from torch import load", "np.load(f)", "eval(x)",
     "__import__(x)", "yaml.load(f)", "np.lib.format.read_array(f, allow_pickle=True)", "subprocess.run(x, shell=True)",
     "AutoModel.from_pretrained(x, trust_remote_code=True)", "from_pretrained(x, use_safetensors=False)"],
)  # fmt: skip
def test_dangers_are_found(source: str) -> None:
    assert dangers(source)


def test_what_is_harmless_passes() -> None:
    assert dangers("model.eval(); re.compile(x); load_tensors(f); np.lib.format.read_array_header_1_0(f)") == []

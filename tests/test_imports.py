"""Data flows one way: every import of the package is read and held against the layers."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fedgen"

# A part may import parts of its own line and of the lines above it, but never in a circle. A new part needs a place.
LAYERS = [
    ["errors"],
    ["data"],
    ["models"],
    ["privacy"],
    ["config"],
    ["task"],
    ["evaluation"],
    ["messages", "runs"],
    ["node", "report"],
    ["server"],
    ["client_app"],
    ["strategy"],
    ["server_app", "render"],
    ["runtimes"],
    ["cli"],
]
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts}

# Where a library may be imported: files or folders of the package. None: nowhere.
LIBRARIES: dict[str, list[str]] = {
    "flwr": [
        "messages",
        "node/secure.py",
        "server",
        "client_app.py",
        "strategy.py",
        "server_app.py",
        "runtimes",
        "cli.py",
    ],
    "hydra": ["config/compose.py", "runtimes/sweeps.py", "cli.py"],
    "omegaconf": ["config/compose.py", "runtimes/sweeps.py", "cli.py"],
    "transformers": ["data/pretrained.py"],
    "huggingface_hub": ["data/pretrained.py"],
    "diffusers": ["render/pipelines.py"],
    "accelerate": [],
    "wandb": ["report/tracking.py"],
    "tensorboard": ["report/tracking.py"],
    "jinja2": ["report/page.py"],
    "ray": ["runtimes/simulation.py"],
    "pickle": [],
    "cloudpickle": [],
    "dill": [],
    "joblib": [],
    "shelve": [],
}

FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imported(tree: ast.AST, file: Path) -> set[str]:
    """Return the dotted names of all modules and members that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ["fedgen", *file.parts[:-1]]
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def part_of(file: Path) -> str:
    return file.parts[0].removesuffix(".py")


def parts_in(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("fedgen.")}


def breaches(source: str, file: Path) -> list[str]:
    """Return what the imports of a file break."""
    names = imported(ast.parse(source), file)
    found = [
        f"{part_of(file)} must not import {part}"
        for part in sorted(parts_in(names) - {part_of(file)})
        if part in LAYER and LAYER[part] > LAYER[part_of(file)]
    ]
    for library, places in LIBRARIES.items():
        allowed = any(Path(place) in [file, *file.parents] for place in places)
        if not allowed and any(name.split(".")[0] == library for name in names):
            found.append(f"{library} is allowed in {places or 'no file'}")
    return found


def loads_pickles(source: str) -> bool:
    """Say whether a file names ``torch.load`` or asks NumPy to unpickle."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) in {("torch", "load"), ("torch", "save")}:
                return True
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            return not (isinstance(node.value, ast.Constant) and node.value.value is False)
    return False


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_go_one_way(file: Path):
    assert file == Path("__init__.py") or part_of(file) in LAYER, f"give {part_of(file)} a place in LAYERS"
    if file != Path("__init__.py"):
        assert breaches((PACKAGE / file).read_text(encoding="utf-8"), file) == []


@pytest.mark.parametrize("file", FILES, ids=str)
def test_nothing_is_unpickled(file: Path):
    assert not loads_pickles((PACKAGE / file).read_text(encoding="utf-8"))


def test_no_parts_import_each_other():
    graph: dict[str, set[str]] = {}
    for file in FILES:
        names = imported(ast.parse((PACKAGE / file).read_text(encoding="utf-8")), file)
        graph.setdefault(part_of(file), set()).update(parts_in(names) - {part_of(file)})
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {error.args[1]}")


def test_the_package_itself_stays_light():
    """Flower's command line imports ``fedgen`` to find the apps."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    assert {name.split(".")[0] for name in imported(tree, Path("__init__.py"))} <= {"__future__", "importlib", "typing"}


@pytest.mark.parametrize(
    ("source", "file", "words"),
    [
        ("from fedgen.node.node import Node", "models/codec.py", "models must not import node"),
        ("from ..node import node", "models/codec.py", "models must not import node"),
        ("from fedgen import cli", "errors.py", "errors must not import cli"),
        ("def f():\n    import flwr.app", "models/training.py", "flwr is allowed in"),
        ("from hydra import compose", "config/phases.py", "hydra is allowed in"),
        ("import pickle", "runs/checkpoint.py", "pickle is allowed in no file"),
    ],
)
def test_breaches_are_found(source: str, file: str, words: str):
    assert any(words in breach for breach in breaches(source, Path(file)))


def test_good_imports_pass():
    assert (
        breaches("from fedgen.data.tokens import TokenSource\nfrom flwr.app import Array", Path("messages/samples.py"))
        == []
    )
    assert breaches("from .codec import Codec", Path("models/samples.py")) == []


@pytest.mark.parametrize("source", ["torch.load(path)", "np.load(path, allow_pickle=True)"])
def test_unpickling_is_found(source: str):
    assert loads_pickles(source)
    assert not loads_pickles("np.load(path, allow_pickle=False); model.load_state_dict(torch.zeros(1))")

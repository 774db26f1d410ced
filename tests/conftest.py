"""A home of its own for the tests, and a federation small enough for seconds."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from federations import Federate, NodeApp, Nodes
from omegaconf import OmegaConf

from fedgen.config.compose import choices, from_dictconfig, load_config, to_yaml
from fedgen.config.settings import Config
from fedgen.data.audio import Encoder
from fedgen.data.public import open_public
from fedgen.data.tokens import TokenSource
from fedgen.models.public import public_space
from fedgen.runs.folder import RunFolder
from fedgen.runtimes.local import LocalGrid, run_server
from fedgen.runtimes.local import run_config as run
from fedgen.server_app import app as server_app
from fedgen.task import Task, prepare_task

with contextlib.suppress(ImportError):  # dp-accounting's: it closes its stream where it may, also pytest's own
    from absl import logging as absl_logging

    absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__

TINY = [
    "data=sounds",
    "data.classes=[dog, cow, rain, crickets, siren, engine]",  # two of each group
    "data.clips_per_class=6",
    "data.folds=3",
    "data.test_fold=3",
    "encoder.stride=16",
    "adapter.width=16",
    "adapter.hidden=32",
    "adapter.training.epochs=1",
    "adapter.training.batch_size=16",
    "generator.width=16",
    "generator.latents=4",
    "codec.channels=8",
    "codec.positions=6",
    "codec.components=16",
    "generator.training.epochs=3",
    "global_training.epochs=1",
    "synthesis.samples_per_class=6",
    "evaluation.quality=false",
    "rounds=1",
    "strategy.wait=1",
    "device=cpu",
    "threads=1",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: at the end, one worker would have nothing left while another has minutes."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for embedding stores that no other run of the tests sees; torch keeps to one core.

    Codecs are of 60 public sounds in place of 400, which take half a minute; the workers of this run of the tests share
    them, and codecs of other sizes read the sounds once.
    """
    folder, base = tmp_path_factory.mktemp("home"), tmp_path_factory.getbasetemp()
    codecs = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "codecs"
    codecs.mkdir(exist_ok=True)
    (folder / "codecs").symlink_to(codecs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDGEN_HOME", str(folder))
        patch.setattr("fedgen.data.public.PublicTokens.__init__.__defaults__", (30, 2))
        patch.setattr("fedgen.models.public.open_public", once_each(open_public))
        torch.set_num_threads(1)
        yield folder


def once_each(
    opened: Callable[[Encoder, str | None], TokenSource], most: int = 2
) -> Callable[[Encoder, str | None], TokenSource]:
    """Return ``opened`` that remembers the synthesised sounds under the last encoders: a tenth of a gigabyte each."""
    known: dict[str, TokenSource] = {}

    def found(encoder: Encoder, folder: str | None) -> TokenSource:
        if folder is not None or encoder.name != "patches":  # a source keeps its encoder, and that its model
            return opened(encoder, folder)
        name = json.dumps(encoder.identity(), sort_keys=True)
        known[name] = known.pop(name, None) or opened(encoder, None)
        for old in list(known)[:-most]:
            del known[old]
        return known[name]

    return found


@pytest.fixture(scope="session")
def tiny_overrides(home: Path) -> list[str]:
    """The overrides that make any run small; its store and its codec are ready, also for other processes."""
    assert prepare_task(load_config(TINY)).space.codec.size
    return list(TINY)


@pytest.fixture(scope="session")
def usual_codec(home: Path) -> None:
    """The codec of the usual size, of a few sounds: other processes would take minutes for one of all of them."""
    config = load_config(["encoder.stride=16"])
    public_space(config.encoder, config.codec, config.generator.lengths)


@pytest.fixture(scope="session")
def tiny(tiny_overrides: list[str]) -> Callable[..., Config]:
    """Composes a small configuration with more overrides; Hydra is asked once for each set of choices."""
    groups = set(choices())

    @cache
    def composed(chosen: tuple[str, ...]) -> str:
        return to_yaml(load_config([*tiny_overrides, *chosen]))

    def compose(*overrides: str) -> Config:
        chosen = tuple(text for text in overrides if text.split("=")[0] in groups)
        values = [text for text in overrides if text not in chosen]
        return from_dictconfig(OmegaConf.merge(OmegaConf.create(composed(chosen)), OmegaConf.from_dotlist(values)))  # type: ignore[arg-type]

    return compose


@pytest.fixture(scope="session")
def task(tiny: Callable[..., Config]) -> Task:
    """The small configuration with its data."""
    return prepare_task(tiny())


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pictures, which cost more than a small round."""
    monkeypatch.setattr("fedgen.report.recorder.draw_run", lambda results, folder: [])


@pytest.fixture(scope="session")
def finished(tiny: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with checkpoints, states, and others' samples on the nodes: copy it to change it."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedgen.report.recorder.draw_run", lambda results, folder: [])
        run(replace(tiny("mode=combined", "rounds=2"), run_dir=str(folder)))
    return folder


@pytest.fixture
def federate(no_plots: None) -> Federate:
    def start(config: Config, run_dir: Path, app: NodeApp | None = None) -> dict[str, Any]:
        config = replace(config, run_dir=str(run_dir))
        if app is None:
            return run(config)
        values = {"config": to_yaml(config)}
        run_server(server_app, LocalGrid(app, config.partition.nodes, values), values)  # type: ignore[arg-type]
        return RunFolder(run_dir).results()

    return start


@pytest.fixture(scope="session")
def nodes_that() -> type[Nodes]:
    return Nodes


@pytest.fixture(scope="session")
def figures() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What two runs that did the same must agree on: all but the seconds and how the run was put together."""
    left_out = {"seconds", "history", "mode", "phases", "bytes"}
    return lambda results: {key: value for key, value in results.items() if key not in left_out}


@pytest.fixture(scope="session")
def esc10() -> Path:
    """Real audio, where it is."""
    folder = Path(__file__).parents[1] / ".." / "shared" / "data" / "esc10"
    if not (folder / "meta").is_dir():
        pytest.skip(f"no real audio in {os.path.normpath(folder)}")
    return folder.resolve()


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    """A benchmark is a process of its own and sets up logging as it likes."""
    root, own = logging.getLogger(), logging.getLogger("fedgen")
    levels, handlers = (root.level, own.level), list(root.handlers)
    yield
    root.setLevel(levels[0])
    own.setLevel(levels[1])
    root.handlers[:] = handlers

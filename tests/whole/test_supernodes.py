"""The project's apps on real SuperNodes: every message is a process of its own, every node keeps what is its own."""

import contextlib
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from federations import Federate
from superlinks import CONNECTION, environment, free_port, running_superlink, spawn, stop_all, work_folder

from fedgen.config.settings import Config
from fedgen.runs.folder import RunFolder
from fedgen.runtimes.simulation import run_config_toml

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]
NODES = [
    "partition-id=0 num-partitions=3",
    'partition-id=1 num-partitions=3 granularity="per_class" samples-per-class=4',
    'partition-id=2 num-partitions=3 classes="siren"',
]


@contextlib.contextmanager
def supernodes(folder: Path, address: str) -> Iterator[None]:
    """Run one SuperNode for each of `NODES`, each with a Flower home and a ``state`` folder of its own."""
    homes = [folder / f"n{number}" for number in range(len(NODES))]
    try:
        for home, facts in zip(homes, NODES, strict=True):
            work_folder(home).mkdir(parents=True)
            facts += f' state="{home / "state"}"'
            command = ["flower-supernode", "--insecure", "--superlink", address, "--port", str(free_port())]
            with (home / "log").open("wb") as log:
                spawn([*command, "--node-config", facts], home, log)
        yield
    finally:
        for home in homes:
            stop_all(home)


def test_shared_generators_give_what_they_give_in_process(
    tiny_overrides: list[str], tiny: Callable[..., Config], federate: Federate, tmp_path: Path
) -> None:
    overrides = ["mode=combined", "generator=vae", "sharing=shared", "sharing.scheme=cyclic"]
    deployed, local = tmp_path / "deployed", tmp_path / "local"
    home = tmp_path / "home"
    home.mkdir()
    with running_superlink(home, simulation=False) as address, supernodes(tmp_path, address):
        settings = home / "run.toml"
        everything = [*tiny_overrides, *overrides, "strategy.wait=120", f"run_dir={deployed}"]
        settings.write_text(run_config_toml(everything), encoding="utf-8")
        command = ["flwr", "run", str(CHECKOUT), CONNECTION, "--stream", "--run-config", str(settings)]
        run = subprocess.run(
            command, cwd=work_folder(home), env=environment(home), capture_output=True, text=True, timeout=500
        )
    assert (deployed / "results.json").is_file(), run.stdout[-3000:] + run.stderr[-3000:]
    own = "{1: {granularity: per_class, samples_per_class: '4'}, 2: {classes: [siren]}}"
    expected = federate(tiny(*overrides, f"nodes={own}"), local)
    found = RunFolder(deployed).results()
    assert figures(found) == figures(expected)
    assert found["samples"] == {"dog": 6, "cow": 6, "rain": 4, "crickets": 4, "siren": 6}
    names = {path.name for path in (tmp_path / "n1" / "state" / "deployed" / "checkpoints").glob("*/*.safetensors")}
    assert names == {
        "vae_perclass_node1_class_rain.safetensors",
        "vae_perclass_node1_class_crickets.safetensors",
    }
    kept = sorted(path.name for path in deployed.rglob("*") if re.search(r"node\d", path.name))
    assert kept == [f"samples_node{number}.safetensors" for number in range(3)]  # of a node nothing but samples


def figures(results: dict[str, object]) -> dict[str, object]:
    """All but what a clock and the length of folder names decide."""
    return {key: value for key, value in results.items() if key not in ("seconds", "bytes")}

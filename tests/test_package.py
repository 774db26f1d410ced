"""What is handed out: the bundle that Flower takes, and the wheel."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from flwr.cli.app_cmd.publish import _validate_files
from flwr.cli.build import build_fab_from_disk
from flwr.cli.utils import collect_files, filter_paths_for_publish
from flwr.supercore.fab_format_version import normalize_and_validate_fab_format

from fedgen.config.compose import config_dir
from fedgen.runtimes.simulation import app_folder

ROOT = Path(__file__).parents[1]
SMALLEST = ["rounds=1", "partition.nodes=2", "mode=federate", "data.folds=3", "data.test_fold=3", "encoder.stride=16"]
SMALLEST += ["data.classes=[dog,rain]", "adapter.training.epochs=1", "threads=1"]


def bundle(folder: Path) -> zipfile.ZipFile:
    built = build_fab_from_disk(folder)
    return zipfile.ZipFile(io.BytesIO(built[0] if isinstance(built, tuple) else built))


def test_the_hub_takes_the_app(capsys: pytest.CaptureFixture[str]) -> None:
    """At most 1000 files of 1 MB, 10 MB in all; format 1 with its licence."""
    metadata = normalize_and_validate_fab_format(tomllib.loads((ROOT / "pyproject.toml").read_text()))
    assert metadata.fab_format_version == 1
    _validate_files(list(filter_paths_for_publish(collect_files(ROOT)).values()))
    assert "Validation passed" in capsys.readouterr().out


def test_the_bundle_holds_what_the_apps_need() -> None:
    names = set(bundle(ROOT).namelist())
    assert {"LICENSE", "README.md", "pyproject.toml", "fedgen/server_app.py", "fedgen/client_app.py"} <= names
    assert {f"conf/{path.relative_to(config_dir())}" for path in config_dir().rglob("*.yaml")} <= names
    assert not [name for name in names if name.startswith(("tests/", "docs/", "benchmarks/"))]


def test_the_apps_compose_from_the_bundle_alone(tmp_path: Path) -> None:
    bundle(ROOT).extractall(tmp_path)
    code = """
import fedgen.client_app, fedgen.server_app
from fedgen.config.compose import config_dir, load_config
print(config_dir(), load_config(["generator=vae", "granularity=per_class"]).generator.kind)
"""
    shown = run(tmp_path, "-c", code)
    assert shown.stdout.split() == [str(tmp_path / "conf"), "vae"], shown.stderr


def run(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the package in ``folder`` and without the checkout."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=500
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked where the checkout is not on the path."""
    if find_spec("hatchling") is None:
        pytest.skip("a wheel is built with hatchling, which is not installed: pip install hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = ["-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", str(folder), str(ROOT)]
    built = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


@pytest.mark.slow
def test_a_simulation_from_the_wheel(installed: Path, tmp_path: Path, usual_codec: None) -> None:
    words = ["simulate", *SMALLEST, f"run_dir={tmp_path / 'run'}"]
    shown = run(installed, "-m", "fedgen.cli", *words)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert (tmp_path / "run" / "results.json").is_file()


@pytest.mark.slow
def test_the_wheel_makes_a_flower_app(installed: Path) -> None:
    assert (installed / "fedgen" / "py.typed").is_file()
    code = """
from flwr.cli.build import build_fab_from_disk
from fedgen.runtimes.simulation import app_folder
with app_folder() as folder:
    build_fab_from_disk(folder)
    print(sorted(path.name for path in folder.iterdir()))
"""
    shown = run(installed, "-c", code)
    assert shown.stdout.strip() == "['LICENSE', 'README.md', 'conf', 'fedgen', 'pyproject.toml']", shown.stderr


def test_a_checkout_is_its_own_app() -> None:
    with app_folder() as folder:
        assert folder == ROOT

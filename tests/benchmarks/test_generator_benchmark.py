"""The benchmark of the generators: what its baselines draw, what its tables say, and all of it at a small size."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from fedgen.data.tokens import TensorTokens

pytestmark = pytest.mark.usefixtures("logging_as_before")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ("figures", "predecessor", "baselines", "comparison", "generators")
SMALL = [
    "data.clips_per_class=10",
    "data.classes=[dog, rain]",
    "partition.nodes=2",
    "encoder.stride=16",
    "target=small",
]


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The benchmark and its neighbours, gone again afterwards."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    found = {}
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
        found[name] = import_module(name)
        monkeypatch.setitem(sys.modules, name, found[name])
    return found


@pytest.fixture
def clips() -> TensorTokens:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2).repeat_interleave(200)
    ramp = torch.arange(8.0)[None, :, None]  # what comes later is more
    tokens = torch.randn(400, 1, 3, generator=generator) + ramp * (1 + labels[:, None, None])
    return TensorTokens(tokens, labels)


@pytest.mark.parametrize("length", [1, 4])
def test_a_class_gaussian_has_the_clips_moments(modules: dict[str, Any], clips: TensorTokens, length: int):
    made = modules["baselines"].class_gaussian(clips, length, count=4000, shrinkage=0.3, seed=1)
    short = modules["baselines"].shortened(clips, length).flatten(1)
    for label in (0, 1):
        own, drawn = short[clips.labels == label], made.short[made.labels == label].flatten(1)
        assert_close(drawn.mean(dim=0), own.mean(dim=0), atol=0.1, rtol=0)
        assert_close(drawn.T.cov(), own.T.cov(), atol=0.2, rtol=0)
    sequence = made.batch(torch.tensor([0]))[0]
    assert sequence.shape == clips.shape
    constant = bool(sequence.diff(dim=0).abs().max() < 1e-5)
    assert constant == (length == 1)


def test_interpolations_lie_between_near_clips_of_a_class(modules: dict[str, Any], clips: TensorTokens):
    made = modules["baselines"].interpolations(clips, count=5, seed=0)
    assert made.labels.tolist() == [0] * 5 + [1] * 5
    assert (clips.labels[made.pairs] == made.labels[:, None]).all()
    assert (made.pairs[:, 0] != made.pairs[:, 1]).all()
    first, second = (clips.tokens[rows] for rows in made.pairs.unbind(dim=1))
    gone, whole = made.batch(torch.arange(10)) - first, second - first
    assert_close(gone, whole * made.shares[:, None, None])


def test_a_mixture_finds_its_clusters(modules: dict[str, Any]):
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    latents = centres.repeat(20, 1) + 0.1 * torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    drawn, labels = modules["baselines"].mixture(latents, torch.full((60,), 7), count=90, seed=0)
    assert labels.tolist() == [7] * 90
    distances, nearest = torch.cdist(drawn, centres).min(dim=1)
    assert distances.max() < 1
    assert nearest.bincount().min() > 10


def cell(way: str, fold: int, density: float, coverage: float = 1.0, tstr: float = 0.6) -> dict[str, Any]:
    fidelity = {"frechet": 0.01, "mmd": 0.0, "precision": density, "recall": 0.9, "density": density}
    fidelity["coverage"] = coverage
    report = {
        "utility": {"pooled": {"tstr": tstr, "trtr": 0.5}},
        "fidelity": {"synthetic": fidelity, "real": {**fidelity, "density": 1.0}},
    }
    return {"way": way, "length": 4, "fold": fold, "seed": 0, "seconds": 1.0, "report": report}


@pytest.mark.parametrize(
    ("change", "wins", "worse"),
    [
        ({}, True, []),
        ({"coverage": 0.99}, False, ["coverage"]),
        ({"tstr": 0.4}, False, ["pooled probe"]),
    ],
    ids=["denser", "less covered", "worse to learn from"],
)
def test_a_kind_wins_by_what_it_gains_and_does_not_lose(
    modules: dict[str, Any], change: dict[str, float], wins: bool, worse: list[str]
):
    cells = [cell("gaussian", fold, 0.8 + fold / 10) for fold in (1, 2)]
    cells += [cell("gan", fold, 0.9 + fold / 10, **change) for fold in (1, 2)]
    real, gaussian, gan = modules["comparison"].summary(cells, [("gaussian", 4), ("gan", 4)], ["gan"])
    assert (real["blocks"], real["measures"]["density"]) == (2, (1.0, 0.0))
    assert gaussian["shares"]["pooled"][0] == pytest.approx(1.2)
    assert gaussian["met"] == {"pooled": True}
    assert (gan["against"]["wins"], gan["against"]["worse"]) == (wins, worse)
    assert gan["against"]["differences"]["density"] == pytest.approx((0.1, 0.0))
    modules["comparison"].tables([real, gaussian, gan], "made up")


def test_generators(modules: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    benchmark = modules["generators"].main
    words = [
        "sounds",
        *SMALL,
        "generator.training.epochs=1",
        "codec.components=4",
    ]
    sizes = ["--lengths", "4", "--samples", "6", "--epochs", "1", "--folds", "1", "--out", str(tmp_path)]
    benchmark([*words, *sizes, "--kinds", "gaussian", "vae"])
    found = json.loads((tmp_path / "generators.json").read_text())["rows"]
    rows = {(row["way"], row["length"]): row for row in found}
    short = {(way, 4) for way in ("gaussian", "vae", "mixture", "flat gaussian", "predecessor")}
    assert set(rows) == short | {("real clips", None), ("pooled gaussian", 1), ("interpolation", 514)}
    real, leak = (rows[row]["measures"] for row in [("real clips", None), ("interpolation", 514)])
    assert leak["frechet"][0] < 3 * real["frechet"][0]  # points between clips are like clips
    assert "wins" in rows["vae", 4]["against"]
    kept = tmp_path / "fold1_seed0" / "vae_4.json"
    before = kept.stat().st_mtime_ns
    benchmark([*words, *sizes, "--kinds", "vae", "--baselines"])
    assert kept.stat().st_mtime_ns == before
    with pytest.raises(SystemExit, match="other settings"):
        benchmark([*words, "generator.shrinkage=0.5", *sizes, "--kinds", "vae"])
    with pytest.raises(SystemExit):
        benchmark([*words, "sharing=shared", *sizes])
    assert "sharing=shared is no override here" in capsys.readouterr().err

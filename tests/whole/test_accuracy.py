"""What fedgen is for, measured: classes dealt to different nodes are learned without their clips leaving them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedgen.config.compose import load_config
from fedgen.data.public import CLASSES, CLIPS, open_public
from fedgen.models.public import public_space
from fedgen.runtimes.local import run_config as run

ESC10 = Path(__file__).parents[3] / "shared" / "data" / "esc10"


@pytest.fixture(scope="module", autouse=True)
def whole_codec(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The codec of all public sounds, in place of the few that other tests fit one to: one for both data sets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDGEN_HOME", str(tmp_path_factory.mktemp("whole")))
        patch.setattr("fedgen.data.public.PublicTokens.__init__.__defaults__", (CLASSES, CLIPS))
        patch.setattr("fedgen.models.public.open_public", open_public)
        public_space.cache_clear()
        yield
    public_space.cache_clear()


def accuracies(folder: Path, modes: list[str], overrides: list[str]) -> dict[str, float]:
    """Run each mode with its own number of rounds and return the accuracies."""
    found = {}
    for mode in modes:
        common = [f"mode={mode}", f"run_dir={folder / mode}", "threads=1", "evaluation.quality=false"]
        config = load_config([*common, *overrides])
        found[mode] = float(run(config)["accuracy"])
    return found


@pytest.mark.slow
def test_the_demo_reaches_its_marks(tmp_path: Path) -> None:
    """Averaging alone does as well on its sounds; on real ones, below, it does not."""
    found = accuracies(tmp_path, ["federate", "combined"], ["experiment=demo"])
    assert found["federate"] >= 0.7, found
    assert found["combined"] >= 0.7, found


@pytest.mark.slow
@pytest.mark.skipif(not ESC10.is_dir(), reason=f"the real clips of ESC-10 are not in {ESC10}")
def test_real_sound_reaches_its_marks(tmp_path: Path) -> None:
    """3 nodes with 3, 3 and 4 disjoint classes of ESC-10, fold 5 held out, federated averaging over 10 rounds."""
    modes = ["federate", "combined", "centralised"]
    found = accuracies(tmp_path, modes, ["experiment=esc10", f"data.root={ESC10}", "encoder.stride=16"])
    assert found["centralised"] >= 0.80, found
    assert found["combined"] >= 0.75, found
    assert found["combined"] >= found["federate"] + 0.15, found

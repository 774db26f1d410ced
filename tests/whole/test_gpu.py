"""A federation on a CUDA device."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedgen.config.settings import Config
from fedgen.models.generators import KINDS
from fedgen.runtimes.local import run_config as run


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_two_rounds_on_the_gpu(tiny: Callable[..., Config], tmp_path: Path, kind: str) -> None:
    """The second round decodes samples in a codec that the server has on its device."""
    overrides = ["mode=combined", "rounds=2", f"generator={kind}", f"run_dir={tmp_path}", "device=cuda"]
    results = run(tiny(*overrides))
    assert [entry["round"] for entry in results["history"]] == [0, 1, 2]
    assert results["lost"] == {}

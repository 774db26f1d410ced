"""A finished run for each pipeline, with pictures; both are made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rendered import T5_TOKENS, asked
from tiny_pipelines import tiny_flux, tiny_sd

from fedgen.config.settings import Config
from fedgen.render.pictures import render
from fedgen.runtimes.local import run_config as run


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_flux(folder / "flux")
    tiny_sd(folder / "sd")
    return folder


@pytest.fixture(scope="session")
def runs(tiny: Callable[..., Config], models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run for each target, of which that for FLUX has samples, with pictures of a dog and of rain."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedgen.report.recorder.draw_run", lambda results, folder: [])
        for target, mode in (("flux", "combined"), ("sd", "federate")):
            source = ["target.source=clip_t5", f"target.model={models / target}", "target.template=the {}"]
            config = tiny(f"target={target}", f"mode={mode}", *source, f"target.t5_tokens={T5_TOKENS}")
            run(replace(config, run_dir=str(folder / target)))
    render(folder / "flux", asked("flux", sources=["text", "real", "synthetic"], count=2))
    render(folder / "sd", asked("sd", sources=["text", "real"]))
    return folder

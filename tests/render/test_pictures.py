"""Pictures of tiny pipelines of the real classes: what goes where, what is kept, what is said of them."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rendered import SIZE, STEPS, T5_TOKENS, asked, facts, pixels
from safetensors.torch import load_file, save_file
from tiny_pipelines import diffusers

from fedgen.cli import main
from fedgen.data.seeds import seeded
from fedgen.render import pictures, pipelines
from fedgen.render.pictures import render
from fedgen.report.page import images
from fedgen.report.saved_run import SavedRun
from fedgen.runs.folder import RunFolder


@pytest.fixture
def copied(runs: Path, tmp_path: Path) -> Path:
    """The run for FLUX with its pictures, for tests that change them."""
    return shutil.copytree(runs / "flux", tmp_path / "flux")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are made from now on."""
    found: list[str] = []
    save = pictures.save

    def noted(file: Path, picture: Image.Image, facts: dict[str, Any]) -> None:
        if file.name != "grid.png":
            found.append(file.name)
        save(file, picture, facts)

    monkeypatch.setattr(pictures, "save", noted)
    return found


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(pipelines, "load_model", refuse)


def by_the_pipeline(target: str, models: Path, **given: Any) -> np.ndarray:
    """What the pipeline itself makes, whole as its authors load it."""
    library = diffusers()
    pipeline = {"flux": library.FluxPipeline, "sd": library.StableDiffusionPipeline}[target]
    made = pipeline.from_pretrained(models / target)
    made.set_progress_bar_config(disable=True)
    height, width = SIZE
    options = {"num_inference_steps": STEPS[target], "height": height, "width": width}
    noise = seeded(0, "picture", "dog", 0)
    return np.asarray(made(**options, generator=noise, **given).images[0])


@pytest.mark.parametrize(
    ("target", "own"),
    [
        ("flux", {"guidance_scale": 0.0, "max_sequence_length": T5_TOKENS}),
        ("sd", {"guidance_scale": 7.5, "negative_prompt": ""}),
    ],
)
def test_a_class_s_own_targets_make_what_the_pipeline_makes_of_the_prompt(
    target: str, own: dict[str, Any], runs: Path, models: Path
) -> None:
    expected = by_the_pipeline(target, models, prompt="the dog", **own)
    assert np.array_equal(pixels(runs / target / "render" / "dog" / "text_0.png"), expected)


def test_each_head_of_a_real_clip_goes_where_it_belongs(runs: Path, models: Path) -> None:
    """T5's tokens as ``prompt_embeds``, CLIP's vector as ``pooled_prompt_embeds``."""
    file = runs / "flux" / "render" / "dog" / "real_0.png"
    folder = RunFolder(runs / "flux")
    saved = SavedRun.open(folder, folder.config())
    store = saved.task.store
    clip = store.names.index(facts(file)["made of"].removeprefix("clip "))
    assert store.folds[clip] == 3
    assert store.classes[store.labels[clip]] == "dog"
    with torch.no_grad():
        heads = saved.adapters(store.tokens([clip], torch.float32))
    given = {"prompt_embeds": heads["t5"], "pooled_prompt_embeds": heads["clip"], "guidance_scale": 0.0}
    assert np.array_equal(pixels(file), by_the_pipeline("flux", models, **given))


def test_stable_diffusion_gets_all_tokens_of_a_clip(
    runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[dict[str, tuple[int, ...]]] = []
    call = diffusers().StableDiffusionPipeline.__call__

    def watched(self: Any, **given: Any) -> Any:
        seen.append({name: tuple(value.shape) for name, value in given.items() if isinstance(value, torch.Tensor)})
        return call(self, **given)

    monkeypatch.setattr(diffusers().StableDiffusionPipeline, "__call__", watched)
    shutil.copytree(runs / "sd", tmp_path / "sd", ignore=shutil.ignore_patterns("render"))
    render(tmp_path / "sd", asked("sd", classes=["dog"], sources=["real"]))
    render(tmp_path / "sd", asked("sd", classes=["dog"], sources=["real"], guidance=1.0))
    assert seen == [{"prompt_embeds": (1, 24, 12)}] * 2


def test_pictures_differ_as_what_they_are_made_of(runs: Path) -> None:
    folder = runs / "flux" / "render"
    found = {pixels(file).tobytes() for file in folder.glob("*/*_?.png")}
    assert len(found) == 12
    assert {facts(file)["made of"] for file in (folder / "dog").glob("real_?.png")} == {"clip dog/4", "clip dog/5"}
    assert all("of node" in facts(file)["made of"] for file in folder.glob("*/synthetic_?.png"))


def test_a_picture_is_the_same_whatever_else_is_made(runs: Path, tmp_path: Path) -> None:
    only = asked("flux", classes=["rain"], sources=["synthetic"], out=tmp_path)
    render(runs / "flux", only)
    together = runs / "flux" / "render" / "rain" / "synthetic_0.png"
    assert (tmp_path / "rain" / "synthetic_0.png").read_bytes() == together.read_bytes()
    render(runs / "flux", replace(only, seed=1, out=tmp_path / "other"))
    assert (tmp_path / "other" / "rain" / "synthetic_0.png").read_bytes() != together.read_bytes()


def test_what_is_there_is_not_made_again(copied: Path, no_models: None) -> None:
    before = {file: file.stat().st_mtime_ns for file in copied.glob("render/*/*_?.*")}
    assert len(before) == 24
    render(copied, asked("flux", sources=["text", "real", "synthetic"], count=2))
    assert {file: file.stat().st_mtime_ns for file in copied.glob("render/*/*_?.*")} == before


def test_what_is_missing_damaged_or_of_other_settings_is_made(copied: Path, drawn: list[str]) -> None:
    folder = copied / "render" / "dog"
    whole = (folder / "real_1.png").read_bytes()
    (folder / "text_0.png").unlink()
    (folder / "text_1.json").write_text("[1]")
    (folder / "real_1.png").write_bytes(whole[:-40])
    settings = asked("flux", classes=["dog"], sources=["text", "real"], count=2)
    render(copied, settings)
    assert drawn == ["text_0.png", "text_1.png", "real_1.png"]
    assert (folder / "real_1.png").read_bytes() == whole
    drawn.clear()
    render(copied, replace(settings, sources=["text"], steps=1))
    assert drawn == ["text_0.png", "text_1.png"]


def test_other_adapters_make_other_pictures(copied: Path, drawn: list[str]) -> None:
    folder = RunFolder(copied)
    weights, _ = folder.load_adapters({})
    file = folder.checkpoints / "adapters.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert weights
    render(copied, asked("flux", classes=["dog"], sources=["text", "real"]))
    assert drawn == ["real_0.png"]


def test_an_interruption_never_leaves_a_json_beside_another_picture(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = pictures.write_atomically

    def stop(file: Path, content: bytes) -> None:
        if file.suffix == ".json":
            raise KeyboardInterrupt
        write(file, content)

    monkeypatch.setattr(pictures, "write_atomically", stop)
    with pytest.raises(KeyboardInterrupt):
        render(copied, asked("flux", classes=["dog"], sources=["text"], seed=9))
    assert not (copied / "render" / "dog" / "text_0.json").exists()


def test_the_json_says_what_made_a_picture(runs: Path, models: Path) -> None:
    found = facts(runs / "flux" / "render" / "dog" / "text_0.png")
    named = {"class": "dog", "source": "text", "made of": "prompt 'the dog'", "index": 0, "seed": 0, "steps": 2}
    more = {"guidance": 0.0, "size": "16 x 32", "pipeline": str(models / "flux"), "precision": "float32"}
    assert {key: found[key] for key in {**named, **more}} == {**named, **more}
    assert found["made by"]["diffusers"] == diffusers().__version__
    assert found["run"]["folder"] == str(runs / "flux")
    assert found["run"]["round"] == 1


def test_the_grid_holds_every_picture(runs: Path) -> None:
    folder = runs / "flux" / "render" / "dog"
    sheet = pixels(folder / "grid.png")
    windows = {
        sheet[y : y + 16, x : x + 32].tobytes() for y in range(len(sheet) - 15) for x in range(len(sheet[0]) - 31)
    }
    for file in folder.glob("*_?.png"):
        assert pixels(file).tobytes() in windows


def test_a_report_shows_the_grids(runs: Path) -> None:
    found = images(runs / "flux")
    assert [image["name"] for image in found] == ["render/dog/grid", "render/rain/grid"]
    assert all(image["source"].startswith("data:image/png") for image in found)


def test_by_default_nothing_is_made_of_real_sound(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fedgen"])
    options = ["--class", "dog", "--size", "16", "16", "--steps", "1", "--device", "cpu", "--out", str(tmp_path)]
    for target, names in (("flux", {"text_0", "text_1", "synthetic_0", "synthetic_1", "grid"}), ("sd", set())):
        assert main(["render", str(runs / target), *options, "--quiet"]) == 0
        if names:
            assert {file.stem for file in (tmp_path / "dog").glob("*.png")} == names
        shutil.rmtree(tmp_path / "dog")
    assert capsys.readouterr().out == ""


def test_an_autoencoder_s_weights_may_have_their_older_names(runs: Path, models: Path, tmp_path: Path) -> None:
    """As Stable Diffusion 1.5 has them."""
    folder = shutil.copytree(models / "sd", tmp_path / "sd")
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(file)
    for new, old in older.items():
        tensors = {name.replace(f".{new}.", f".{old}."): value for name, value in tensors.items()}
    assert any(".proj_attn." in name for name in tensors)
    save_file(tensors, file)
    render(runs / "sd", asked("sd", classes=["dog"], sources=["text"], pipeline=str(folder), out=tmp_path))
    assert np.array_equal(
        pixels(tmp_path / "dog" / "text_0.png"), pixels(runs / "sd" / "render" / "dog" / "text_0.png")
    )


@pytest.mark.gpu
@pytest.mark.parametrize("offload", [False, True])
def test_pictures_on_cuda(offload: bool, runs: Path, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    same = {"sources": ["text"], "precision": "float32", "device": "cuda", "offload": offload, "out": tmp_path}
    render(runs / "flux", asked("flux", **same))
    there, here = (pixels(folder / "dog" / "text_0.png") for folder in (tmp_path, runs / "flux" / "render"))
    assert np.abs(there.astype(int) - here).max() <= 3

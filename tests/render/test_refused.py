"""What no picture can be made of, and with: the errors name it and say what to do."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rendered import SMALL, asked
from safetensors.torch import load_file, save_file
from tiny_models import downloaded, offline
from tiny_pipelines import diffusers, tiny_flux

from fedgen.config.compose import to_yaml
from fedgen.config.settings import Config
from fedgen.errors import ConfigError, DataError
from fedgen.render import pictures
from fedgen.render.pictures import folder_name, render
from fedgen.render.pipelines import KINDS, ImagePipeline, PipelineFiles
from fedgen.render.settings import RenderSettings
from fedgen.report.saved_run import SavedRun
from fedgen.runs.folder import RunFolder


@pytest.mark.parametrize(
    ("target", "given", "error", "message"),
    [
        ("flux", {"classes": ["dgo"]}, ConfigError, r"--class='dgo' is not one of dog, cow.* Did you mean 'dog'"),
        ("flux", {"guidance": 3.5}, ConfigError, r"--guidance=3\.5: .*flux was trained without"),
        ("flux", {"size": [16, 24]}, ConfigError, r"--size=16 24: both must be multiples of 16"),
        ("flux", {"offload": True}, ConfigError, r"--offload needs a CUDA device"),
        ("flux", {"pipeline": "{models}/sd"}, ConfigError, r"sd is a StableDiffusionPipeline: .* need a FluxPipeline"),
        ("flux", {"pipeline": "{models}"}, DataError, r"--pipeline=.* has no model_index\.json"),
        (
            "flux",
            {"pipeline": "/nowhere"},
            DataError,
            r"--pipeline=/nowhere is no folder.*transformer/diffusion_pytorch",
        ),
        ("sd", {"sources": ["synthetic"]}, ConfigError, r"--from=synthetic: .*sd has no synthetic samples of dog"),
    ],
)
def test_what_cannot_be_is_refused(
    target: str, given: dict[str, Any], error: type[Exception], message: str, runs: Path, models: Path, tmp_path: Path
) -> None:
    if "pipeline" in given:
        given = {**given, "pipeline": given["pipeline"].replace("{models}", str(models))}
    with pytest.raises(error, match=message):
        render(runs / target, asked(target, **{"classes": ["dog"], "sources": ["text"], "out": tmp_path, **given}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sources": ["noise"]}, r"--from='noise' is not one of text, real, synthetic"),
        ({"precision": "half"}, r"--precision='half' is not one of auto, float32"),
        ({"count": 0}, r"--count=0"),
        ({"steps": 0}, r"--steps=0"),
        ({"guidance": -1.0}, r"--guidance=-1"),
    ],
)
def test_bad_settings_name_value_and_option(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RenderSettings(**given)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["target=small"], r"has target=small, which no pipeline takes: run with target=flux or sd"),
        (["target=flux"], r"target\.source=words: its adapters aim at vectors of chance.*target\.source=clip_t5"),
        (["target=flux", "mode=standalone", "target.source=clip_t5"], r"mode=standalone: it has no global adapters"),
    ],
)
def test_runs_without_pictures(overrides: list[str], message: str, tiny: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(tiny(*overrides)))
    with pytest.raises(ConfigError, match=message):
        render(tmp_path, RenderSettings(**SMALL))


def test_a_class_without_held_out_clips_or_samples(runs: Path) -> None:
    folder = RunFolder(runs / "flux")
    saved = SavedRun.open(folder, folder.config())
    conditioning = pictures.Conditioning(saved)
    conditioning.clips[0].clear()
    conditioning.samples[0].clear()
    for source in ("real", "synthetic"):
        with pytest.raises(ConfigError, match=rf"--from={source}: .*of dog"):
            conditioning.refuse_unless_there([0, 1], source)


def test_pipelines_of_other_widths_are_refused(runs: Path, tmp_path: Path) -> None:
    """The widths of the heads, swapped."""
    other = str(tiny_flux(tmp_path / "flux", widths=(12, 24)))
    with pytest.raises(
        ConfigError, match=r"takes prompt_embeds of width 12 \(joint_attention_dim\), the run's t5 has 24"
    ):
        render(runs / "flux", asked("flux", pipeline=other, out=tmp_path))


def test_flux_with_guidance(tmp_path: Path) -> None:
    found = {guided: PipelineFiles("flux", str(tiny_flux(tmp_path / str(guided), guided))) for guided in (False, True)}
    assert {guided: files.usual for guided, files in found.items()} == {False: (4, 0.0), True: (28, 3.5)}


def test_the_usual_pipelines_fit_the_documented_shapes(tmp_path: Path) -> None:
    """FLUX.1 and Stable Diffusion 1.5 have the sizes that these classes have by default."""
    library = diffusers()
    with torch.device("meta"):
        flux = library.FluxTransformer2DModel(guidance_embeds=True, num_layers=1, num_single_layers=1)
        sd = library.UNet2DConditionModel(cross_attention_dim=768, sample_size=64)
        heads = {"flux": {"t5": torch.zeros(1, 17, 4096), "clip": torch.zeros(1, 768)}}
        heads["sd"] = {"clip": torch.zeros(1, 77, 768)}
        ids = {"txt_ids": torch.zeros(17, 3), "img_ids": torch.zeros(4096, 3)}
        time, latents = torch.zeros(1), torch.zeros(1, 4096, 64)
        given = {"encoder_hidden_states": heads["flux"]["t5"], "pooled_projections": heads["flux"]["clip"]}
        assert flux(latents, timestep=time, guidance=time, **given, **ids).sample.shape == (1, 4096, 64)
        assert sd(torch.zeros(1, 4, 64, 64), 1, heads["sd"]["clip"]).sample.shape == (1, 4, 64, 64)
    for target, part, model, name in (("flux", "transformer", flux, "Flux"), ("sd", "unet", sd, "StableDiffusion")):
        folder = tmp_path / target
        model.save_config(folder / part)
        for place, content in (("vae/config.json", {"block_out_channels": [128, 256, 512, 512]}), ("scheduler/", {})):
            file = folder / (place if content else "scheduler/scheduler_config.json")
            file.parent.mkdir()
            file.write_text(json.dumps(content))
        (folder / "model_index.json").write_text(json.dumps({"_class_name": f"{name}Pipeline"}))
        files = PipelineFiles(target, str(folder))
        files.refuse_unless_it_fits(heads[target])


def test_only_safetensors_and_all_of_them(runs: Path, models: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models / "sd", tmp_path / "sd")
    settings = asked("sd", pipeline=str(folder), out=tmp_path / "out")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({name: value for name, value in tensors.items() if name != "conv_out.bias"}, weights)
    with pytest.raises(DataError, match=r"unet is no UNet2DConditionModel: it has no weights conv_out\.bias \(1\)"):
        render(runs / "sd", settings)
    weights.write_bytes(b"half a file")
    with pytest.raises(DataError, match=r"UNet2DConditionModel cannot be loaded"):
        render(runs / "sd", settings)
    weights.unlink()
    weights.with_suffix(".bin").write_bytes(b"a pickle")
    with pytest.raises(DataError, match=r"has no unet/diffusion_pytorch_model.*read from safetensors alone"):
        render(runs / "sd", settings)


def test_guidance_needs_the_pipeline_s_text_encoder(runs: Path, models: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models / "sd", tmp_path / "sd", ignore=shutil.ignore_patterns("text_encoder"))
    settings = asked("sd", classes=["dog"], sources=["text"], pipeline=str(folder), out=tmp_path / "out")
    with pytest.raises(DataError, match=r"has no text_encoder/config\.json"):
        render(runs / "sd", settings)
    render(runs / "sd", replace(settings, guidance=1.0))


def test_offline_it_is_said_what_to_fetch(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(DataError) as caught:
        render(runs / "flux", asked("flux", pipeline="organisation/other-flux"))
    words = str(caught.value)
    assert "cannot be fetched (no network more words)" in words
    assert "hf download organisation/other-flux" in words
    assert "--include 'transformer/diffusion_pytorch_model" in words
    assert "set --pipeline=PATH/other-flux" in words
    with pytest.raises(DataError, match=r"--include 'text_encoder/model.*set --pipeline=PATH/other"):
        render(runs / "sd", asked("sd", pipeline="organisation/other"))


@pytest.mark.parametrize("target", list(KINDS))
def test_what_an_error_says_to_fetch_is_all_that_is_needed(
    target: str, models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of weights in parts their index among it, and of Stable Diffusion the text encoder for its guidance."""
    kind = KINDS[target]
    whole = shutil.copytree(models / target, tmp_path / "whole")
    for part, class_name in ((kind.part, kind.denoiser), ("vae", "AutoencoderKL")):
        model = getattr(diffusers(), class_name).from_pretrained(models / target / part)
        shutil.rmtree(whole / part)
        model.save_pretrained(whole / part, max_shard_size="9KB")
        assert (whole / part / "diffusion_pytorch_model.safetensors.index.json").is_file()
    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(DataError) as caught:
        PipelineFiles(target, "organisation/other").refuse_unless_it_fits({})
    folder = downloaded(whole, str(caught.value), tmp_path / "copied")
    files = PipelineFiles(target, str(folder))
    settings, cpu = RenderSettings(steps=1, guidance=3.0, size=[16, 16], precision="float32"), torch.device("cpu")
    assert (ImagePipeline(files, settings, cpu).pipeline.text_encoder is not None) == (target == "sd")
    (folder / kind.part / "diffusion_pytorch_model.safetensors.index.json").unlink()
    with pytest.raises(DataError, match=rf"{kind.denoiser} cannot be loaded"):
        ImagePipeline(files, settings, cpu)


def test_the_right_kind_is_made_sure_of_before_weights_are_fetched(
    runs: Path, models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked_for: list[list[str]] = []

    def fetch(name: str, *, allow_patterns: list[str], local_files_only: bool = False, **options: Any) -> str:
        if local_files_only:
            raise FileNotFoundError
        asked_for.append(allow_patterns)
        return str(models / name.rpartition("/")[2])

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    with pytest.raises(ConfigError, match=r"organisation/sd is a StableDiffusionPipeline"):
        render(runs / "flux", asked("flux", pipeline="organisation/sd"))
    assert asked_for == [["model_index.json", "*/config.json"]]
    render(runs / "flux", asked("flux", pipeline="organisation/flux", out=tmp_path))
    patterns = {pattern for asked in asked_for for pattern in asked}
    assert not any("text_encoder" in pattern or pattern.endswith(".bin") for pattern in patterns)
    assert any(pattern.startswith("transformer/diffusion_pytorch_model") for pattern in patterns)


def test_without_diffusers_it_is_said_what_to_install(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedgen\[render\]'"):
        render(runs / "flux", asked("flux"))


def test_a_picture_that_is_not_finite_is_refused(
    runs: Path, models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = SimpleNamespace(images=torch.full((1, 3, 4, 4), torch.nan))
    monkeypatch.setattr(diffusers().FluxPipeline, "__call__", lambda self, **given: broken)
    with pytest.raises(ConfigError, match=r"not finite in --precision=float32"):
        render(runs / "flux", asked("flux", out=tmp_path))


@pytest.mark.parametrize("name", ["../../etc", "..", "a/b", "/root", "a b", ""])
def test_a_class_s_folder_is_below_the_others(name: str) -> None:
    """Whatever a node calls its class."""
    plain = folder_name(name)
    assert Path(plain).name == plain != ".."
    assert plain != folder_name(name.replace("/", "_")) or "/" not in name
    assert folder_name("car_horn") == "car_horn"

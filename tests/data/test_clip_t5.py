"""Targets from a pipeline's text encoders, and their cache: tiny models of the real classes."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CLIP_LENGTH, WIDTH, downloaded, offline, tiny_pipeline, transformers

from fedgen.data import clip_t5
from fedgen.data.clip_t5 import TEXT_ENCODERS, TextEncoders
from fedgen.data.pretrained import load_model
from fedgen.data.settings import TargetSettings
from fedgen.data.targets import cache_folder, open_targets, prepare_targets
from fedgen.errors import ConfigError, DataError

CLASSES = ["dog", "sea_waves", "rain"]
T5_TOKENS = 24

Settings = Callable[..., TargetSettings]


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pipelines")
    return {name: tiny_pipeline(folder / name, name) for name in TEXT_ENCODERS}


@pytest.fixture
def settings(pipelines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Makes settings for a tiny pipeline, with a cache of the test's own."""
    monkeypatch.setenv("FEDGEN_HOME", str(tmp_path / "home"))

    def make(name: str = "flux", **other: Any) -> TargetSettings:
        given = {"template": "the {}", "t5_tokens": T5_TOKENS, "model": str(pipelines[name]), **other}
        return TargetSettings(name, "clip_t5", **given)

    return make


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(clip_t5, "load_model", refuse)


def test_flux_gets_clips_pooled_vector_and_t5s_padded_tokens(settings: Settings, pipelines: dict[str, Path]) -> None:
    """As ``FluxPipeline`` calls them: padded to the full length, without an attention mask."""
    library, folder = transformers(), pipelines["flux"]
    prompts = ["the dog", "the sea waves", "the rain"]
    tokenizer = library.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    given = tokenizer(prompts, padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
    pooled = library.CLIPTextModel.from_pretrained(folder / "text_encoder")(given.input_ids).pooler_output
    tokenizer = library.T5TokenizerFast.from_pretrained(folder / "tokenizer_2")
    given = tokenizer(prompts, padding="max_length", max_length=T5_TOKENS, return_tensors="pt")
    model = library.T5EncoderModel.from_pretrained(folder / "text_encoder_2")
    hidden, masked = (model(given.input_ids, mask)[0] for mask in (None, given.attention_mask))

    heads = prepare_targets(CLASSES, settings()).heads
    assert {head: tuple(value.shape) for head, value in heads.items()} == {
        "clip": (3, WIDTH),
        "t5": (3, T5_TOKENS, 2 * WIDTH),
    }
    assert torch.allclose(heads["clip"], pooled, atol=1e-5)
    assert torch.allclose(heads["t5"], hidden, atol=1e-5)
    assert not torch.allclose(heads["t5"], masked, atol=1e-2)
    assert all(value.dtype == torch.float32 for value in heads.values())


@pytest.mark.parametrize("masked", [False, True])
def test_stable_diffusion_gets_all_tokens_of_clip(
    masked: bool, settings: Settings, pipelines: dict[str, Path], tmp_path: Path
) -> None:
    """As ``StableDiffusionPipeline`` calls it: a mask only where the encoder's configuration asks for it."""
    folder = shutil.copytree(pipelines["sd"], tmp_path / "sd")
    file = folder / "text_encoder" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_attention_mask": masked}))
    library = transformers()
    tokenizer = library.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    given = tokenizer(["the dog"], padding="max_length", max_length=CLIP_LENGTH, return_tensors="pt")
    mask = given.attention_mask if masked else None
    expected = library.CLIPTextModel.from_pretrained(folder / "text_encoder")(given.input_ids, mask)[0]
    heads = prepare_targets(["dog"], settings("sd", model=str(folder))).heads
    assert list(heads) == ["clip"]
    assert heads["clip"].shape == (1, CLIP_LENGTH, WIDTH)
    assert torch.allclose(heads["clip"], expected, atol=1e-5)


def test_clips_weights_may_have_their_older_names(
    settings: Settings, pipelines: dict[str, Path], tmp_path: Path
) -> None:
    """As the published pipelines have them: below ``text_model``."""
    folder = shutil.copytree(pipelines["sd"], tmp_path / "older")
    file = folder / "text_encoder" / "model.safetensors"
    weights = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})
    older, newer = (prepare_targets(CLASSES, settings("sd", model=str(path))) for path in (folder, pipelines["sd"]))
    assert torch.equal(older.heads["clip"], newer.heads["clip"])


def test_the_usual_text_encoders_have_the_documented_shapes() -> None:
    library = transformers()
    clip = library.CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
    t5 = library.T5Config(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64)
    with torch.device("meta"):
        found = library.CLIPTextModel(clip)(torch.zeros(1, 77, dtype=torch.long))
        hidden = library.T5EncoderModel(t5)(torch.zeros(1, 17, dtype=torch.long))[0]
    assert found.pooler_output.shape == (1, 768)
    assert found.last_hidden_state.shape == (1, 77, 768)
    assert hidden.shape == (1, 17, 4096)


def test_half_the_precision_is_near(settings: Settings) -> None:
    single, half = (prepare_targets(CLASSES, settings(precision=name)).heads for name in ("float32", "bfloat16"))
    for head, value in single.items():
        assert not torch.equal(value, half[head])
        assert torch.allclose(value, half[head], atol=0.1)


def test_each_text_encoder_is_loaded_once_and_freed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[tuple[str, weakref.ref]] = []
    load = clip_t5.load_model

    def watched(class_name: str, *arguments: Any) -> Any:
        assert not any(reference() for _, reference in loaded), "the last one is still there"
        model = load(class_name, *arguments)
        loaded.append((class_name, weakref.ref(model)))
        return model

    monkeypatch.setattr(clip_t5, "load_model", watched)
    monkeypatch.setattr(clip_t5, "PROMPTS_AT_ONCE", 2)
    prepare_targets(CLASSES, settings())
    assert [name for name, _ in loaded] == ["CLIPTextModel", "T5EncoderModel"]
    assert not any(reference() for _, reference in loaded)


def test_the_cache_serves_machines_without_text_encoders(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_models: None
) -> None:
    with monkeypatch.context() as undone:
        undone.setattr(clip_t5, "load_model", load_model)
        made = prepare_targets(CLASSES, settings())
    shutil.copytree(cache_folder(settings()), tmp_path / "node" / "targets" / cache_folder(settings()).name)
    monkeypatch.setenv("FEDGEN_HOME", str(tmp_path / "node"))
    chosen = settings(model="organisation/flux")  # only the model's name must be the same
    found = open_targets([*reversed(CLASSES)], chosen)
    assert torch.equal(found.heads["t5"], made.heads["t5"].flip(0))
    assert found.fingerprint() == made.fingerprint()[::-1]
    assert torch.equal(prepare_targets(CLASSES, chosen).heads["clip"], made.heads["clip"])
    with pytest.raises(DataError, match=r"lacks the targets of 'the car horn' \(1 of 2\).*fedgen prepare.*or copy"):
        open_targets(["dog", "car_horn"], chosen)


def test_only_new_classes_are_encoded(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    first = prepare_targets(CLASSES, settings())
    again = prepare_targets([*CLASSES, "car_horn"], settings())
    assert [line for line in caplog.messages if line.startswith("encoded")] == [
        f"encoded {number} prompts for {head}" for number in (3, 1) for head in ("clip", "t5")
    ]
    for head, value in first.heads.items():
        assert torch.equal(again.heads[head][:3], value)


def test_interrupted_it_goes_on_where_it_was(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_t5, "PROMPTS_AT_ONCE", 1)
    with monkeypatch.context() as undone:
        encode = TextEncoders.encode

        def cut_short(self: TextEncoders, *arguments: Any) -> Any:
            yield next(encode(self, *arguments))
            raise KeyboardInterrupt

        undone.setattr(TextEncoders, "encode", cut_short)
        with pytest.raises(KeyboardInterrupt):
            prepare_targets(CLASSES, settings())
    assert len(open_targets(CLASSES[:1], settings()).heads["clip"]) == 1
    asked: list[list[str]] = []
    monkeypatch.setattr(TextEncoders, "encode", lambda self, prompts: asked.append(prompts) or encode(self, prompts))
    prepare_targets(CLASSES, settings())
    assert asked == [["the sea waves", "the rain"]]


def test_a_damaged_file_is_noticed_and_written_again(settings: Settings) -> None:
    made = prepare_targets(CLASSES, settings())
    file = sorted(cache_folder(settings()).glob("*.safetensors"))[0]
    content = bytearray(file.read_bytes())
    content[-3] ^= 64
    file.write_bytes(content)
    with pytest.raises(DataError, match=rf"{file.name} is damaged.*fedgen prepare"):
        open_targets(CLASSES, settings())
    assert torch.equal(prepare_targets(CLASSES, settings()).heads["t5"], made.heads["t5"])


def test_targets_of_other_weights_do_not_mix(settings: Settings, tmp_path: Path) -> None:
    other = str(tiny_pipeline(tmp_path / "other" / "flux", "flux", seed=1))
    prepare_targets(CLASSES[:1], settings())
    assert cache_folder(settings()) == cache_folder(settings(model=other))
    with pytest.raises(DataError, match="holds targets of other text encoders"):
        prepare_targets(CLASSES, settings(model=other))


def test_settings_that_make_other_targets_have_other_caches(settings: Settings) -> None:
    others = [{"t5_tokens": 9}, {"revision": "v1"}, {"precision": "bfloat16"}, {"model": "a/b"}, {"name": "sd"}]
    folders = {cache_folder(settings(**other)) for other in [{}, *others]}
    assert len(folders) == len(others) + 1
    assert cache_folder(settings("sd", t5_tokens=9)) == cache_folder(settings("sd"))


def test_the_fingerprint_tells_templates_apart(settings: Settings) -> None:
    """CLIP reads from left to right: its first token is the same for every prompt."""
    one, other = (prepare_targets(["dog"], settings("sd", template=text)) for text in ("the {}", "a {}"))
    assert torch.equal(one.heads["clip"][:, 0], other.heads["clip"][:, 0])
    difference = torch.tensor(one.fingerprint()) - torch.tensor(other.fingerprint())
    assert difference.shape == (1, 8)
    assert difference.abs().max() > 1e-2


def test_a_prompt_that_is_too_long_is_refused(settings: Settings) -> None:
    with pytest.raises(DataError, match=r"prompt 'the sea waves' has \d+ t5 tokens, target\.t5_tokens is 8"):
        prepare_targets(CLASSES, settings(t5_tokens=8))
    with pytest.raises(DataError, match=rf"has \d+ clip tokens, the text encoder's length is {CLIP_LENGTH}"):
        prepare_targets(["dog"], settings("sd", template="the sound of a far and lonely {} in the night"))


def test_missing_files_are_named(settings: Settings, pipelines: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(pipelines["flux"], tmp_path / "flux")
    next((folder / "text_encoder_2").glob("model-00002-of-*")).unlink()
    with pytest.raises(DataError, match=r"T5EncoderModel cannot be loaded .*text_encoder_2/model-00002-of-"):
        prepare_targets(CLASSES, settings(model=str(folder)))
    index = folder / "text_encoder_2" / "model.safetensors.index.json"
    for content in ('{"weight_map": {"a": "../model.safetensors"}}', "{}", "half a fi"):
        index.write_text(content)
        with pytest.raises(DataError, match=r"T5EncoderModel cannot be loaded"):
            prepare_targets(CLASSES, settings(model=str(folder)))
    index.unlink()
    with pytest.raises(DataError, match=r"T5EncoderModel cannot be loaded .*no file named model\.safetensors"):
        prepare_targets(CLASSES, settings(model=str(folder)))
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(
        DataError, match=r"target\.model=.* has no text_encoder_2/config\.json, text_encoder_2/model.*hf download"
    ):
        prepare_targets(CLASSES, settings(model=str(folder)))


def test_what_an_error_says_to_fetch_is_all_that_is_needed(
    settings: Settings, pipelines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CLIP's merges, and the index of T5's weights in parts, among it."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(DataError, match=r"hf download organisation/flux .* set target\.model=PATH/flux") as raised:
        prepare_targets(CLASSES, settings(model="organisation/flux"))
    folder = downloaded(pipelines["flux"], str(raised.value), tmp_path / "flux")
    assert prepare_targets(CLASSES, settings(model=str(folder))).heads["t5"].shape == (3, T5_TOKENS, 2 * WIDTH)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"name": "small"}, r"target=small has no target\.source=clip_t5: choose target=sd or flux"),
        ({"source": "words", "model": "a/b"}, r"target\.model=a/b needs target\.source=clip_t5"),
        ({"precision": "float16"}, r"target\.precision='float16' is not one of float32, bfloat16"),
    ],
)
def test_bad_settings_name_value_and_key(bad: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TargetSettings(**{"name": "flux", "source": "clip_t5", **bad})

"""Encoders that are pretrained models: tiny ones of the real classes through the real loading code."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import WIDTH, downloaded, offline, tiny_ast, tiny_clap, tiny_pipeline, transformers

from fedgen.data import encoders as frozen
from fedgen.data.encoders import AstEncoder, differences, open_encoder
from fedgen.data.settings import EncoderSettings, name_of
from fedgen.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("ignore:At least one mel filter")


@pytest.fixture(scope="module")
def ast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_ast(tmp_path_factory.mktemp("models") / "ast")


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clap(tmp_path_factory.mktemp("models") / "clap")


def ast_encoder(model: str | None = None, revision: str | None = None) -> AstEncoder:
    return AstEncoder(EncoderSettings("ast", model=model, revision=revision))


def clips() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(rng.standard_normal(n) * 0.1).astype(np.float32) for n in (16000, 300, 40000)]


def test_tokens_are_the_last_hidden_state_of_the_models_own_features(ast: Path) -> None:
    library = transformers()
    model = library.ASTForAudioClassification.from_pretrained(ast).eval()
    extractor = library.ASTFeatureExtractor.from_pretrained(ast)
    features = extractor([clips()[0], clips()[2]], sampling_rate=16000, return_tensors="pt")["input_values"]
    expected = model.audio_spectrogram_transformer(features).last_hidden_state
    encoder = open_encoder(EncoderSettings("ast", model=str(ast)))
    tokens = encoder(clips())
    assert (tokens.shape, tokens.dtype) == ((3, *encoder.shape), torch.float16)
    assert encoder.shape == (2 + 3 * 5, WIDTH)
    assert torch.allclose(tokens[[0, 2]].float(), expected, atol=2e-3)


def test_the_class_token_alone(ast: Path) -> None:
    whole, one = (open_encoder(EncoderSettings("ast", model=str(ast), tokens=tokens)) for tokens in ("all", "cls"))
    assert one.shape == (1, WIDTH)
    assert torch.equal(one(clips()), whole(clips())[:, :1])
    assert one.identity() != whole.identity()


@pytest.mark.parametrize("kind", ["ast", "clap"])
def test_neither_batches_nor_chance_change_tokens(kind: str, request: pytest.FixtureRequest) -> None:
    model = str(request.getfixturevalue(kind))
    together, apart = (open_encoder(EncoderSettings(kind, batch_size=size, model=model)) for size in (8, 1))
    assert torch.allclose(together(clips()).float(), apart(clips()).float(), atol=2e-3)
    assert torch.equal(together(clips()), together(clips()))


def test_clap_gives_its_last_map_and_its_pooled_vector(clap: Path) -> None:
    library = transformers()
    model = library.ClapModel.from_pretrained(clap).eval()
    extractor = library.ClapFeatureExtractor.from_pretrained(clap)
    given = extractor(clips()[:1], sampling_rate=16000, return_tensors="pt")["input_features"].float()
    expected = model.audio_model(given, is_longer=torch.zeros(1, 1, dtype=torch.bool))
    encoder = open_encoder(EncoderSettings("clap", model=str(clap)))
    tokens = encoder(clips()[:1])[0].float()
    assert tokens.shape == encoder.shape
    assert torch.allclose(tokens.T.flatten(), expected.last_hidden_state.flatten(), atol=2e-3)
    pooled = open_encoder(EncoderSettings("clap", model=str(clap), tokens="cls"))
    assert pooled.shape == (1, encoder.shape[1])
    assert torch.allclose(pooled(clips()[:1])[0, 0].float(), expected.pooler_output[0], atol=2e-3)


def test_the_usual_ast_has_1214_tokens(tmp_path: Path) -> None:
    library = transformers()
    config = library.ASTConfig()
    with torch.device("meta"):
        hidden = library.ASTModel(config)(torch.zeros(1, 1024, 128)).last_hidden_state
    config.save_pretrained(tmp_path)
    library.ASTFeatureExtractor().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    encoder = ast_encoder(str(tmp_path))
    assert encoder.shape == tuple(hidden.shape[1:]) == (1214, 768)
    assert encoder.sample_rate == 16000


def test_the_usual_clap_has_64_tokens(tmp_path: Path) -> None:
    library = transformers()
    config = library.ClapConfig()
    with torch.device("meta"):
        model = library.ClapAudioModel(config.audio_config).eval()
        hidden = model(torch.zeros(1, 1, 1001, 64)).last_hidden_state
    config.save_pretrained(tmp_path)
    library.ClapFeatureExtractor().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    encoder = open_encoder(EncoderSettings("clap", model=str(tmp_path)))
    assert encoder.shape == (hidden[0, 0].numel(), hidden.shape[1]) == (64, 768)
    assert encoder.sample_rate == 48000


def test_the_identity_is_that_of_the_files_wherever_they_are(
    ast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = ast_encoder(str(ast)).identity()
    assert identity["model"] == "ast"
    assert ast_encoder(str(shutil.copytree(ast, tmp_path / "a" / "ast"))).identity() == identity
    assert ast_encoder(str(tiny_ast(tmp_path / "b" / "ast", seed=1))).identity()["digest"] != identity["digest"]
    monkeypatch.setattr(frozen, "find_spec", lambda name: name == "torchaudio")
    assert ast_encoder(str(ast)).identity() == {**identity, "features": "torchaudio"}


def test_a_model_is_called_what_it_is_called_at_its_source() -> None:
    cached = "/home/me/hub/models--MIT--ast-finetuned/snapshots/0123"
    assert {name_of(name) for name in ("MIT/ast-finetuned", "/models/ast-finetuned/", cached)} == {"ast-finetuned"}


def test_who_reads_a_store_needs_no_model(ast: Path) -> None:
    identity = ast_encoder(str(ast)).identity()
    assert differences(EncoderSettings("ast", model="elsewhere/ast"), identity) == {}
    assert differences(EncoderSettings("ast", model="elsewhere/ast", tokens="cls"), identity) == {"tokens": "cls"}
    assert differences(EncoderSettings(), identity)["name"] == "patches"


def test_another_revision_than_a_store_says_is_another_encoder(ast: Path) -> None:
    """A folder has none, and a store may say none: then the digest alone tells."""
    identity = ast_encoder(str(ast)).identity()
    assert "revision" not in identity
    assert ast_encoder("MIT/ast").asked()["revision"] == "main"
    asked = [EncoderSettings("ast", model="MIT/ast", revision=revision) for revision in (None, "main", "v2")]
    asked.append(EncoderSettings("ast", model="/models/ast"))
    found = {said: [differences(one, {**identity, "revision": said}) for one in asked] for said in ("main", "v2")}
    assert found["main"] == [{}, {}, {"revision": "v2"}, {}]
    assert found["v2"] == [{"revision": "main"}, {"revision": "main"}, {}, {}]
    assert [differences(one, identity) for one in asked] == [{}, {}, {}, {}]


def test_nothing_is_looked_for_before_it_is_needed() -> None:
    encoder = open_encoder(EncoderSettings("ast", model="/no/such/folder"))
    with pytest.raises(DataError, match=r"encoder\.model=/no/such/folder is no folder here and cannot be fetched"):
        encoder.identity()


def test_offline_it_is_said_what_to_fetch_and_where_to_put_it(
    ast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(DataError) as raised:
        ast_encoder().identity()
    message = str(raised.value)
    for words in (
        "encoder.model=MIT/ast-finetuned-audioset-10-10-0.4593 is no folder here",
        "(no network more words)",
        "hf download MIT/ast-finetuned-audioset-10-10-0.4593 --include 'config.json'",
        "--local-dir ast-finetuned-audioset-10-10-0.4593",
        "set encoder.model=PATH/ast-finetuned-audioset-10-10-0.4593",
    ):
        assert words in message
    assert "\n" not in message
    parts = shutil.copytree(ast, tmp_path / "parts", ignore=shutil.ignore_patterns("*.safetensors"))
    transformers().ASTForAudioClassification.from_pretrained(ast).save_pretrained(parts, max_shard_size="3KB")
    copied = ast_encoder(str(downloaded(parts, message, tmp_path / "copied")))
    assert torch.equal(copied(clips()), ast_encoder(str(ast))(clips()))


def test_only_what_is_needed_is_fetched_and_only_once(ast: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict] = []

    def fetched(name: str, **options: object) -> str:
        calls.append({"name": name, **options})
        if options.get("local_files_only") and len(calls) == 1:
            raise FileNotFoundError("not here")
        return str(ast)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    for _ in range(2):
        assert ast_encoder("MIT/ast", revision="v1")(clips()).shape == (3, 17, WIDTH)
    assert [call.get("local_files_only", False) for call in calls] == [True, False, True]
    assert {call["name"] for call in calls} == {"MIT/ast"}
    assert {call["revision"] for call in calls} == {"v1"}
    assert not any("bin" in pattern for call in calls for pattern in call["allow_patterns"])


def test_what_the_cache_lacks_is_fetched(ast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program may have fetched a few files of a model."""

    def fetched(name: str, *, local_files_only: bool = False, **options: object) -> str:
        return str(tmp_path if local_files_only else ast)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    shutil.copy(ast / "config.json", tmp_path)
    assert ast_encoder("MIT/ast").folder == ast


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def test_a_folder_has_no_revision(ast: Path) -> None:
    with pytest.raises(ConfigError, match=r"encoder\.revision=v2: encoder\.model=.* is a folder"):
        open_encoder(EncoderSettings("ast", model=str(ast), revision="v2"))(clips())


def test_pickled_weights_are_refused_and_not_opened(ast: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(ast, tmp_path / "ast")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    (folder / "model.fp16.safetensors").touch()  # a variant is not what is loaded
    with pytest.raises(DataError, match=r"has no model.*\. Weights are read from safetensors alone.*hf download"):
        ast_encoder(str(folder))(clips())
    assert not (tmp_path / "sprung").exists()


def test_weights_that_are_missing_are_never_random(ast: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(ast, tmp_path / "ast")
    clip = tiny_pipeline(tmp_path / "sd", "sd") / "text_encoder" / "model.safetensors"
    shutil.copy(clip, folder)
    with pytest.raises(DataError, match=r"is no ASTModel: it has no weights"):
        ast_encoder(str(folder))(clips())
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"ASTModel cannot be loaded"):
        ast_encoder(str(folder))(clips())


def test_an_extractor_of_another_model_is_refused(ast: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(ast, tmp_path / "ast")
    transformers().ASTFeatureExtractor().save_pretrained(folder)
    with pytest.raises(DataError, match=r"\(128, 1024\) mel bins and frames, not \(40, 64\)"):
        _ = ast_encoder(str(folder)).shape


def test_tokens_that_are_not_finite_are_refused(ast: Path) -> None:
    encoder = ast_encoder(str(ast))
    encoder._model.layernorm.weight.fill_(1e30)
    with pytest.raises(DataError, match="not finite in half precision"):
        encoder(clips())


def test_without_the_extra_it_is_named(ast: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedgen\[encoders\]'"):
        ast_encoder(str(ast))(clips())


def test_all_else_works_without_the_extra() -> None:
    program = "import sys; import fedgen.cli, fedgen.task, fedgen.client_app; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_computes_in_half_precision(ast: Path) -> None:
    encoder = open_encoder(EncoderSettings("ast", model=str(ast)), "cuda")
    tokens = encoder(clips())
    assert next(encoder._model.parameters()).dtype == torch.float16
    assert torch.allclose(tokens.float(), ast_encoder(str(ast))(clips()).float(), atol=2e-2)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"name": "ast", "stride": 16}, r"encoder\.stride=16 is for encoder=patches"),
        ({"name": "ast", "tokens": "some"}, r"encoder\.tokens='some' is not one of all, cls"),
        ({"model": "MIT/ast"}, r"encoder\.model=MIT/ast means nothing: encoder=patches has no model"),
        ({"tokens": "cls"}, r"encoder\.tokens=cls needs encoder=ast or clap"),
        ({"name": "beats"}, r"encoder='beats' is not one of patches, sfx, ast, clap"),
    ],
)
def test_bad_settings_name_value_and_key(bad: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EncoderSettings(**bad)

"""The encoder `sfx`: its shape and input, its weights, and the original network."""

import pickletools
import re
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

from fedgen.cli import main
from fedgen.data import sfx
from fedgen.data.audio import read_audio
from fedgen.data.encoders import differences, open_encoder
from fedgen.data.settings import EncoderSettings
from fedgen.data.tensors import save_tensors
from fedgen.errors import ConfigError, DataError

CLIPS = Path(__file__).parents[2] / "../shared/data/esc10"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, scaled so that the signal keeps its size."""
    generator = torch.Generator().manual_seed(0)
    made = tmp_path_factory.mktemp("models")
    weights = {
        name: torch.randn(shape, generator=generator) / (torch.Size(shape[1:]).numel() / 2) ** 0.5
        if len(shape) == 4
        else torch.zeros(shape)
        for name, shape in sfx._shapes().items()
    }
    save_tensors(made / sfx.WEIGHTS, weights, {})
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The original package, as the registry has it."""
    try:
        return sfx._downloaded(tmp_path_factory.mktemp("wheel"))
    except DataError as error:
        pytest.skip(str(error))


def encoder(folder: Path, **settings: float) -> sfx.SfxEncoder:
    made = open_encoder(EncoderSettings("sfx", model=str(folder), batch_size=2, **settings))
    assert isinstance(made, sfx.SfxEncoder)
    return made


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.RandomState(seed).randn(round(seconds * sfx.SAMPLE_RATE))).astype(np.float32)


@pytest.mark.parametrize(("seconds", "columns"), [(5.0, 27), (1.0, 5), (0.2, 1), (10.0, 53)])
def test_the_map_grows_with_the_clip(folder: Path, seconds: float, columns: int) -> None:
    made = encoder(folder, seconds=seconds)
    assert made.shape == (12 * columns, 512)
    tokens = made([noise(seconds), noise(seconds, 1), noise(seconds, 2)])
    assert tokens.shape == (3, *made.shape)
    assert tokens.dtype == torch.float16
    assert torch.isfinite(tokens).all()


def test_what_is_longer_is_cut_and_what_is_shorter_padded(folder: Path) -> None:
    made, clip = encoder(folder, seconds=1.0), noise(1.0)
    whole, cut, short, padded = made([clip, np.append(clip, clip), clip[:9000], np.append(clip[:9000], np.zeros(9000))])
    assert torch.equal(whole, cut)
    assert torch.equal(short, padded)
    assert not torch.equal(whole, short)


def test_loudness_does_not_count_and_silence_and_nothing_have_tokens(folder: Path) -> None:
    made, clip = encoder(folder, seconds=1.0), noise(1.0)
    loud, quiet, silent, empty = made([clip, clip / 8, np.zeros(9000, np.float32), np.zeros(0, np.float32)])
    assert torch.allclose(loud.float(), quiet.float(), atol=1e-3)
    assert torch.equal(silent, empty)
    assert torch.isfinite(silent).all()


def test_tokens_do_not_depend_on_the_batch(folder: Path) -> None:
    made = encoder(folder, seconds=1.0)
    clips = [noise(1.0, seed) for seed in range(3)]
    alone = torch.cat([made([clip]) for clip in clips])
    assert torch.allclose(made(clips).float(), alone.float(), atol=1e-3)


def test_rows_of_tokens_are_bands_of_frequency(folder: Path) -> None:
    made = encoder(folder, seconds=4.0)
    grid = made([np.append(np.zeros(3 * 44_100, np.float32), noise(1.0))]).float().reshape(12, -1, 512)
    assert grid[:, :3].abs().max() == 0  # silence: these weights have no bias
    assert grid[:, -3:].abs().amax(dim=(1, 2)).min() > 0.1


def test_the_identity_says_length_and_weights(folder: Path, tmp_path: Path) -> None:
    identity = encoder(folder).identity()
    assert identity["name"] == "sfx"
    assert not differences(EncoderSettings("sfx"), identity)
    assert differences(EncoderSettings("sfx", seconds=4.0), identity) == {"seconds": 4.0}
    other = {name: value + 1 for name, value in sfx.find_weights(str(folder)).items()}
    save_tensors(tmp_path / sfx.WEIGHTS, other, {})
    assert encoder(tmp_path).identity()["digest"] != identity["digest"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"name": "sfx", "seconds": 0.1}, r"encoder\.seconds=0\.1 is not a length of at least 0\.2 s"),
        ({"name": "sfx", "seconds": 1e9}, r"encoder\.seconds=1000000000\.0 is above 60 s"),
        ({"name": "sfx", "seconds": float("nan")}, r"encoder\.seconds=nan"),
        ({"name": "sfx", "seconds": float("inf")}, r"encoder\.seconds=inf"),
        ({"name": "sfx", "revision": "main"}, r"encoder\.revision=main needs encoder=ast or clap"),
        ({"name": "sfx", "tokens": "cls"}, r"encoder\.tokens=cls needs encoder=ast or clap"),
        ({"name": "sfx", "stride": 16}, r"encoder\.stride=16 is for encoder=patches"),
        ({"name": "patches", "seconds": 3.0}, r"encoder\.seconds=3\.0 is for encoder=sfx"),
    ],
)
def test_bad_settings_name_value_and_key(bad: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EncoderSettings(**bad)


def test_without_weights_the_error_has_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEDGEN_HOME", str(tmp_path))
    assert main(["prepare", "encoder=sfx"]) == 1
    assert "fedgen get sfx" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04."])
def test_another_file_is_refused(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.whl").write_bytes(content)
    (tmp_path / sfx.WEIGHTS).write_bytes(content)
    assert main(["get", "sfx", str(tmp_path / "other.whl")]) == 1
    assert "its SHA-256 is" in capsys.readouterr().err
    for model in (tmp_path / "other.whl", tmp_path, tmp_path / "nowhere.whl"):
        with pytest.raises(DataError, match=r"SHA-256|sfx"):
            sfx.find_weights(str(model))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_tensors(tmp_path / sfx.WEIGHTS, {"0.weight": torch.zeros(3)}, {})
    with pytest.raises(DataError, match="holds other weights"):
        sfx.find_weights(str(tmp_path))


def test_pip_that_fails_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sfx, "PACKAGE", "aisfx==9.9.9")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        DataError, match=re.escape("then copy the wheel to this machine and run: fedgen get sfx FILE.whl")
    ):
        sfx._downloaded(tmp_path)


def test_the_wheel_is_stored_with_its_licence(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDGEN_HOME", str(tmp_path))
    assert main(["get", "sfx", str(wheel)]) == 0
    stored = tmp_path / "models" / "sfx"
    assert "Ma" in (text := (stored / sfx.LICENSE_FILE).read_text())
    assert "Attribution 4.0 International" in text
    own, of_wheel = sfx.find_weights(None), sfx.find_weights(str(wheel))
    assert all(torch.equal(own[name], value) for name, value in of_wheel.items())
    assert encoder(stored).identity() == open_encoder(EncoderSettings("sfx", model=str(wheel))).identity()


def named_tensors(checkpoint: bytes) -> dict[str, bytes]:
    """The numbers of each tensor by its name, as the pickle's words tell; nothing of it is executed."""
    found, name = {}, ""
    with zipfile.ZipFile(BytesIO(checkpoint)) as archive:
        for _, word, _ in pickletools.genops(archive.read("archive/data.pkl")):
            if isinstance(word, str) and word.startswith("embedding_net."):
                name = word
            elif name and isinstance(word, str) and word.isdecimal():
                found[name], name = archive.read(f"archive/data/{word}"), ""
    return found


def test_tokens_are_those_of_the_original_network(wheel: Path) -> None:
    """The package's own network, run on the same log-mel features; then both pool to its embedding."""
    if not CLIPS.is_dir():
        pytest.skip("needs the clips of ESC-10 in ../shared/data/esc10")
    with zipfile.ZipFile(wheel) as archive:
        source = archive.read("aisfx/models/cnn2d.py").decode()
        state = named_tensors(archive.read(sfx.CHECKPOINT))
    names: dict[str, type[torch.nn.Module]] = {}
    exec(compile(source, "cnn2d.py", "exec"), names)  # the checksum was compared
    network = names["EmbeddingNet"]("max", 3, 1, 64).eval()
    network.load_state_dict(
        {
            name: torch.frombuffer(bytearray(state[f"embedding_net.{name}"]), dtype=value.dtype).view(value.shape)
            for name, value in network.state_dict().items()
        }
    )
    made = open_encoder(EncoderSettings("sfx", model=str(wheel)))
    for file in sorted((CLIPS / "audio").iterdir())[:3]:
        clip, rate = read_audio(file)
        assert rate == sfx.SAMPLE_RATE
        tokens = made([clip])[0].float().reshape(12, 27, 512)
        with torch.no_grad():
            wanted = network(sfx.log_mel(torch.from_numpy(clip / np.abs(clip).max())[None]))[0]
        assert torch.allclose(tokens.mean(dim=0).amax(dim=0), wanted, atol=2e-3)


def test_features_are_those_of_another_library() -> None:
    audio = pytest.importorskip("transformers.audio_utils")
    filters = audio.mel_filter_bank(
        1 + sfx.FFT // 2, sfx.MELS, 0.0, sfx.SAMPLE_RATE / 2, sfx.SAMPLE_RATE, norm=None, mel_scale="htk"
    )
    clip = noise(1.0)
    window = audio.window_function(sfx.FFT, "hann")
    power = audio.spectrogram(clip, window, sfx.FFT, sfx.HOP, sfx.FFT, power=2.0, pad_mode="constant")
    wanted = np.log10(1e4 * (power.T @ (filters / filters.sum(axis=0))) + 1) / 9.457799
    assert np.allclose(sfx.log_mel(torch.from_numpy(clip)[None])[0].numpy(), wanted, atol=1e-4)


def test_nothing_of_the_package_is_imported(wheel: Path) -> None:
    program = (
        f"import sys; from fedgen.data import sfx; sfx.find_weights({str(wheel)!r}); sys.exit('aisfx' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0

from pathlib import Path

import numpy as np
import pytest
import soundfile

from fedgen.data.audio import read_audio, resample
from fedgen.errors import DataError


@pytest.mark.parametrize("suffix", [".wav", ".ogg", ".flac"])
def test_channels_are_mixed_down(tmp_path: Path, suffix: str) -> None:
    tone = 0.5 * np.sin(np.arange(8000) / 10)
    soundfile.write(tmp_path / f"clip{suffix}", np.stack([tone, np.zeros(8000)], axis=1), 8000)
    waveform, rate = read_audio(tmp_path / f"clip{suffix}")
    assert (waveform.shape, waveform.dtype, rate) == ((8000,), np.float32, 8000)
    assert np.abs(waveform[500:-500] - tone[500:-500] / 2).max() < 0.05


def test_a_missing_clip_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.wav does not exist"):
        read_audio(tmp_path / "gone.wav")


def test_an_undecodable_clip_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("this is no sound")
    with pytest.raises(DataError, match=r"text\.wav cannot be decoded"):
        read_audio(tmp_path / "text.wav")


def test_an_empty_clip_is_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    with pytest.raises(DataError, match=r"empty\.wav is empty"):
        read_audio(tmp_path / "empty.wav")


def test_a_clip_with_nan_is_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "nan.wav", np.array([0, np.nan, 0], dtype=np.float32), 16000, subtype="FLOAT")
    with pytest.raises(DataError, match=r"nan\.wav holds samples that are not finite"):
        read_audio(tmp_path / "nan.wav")


def test_resampling_keeps_a_tone() -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(44100) / 44100).astype(np.float32)
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    resampled = resample(tone, 44100, 16000)
    assert (resampled.shape, resampled.dtype) == ((16000,), np.float32)
    assert np.abs(resampled - expected)[200:-200].max() < 1e-3

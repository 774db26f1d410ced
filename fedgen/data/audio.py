"""Sound files to mono waveforms at the encoder's sample rate, and what an encoder is."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile
import soxr
from torch import Tensor

from fedgen.errors import DataError


def read_audio(path: Path) -> tuple[np.ndarray, int]:
    """Return the mono waveform ``(samples,)``, float32 in -1..1, of a sound file that libsndfile reads, and its rate.

    Raises
    ------
    DataError
        The file is missing, cannot be decoded, holds no sample, or holds values that are not finite.
    """
    if not path.is_file():
        raise DataError(f"clip {path} does not exist")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)  # (samples, channels)
    except (soundfile.SoundFileError, RuntimeError, OSError, TypeError) as error:
        raise DataError(f"clip {path} cannot be decoded: {error}") from error
    if len(samples) == 0:
        raise DataError(f"clip {path} is empty: it holds no samples")
    if not np.isfinite(samples).all():
        raise DataError(f"clip {path} holds samples that are not finite numbers")
    return samples.mean(axis=1), int(rate)


def resample(waveform: np.ndarray, rate: int, target: int) -> np.ndarray:
    """Return ``waveform`` ``(samples,)`` brought from ``rate`` to ``target`` Hz (soxr, high quality), float32."""
    if rate == target:
        return waveform
    return np.asarray(soxr.resample(waveform, rate, target, quality="HQ"), dtype=np.float32)


class Encoder(Protocol):
    """A frozen map from mono waveforms of one sample rate, in Hz, to token sequences of one shape ``(S, D)``."""

    name: str  # in the configuration

    @property
    def shape(self) -> tuple[int, int]: ...  # noqa: D102

    @property
    def sample_rate(self) -> int: ...  # noqa: D102

    def __call__(self, waveforms: list[np.ndarray]) -> Tensor:
        """Return tokens ``(B, S, D)``, float16, on the CPU, for mono waveforms in -1..1 of any length."""
        ...

    def asked(self) -> dict[str, str | int | float]:
        """Return the part of the identity that follows from the settings; no file is read for it."""
        ...

    def identity(self) -> dict[str, str | int | float]:
        """Return what decides the tokens, so that a store can tell whether it was made by this encoder."""
        ...

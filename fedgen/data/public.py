"""Sounds that are nobody's: what a node may know about audio before it looks at its own clips."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from fedgen.data.audio import resample
from fedgen.data.datasets import DataSettings
from fedgen.data.encoders import Encoder
from fedgen.data.readers import AudioFiles, read_folder
from fedgen.data.recipes import recipe_sound
from fedgen.data.sounds import SOUNDS, synthesise
from fedgen.data.synthesis import RATE
from fedgen.data.tokens import TensorTokens, TokenSource
from fedgen.errors import DataError, FedgenError

VERSION = 3  # of the recipes: another one makes another codec
CLIPS = 4  # of each class
CLASSES = 100  # by recipes; more of them are worth more than more clips of each
SEED = 400_891_233  # of the built-in voices: other takes of them than any data set has
FULL_SCALE = 32767  # 16 bits, as recordings have: what processors round otherwise in synthesis mostly vanishes


class PublicTokens:
    """A `TokenSource` of synthesised sounds: the same for every node, and drawn from no one's data.

    Held are the sounds, 160 kB each; every batch is encoded anew, as all tokens would take a gigabyte.

    Parameters
    ----------
    encoder : Encoder
        The nodes' frozen encoder.
    classes, clips : int
        Classes, each a recipe of its own (`fedgen.data.recipes`), and clips of each; besides, as many clips of each of
        the built-in voices (`fedgen.data.sounds`).
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
        sounds = (self._sounds[index].astype(np.float32) / FULL_SCALE for index in indices.tolist())
        return self._encoder([resample(sound, RATE, self._encoder.sample_rate) for sound in sounds]).float()


def open_public(encoder: Encoder, folder: str | None) -> TokenSource:
    """Return the tokens of the public sounds: of ``folder`` (``class/clip.wav``), or of the synthesised ones."""
    if folder is None:
        return PublicTokens(encoder)
    dataset = _folder(folder)
    try:
        tokens = [encoder([resample(*dataset.load(clip), encoder.sample_rate)]) for clip in dataset.clips]
    except DataError as error:
        raise DataError(f"codec.public={folder}: {error}") from error
    return TensorTokens(torch.cat(tokens), torch.tensor([clip.label for clip in dataset.clips]))


def public_identity(folder: str | None) -> str:
    """Return what tells one set of public sounds from another, whatever its folder is called."""
    if folder is None:
        return f"synthesised, version {VERSION}"
    dataset, digest = _folder(folder), hashlib.sha256()
    for clip in dataset.clips:
        digest.update(clip.name.encode() + b"\0" + hashlib.sha256(dataset.paths[clip.name].read_bytes()).digest())
    return f"sha256:{digest.hexdigest()}"


def _folder(folder: str) -> AudioFiles:
    try:
        dataset = read_folder(DataSettings(name="folder", root=folder))
    except FedgenError as error:
        reason = str(error).removeprefix(f"data.root={folder} ")
        raise DataError(f"codec.public={folder}: {reason}") from error
    if len(dataset.clips) < 2:
        raise DataError(f"codec.public={folder}: one clip does not say what sounds have in common, take more")
    return dataset

"""Sounds that are nobody's: what a node may know about audio before it looks at its own clips."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor

from fedgen.data.audio import resample
from fedgen.data.datasets import DataSettings
from fedgen.data.encoders import Encoder
from fedgen.data.readers import AudioFiles, read_folder
from fedgen.data.sounds import SOUNDS, TAKES, synthesise
from fedgen.data.streams import stream
from fedgen.data.synthesis import RATE, seconds
from fedgen.data.tokens import TensorTokens, TokenSource
from fedgen.errors import DataError, FedgenError

VERSION = 1  # of the recipe: another one makes another codec
CLIPS = 8  # of each class, each from a recording of its own
LENGTH = 5.0  # seconds
SEED = -1  # of no data set: `data.seed` is 0 or more
LEVELS = 30  # decibels over which the levels spread
SILENCES = 3  # most stretches of silence in a clip


class PublicTokens:
    """A `TokenSource` of synthesised sounds: the same for every node, and drawn from no one's data.

    The classes are those of `fedgen.data.sounds`, each clip repeated to five seconds. Its level varies, and every other
    clip is broken by silence, as recordings are; without that, silence in real clips would lie far from all that is
    known here.

    Parameters
    ----------
    encoder : Encoder
        The nodes' frozen encoder.
    clips : int
        Of each class.
    """

    def __init__(self, encoder: Encoder, clips: int = CLIPS) -> None:
        self.shape = encoder.shape
        self.labels = torch.arange(len(SOUNDS)).repeat_interleave(clips)
        self._tokens = torch.cat([encoder([_recorded(name, index) for index in range(clips)]) for name in SOUNDS])

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        """Return the sequences at ``indices`` ``(B,)``: ``(B, S, D)``, float32, on the CPU."""
        return self._tokens[indices].float()


def _recorded(name: str, index: int) -> np.ndarray:
    """Return clip ``index`` of class ``name``, ``(samples,)``, float32, 16 kHz."""
    rng = stream("public", name, index)
    sound = synthesise(name, TAKES * index, SEED)
    sound = np.resize(sound, seconds(LENGTH)) * 10 ** (rng.uniform(-LEVELS, 0) / 20)
    return (_broken(rng, sound) if index % 2 else sound).astype(np.float32)


def _broken(rng: RandomState, sound: np.ndarray) -> np.ndarray:
    """Return ``sound`` ``(samples,)`` with silence in it."""
    broken = sound.copy()
    for _ in range(rng.randint(1, SILENCES + 1)):
        start = rng.randint(0, len(broken))
        broken[start : start + seconds(rng.uniform(0.05, 0.4) * len(broken) / RATE)] = 0
    return broken


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

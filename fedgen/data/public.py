"""Sounds that are nobody's: what a node may know about audio before it looks at its own clips."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedgen.data.audio import resample
from fedgen.data.encoders import Encoder
from fedgen.data.recipes import recipe_sound
from fedgen.data.synthesis import RATE

CLIPS = 4  # of each class
CLASSES = 100  # more of them are worth more than more clips of each
FULL_SCALE = 32767  # 16 bits, as recordings have: what processors round otherwise in synthesis mostly vanishes


class PublicTokens:
    """A `TokenSource` of synthesised sounds: the same for every node, and drawn from no one's data.

    Held are the sounds, 160 kB each; every batch is encoded anew, as all tokens would take a gigabyte.

    Parameters
    ----------
    encoder : Encoder
        The nodes' frozen encoder.
    classes, clips : int
        Classes, each a recipe of its own (`fedgen.data.recipes`), and clips of each.
    """

    def __init__(self, encoder: Encoder, classes: int = CLASSES, clips: int = CLIPS) -> None:
        self.shape, self._encoder = encoder.shape, encoder
        self.labels = torch.arange(classes).repeat_interleave(clips)
        sounds = (recipe_sound(label, take) for label in range(classes) for take in range(clips))
        self._sounds = [np.round(sound * FULL_SCALE).astype(np.int16) for sound in sounds]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        """Return the sequences at ``indices`` ``(B,)``: ``(B, S, D)``, float32, on the CPU."""
        sounds = (self._sounds[index].astype(np.float32) / FULL_SCALE for index in indices.tolist())
        return self._encoder([resample(sound, RATE, self._encoder.sample_rate) for sound in sounds]).float()

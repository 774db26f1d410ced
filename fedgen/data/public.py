"""Sounds by random recipes: any number of classes, each with clips that vary as recordings of one thing do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedgen.data.audio import resample
from fedgen.data.datasets import Dataset, read_folder
from fedgen.data.encoders import Encoder
from fedgen.data.files import digest
from fedgen.data.seeds import stream
from fedgen.data.settings import DataSettings
from fedgen.data.sounds import (
    RATE,
    SOUNDS,
    curve,
    drift,
    envelope,
    filtered,
    noise,
    resonate,
    seconds,
    starts,
    synthesise,
    unit,
    wander,
)
from fedgen.data.tokens import TensorTokens, TokenSource
from fedgen.errors import DataError, FedgenError

VERSION = 3  # of the recipes: another one makes another codec
CLIPS = 4  # of each class
CLASSES = 100  # by recipes; more of them are worth more than more clips of each
SEED = 400_891_233  # of the built-in voices: other takes of them than any data set has
FULL_SCALE = 32767  # 16 bits, as recordings have: processors round the synthesis differently, which mostly vanishes


class PublicTokens:
    """A `TokenSource` of synthesised sounds, the same for every node and drawn from no one's data.

    ``classes`` random recipes and the built-in voices (`fedgen.data.sounds`), ``clips`` of each. The sounds are held,
    160 kB each; every batch is encoded anew by the nodes' ``encoder``, as all tokens would take a gigabyte.
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


LENGTH = 5.0  # seconds
SAMPLES = seconds(LENGTH)
SPREAD = 0.1  # of a quantity within a class, as a share of its range
PARTS = [(1, 0), (1, 1), (1, 1), (0, 1), (0, 1)]  # tone and noise in a source
LEVELS = 0.01, 0.4  # of full scale: -40 to -8 decibels


class Recipe:
    """Draws the quantities of one clip: near those of its class, which ``label`` alone decides."""

    def __init__(self, label: int, take: int) -> None:
        self.kind, self.take = stream("public", label), stream("public", label, take)

    def pick(self, low: float, high: float) -> float:
        """Return a quantity between ``low`` and ``high``, evenly distributed on a logarithmic scale over classes."""
        place = abs(self.kind.uniform() + SPREAD * self.take.standard_normal())
        return float(low * (high / low) ** min(place, 2 - place))

    def chance(self, share: float) -> bool:
        """Return whether the class has a property that a ``share`` of all classes has."""
        return bool(self.kind.uniform() < share)


def recipe_sound(label: int, take: int) -> np.ndarray:
    """Return clip ``take`` of class ``label``: ``(samples,)``, float32 in -1..1, 5 s at 16 kHz.

    One or two sources, a fifth of them clipped softly, in a room, over the noise of the place, through a microphone, at
    some level. Some clips end early in digital silence, as in data sets of clips of one length.
    """
    recipe = Recipe(label, take)
    sound = source(recipe)
    if recipe.chance(0.5):
        sound = sound + recipe.pick(0.1, 1) * source(recipe)
    drive, overdriven = recipe.pick(0.5, 6), recipe.chance(0.2)
    sound = np.tanh(drive * sound) if overdriven else sound
    sound = recorded(recipe, reverberant(recipe, sound))
    sound *= recipe.pick(*LEVELS) * np.exp(0.3 * recipe.take.standard_normal())
    if recipe.chance(0.5) and recipe.take.uniform() < 0.7:
        sound[seconds(recipe.take.uniform(0.3, LENGTH)) :] = 0
    return np.clip(sound, -1, 1).astype(np.float32)


def source(recipe: Recipe) -> np.ndarray:
    """Return a tone, a noise or both: steady or in events, swelling, pulsed, glided and through resonances."""
    pick, take = recipe.pick, recipe.take
    loud, bend = events(recipe) if recipe.chance(0.65) else (np.ones(SAMPLES), np.ones(SAMPLES))
    loud = loud * np.exp(pick(0.05, 0.8) * wander(take, SAMPLES, pick(0.3, 12)))
    depth, rate, sharp = pick(0.3, 4) * recipe.chance(0.35), pick(2, 90), pick(1, 6)
    pulse = (0.5 + 0.5 * np.sin(2 * np.pi * np.cumsum(bend) * rate / RATE)) ** sharp
    tonal, noisy = PARTS[recipe.kind.randint(len(PARTS))]
    pitch = pick(50, 4500) * bend * np.exp(pick(0.002, 0.1) * wander(take, SAMPLES, pick(2, 40)))
    sound = tonal * bright(np.clip(pitch, 20, 7800), pick(0.05, 0.95))
    if noisy:
        low, rough = pick(30, 3000), pick(0.03, 1) if tonal else 1
        sound = sound + rough * noise(take, SAMPLES, low, min(8000.0, low * pick(1.5, 60)), pick(0.05, 1.2))
    sound *= loud * np.exp(depth * (pulse - 1))
    centres = [pick(150, 6000) for _ in range(recipe.kind.randint(0, 4))]
    if centres:
        sound = resonate(sound, centres, [centre * pick(0.01, 0.6) for centre in centres], pick(0.02, 0.5))
    return unit(sound)


def events(recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Return loudness and relative pitch ``(samples,)`` of events from clicks to calls, regular or not."""
    pick, take = recipe.pick, recipe.take
    loud, bend = np.zeros(SAMPLES), np.ones(SAMPLES)
    length, jitter, attack = pick(0.005, 2), pick(0.03, 0.8), pick(0.003, 0.5)
    decay, uneven = pick(0.5, 8), pick(0.05, 1)
    glide = 1 + recipe.chance(0.7) * pick(0.02, 0.5) * recipe.kind.uniform(-1, 1, 4)
    for start in starts(take, LENGTH, max(0.01, length * pick(1, 12)), jitter):
        first = int(start * RATE)
        n = min(seconds(length * np.exp(0.2 * take.standard_normal())), SAMPLES - first)
        event = envelope(n, attack * n / RATE, n / RATE / 5)
        event = event * np.exp(-decay * np.arange(n) / n + uneven * take.standard_normal())
        loud[first : first + n] = np.maximum(loud[first : first + n], event)
        bend[first : first + n] = curve(glide, n) * np.exp(0.04 * take.standard_normal())
    return loud, bend


def bright(pitch: np.ndarray, ratio: float) -> np.ndarray:
    """Return a tone ``(n,)`` of ``pitch`` ``(n,)`` in Hz, each partial ``ratio`` times as strong as the one below it.

    The sum over all partials in closed form: Moorer, "The synthesis of complex audio spectra by means of discrete
    summation formulas", JAES 1976.
    """
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    return unit(np.sin(phase) / (1 + ratio**2 - 2 * ratio * np.cos(phase)))


def reverberant(recipe: Recipe, sound: np.ndarray) -> np.ndarray:
    """Return ``sound`` ``(samples,)``, in half of all classes with the reverberation of a room."""
    last, wet, used = recipe.pick(0.05, 1.5), recipe.pick(0.1, 1.5), recipe.chance(0.5)
    if not used:
        return unit(sound)
    tail = recipe.take.standard_normal(SAMPLES) * np.exp(-np.log(1000) * np.arange(SAMPLES) / RATE / last)
    return unit(sound) + wet * unit(filtered(sound, np.fft.rfft(tail)))


def recorded(recipe: Recipe, sound: np.ndarray) -> np.ndarray:
    """Return ``sound`` ``(samples,)`` at unit level, over noise that swells, and in half of all classes low-passed."""
    air = noise(recipe.take, SAMPLES, high=recipe.pick(500, 8000), slope=recipe.pick(0.2, 1.5))
    air *= drift(recipe.take, SAMPLES, 2, 0.2)
    sound = unit(sound) + air / 10 ** (recipe.pick(5, 60) / 20)
    cut, order = recipe.pick(1500, 8000), recipe.kind.choice([4, 12, 40])
    if recipe.chance(0.5):
        sound = filtered(sound, 1 / (1 + (np.fft.rfftfreq(SAMPLES, 1 / RATE) / cut) ** order))
    return unit(sound)

"""Folds for data without official ones: clips of one recording stay together, classes are spread evenly."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from fedgen.data.streams import stream

ESC50 = re.compile(r"\d+-(\d+)-[A-Z]-\d+")  # fold-recording-take-target
URBANSOUND = re.compile(r"(\d+)-\d+-\d+-\d+")  # recording-class-occurrence-slice
SEGMENT = re.compile(r"(.+?)[-_ ](?:segment|seg|part|chunk|slice|take)[-_ ]?\d+", re.IGNORECASE)
NUMBERED = re.compile(r"(.*\d.*)-\d+")


def recording_of(stem: str, folder: str) -> str:
    """Return the recording that a clip was cut from, as far as its file name tells.

    ========================================  ==================
    file name                                 recording
    ========================================  ==================
    ``1-100032-A-0`` (ESC-50)                 ``100032``
    ``100032-3-0-7`` (UrbanSound8K)           ``100032``
    ``farm_seg3``, ``farm-part2``             ``folder/farm``
    ``tape7-2`` (a name with a digit)         ``folder/tape7``
    anything else                             ``folder/stem``
    ========================================  ==================

    A plain counter such as ``rain-2`` says nothing about recordings, so such clips stand for themselves.
    """
    for pattern in (ESC50, URBANSOUND):
        if match := pattern.fullmatch(stem):
            return match[1]
    for pattern in (SEGMENT, NUMBERED):
        if match := pattern.fullmatch(stem):
            return f"{folder}/{match[1]}"
    return f"{folder}/{stem}"


def deal(labels: list[int], recordings: list[str], folds: int, seed: int) -> list[int]:
    """Return a fold, from 1, for each clip.

    The largest recordings go first, equal ones in seeded order; each goes to the fold that has the fewest clips of its
    classes so far, and among those to the one with the fewest clips.
    """
    members: dict[str, Counter[int]] = {}
    for label, recording in zip(labels, recordings, strict=True):
        members.setdefault(recording, Counter())[label] += 1
    rng = stream("folds", seed)
    names = [sorted(members)[i] for i in rng.permutation(len(members))]
    load = [Counter[int]() for _ in range(folds)]
    fold_of = {}
    for name in sorted(names, key=lambda name: -members[name].total()):
        wanted = members[name]

        def cost(fold: int, wanted: Counter[int] = wanted) -> tuple[int, int]:
            return sum(load[fold][label] * count for label, count in wanted.items()), load[fold].total()

        best = min(rng.permutation(folds).tolist(), key=cost)
        load[best].update(wanted)
        fold_of[name] = best + 1
    return [fold_of[recording] for recording in recordings]


def held_back(labels: Sequence[int], recordings: Sequence[str], share: float, seed: int) -> np.ndarray:
    """Return which clips are controls: of each class a random ``share`` of the recordings, rounded.

    They come from the same folds and recordings' places as the rest, so that what tells them from it is not where they
    come from, but that nobody trained on them.

    Parameters
    ----------
    labels, recordings : Sequence
        Class id and recording of each clip of a node, ``(N,)``.
    share : float
        From 0 to below 1. At least one recording of a class is left to train on.
    seed : int

    Returns
    -------
    np.ndarray
        ``(N,)``, bool.
    """
    chosen: set[str] = set()
    for label in sorted(set(labels)):
        own = sorted({name for name, other in zip(recordings, labels, strict=True) if other == label})
        order = stream("controls", seed, label).permutation(len(own))
        chosen |= {own[place] for place in order[: min(round(share * len(own)), len(own) - 1)]}
    return np.array([name in chosen for name in recordings], dtype=bool)

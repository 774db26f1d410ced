"""Building blocks of synthesised sound, all at 16 kHz: tones, noise, resonances, envelopes, events in time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import RandomState

RATE = 16_000


def seconds(duration: float) -> int:
    """Return the samples, at least 1, of ``duration`` seconds."""
    return max(1, int(duration * RATE))


def curve(values: list[float], n: int) -> np.ndarray:
    """Return ``(n,)`` samples of the line through ``values``, evenly spaced."""
    return np.interp(np.linspace(0, 1, n), np.linspace(0, 1, len(values)), values)


def wander(rng: RandomState, n: int, rate: float) -> np.ndarray:
    """Return a random curve ``(n,)`` of about unit deviation that turns about ``rate`` times a second."""
    knots = max(2, int(n / RATE * rate) + 2)
    return curve(list(rng.standard_normal(knots)), n)


def drift(rng: RandomState, n: int, rate: float, depth: float) -> np.ndarray:
    """Return a factor ``(n,)`` around 1 whose logarithm wanders with deviation ``depth``."""
    return np.exp(depth * wander(rng, n, rate))


def envelope(n: int, attack: float, release: float) -> np.ndarray:
    """Return an amplitude curve ``(n,)`` that rises for ``attack`` and falls for ``release`` seconds."""
    t = np.arange(n) / RATE
    return np.clip(np.minimum(t / attack, (n / RATE - t) / release), 0, 1)


def harmonics(pitch: np.ndarray, amplitudes: np.ndarray) -> np.ndarray:
    """Return a tone ``(n,)`` of the given ``pitch`` ``(n,)`` in Hz and partial ``amplitudes`` ``(K,)``.

    Partials above half the sampling rate are left out. Uses sin(k p) = 2 cos(p) sin((k - 1) p) - sin((k - 2) p).
    """
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    double_cosine, before, partial = 2 * np.cos(phase), np.zeros_like(phase), np.sin(phase)
    tone = np.zeros_like(phase)
    for k, amplitude in enumerate(amplitudes, start=1):
        tone += amplitude * partial * (k * pitch < RATE / 2)
        before, partial = partial, double_cosine * partial - before
    return tone


def rolloff(partials: int, exponent: float) -> np.ndarray:
    """Return partial amplitudes ``(partials,)`` that fall as ``1 / k ** exponent``."""
    return np.arange(1.0, partials + 1) ** -exponent


def noise(rng: RandomState, n: int, low: float = 20, high: float = 8000, slope: float = 0.0) -> np.ndarray:
    """Return noise ``(n,)`` of unit deviation between ``low`` and ``high`` Hz; amplitude falls as f ** -slope."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    f = np.fft.rfftfreq(n, 1 / RATE)
    inside = 1 / (1 + (low / np.maximum(f, 1)) ** 8) / (1 + (f / high) ** 8)
    return unit(np.fft.irfft(spectrum * inside * np.maximum(f, 20) ** -slope, n))


def resonate(signal: np.ndarray, centres: list[float], widths: list[float], floor: float = 0.05) -> np.ndarray:
    """Return ``signal`` ``(n,)`` through resonances at ``centres`` of ``widths`` Hz, over a flat ``floor``."""
    f = np.fft.rfftfreq(len(signal), 1 / RATE)
    gain = np.full_like(f, floor)
    for centre, width in zip(centres, widths, strict=True):
        gain += 1 / (1 + ((f - centre) / width) ** 2)
    return np.fft.irfft(np.fft.rfft(signal) * gain, len(signal))


def place(n: int, events: list[tuple[float, np.ndarray]]) -> np.ndarray:
    """Return ``(n,)`` samples with each sound added at its start in seconds; what sticks out is cut off."""
    out = np.zeros(n)
    for start, sound in events:
        first = int(start * RATE)
        room = out[first : first + len(sound)]
        room += sound[: len(room)]
    return out


def starts(rng: RandomState, duration: float, gap: float, jitter: float) -> list[float]:
    """Return event times in seconds within ``duration``: about ``gap`` apart, each gap varied by ``jitter`` (share)."""
    times = [rng.uniform(0, min(gap, duration / 2))]
    while times[-1] < duration:
        times.append(times[-1] + gap * max(0.1, 1 + jitter * rng.standard_normal()))
    return times[:-1]


def repeat(rng: RandomState, n: int, gap: float, jitter: float, sound: Callable[[], np.ndarray]) -> np.ndarray:
    """Return ``(n,)`` samples of ``sound``, made anew at each of `starts`."""
    return place(n, [(start, sound()) for start in starts(rng, n / RATE, gap, jitter)])


def unit(signal: np.ndarray) -> np.ndarray:
    """Return ``signal`` scaled to unit root mean square."""
    return signal / max(float(np.sqrt(np.mean(signal**2))), 1e-9)

"""Building blocks of sound, and a small synthesised data set: 15 classes from NumPy alone.

Clips come in recordings of two: a recording decides the source (an animal's voice, an engine's size, the room), a clip
the rhythm, length, level and noise. Classes overlap on purpose: their ranges of pitch, rhythm and noise touch, and
every clip has a background.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import RandomState

from fedgen.data.seeds import stream

RATE = 16_000


def seconds(duration: float) -> int:
    """Return the samples, at least 1, of ``duration`` seconds."""
    return max(1, int(duration * RATE))


def curve(values: Sequence[float] | np.ndarray, n: int) -> np.ndarray:
    """Return ``(n,)`` samples of the line through ``values``, evenly spaced."""
    return np.interp(np.linspace(0, 1, n), np.linspace(0, 1, len(values)), values)


def wander(rng: RandomState, n: int, rate: float) -> np.ndarray:
    """Return a random curve ``(n,)`` of about unit deviation that turns about ``rate`` times a second."""
    knots = max(2, int(n / RATE * rate) + 2)
    return curve(rng.standard_normal(knots), n)


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
    return filtered(signal, gain)


def filtered(signal: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Return ``signal`` ``(n,)`` times ``gain`` ``(n // 2 + 1,)`` in frequency."""
    return np.fft.irfft(np.fft.rfft(signal) * gain, len(signal))


def place(n: int, events: list[tuple[float, np.ndarray]]) -> np.ndarray:
    """Return ``(n,)`` samples with each sound added at its start in seconds; the part after the end is cut off."""
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


def repeat(rng: RandomState, n: int, gap: float, jitter: float, sound: Callable[[int], np.ndarray]) -> np.ndarray:
    """Return ``(n,)`` samples of ``sound``, made anew with its number at each of `starts`."""
    return place(n, [(start, sound(i)) for i, start in enumerate(starts(rng, n / RATE, gap, jitter))])


def unit(signal: np.ndarray) -> np.ndarray:
    """Return ``signal`` scaled to unit root mean square."""
    return signal / max(float(np.sqrt(np.mean(signal**2))), 1e-9)


TAKES = 2  # clips of a recording


def synthesise(name: str, index: int, seed: int) -> np.ndarray:
    """Return clip ``index`` of class ``name``: ``(samples,)``, float32 in -1..1, 1 to 5 s at 16 kHz."""
    voice = stream("recording", seed, name, index // TAKES)
    take = stream("clip", seed, name, index)
    n = 1600 * take.randint(10, 51)  # tenths of a second, a length that Fourier transforms like
    level = 10 ** (take.uniform(14, 38) / 20)  # signal over background, as amplitude
    sound = level * unit(SOUNDS[name](voice, take, n)) + background(voice, take, n)
    sound = resonate(sound, [voice.uniform(300, 5000)], [voice.uniform(1500, 4000)], floor=voice.uniform(0.5, 1))
    return (sound / np.abs(sound).max() * 10 ** (take.uniform(-12, -1) / 20)).astype(np.float32)


def background(voice: RandomState, take: RandomState, n: int) -> np.ndarray:
    """Return the noise of the place: coloured by the recording, swelling by the clip, with or without mains hum."""
    air = noise(take, n, high=voice.uniform(4000, 8000), slope=voice.uniform(0.4, 1))
    hum = harmonics(np.full(n, voice.choice([50.0, 60.0])), rolloff(8, 1)) * max(0.0, voice.uniform(-2, 1))
    return unit(air * drift(take, n, 2, 0.2) + hum)


def dog(voice: RandomState, take: RandomState, n: int) -> np.ndarray:
    """Barks: short, harsh, pitch up and down."""
    pitch, rough = voice.uniform(300, 600), voice.uniform(0.3, 0.8)
    throat = [voice.uniform(500, 1100), voice.uniform(1200, 2500)]

    def bark(_: int) -> np.ndarray:
        m = seconds(take.uniform(0.08, 0.35))
        tone = harmonics(pitch * take.uniform(0.85, 1.15) * curve([0.8, 1.2, 0.7], m), rolloff(20, 0.7))
        loud = take.uniform(0.5, 1) * envelope(m, 0.02, 0.1)
        return loud * resonate(tone + rough * noise(take, m), throat, [200, 400])

    return repeat(take, n, take.uniform(0.25, 0.7), 0.4, bark)


def rooster(voice: RandomState, take: RandomState, n: int) -> np.ndarray:
    """A crow: two or three short syllables and a long falling one."""
    pitch, throat = voice.uniform(600, 900), [voice.uniform(1200, 2000), voice.uniform(2500, 3500)]
    shape = [[0.8, 1.0, 0.9], [0.9, 1.1, 1.0], [1.0, 1.3, 1.2, 0.9, 0.6]]
    speed, at, events = take.uniform(0.6, 1.3), take.uniform(0, 0.3), []
    for syllable in shape[take.randint(2) :]:
        m = seconds(speed * (0.9 if len(syllable) == 5 else 0.25) * take.uniform(0.8, 1.2))
        tone = harmonics(pitch * curve(syllable, m), rolloff(12, 0.5)) + 0.2 * noise(take, m)
        events.append((at, envelope(m, 0.04, 0.15) * resonate(tone, throat, [300, 500])))
        at += m / RATE + speed * take.uniform(0.02, 0.12)
    return place(n, events)


def pig(voice: RandomState, take: RandomState, n: int) -> np.ndarray:
    """Grunts: low, pulsed and noisy, now and then a squeal."""
    pitch, throat = voice.uniform(50, 160), [voice.uniform(250, 700), voice.uniform(900, 1800)]
    squeals = voice.uniform(0, 0.4)

    def grunt(_: int) -> np.ndarray:
        high = take.uniform() < squeals
        m = seconds(take.uniform(0.1, 0.45))
        f0 = pitch * (take.uniform(5, 9) if high else 1) * drift(take, m, 15, 0.1)
        tone = harmonics(f0, rolloff(25, 0.6)) + take.uniform(0.4, 1.2) * noise(take, m, high=4000)
        return envelope(m, 0.04, 0.12) * resonate(tone, throat, [150, 300])

    return repeat(take, n, take.uniform(0.25, 0.9), 0.5, grunt)


def cow(voice: RandomState, take: RandomState, n: int) -> np.ndarray:
    """A long low call that rises and falls."""
    pitch, throat = voice.uniform(90, 260), [voice.uniform(250, 500), voice.uniform(600, 1200)]

    def moo(_: int) -> np.ndarray:
        m = seconds(take.uniform(0.7, 2.2))
        f0 = pitch * curve([0.8, take.uniform(0.9, 1.2), 1.1, take.uniform(0.6, 1)], m) * drift(take, m, 8, 0.02)
        tone = harmonics(f0, rolloff(25, 0.6)) + 0.15 * noise(take, m, high=3000)
        return envelope(m, 0.15, 0.3) * resonate(tone, throat, [120, 250])

    return repeat(take, n, take.uniform(1.2, 2.2), 0.3, moo)


def frog(voice: RandomState, take: RandomState, n: int) -> np.ndarray:
    """Croaks: a resonance struck 15 to 70 times a second, in bursts."""
    centre, rate = voice.uniform(700, 1400), voice.uniform(20, 50)

    def croak(_: int) -> np.ndarray:
        m = seconds(take.uniform(0.12, 0.6))
        pulses = np.clip(harmonics(rate * curve([1, take.uniform(0.8, 1.4)], m), np.ones(1)), 0, None) ** 4
        tone = noise(take, m, centre * 0.8, centre * 1.25) + harmonics(np.full(m, centre), rolloff(3, 1.5))
        return envelope(m, 0.03, 0.08) * pulses * tone

    return repeat(take, n, take.uniform(0.3, 0.7), 0.3, croak)


def rain(voice: RandomState, take: RandomState, n: int) -> np.ndarray:
    """Steady hiss with drops."""
    hiss = noise(take, n, voice.uniform(100, 900), voice.uniform(4000, 8000), voice.uniform(0, 0.6))
    drops = clicks(take, n, take.uniform(15, 120), voice.uniform(800, 4000), 1.0)
    return hiss * drift(take, n, 3, 0.15) + take.uniform(0.2, 1) * drops


def sea_waves(voice: RandomState, take: RandomState, n: int) -> np.ndarray:
    """Noise that swells and brightens every few seconds."""
    period, at = voice.uniform(2.5, 8), take.uniform(0, 1)
    swell = 0.5 + 0.5 * np.sin(2 * np.pi * (np.arange(n) / RATE / period + at))
    deep = noise(take, n, 40, voice.uniform(500, 1500), voice.uniform(0.3, 0.8))
    foam = noise(take, n, voice.uniform(500, 1500), 8000, voice.uniform(0, 0.5))
    return deep * (0.3 + swell) + foam * swell**2 * voice.uniform(0.3, 1.2) * drift(take, n, 6, 0.1)


def crackling_fire(voice: RandomState, take: RandomState, n: int) -> np.ndarray:
    """Soft roar with irregular cracks of very different strength."""
    roar = noise(take, n, 30, voice.uniform(300, 2500), voice.uniform(0.3, 1)) * drift(take, n, 5, 0.3)
    cracks = clicks(take, n, take.uniform(4, 45), voice.uniform(1200, 5000), voice.uniform(1.2, 2))
    return take.uniform(0.2, 0.8) * roar + cracks


def clicks(rng: RandomState, n: int, rate: float, centre: float, spread: float) -> np.ndarray:
    """Return ``rate`` short clicks a second around ``centre`` Hz; their strengths are log-normal of ``spread``."""
    at = rng.randint(0, n, max(1, int(rate * n / RATE)))
    impulses = np.zeros(n)
    np.add.at(impulses, at, np.exp(spread * rng.standard_normal(len(at))) * rng.choice([-1.0, 1.0], len(at)))
    kernel = noise(rng, 160) * np.exp(-np.arange(160) / rng.uniform(10, 50))
    return unit(resonate(np.convolve(impulses, kernel)[:n], [centre], [centre / 2]))


def crickets(voice: RandomState, take: RandomState, n: int) -> np.ndarray:
    """A high tone, pulsed fast, in groups or without pause."""
    carrier, pulse, group = voice.uniform(4000, 5800), voice.uniform(20, 50), voice.uniform(0.7, 4)
    t = np.arange(n) / RATE
    fast = np.clip(np.sin(2 * np.pi * pulse * t * take.uniform(0.95, 1.05)), 0, None)
    slow = np.sin(2 * np.pi * (group * t + take.uniform())) > take.choice([-2.0, -0.3, 0.2])
    return harmonics(carrier * drift(take, n, 10, 0.01), np.array([1, 0.1])) * fast * slow


def chirping_birds(voice: RandomState, take: RandomState, n: int) -> np.ndarray:
    """Phrases of short high glides."""
    pitch, length = voice.uniform(2000, 4200), voice.uniform(0.04, 0.2)
    song = [1 + 0.3 * voice.standard_normal(3) for _ in range(3)]

    def chirp(i: int) -> np.ndarray:
        m = seconds(length * take.uniform(0.7, 1.3))
        f0 = np.clip(pitch * curve(song[i % 3], m) * take.uniform(0.95, 1.05), 900, 7500)
        return take.uniform(0.4, 1) * envelope(m, 0.01, 0.02) * harmonics(f0, np.array([1, 0.15]))

    return repeat(take, n, length * take.uniform(1.2, 3), 0.4, chirp)


def helicopter(voice: RandomState, take: RandomState, n: int) -> np.ndarray:
    """Thumps of a rotor, 8 to 24 a second, over a turbine's hiss."""
    rate, sharp = voice.uniform(8, 24), voice.uniform(2, 8)
    beat = np.clip(harmonics(rate * drift(take, n, 1, 0.03), np.ones(1)), 0, None) ** sharp
    blades = beat * noise(take, n, 30, voice.uniform(400, 2500), voice.uniform(0.3, 1))
    hiss = noise(take, n, voice.uniform(300, 2000), 8000, 0.3)
    whine = harmonics(np.full(n, voice.uniform(300, 2500)), np.ones(1))
    return unit(blades) + voice.uniform(0.05, 0.5) * (hiss + whine)


def chainsaw(voice: RandomState, take: RandomState, n: int) -> np.ndarray:
    """A harsh buzz that revs up and down."""
    idle = voice.uniform(50, 130)
    revs = idle * np.exp(0.35 * np.clip(wander(take, n, take.uniform(0.5, 3)), -1, 2)) * drift(take, n, 40, 0.02)
    buzz = np.tanh(3 * harmonics(revs, rolloff(40, voice.uniform(0.3, 0.8))))
    rasp = noise(take, n, 800, 8000) * (1 + np.sin(2 * np.pi * np.cumsum(revs) / RATE))
    body = [voice.uniform(400, 1200), voice.uniform(1500, 4000)]
    return unit(resonate(buzz, body, [400, 1000], 0.2)) + voice.uniform(0.1, 0.6) * unit(rasp)


def siren(voice: RandomState, take: RandomState, n: int) -> np.ndarray:
    """A tone that wails, yelps, or alternates between two pitches."""
    low, ratio = voice.uniform(350, 900), voice.uniform(1.5, 2)
    period = voice.choice([0.4, 1.2, 3]) * voice.uniform(0.8, 1.25)
    turn = np.sin(2 * np.pi * (np.arange(n) / RATE / period + take.uniform()))
    turn = np.sign(turn) if voice.uniform() < 0.3 else turn
    tone = harmonics(low * ratio ** (0.5 + 0.5 * turn), rolloff(10, voice.uniform(0.5, 1)))
    return tone * drift(take, n, 1, 0.2)


def car_horn(voice: RandomState, take: RandomState, n: int) -> np.ndarray:
    """One or two steady tones, honked."""
    pitch, second = voice.uniform(360, 460), voice.choice([0, 1.2, 1.26, 1.26])

    def honk(_: int) -> np.ndarray:
        m = seconds(take.choice([0.3, 0.6, 1.5]) * take.uniform(0.7, 1.5))
        one, two = (harmonics(np.full(m, f0), rolloff(16, 0.5)) for f0 in (pitch, pitch * second))
        return envelope(m, 0.015, 0.04) * (one + bool(second) * two)

    return resonate(repeat(take, n, take.uniform(0.5, 1.2), 0.3, honk), [voice.uniform(1500, 2500)], [700], 0.2)


def engine(voice: RandomState, take: RandomState, n: int) -> np.ndarray:
    """An idling or running motor: low pulses, uneven, over a rumble."""
    firing = voice.uniform(18, 95) * drift(take, n, take.uniform(0.3, 2), 0.12) * drift(take, n, 30, 0.02)
    pulses = harmonics(firing, rolloff(40, voice.uniform(0.3, 1)) * np.exp(0.4 * voice.standard_normal(40)))
    rumble = noise(take, n, 30, voice.uniform(300, 2000), voice.uniform(0.3, 0.9))
    body = resonate(pulses, [voice.uniform(80, 300), voice.uniform(400, 1500)], [80, 400], 0.1)
    return unit(body) + voice.uniform(0.2, 1.2) * rumble


Sound = Callable[[RandomState, RandomState, int], np.ndarray]
GROUPED: dict[str, list[Sound]] = {
    "animals": [dog, rooster, pig, cow, frog],
    "nature": [rain, sea_waves, crackling_fire, crickets, chirping_birds],
    "mechanical": [helicopter, chainsaw, siren, car_horn, engine],
}
GROUPS = {group: [sound.__name__ for sound in sounds] for group, sounds in GROUPED.items()}
SOUNDS = {sound.__name__: sound for sounds in GROUPED.values() for sound in sounds}

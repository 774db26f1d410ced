"""Synthesised sounds from NumPy alone: building blocks, the 15 voices of a small data set, and random recipes.

Clips of a voice come in recordings of two: a recording decides the source (an animal's voice, an engine's size, the
room), a clip the rhythm, length, level and noise. Classes overlap on purpose: their ranges of pitch, rhythm and noise
touch, and every clip has a background. Recipes are any number of classes, each with clips that vary as recordings do.
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


LENGTH = 5.0  # seconds of a recipe's clip
SAMPLES = seconds(LENGTH)
SPREAD = 0.1  # of a quantity within a class, as a share of its range
SOURCES = [(1, 0), (1, 1), (1, 1), (0, 1), (0, 1)]  # tone and noise
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
    tonal, noisy = SOURCES[recipe.kind.randint(len(SOURCES))]
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

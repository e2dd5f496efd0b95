"""Synthesised sounds: tones, chirps and vowels, half a second each. They need no file and can be checked exactly.

C4 E4 G4 C5       notes of equal temperament, a few overtones, up to 10 cents beside the note
up, down          sweeps of 2 octaves per second, each from a random start
a e i o u         a voice of 100 to 220 Hz with the formants of Peterson and Barney 1952, table II (men), give or
                  take 3 %; spectra after Fant 1960: pulses that fall by 12 dB an octave, 6 of them given back by
                  the lips, through resonators
"""

import numpy as np

from pydiff import random
from pydiff.data.sounds import GRID, LOUDNESS, PEAK, RATE, Sounds

SECONDS = 0.5
NOTES = {"C4": 261.6256, "E4": 329.6276, "G4": 391.9954, "C5": 523.2511}  # Hz
SWEEPS = {"up": 2.0, "down": -2.0}  # octaves per second
VOWELS = {
    "a": (730, 1090, 2440), "e": (530, 1840, 2480), "i": (270, 2290, 3010), "o": (570, 840, 2410),
    "u": (300, 870, 2240),
}  # fmt: skip
BANDWIDTHS = (60.0, 90.0, 120.0)  # Hz, of the formants
CENTS, SPREAD = 10.0, 0.03
CLASSES = [*NOTES, *SWEEPS, *VOWELS]
EPOCH = 2**32 - 2  # of the data's random stream: no training reaches it


def load_tones(count: int = 1650, seed: int = 0, rate: int = RATE, seconds: float = SECONDS) -> Sounds:
    """`count` sounds, the classes taking turns: (count, 1, L, 1). A pure function of its arguments."""
    drawn = random.uniform(random.key(seed, random.DATA, np.arange(count), EPOCH), (16,))
    labels = np.arange(count) % len(CLASSES)
    sounds = np.stack([made(CLASSES[label], row, rate, seconds) for label, row in zip(labels, drawn, strict=True)])
    return Sounds("tones", sounds[:, None, :, None].astype(np.float32), labels, list(CLASSES), rate=rate)


def made(kind: str, u, rate: int = RATE, seconds: float = SECONDS) -> np.ndarray:
    """One sound of a class, (L,) float64. u: (16,) numbers from 0 to 1 that determine everything else."""
    t = np.arange(round(rate * seconds)) / rate
    if kind in NOTES:
        pitch = NOTES[kind] * 2 ** ((2 * u[0] - 1) * CENTS / 1200)
        weights = np.array([1.0, *(0.6 * u[1:4] / np.arange(2, 5))])
        x = sum(w * np.sin(2 * np.pi * (k * pitch * t + u[3 + k])) for k, w in enumerate(weights, 1))
    elif kind in SWEEPS:
        slope = SWEEPS[kind]
        first = (250 if slope > 0 else 700) * 2 ** (0.5 * u[0])
        phase = first * (2.0 ** (slope * t) - 1) / (slope * np.log(2))
        x = np.sin(2 * np.pi * (phase + u[4])) + 0.3 * u[1] * np.sin(2 * np.pi * (2 * phase + u[5]))
    else:
        pitch = 100 * 2.2 ** u[0]
        formants = np.array(VOWELS[kind]) * (1 + SPREAD * (2 * u[1:4] - 1))
        harmonics = np.arange(1, int(0.475 * rate / pitch) + 1) * pitch
        turn, pulses = np.exp(2j * np.pi * (pitch * t + u[4])), 0.0
        for weight in voice(harmonics, formants)[::-1]:  # the sum of weight_k turn^k, one pulse per period
            pulses = (pulses + weight) * turn
        x = pulses.imag
    x = x * np.minimum(1, np.minimum(t / 0.01, (t[-1] - t) / (0.05 + 0.1 * u[15])))
    x = x * min(10 ** (LOUDNESS / 20) / np.sqrt((x**2).mean()), PEAK / np.abs(x).max())
    return np.rint(x * GRID) / GRID


def voice(frequencies, formants):
    """Amplitudes of a vowel's harmonics: the source, 1 / f after the lips, through a resonator for each formant."""
    f = np.asarray(frequencies, np.float64)
    gain = 100.0 / f
    for centre, width in zip(formants, BANDWIDTHS, strict=True):
        pole = centre**2 + (width / 2) ** 2
        gain = gain * pole / np.sqrt(((f - centre) ** 2 + (width / 2) ** 2) * ((f + centre) ** 2 + (width / 2) ** 2))
    return gain

"""Measurements of a sound that can be checked exactly: its pitch, its glide, its formants. For tests and tables.

All take x (L,), a float array at `rate` samples per second.
"""

import numpy as np

from pydiff.sound.spectrum import stft

PAD = 16  # zero-padding factor of the transform


def pitch(x, rate: int, low: float = 80.0, high: float = 1000.0) -> float:
    """The frequency in Hz, between low and high, of the strongest peak of the spectrum.

    A Hann window, a transform of PAD times the length, and the vertex of a parabola through the logarithms of the three
    values around the peak: for a steady tone the error is far below a cent. NaN for silence.
    """
    x = np.asarray(x, np.float64)
    size = PAD * len(x)
    found = np.abs(np.fft.rfft(x * np.hanning(len(x)), size))
    first, last = int(np.ceil(low * size / rate)), min(int(high * size / rate), len(found) - 2)
    if last <= first or not found[first : last + 1].max() > 0:
        return float("nan")
    at = first + int(found[first : last + 1].argmax())
    return (at + _top(found, at)) * rate / size


def cents(frequency: float, wanted: float) -> float:
    """How far `frequency` is above `wanted`, in cents: 1200 per octave."""
    return float(1200 * np.log2(frequency / wanted))


def slope(x, rate: int, low: float = 80.0, high: float = 2000.0) -> float:
    """Octaves per second by which the strongest partial rises (negative if it falls): a line fitted to its track,
    weighted by loudness. NaN for silence.
    """
    size = int(2 ** round(np.log2(0.032 * rate)))
    hop = size // 4
    padded = np.abs(stft(np.asarray(x, np.float64), size, hop))
    first, last = max(1, int(low * size / rate)), int(high * size / rate)
    peaks = first + padded[:, first : last + 1].argmax(1)
    places = np.array([peak + _top(frame, peak) for frame, peak in zip(padded, peaks, strict=True)])
    weight = padded[np.arange(len(padded)), peaks]
    if not weight.max() > 0:
        return float("nan")
    loud = weight > 0.25 * weight.max()
    time, height = np.arange(len(padded))[loud] * hop / rate, np.log2(places[loud] * rate / size)
    return float(np.polyfit(time, height, 1, w=weight[loud])[0]) if loud.sum() > 1 else float("nan")


def _top(values, at):
    """The vertex of a parabola through the logarithms around a peak, relative to it, from -1/2 to 1/2."""
    left, middle, right = np.log(np.maximum(values[at - 1 : at + 2], 1e-300))
    bend = left - 2 * middle + right
    return 0.0 if bend >= 0 else float(np.clip(0.5 * (left - right) / bend, -0.5, 0.5))


def formants(x, rate: int, count: int = 2, order: int = 10) -> np.ndarray:
    """The lowest `count` resonances in Hz (count,), NaN if there are fewer, by linear prediction (Makhoul 1975).

    The sound is first emphasised by 6 dB per octave, and the predictor comes from the autocorrelation; a resonance is a
    pole above 90 Hz that is narrower than 500 Hz.
    """
    x = np.asarray(x, np.float64)
    x = np.append(x[:1], x[1:] - 0.97 * x[:-1]) * np.hamming(len(x))
    correlation = np.correlate(x, x, "full")[len(x) - 1 : len(x) + order]
    found = np.full(count, np.nan)
    if not correlation[0] > 0:
        return found
    square = correlation[np.abs(np.subtract.outer(np.arange(order), np.arange(order)))]
    square = square + np.eye(order) * correlation[0] * 1e-9
    predictor = np.linalg.solve(square, correlation[1 : order + 1])
    poles = np.roots(np.concatenate([[1.0], -predictor]))
    poles = poles[poles.imag > 0]
    frequency = np.angle(poles) * rate / (2 * np.pi)
    width = -np.log(np.abs(poles).clip(1e-12)) * rate / np.pi
    narrow = np.sort(frequency[(frequency > 90) & (width < 500)])[:count]
    found[: len(narrow)] = narrow
    return found

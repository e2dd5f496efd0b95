"""Short-time spectra, mel bands, and the reconstruction from magnitudes alone: Griffin-Lim.

Frame k is centred on sample k·hop, with a periodic Hann window; beyond its ends a sound counts as silent. With at least
four frames per window, all samples are covered evenly, and `istft` inverts `stft`.
"""

import functools

import numpy as np

FLOOR = 1e-10  # window weights below this count as zero


def frames_of(length: int, hop: int) -> int:
    """How many frames cover a sound of `length` samples."""
    return -(-length // hop) + 1


@functools.cache
def window(size: int) -> np.ndarray:
    """The periodic Hann window, (size,) float64."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)


def stft(x, size: int, hop: int) -> np.ndarray:
    """x (..., L) real -> (..., frames, size // 2 + 1) complex128."""
    x = np.asarray(x, np.float64)
    frames = frames_of(x.shape[-1], hop)
    before = size // 2
    after = (frames - 1) * hop + size - before - x.shape[-1]
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(before, after)])
    cut = np.lib.stride_tricks.sliding_window_view(padded, size, axis=-1)[..., ::hop, :][..., :frames, :]
    return np.fft.rfft(cut * window(size), axis=-1)


def istft(spectra, length: int, size: int, hop: int) -> np.ndarray:
    """The sound (..., length) float64 whose spectra are nearest to these in mean square (Griffin and Lim 1984,
    eq. 6).
    """
    spectra = np.asarray(spectra)
    frames = spectra.shape[-2]
    cut = np.fft.irfft(spectra, size, axis=-1) * window(size)
    total = _overlap(cut, hop)
    weight = _overlap(np.broadcast_to(window(size) ** 2, (frames, size)), hop)
    whole = total / np.where(weight > FLOOR, weight, 1.0)
    return whole[..., size // 2 : size // 2 + length]


def _overlap(cut, hop):
    """The overlap-add of frames (..., K, size): (..., (K - 1) hop + size)."""
    frames, size = cut.shape[-2:]
    parts = -(-size // hop)  # pieces of `hop` samples per frame
    cut = np.pad(cut, [(0, 0)] * (cut.ndim - 1) + [(0, parts * hop - size)])
    total = np.zeros((*cut.shape[:-2], frames + parts - 1, hop))
    for i in range(parts):
        total[..., i : i + frames, :] += cut[..., i * hop : (i + 1) * hop]
    return total.reshape(*cut.shape[:-2], -1)[..., : (frames - 1) * hop + size]


def griffin_lim(
    magnitudes, length: int, size: int, hop: int, iterations: int = 60, momentum: float = 0.99
) -> np.ndarray:
    """A sound (..., length) whose spectra have approximately these magnitudes (..., frames, size // 2 + 1).

    Griffin and Lim 1984, with the momentum of Perraudin, Balazs and Søndergaard 2013, "A fast Griffin-Lim algorithm",
    algorithm 2. The initial phases advance from frame to frame like those of steady tones in the middle of their bands,
    so no random numbers are drawn, and every sound is computed independently.
    """
    magnitudes = np.asarray(magnitudes, np.float64)
    frames, bands = magnitudes.shape[-2:]
    if frames != frames_of(length, hop) or bands != size // 2 + 1:
        raise ValueError(
            f"magnitudes are {magnitudes.shape}, expected (.., {frames_of(length, hop)}, {size // 2 + 1}) for "
            f"{length} samples in windows of {size}, {hop} apart"
        )
    spectra = magnitudes * np.exp(2j * np.pi * hop / size * np.outer(np.arange(frames), np.arange(bands)))
    before = spectra
    for _ in range(iterations):
        consistent = stft(istft(spectra, length, size, hop), size, hop)
        guess = consistent + momentum * (consistent - before)
        before = consistent
        spectra = magnitudes * guess / np.abs(guess).clip(1e-16)
    return istft(spectra, length, size, hop)


def convergence(x, magnitudes, size: int, hop: int) -> np.ndarray:
    """|| |STFT x| - magnitudes || / || magnitudes ||, (...): 0 for a sound that has exactly these magnitudes."""
    error = np.abs(stft(x, size, hop)) - magnitudes
    axes = (-2, -1)
    return np.sqrt((error**2).sum(axes) / (np.asarray(magnitudes) ** 2).sum(axes).clip(1e-300))


def mel(frequency):
    """Hertz to mel (O'Shaughnessy 1987): linear at first, then logarithmic."""
    return 2595.0 * np.log10(1.0 + np.asarray(frequency, np.float64) / 700.0)


@functools.cache
def mel_filters(bands: int, size: int, rate: int) -> np.ndarray:
    """(size // 2 + 1, bands) float64: triangles, evenly spaced in mel from 0 to half the rate, each of sum 1.

    A triangle narrower than a bin of the transform takes the two bins around its centre.
    """
    bins = np.arange(size // 2 + 1) * rate / size
    edges = 700.0 * (10.0 ** (np.linspace(0.0, float(mel(rate / 2)), bands + 2) / 2595.0) - 1.0)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    step = rate / size
    low, high = np.minimum(low, centre - step), np.maximum(high, centre + step)
    rising, falling = (bins[:, None] - low) / (centre - low), (high - bins[:, None]) / (high - centre)
    weights = np.minimum(rising, falling).clip(0.0)
    return weights / weights.sum(0)


@functools.cache
def _spreading(bands, size, rate):
    """(bands, size // 2 + 1): the initial share of each band in each bin, for the multiplicative updates."""
    weights = mel_filters(bands, size, rate)
    return (weights / weights.sum(1, keepdims=True).clip(1e-12)).T


def from_mel(values, size: int, rate: int, iterations: int = 40) -> np.ndarray:
    """Magnitudes (..., size // 2 + 1) >= 0 whose mel bands are nearest to values (..., bands) >= 0.

    Multiplicative updates for non-negative least squares (Lee and Seung 2001), from a smooth start.
    """
    values = np.asarray(values, np.float64)
    weights = mel_filters(values.shape[-1], size, rate)
    found = values @ _spreading(values.shape[-1], size, rate) + 1e-12
    wanted = values @ weights.T
    for _ in range(iterations):  # weights @ weights.T has a row and a column a bin, and would be large for long windows
        found = found * (wanted / (found @ weights @ weights.T + 1e-12))
    return found

"""Sounds as images: the waveform above its spectrum, where brighter is louder."""

import numpy as np

from pydiff.sound.spectrum import stft

RANGE = 60.0  # decibels from black to white


def images(sounds, height=64, width=64, wave=20):
    """(N, 1, L, C) floats -> (N, height, width, 1) uint8: `wave` rows of waveform above the spectrum.

    Low frequencies are at the bottom. Channels are averaged. White is 0 dB, a full-scale sine; black is RANGE below.
    """
    x = np.asarray(sounds, np.float64)[:, 0].mean(-1)
    out = np.zeros((len(x), height, width, 1), np.uint8)
    out[:, :wave, :, 0] = waveforms(2 * x, wave, width)
    out[:, wave, :, 0] = 96
    out[:, wave + 1 :, :, 0] = spectra(x, height - wave - 1, width)
    return out


def waveforms(x, height, width):
    """x (N, L) in [-1, 1] -> (N, height, width) uint8: for every column the range of the samples in it."""
    edges = np.linspace(0, x.shape[1], width + 1).astype(int)
    starts = np.minimum(edges[:-1], x.shape[1] - 1)
    low, high = np.minimum.reduceat(x, starts, axis=1), np.maximum.reduceat(x, starts, axis=1)
    rows = (1.0 - np.linspace(0, 1, height) * 2.0)[None, :, None]
    half = 1.0 / height
    inside = (rows <= high[:, None] + half) & (rows >= low[:, None] - half)
    return np.where(inside, 255, 0).astype(np.uint8)


def spectra(x, height, width):
    """x (N, L) -> (N, height, width) uint8 from magnitudes in decibels, the highest frequency in the first row."""
    length = x.shape[1]
    size = int(2 ** np.clip(round(np.log2(max(length, 2) / 20)), 5, 11))
    found = np.abs(stft(x, size, max(1, size // 4))) / (size / 4)  # 1 for a full-scale sine
    frames, bands = found.shape[1:]
    columns = np.linspace(0, frames - 1, width).round().astype(int)
    edges = np.unique(np.linspace(0, bands, height + 1).astype(int))
    if len(edges) == height + 1:  # the loudest of the bins that share a row
        picked = np.maximum.reduceat(found[:, columns], edges[:-1], axis=2)
    else:
        picked = found[:, columns][:, :, np.linspace(0, bands - 1, height).round().astype(int)]
    level = 1.0 + 20.0 * np.log10(picked.clip(1e-12)) / RANGE
    return np.rint(255 * level.clip(0, 1)).astype(np.uint8).transpose(0, 2, 1)[:, ::-1]

"""Spectra, the way back from them, mel bands: against sums written out, and as properties."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff.sound import spectrum
from tests.sound.make import sine


def test_stft_is_the_sum_it_says():
    x, size, hop = np.random.default_rng(0).standard_normal(50), 16, 4
    found = spectrum.stft(x, size, hop)
    assert found.shape == (spectrum.frames_of(50, hop), 9)
    padded = np.pad(x, 200)
    for frame in (0, 5, 13):
        for band in (0, 3, 8):
            total = sum(
                padded[200 + frame * hop - size // 2 + i]
                * (0.5 - 0.5 * np.cos(2 * np.pi * i / size))
                * np.exp(-2j * np.pi * band * i / size)
                for i in range(size)
            )
            assert abs(found[frame, band] - total) < 1e-12


@given(length=st.integers(1, 97), size=st.sampled_from([4, 8, 16, 32]), seed=st.integers(0, 9))
def test_there_and_back(length, size, seed):
    x = np.random.default_rng(seed).standard_normal((2, length))
    back = spectrum.istft(spectrum.stft(x, size, size // 4), length, size, size // 4)
    assert back.shape == x.shape
    assert np.abs(back - x).max() < 1e-12


def test_griffin_lim_finds_a_sound_with_these_magnitudes():
    """Momentum beats the plain algorithm, both improve on the start, and the error is what is stated in the docs."""
    t = np.arange(8000) / 8000
    x = sine(440, seconds=1) + sine(1250, seconds=1, loud=0.2) * np.exp(-3 * t) + 0.05 * np.sin(2e3 * t**2)
    wanted = np.abs(spectrum.stft(x, 512, 128))
    errors = {}
    for iterations, momentum in ((0, 0.0), (60, 0.0), (60, 0.99)):
        y = spectrum.griffin_lim(wanted, 8000, 512, 128, iterations, momentum)
        errors[iterations, momentum] = float(spectrum.convergence(y, wanted, 512, 128))
    assert errors[60, 0.99] < errors[60, 0.0] < errors[0, 0.0]
    assert errors[60, 0.99] < 0.05
    with pytest.raises(ValueError, match="expected"):
        spectrum.griffin_lim(wanted[:-1], 8000, 512, 128)


def test_every_sound_is_worked_out_by_itself():
    wanted = np.abs(spectrum.stft(np.random.default_rng(1).standard_normal((3, 400)), 64, 16))
    together = spectrum.griffin_lim(wanted, 400, 64, 16, 5)
    assert np.array_equal(together[1], spectrum.griffin_lim(wanted[1], 400, 64, 16, 5))
    assert np.array_equal(spectrum.griffin_lim(np.zeros((26, 33)), 400, 64, 16), np.zeros(400))


@pytest.mark.parametrize(
    ("bands", "size", "rate"), [(32, 512, 8000), (64, 512, 8000), (40, 1024, 22050), (1, 64, 8000)]
)
def test_mel_bands_rise_and_can_be_undone(bands, size, rate):
    weights = spectrum.mel_filters(bands, size, rate)
    assert weights.shape == (size // 2 + 1, bands)
    assert np.abs(weights.sum(0) - 1).max() < 1e-12
    centres = (weights * np.arange(size // 2 + 1)[:, None]).sum(0)
    assert (np.diff(centres) > 0).all()
    magnitudes = np.random.default_rng(0).uniform(0, 1, (5, size // 2 + 1))
    values = magnitudes @ weights
    again = spectrum.from_mel(values, size, rate)
    assert (again >= 0).all()
    assert np.abs(again @ weights - values).max() < 0.05 * values.max()
    assert np.array_equal(spectrum.from_mel(0 * values, size, rate) < 1e-9, np.ones_like(again, bool))


def test_long_windows_take_memory_in_proportion():
    values = np.random.default_rng(0).uniform(0, 1, (2, 1, 3, 32))
    tracemalloc.start()
    try:
        again = spectrum.from_mel(values, 1 << 16, 8000, iterations=2)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20  # a number for each pair of bins would be 8 GB
    finally:
        tracemalloc.stop()
    assert again.shape == (2, 1, 3, (1 << 15) + 1)


def test_a_thousand_hertz_are_a_thousand_mel():
    assert abs(spectrum.mel(1000) - 999.9855) < 1e-3

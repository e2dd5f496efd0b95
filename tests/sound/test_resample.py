"""Resampling against exact sinusoids: what can be kept is kept, what cannot is gone, nothing is shifted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff.sound.resample import resample
from tests.sound.make import sine

RATES = [(44100, 8000), (48000, 8000), (192000, 8000), (8000, 44100), (11025, 8000), (16000, 8000), (8000, 8000)]


def inner(x, rate):
    """Without the ends, where the filter looks beyond the sound."""
    cut = round(0.1 * rate)
    return x[cut:-cut]


@pytest.mark.parametrize(("rate", "wanted"), RATES)
@pytest.mark.parametrize("share", [0.01, 0.4, 0.89])
def test_a_sinusoid_stays_the_same_sinusoid(rate, wanted, share):
    """Up to 0.9 of the lower half rate, within 90 dB; the filter is designed for that."""
    frequency = share * min(rate, wanted) / 2
    y = resample(sine(frequency, rate), rate, wanted)
    assert len(y) == round(0.5 * wanted)
    exact = sine(frequency, wanted)
    assert np.abs(inner(y - exact, wanted)).max() < 0.5 * 10 ** (-86 / 20)


@pytest.mark.parametrize(("rate", "wanted"), [pair for pair in RATES if pair[0] > pair[1]])
@pytest.mark.parametrize("share", [1.01, 1.3, 1.37])
def test_what_is_too_high_is_gone(rate, wanted, share):
    frequency = share * wanted / 2
    if frequency >= rate / 2:
        pytest.skip("there is no such frequency at the old rate")
    assert np.abs(inner(resample(sine(frequency, rate), rate, wanted), wanted)).max() < 0.5 * 10 ** (-80 / 20)


@given(
    length=st.integers(0, 50), rate=st.sampled_from([7, 44, 100, 101]), wanted=st.sampled_from([3, 100, 160]),
    channels=st.integers(1, 3),
)  # fmt: skip
def test_odd_lengths_and_linearity(length, rate, wanted, channels):
    x = np.random.default_rng(length).standard_normal((length, channels))
    y = resample(x, rate, wanted)
    assert y.shape == (-(-length * wanted // rate), channels)
    assert np.allclose(resample(2 * x, rate, wanted), 2 * y, rtol=0, atol=1e-12)
    assert np.allclose(resample(x[:, 0], rate, wanted), y[:, 0], rtol=0, atol=1e-12)


def test_constants_keep_their_level_and_rates_are_checked():
    y = resample(np.ones(4410), 44100, 8000)
    assert np.abs(y[200:-200] - 1).max() < 1e-4
    with pytest.raises(ValueError, match="whole numbers"):
        resample(np.ones(4), 0, 8000)

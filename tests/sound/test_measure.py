"""Pitch, glides and formants of sounds whose formula is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff.data.tones import SWEEPS, VOWELS, made
from pydiff.sound.measure import cents, formants, pitch, slope
from tests.sound.make import sine


@given(frequency=st.floats(100, 900), phase=st.floats(0, 1), rate=st.sampled_from([4000, 8000, 22050]))
def test_pitch_is_found_within_a_cent(frequency, phase, rate):
    x = sine(frequency, rate, 0.25, phase=phase)
    assert abs(cents(pitch(x, rate), frequency)) < 1


def test_pitch_hears_past_noise_and_overtones():
    noise = 0.2 * np.random.default_rng(0).standard_normal(4000)
    x = sine(330) + 0.3 * sine(660) + 0.2 * sine(990) + noise
    assert abs(cents(pitch(x, 8000), 330)) < 5
    assert np.isnan(pitch(np.zeros(4000), 8000))
    assert cents(660, 330) == 1200


@pytest.mark.parametrize("kind", SWEEPS)
def test_glides(kind):
    for row in np.random.default_rng(1).uniform(size=(5, 16)):
        for seconds in (0.25, 0.5):
            assert abs(slope(made(kind, row, seconds=seconds), 8000) - SWEEPS[kind]) < 0.15
    assert abs(slope(sine(440), 8000)) < 0.02
    assert np.isnan(slope(np.zeros(4000), 8000))


@pytest.mark.parametrize("kind", VOWELS)
def test_formants(kind):
    """Within a tone's step and a half: the method hears harmonics, which lie 100 Hz and more apart."""
    rows = np.random.default_rng(2).uniform(size=(6, 16))
    for row in rows:
        row[0] *= 0.3  # a low voice
        true = np.array(VOWELS[kind])[:2] * (1 + 0.03 * (2 * row[1:3] - 1))
        found = formants(made(kind, row), 8000)
        assert (np.abs(np.log2(found / true)) < 0.25).all(), (found, true)
    assert np.isnan(formants(np.zeros(4000), 8000)).all()

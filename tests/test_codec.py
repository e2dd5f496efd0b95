"""The edge between people's samples and what is diffused: exact both ways, strict with strangers, kept in files."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pydiff import codec
from pydiff.codec import CODECS, Codec, Pixels, from_config, register
from tests.bits import assert_same_bits
from tests.networks import Folded

LEVELS = np.arange(256, dtype=np.uint8).reshape(2, 8, 8, 2)
IMAGES = Pixels((8, 8, 2))


# ---- pixels, both ways -----------------------------------------------------------------------------------------------


def test_every_level_comes_back_exactly():
    x = IMAGES.encode(LEVELS)
    assert x.dtype == np.float32
    assert (x.min(), x.max()) == IMAGES.limits == (-1.0, 1.0)
    np.testing.assert_allclose(x.ravel(), np.arange(256) / 127.5 - 1, atol=1e-7)
    assert_same_bits([IMAGES.decode(x), IMAGES.decode(x.astype(np.float64))], [LEVELS, LEVELS])


@given(u=st.integers(0, 255), off=st.floats(-0.49, 0.49), dtype=st.sampled_from([np.float32, np.float64]))
def test_x_decodes_to_the_nearest_level(u, off, dtype):
    x = np.full((1, 1, 1, 1), (u + off) / 127.5 - 1, dtype)
    assert Pixels((1, 1, 1)).decode(x)[0, 0, 0, 0] == u


@given(hnp.arrays(np.float32, (1, 2, 2, 1), elements=st.floats(-9, 9, width=32)))
def test_values_outside_are_cut_and_decoding_twice_changes_nothing(x):
    made = Pixels((2, 2, 1))
    images = made.decode(x)
    assert (images[x >= 1] == 255).all()
    assert (images[x <= -1] == 0).all()
    assert_same_bits([made.decode(made.encode(images))], [images])


def test_an_overflow_is_white_or_black_and_nan_is_an_error():
    x = np.array([np.inf, -np.inf, 3e38, 0.0], np.float32).reshape(1, 2, 2, 1)
    made = Pixels((2, 2, 1))
    assert made.decode(x).ravel().tolist() == [255, 0, 255, 128]
    x[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"1 of 4 values are NaN or infinite, expected \[-1, 1\]; look for what made"):
        made.decode(x)


def test_float_samples_of_a_data_set_stay_as_they_are():
    fine = np.linspace(-1, 1, 128, dtype=np.float32).reshape(1, 8, 8, 2)
    assert_same_bits([IMAGES.encode(fine)], [fine])
    assert_same_bits([IMAGES.show(fine)], [IMAGES.decode(fine)])


@pytest.mark.parametrize(
    ("samples", "advice"),
    [
        (LEVELS[:, :7], "resize them first"),
        (LEVELS[..., :1], "they have 1 channel where the model's have 2; convert them"),
        (LEVELS[0], r"images\[None\] is"),
        (LEVELS.astype(np.int64), r"images.astype\(np.uint8\) makes them"),
        (LEVELS / 255.0, r"np.rint\(images \* 255\).astype\(np.uint8\) makes them"),
        (np.zeros((2, 8, 8, 2, 1), "u1"), "resize them first"),
    ],
)
def test_samples_that_do_not_fit(samples, advice):
    for encode in (IMAGES.encode, IMAGES.encode_given):
        expected = rf"images are \w+ \(.*\), expected uint8 \(N, 8, 8, 2\); {advice}"
        with pytest.raises(ValueError, match=expected) as error:
            encode(samples)
        assert "\n" not in str(error.value)


def test_a_stranger_may_give_uint8_alone_and_something():
    """Nobody can tell whether floats are in [-1, 1] or [0, 1]."""
    assert_same_bits([IMAGES.encode_given(LEVELS)], [IMAGES.encode(LEVELS)])
    assert_same_bits([IMAGES.encode_given(LEVELS[:1])], [IMAGES.encode(LEVELS[:1])])
    for given_samples in (IMAGES.encode(LEVELS), LEVELS[:0], np.uint8(3), LEVELS.astype(np.int64).tolist()):
        with pytest.raises(ValueError, match=r"expected uint8 \(N, 8, 8, 2\)"):
            IMAGES.encode_given(given_samples)


# ---- for the eye, and masks ------------------------------------------------------------------------------------------


def test_what_is_shown():
    assert IMAGES.show(LEVELS) is LEVELS
    assert_same_bits([IMAGES.show_x(IMAGES.encode(LEVELS) * 3)], [IMAGES.decode(IMAGES.encode(LEVELS) * 3)])
    eps = np.array([0.0, 3.0, -3.0, 9.0, -9.0, 1.5], np.float32).reshape(1, 1, 6, 1)
    assert IMAGES.show_noise(eps).ravel().tolist() == [128, 255, 0, 255, 0, 191]


def test_masks_reach_x_as_they_are_given():
    mask = np.linspace(0, 1, 64).reshape(1, 8, 8, 1)
    assert IMAGES.encode_mask(mask) is mask
    folded = Folded((8, 8, 1)).encode_mask(np.pad(np.ones((1, 1, 1, 1)), ((0, 0), (3, 4), (0, 7), (0, 0))))
    assert folded.shape == (1, 4, 4, 1)
    assert np.argwhere(folded).tolist() == [[0, 1, 0, 0]]  # latents under any masked pixel are drawn anew


# ---- in files --------------------------------------------------------------------------------------------------------


@given(shape=st.tuples(*[st.integers(1, 64)] * 3))
def test_pixels_come_back_from_json(shape):
    again = from_config(json.loads(json.dumps(Pixels(shape).to_config())))
    assert type(again) is Pixels
    assert again.shape == shape


def test_a_registered_kind_comes_back_and_an_unknown_one_is_named():
    again = from_config(json.loads(json.dumps(Folded((8, 6, 1)).to_config())))
    assert type(again) is Folded
    assert again.shape == (4, 3, 4)
    for config in ({"kind": "holograms"}, {}):
        with pytest.raises(
            ValueError, match=rf"needs the codec {config.get('kind')!r}, which is not registered; known are pix"
        ):
            from_config(config)


def test_register_is_a_decorator_and_the_last_one_counts(monkeypatch):
    monkeypatch.setattr(codec, "CODECS", dict(CODECS))

    @register
    class Mine(Pixels):
        """Pixels under another name."""

        kind = "mine"

    assert type(from_config({"kind": "mine", "shape": [1, 2, 3]})) is Mine
    assert Mine((1, 2, 3)).to_config() == {"kind": "mine", "shape": [1, 2, 3]}
    assert "mine" not in CODECS


def test_the_base_says_what_a_codec_must_define():
    base = Codec()
    assert base.limits is None
    for call in (lambda: base.shape, lambda: base.encode(LEVELS), lambda: base.decode(LEVELS)):
        with pytest.raises(NotImplementedError):
            call()


def test_latents_far_outside_of_the_pixels_range_come_back_within_a_level():
    made, images = Folded((8, 8, 2)), LEVELS
    x = made.encode(images)
    assert np.abs(x).max() > 3
    assert np.abs(made.decode(x).astype(int) - images).max() <= 1

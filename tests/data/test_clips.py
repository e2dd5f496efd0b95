"""Clips and points as data, and the moving shapes with the tracker that judges them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pydiff
from pydiff.codec import from_config
from pydiff.codecs import Frames
from pydiff.codecs import Points as PointsCodec
from pydiff.data import Clips, Points, describe, flip, load, swiss_roll
from pydiff.data.moving import COMBINATIONS, SIZE, caption, coverage, held_out, moving_shapes
from pydiff.data.points import swiss_roll_density
from pydiff.data.track import shuffled, track

# ---- moving shapes and their tracker --------------------------------------------------------------------------------


@settings(max_examples=3)
@given(seed=st.integers(0, 2**32), frames=st.integers(4, 8), scale=st.sampled_from([1, 2]))
def test_the_tracker_reads_every_clip_made_by_formula(seed, frames, scale):
    data = moving_shapes(len(COMBINATIONS), seed, frames, scale * SIZE, COMBINATIONS)
    for clip, combination, words in zip(data.images, COMBINATIONS, data.captions, strict=True):
        found = track(clip)
        assert found.agrees(*combination)["all"], (combination, found)
        assert words == (caption(*combination),)


def test_shuffled_frames_fail_it():
    """The control: the same frames in another order have shape and colour, and no motion."""
    data = moving_shapes(len(COMBINATIONS), 3, combinations=COMBINATIONS)
    found = [
        track(shuffled(clip, i)).agrees(*c) for i, (clip, c) in enumerate(zip(data.images, COMBINATIONS, strict=True))
    ]
    assert not any(f["all"] or f["direction"] or f["speed"] for f in found)
    assert all(f["shape"] and f["colour"] for f in found)


def test_the_tracker_sees_what_is_wrong():
    (combination,) = [("circle", "red", "left", "slow")]
    clip = moving_shapes(1, 0, combinations=[combination]).images[0]
    assert track(clip).agrees(*combination)["all"]
    other = clip.copy()
    other[4] = clip[4][..., ::-1]  # red becomes blue in one frame
    assert not track(other).constant
    gone = clip.copy()
    gone[2] = 0
    assert track(gone).shape == ""
    assert not track(gone).agrees(*combination)["constant"]
    two = np.maximum(clip, clip[:, ::-1, ::-1]) if abs(track(clip).velocity[1]) else clip
    assert not track(two).agrees(*combination)["all"]
    backwards = track(clip[::-1]).agrees(*combination)
    assert not backwards["direction"]
    assert backwards["speed"]
    noise = np.random.default_rng(0).integers(0, 256, clip.shape).astype(np.uint8)
    assert not track(noise).agrees(*combination)["all"]
    assert not track(np.repeat(clip[:1], 8, axis=0)).steady


def test_every_word_of_a_held_out_combination_is_in_training():
    new, seen = [[c for c in COMBINATIONS if held_out(*c) is kept] for kept in (True, False)]
    assert len(new) == 16
    assert len(seen) == 80
    for place in range(4):
        assert {c[place] for c in new} == {c[place] for c in COMBINATIONS}
        assert {c[place] for c in seen} == {c[place] for c in COMBINATIONS}
    captions = {words for row in load("moving-shapes").captions for words in row}
    assert captions == {caption(*c) for c in seen}


def test_the_centre_of_a_shape_is_its_centre_of_mass():
    for shape in ("circle", "square", "triangle"):
        cover = coverage(shape, (7.3, 8.6), 16)
        y, x = np.indices(cover.shape) + 0.5
        centre = (y * cover).sum() / cover.sum(), (x * cover).sum() / cover.sum()
        assert np.allclose(centre, (7.3, 8.6), atol=0.05)


def test_moving_shapes_that_do_not_fit_are_refused():
    for options in ({"frames": 12}, {"n": 0}, {"size": 4}):
        with pytest.raises(ValueError, match="moving shapes need"):
            moving_shapes(**{"n": 2, **options})


# ---- clips ----------------------------------------------------------------------------------------------------------


def test_clips_are_a_data_set():
    data = moving_shapes(12, frames=5)
    assert isinstance(data, Clips)
    assert data.shape == (5, 16, 16, 3)
    assert len(data) == 12
    assert "12 clips of 5 frames at 8 a second, 16 x 16, 3 channels (RGB)" in data.summary()
    assert "a batch of 12 sees every clip once" in describe(data)
    assert data.subset([3, 1]).captions == (data.captions[3], data.captions[1])
    rest, held = data.split(0.25)
    assert len(rest) == 9
    assert isinstance(held, Clips)
    assert held.rate == data.rate
    small = load(data, size=8, channels=1)
    assert small.shape == (5, 8, 8, 1)
    assert isinstance(small, Clips)
    assert small.fingerprint() != data.fingerprint()
    stills = data.stills()
    assert stills.shape == (16, 16, 3)
    assert len(stills) == 60
    assert np.array_equal(stills.images[7], data.images[1, 2])
    assert stills.captions[7] == data.captions[1]


def test_an_array_of_five_axes_is_clips():
    x = np.random.default_rng(0).integers(0, 256, (4, 3, 6, 5, 1)).astype(np.uint8)
    data = load(x, labels=["b", "a", "b", "a"], captions=["one", "two", "three", "four"], frame_rate=12)
    assert isinstance(data, Clips)
    assert data.classes == ["a", "b"]
    assert data.rate == 12
    assert data.captions[2] == ("three",)
    floats = load(x.astype(np.float32) / 255)
    assert np.array_equal(floats.images, x)
    with pytest.raises(ValueError, match="8 frames were asked for, and the clips have 3"):
        load(x, frames=8)
    assert load(x, frames=2).shape == (2, 6, 5, 1)
    with pytest.raises(ValueError, match="expected"):
        Clips("x", np.zeros((2, 0, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"expected \[-1, 1\]"):
        Clips("x", np.full((2, 1, 4, 4, 3), np.nan, np.float32))


def test_clips_are_mirrored_frame_by_frame():
    x = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 5, 1)).astype(np.uint8)
    mirrored = flip(x, step=3, seed=1)
    same = [np.array_equal(a, b) for a, b in zip(x, mirrored, strict=True)]
    assert any(same)
    assert not all(same)
    assert all(s or np.array_equal(a[:, :, ::-1], b) for s, a, b in zip(same, x, mirrored, strict=True))
    assert np.array_equal(flip(x[:, 0], step=3, seed=1), mirrored[:, 0])


def test_the_codec_of_clips():
    data = moving_shapes(2, frames=3)
    codec = from_config(data.codec.to_config())
    assert isinstance(codec, Frames)
    assert codec.shape == data.shape
    assert codec.rate == data.rate
    x = codec.encode(data.images)
    assert x.dtype == np.float32
    assert x.min() == -1
    assert np.array_equal(codec.decode(x), data.images)
    shown = codec.show(data.images)
    assert shown.shape == (2, 16, 48, 3)
    assert np.array_equal(shown[:, :, 16:32], data.images[:, 1])
    assert codec.show_noise(np.zeros_like(x)).min() == 128
    for wrong in (data.images[:, :2], data.images.astype(np.float32), data.images[:0]):
        with pytest.raises(ValueError, match="expected uint8"):
            codec.encode_given(wrong)


@pytest.mark.parametrize("form", ["(F,)", "(H, W)", "(F, H, W)", "(N, F, H, W, 1)"])
def test_masks_of_clips_say_which_frames_and_where(form):
    rng = np.random.default_rng(1)
    n, f, h, w = 2, 3, 4, 5
    mask = rng.integers(0, 2, {"(F,)": (f,), "(H, W)": (h, w), "(F, H, W)": (f, h, w)}.get(form, (n, f, h, w, 1)))
    made = np.broadcast_to(Frames((f, h, w, 3)).mask_axes(mask), (n, f, h, w, 3))
    for index in np.ndindex(n, f, h, w, 3):
        i, j, y, x, _ = index
        wanted = {"(F,)": (j,), "(H, W)": (y, x), "(F, H, W)": (j, y, x)}.get(form, (i, j, y, x, 0))
        assert made[index] == mask[wanted]


# ---- points ---------------------------------------------------------------------------------------------------------


def test_an_array_of_two_axes_is_points():
    points = np.random.default_rng(0).standard_normal((30, 3)) * 5 + 2
    data = load(points, labels=np.arange(30) % 2)
    pair = load((points, np.arange(30) % 2))
    assert np.array_equal(pair.images, data.images)
    assert (pair.labels.tolist(), pair.classes) == (data.labels.tolist(), data.classes)
    assert isinstance(data, Points)
    assert data.shape == (3,)
    assert data.images.dtype == np.float32
    assert "30 points of 3 numbers" in data.summary()
    assert "values:" in describe(data)
    x = data.codec.encode(data.images)
    assert np.allclose(x.mean(axis=0), 0, atol=1e-5)
    assert abs((x**2).mean() - 1) < 1e-5
    codec = from_config(data.codec.to_config())
    assert isinstance(codec, PointsCodec)
    assert np.allclose(codec.decode(x), data.images, atol=1e-5)
    assert codec.show(data.images).shape == (30, 96, 96, 1)
    for wrong, message in [
        (np.full((3, 2), np.nan), "NaN"),
        (np.zeros((3, 0)), "expected real numbers"),
        (np.ones((3, 2), complex), "complex128 .* expected real numbers"),
        (np.full((3, 2), 1e300), "too large"),
        (np.array([["a", "b"]]), "expected real numbers"),
    ]:
        with pytest.raises(ValueError, match=message):
            load(wrong)
    with pytest.raises(ValueError, match="no size and no channels"):
        load(points, size=8)
    same = load(np.ones((4, 2)))  # no spread at all
    assert np.array_equal(same.codec.encode(same.images), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="NaN or infinite"):
        codec.decode(np.full((2, 3), np.nan))


def test_the_swiss_roll_has_the_density_it_says():
    """The density integrates to one, and the share of points in a box is its integral there."""
    side = np.linspace(-5, 5, 121)
    grid = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    density = swiss_roll_density(grid, parts=2000).reshape(121, 121)
    cell = (side[1] - side[0]) ** 2
    assert abs(density.sum() * cell - 1) < 1e-3
    points = swiss_roll(20000, seed=5).images
    inside = ((points > 0) & (points < 2.5)).all(axis=1).mean()
    box = (side > 0) & (side < 2.5)
    assert abs(density[np.ix_(box, box)].sum() * cell - inside) < 0.015
    assert np.array_equal(load("swiss-roll").images, swiss_roll().images)


def test_flip_is_refused_for_points():
    with pytest.raises(ValueError, match="flip mirrors images, and swiss-roll holds points"):
        pydiff.train("swiss-roll", flip=True, steps=1, progress=False)


def test_the_codec_of_points_takes_points_alone():
    codec = PointsCodec(2, (1.0, 2.0), 4.0)
    for wrong, message in [
        (np.zeros((3, 1)), r"expected numbers \(N, 2\)"),
        (np.zeros((3, 2, 1)), r"expected numbers \(N, 2\)"),
        (np.array([["a", "b"]]), r"expected numbers \(N, 2\)"),
        (np.array([[1.0, np.inf]]), "points hold NaN or infinite numbers"),
    ]:
        with pytest.raises(ValueError, match=message):
            codec.encode(wrong)
    for mean, scale in [((0.0,), 1.0), ((0.0, 0.0), 0.0), ((0.0, 0.0), -1.0), ((0.0, 0.0), np.nan)]:
        with pytest.raises(ValueError, match="need a mean"):
            PointsCodec(2, mean, scale)
    assert codec.bits == (2.0, False)  # a density of points is that of x over 4 a number, which is two bits
    assert codec.mask_axes(np.array([1, 0])).shape == (1, 2)
    assert codec.mask_axes(np.ones((5, 2))).shape == (5, 2)
    images = codec.show_noise(np.zeros((1, 2), np.float32))
    assert (images.shape, images.dtype) == ((1, 96, 96, 1), np.uint8)
    assert np.array_equal(images, codec.show(np.array([[1.0, 2.0]])))  # noise 0 is the mean

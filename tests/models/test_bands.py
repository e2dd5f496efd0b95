"""models/bands.py: what is worked in bands of rows has the bits of the whole, and takes less memory."""

import tracemalloc
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydiff import backend, nn, ops
from pydiff.models import AutoencoderKL, AutoencoderTiny, bands
from pydiff.tensor import Tensor, no_grad
from tests.bits import assert_same_bits, check_any_thread_count
from tests.compare import array_path, assert_close
from tests.models.test_autoencoder import OPTIONS, SMALL, TINY, configurations
from tests.strategies import seeds, simd, simt  # noqa: F401

WIDE = {"block_out_channels": (16, 32), "norm_num_groups": 8}  # wide enough for Winograd's algorithm
sides = st.sampled_from([1, 2, 5, 15, 16, 17, 31, 32, 33, 50])
sizes_of_bands = st.sampled_from([1, 1 << 11, 1 << 13, 1 << 22])  # of the least height, to one that takes all


@pytest.fixture(autouse=True)
def size_of_bands_is_put_back(monkeypatch):
    """Tests set it."""
    monkeypatch.setattr(bands, "BAND", bands.BAND)


def disturbed(module, rng):
    """With other values than the initial ones: biases are 0 there, and scales 1."""
    for p in module.parameters():
        p.data = p.data + (0.1 * rng.standard_normal(p.shape)).astype(p.dtype)
    return module


def drawn(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def answers(model, x, z):
    with no_grad():
        posterior = model.encode(x)
        return [posterior.mean.data, posterior.logvar.data, model.decode(z).data]


def check(model, x, z, band):
    expected = answers(model.work_in_bands(False), x, z)
    bands.BAND = band
    made = answers(model.work_in_bands(), x, z)
    assert_same_bits(made, expected)
    return made


@pytest.mark.usefixtures("simd")
@settings(max_examples=10, deadline=None)
@given(options=configurations(), seed=seeds, height=st.sampled_from([4, 17, 40]), width=st.sampled_from([5, 19, 33]))
def test_an_autoencoder_gives_the_same_bits(options, seed, height, width):
    rng = np.random.default_rng(seed)
    model = disturbed(AutoencoderKL(**options, seed=seed), rng)
    x = drawn(rng, 1, height, width, options["in_channels"])
    z = drawn(rng, 1, *(max(side // model.factor, 1) for side in (height, width)), options["latent_channels"])
    check(model, x, z, 1)


@pytest.mark.usefixtures("simd")
@pytest.mark.parametrize("band", [1, 1 << 13])
def test_on_any_number_of_threads_and_in_any_batch(band):
    rng = np.random.default_rng(0)
    model = disturbed(AutoencoderKL(**{**SMALL, **OPTIONS["attention everywhere"], **WIDE}), rng)
    x, z = drawn(rng, 2, 55, 41, 3), drawn(rng, 2, 26, 19, 3)
    check_any_thread_count(lambda: check(model, x, z, band))
    assert_same_bits(answers(model, x[1:], z[1:]), [a[1:] for a in answers(model, x, z)])


@st.composite
def layers(draw):
    """A convolution as autoencoders have them or might, a map for it, and whether the result goes where the map is."""
    rng = np.random.default_rng(draw(seeds))
    cin, cout = draw(st.sampled_from([3, 16, 24, 40])), draw(st.sampled_from([1, 3, 4, 16, 24, 40]))
    size = draw(st.sampled_from([1, 3, 3, 5]))
    stride, upsample = draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (3, 1)]))
    padding = draw(st.sampled_from([size // 2, 0, ((0, size // 2), (0, size // 2)), ((size // 2, 0), (1, 0))]))
    side = sides.filter(lambda n: n * upsample >= size)
    conv = disturbed(nn.Conv2d(cin, cout, size, stride, padding), rng)
    return conv, drawn(rng, 1, draw(side), draw(side), cin), upsample, rng


@pytest.mark.usefixtures("simd")
@settings(max_examples=60, deadline=None)
@given(case=layers(), band=sizes_of_bands, act=st.sampled_from([None, "silu", "gelu"]))
def test_a_layer_gives_the_same_bits(case, band, act):
    conv, x, upsample, rng = case
    norm = disturbed(nn.GroupNorm(1, x.shape[3], 1e-6, "silu" if act == "silu" else None), rng)
    bands.BAND = band
    with no_grad():
        h = norm(Tensor(x))
        h = ops.gelu(h) if act == "gelu" else h
        added = drawn(rng, *conv(h, upsample=upsample).shape)
        expected = conv(h, add=Tensor(added), upsample=upsample).data
        given_norm = bands.Norm(norm, x, ops.gelu if act == "gelu" else None)
        add = lambda first, last: added[:, first:last]  # noqa: E731
        made = partial(bands.convolved, conv, norm=given_norm, upsample=upsample, add=add)
        assert_same_bits([made(x)], [expected])
        if expected.shape == x.shape:
            assert_same_bits([made(x, out=x), x], [expected, expected])


@pytest.mark.usefixtures("simd")
@pytest.mark.parametrize(("size", "stride"), [(1, 3), (3, 3), (3, 2), (5, 2)])
def test_rows_that_no_band_sees_are_left_out(size, stride):
    rng = np.random.default_rng(0)
    conv, x = disturbed(nn.Conv2d(16, 20, size, stride, size // 2), rng), drawn(rng, 1, 151, 49, 16)
    bands.BAND = 1
    with no_grad():
        assert_same_bits([bands.convolved(conv, x)], [conv(Tensor(x)).data])


@given(height=st.integers(1, 200), width=st.integers(1, 200), channels=st.integers(1, 600))
def test_bands_are_all_rows_once_and_none_is_low(height, width, channels):
    bands.BAND = 1 << 13
    found = bands.bands(height, width, channels)
    assert [row for band in found for row in range(*band)] == list(range(height))
    assert all(first % bands.TILE == 0 for first, _ in found)
    if len(found) > 1:
        assert min(last - first for first, last in found) >= bands.LEAST
        assert width >= bands.LEAST


def test_without_kernels_it_differs_by_rounding_alone():
    rng = np.random.default_rng(0)
    model, x, z = AutoencoderKL(**{**SMALL, **WIDE}), drawn(rng, 1, 40, 36, 3), drawn(rng, 1, 33, 20, 3)
    bands.BAND = 1
    with array_path():
        expected, got = answers(model, x, z), answers(model.work_in_bands(), x, z)
    model.astype(np.float64)
    exact = answers(model, x.astype(np.float64), z.astype(np.float64))
    for a, b, e in zip(got, expected, exact, strict=True):
        assert_close(a, e, rtol=3 * np.abs(b - e).max() / np.abs(e).max() + 2e-6)


def test_in_double_precision_too():
    rng = np.random.default_rng(0)
    model = disturbed(AutoencoderKL(**SMALL).astype(np.float64), rng)
    x, z = rng.standard_normal((1, 40, 36, 3)), rng.standard_normal((1, 33, 20, 3))
    expected = answers(model, x, z)
    bands.BAND = 1
    for a, b in zip(answers(model.work_in_bands(), x, z), expected, strict=True):
        assert a.dtype == np.float64
        assert_close(a, b, rtol=1e-12)


@pytest.mark.usefixtures("simt")
def test_the_kernels_of_gpus_work_on_the_whole():
    rng = np.random.default_rng(0)
    model, x, z = AutoencoderKL(**SMALL), drawn(rng, 1, 4, 4, 3), drawn(rng, 1, 2, 2, 3)
    check(model, x, z, 1)


def test_gradients_go_through_the_whole():
    model = AutoencoderKL(**SMALL).work_in_bands()
    model(Tensor(np.ones((1, 40, 40, 3), np.float32))).sum().backward()
    assert all(np.isfinite(p.grad).all() for p in model.decoder.parameters())


def test_nobody_and_nothing_are_worked_too():
    model = AutoencoderKL(**SMALL).work_in_bands()
    with no_grad():
        assert model.decode(np.zeros((0, 4, 4, 3), np.float32)).shape == (0, 8, 8, 3)
        assert model.encode(np.zeros((0, 4, 4, 3), np.float32)).mean.shape == (0, 2, 2, 3)


def test_small_ones_take_no_notice():
    model, z = AutoencoderTiny(**TINY), np.ones((1, 3, 3, 3), np.float32)
    with no_grad():
        assert_same_bits([model.work_in_bands().decode(z).data], [model.work_in_bands(False).decode(z).data])


@pytest.mark.skipif(backend.cpu is None, reason="no compiled CPU kernels in this install")
def test_a_layer_holds_two_maps_and_some_rows():
    """The largest: 64 and 32 channels of 256 x 256; the whole holds both, normalised ones, and what is enlarged."""
    options = {"block_out_channels": (32, 64), "norm_num_groups": 8, "layers_per_block": 1}
    model, z = AutoencoderKL(**{**SMALL, **options}), np.ones((1, 128, 128, 3), np.float32)
    bands.BAND = 1 << 18
    peaks = []
    for on in (False, True):
        model.work_in_bands(on)
        tracemalloc.start()
        with no_grad():
            model.decode(z)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    maps = 4 * 256 * 256 * (64 + 32)
    assert peaks[1] < maps + 8 * 4 * bands.BAND < peaks[0]

"""The codec between images and latents."""

import numpy as np
import pytest

from pydiff.codec import from_uint8
from pydiff.latents import Latents
from pydiff.models import AutoencoderKL
from tests.compare import assert_close


@pytest.fixture(scope="module")
def codec():
    network = AutoencoderKL(
        block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=4,
    )  # fmt: skip
    return Latents(network, (16, 24))


def images(n=3, height=16, width=24):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def test_shapes_and_scale(codec):
    assert codec.shape == (4, 6, 4)
    assert codec.limits is None
    x = codec.encode(images())
    assert x.shape == (3, *codec.shape)
    assert x.dtype == np.float32
    mean = codec.autoencoder.encode(from_uint8(images())).mode().data
    assert_close(x, 0.18215 * mean, rtol=1e-5)
    back = codec.decode_floats(x)
    assert_close(back, codec.autoencoder.decode(mean).data, rtol=1e-4)
    assert codec.decode(x).dtype == np.uint8


def test_an_image_alone_is_encoded_as_among_others(codec):
    x = codec.encode(images())
    for i in range(3):
        np.testing.assert_array_equal(codec.encode(images()[i : i + 1])[0], x[i])
        np.testing.assert_array_equal(codec.decode(x[i : i + 1])[0], codec.decode(x)[i])


def test_sizes_that_the_factor_does_not_divide_are_said(codec):
    with pytest.raises(ValueError, match="the size 15 x 24 does not go with latents of 4 pixels a side; take 16 x 24"):
        codec.encode(images(height=15))
    with pytest.raises(ValueError, match="the size 17 x 24"):
        Latents(codec.autoencoder, (17, 24))
    assert codec.encode(images(1, 8, 8)).shape == (1, 2, 2, 4)  # of another size than it was made for


@pytest.mark.parametrize("bad", [np.zeros((1, 16, 24, 3)), np.zeros((16, 24, 3), np.uint8), images()[..., :1]])
def test_what_is_no_image_is_said(codec, bad):
    with pytest.raises(ValueError, match="expected uint8"):
        codec.encode(bad)


def test_masks_and_noise(codec):
    mask = np.zeros((1, 16, 24, 1), np.float32)
    mask[:, 4:] = 1
    np.testing.assert_array_equal(codec.encode_mask(mask)[0, :, 0, 0], [0, 1, 1, 1])
    assert codec.show_noise(np.zeros((2, 4, 6, 4), np.float32)).shape == (2, 4, 6, 3)
    assert codec.show_noise(np.zeros((2, 4, 6, 2), np.float32)).shape == (2, 4, 6, 1)


def test_its_configuration_needs_the_autoencoder(codec):
    again = Latents.from_config(codec.to_config(), codec.beside)
    assert again.shape == codec.shape
    with pytest.raises(ValueError, match="there is no vae/ beside the network"):
        Latents.from_config(codec.to_config())

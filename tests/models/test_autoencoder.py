"""The autoencoders against diffusers' AutoencoderKL and AutoencoderTiny: moments, latents, images, every gradient."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff import models
from pydiff.models import AutoencoderKL, AutoencoderTiny, build, name_of
from pydiff.tensor import Tensor, no_grad
from tests.bits import assert_same_bits
from tests.compare import assert_close, check_gradient
from tests.peers import import_diffusers

SMALL = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 16),
    "latent_channels": 3,
    "norm_num_groups": 4,
}
# Every option in at least one of its other values, alone: what goes wrong is named by the test's name.
OPTIONS = {
    "plain": {},
    "no convolutions around the latents": {"use_quant_conv": False, "use_post_quant_conv": False},
    "a convolution behind the encoder": {"use_post_quant_conv": False},
    "no attention": {"mid_block_add_attention": False},
    "attention everywhere": {
        "down_block_types": ("AttnDownEncoderBlock2D",) * 2, "up_block_types": ("AttnUpDecoderBlock2D",) * 2,
    },
    "attention at the bottom of the encoder": {"down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")},
    "attention at the top of the decoder": {"up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")},
    "one level": {
        "block_out_channels": (8,), "down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)
    },
    "three levels": {
        "block_out_channels": (8, 16, 12),
        "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
    },
    "channels fall": {"block_out_channels": (16, 8)},
    "two layers": {"layers_per_block": 2},
    "one group": {"norm_num_groups": 1},
    "more channels out": {"in_channels": 1, "out_channels": 5},
    "one latent channel": {"latent_channels": 1},
    "gelu": {"act_fn": "gelu"},
    "relu": {"act_fn": "relu"},
    "mish": {"act_fn": "mish"},
    "swish": {"act_fn": "swish"},
}  # fmt: skip
TINY = {
    "encoder_block_out_channels": (6, 6),
    "decoder_block_out_channels": (8, 8),
    "num_encoder_blocks": (1, 2),
    "num_decoder_blocks": (2, 1),
    "latent_channels": 3,
}
TINY_OPTIONS = {
    "plain": {},
    "one stage": {
        "encoder_block_out_channels": (6,), "decoder_block_out_channels": (6,), "num_encoder_blocks": (1,),
        "num_decoder_blocks": (1,),
    },
    "three stages": {
        "encoder_block_out_channels": (4, 4, 4), "decoder_block_out_channels": (6, 6, 6),
        "num_encoder_blocks": (1, 0, 2), "num_decoder_blocks": (2, 1, 1),
    },
    "silu": {"act_fn": "silu"},
    "gelu": {"act_fn": "gelu"},
    "mish": {"act_fn": "mish"},
    "swish": {"act_fn": "swish"},
    "more channels out": {"in_channels": 1, "out_channels": 4},
    "one latent channel": {"latent_channels": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def diffusers():
    return import_diffusers()


def channels_first(array):
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 1)))


def channels_last(tensor):
    return tensor.detach().permute(0, 2, 3, 1).numpy()


def disturbed(model, rng):
    """In float64, with no parameter at a value where a mistake can hide, as normalisations begin at."""
    model.astype(np.float64)
    for p in model.parameters():
        p.data += 0.1 * rng.standard_normal(p.shape)
    return model


def twin_of(diffusers, ours):
    """diffusers' model of the same class, configuration and weights, in float64."""
    import torch

    arguments = {name: value for name, value in ours.config.items() if value is not None}
    theirs = getattr(diffusers, name_of(ours))(**arguments).double()
    theirs.load_state_dict({name: torch.from_numpy(a) for name, a in ours.state_dict().items()})
    return theirs


def compare_gradients(ours, theirs):
    mine = dict(ours.named_parameters())
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    assert gradients.keys() == mine.keys()
    # Where the next normalisation takes a shift away again, a gradient is 0, and what is found are rounding errors of
    # the others' size, divided by a standard deviation of at least eps^1/2.
    largest = max(np.abs(p.grad).max() for p in mine.values())
    for name, p in mine.items():
        expected = np.zeros(p.grad.transpose(p.file_axes).shape) if gradients[name] is None else gradients[name].numpy()
        rounding = np.finfo(np.float64).eps / 1e-6 * largest
        assert_close(p.grad.transpose(p.file_axes), expected, rtol=1e-7, atol=rounding, what=name)


def compare(diffusers, options, seed=0, size=(8, 8), spread=1.0):
    """Moments, a sample of the latents, the image and the gradients of all of it, in float64."""
    rng = np.random.default_rng(seed)
    ours = disturbed(AutoencoderKL(**{**SMALL, **options}, seed=seed), rng)
    if ours.quant_conv and spread != 1:
        ours.quant_conv.weight.data *= spread  # logarithms of variances far outside of what is let through
    theirs = twin_of(diffusers, ours)
    x = rng.standard_normal((2, *size, ours.config["in_channels"]))
    tensor, their_x = Tensor(x, True), channels_first(x).requires_grad_()

    posterior, their_posterior = ours.encode(tensor), theirs.encode(their_x).latent_dist
    noise = rng.standard_normal(posterior.mean.shape)
    z = posterior.sample(noise)
    their_z = their_posterior.mean + their_posterior.std * channels_first(noise)
    y, their_y = ours.decode(z), theirs.decode(their_z).sample
    divergence, their_divergence = posterior.kl(), their_posterior.kl()
    dy = rng.standard_normal(y.shape)
    ((y * dy).sum() + 0.01 * divergence.sum()).backward()
    ((their_y * channels_first(dy)).sum() + 0.01 * their_divergence.sum()).backward()

    assert_close(posterior.mean.data, channels_last(their_posterior.mean), rtol=1e-9, what="mean")
    assert_close(posterior.logvar.data, channels_last(their_posterior.logvar), rtol=1e-9, what="logvar")
    assert_same_bits([posterior.mode().data], [posterior.mean.data])
    assert_close(divergence.data, their_divergence.detach().numpy(), rtol=1e-9, what="divergence")
    assert_close(y.data, channels_last(their_y), rtol=1e-9, what="image")
    assert_close(tensor.grad, channels_last(their_x.grad), rtol=1e-7, what="gradient of the input")
    compare_gradients(ours, theirs)


def compare_tiny(diffusers, options, seed=0, size=(8, 8)):
    rng = np.random.default_rng(seed)
    ours = disturbed(AutoencoderTiny(**{**TINY, **options}, seed=seed), rng)
    theirs = twin_of(diffusers, ours)
    x = rng.standard_normal((2, *size, ours.config["in_channels"]))
    tensor, their_x = Tensor(x, True), channels_first(x).requires_grad_()
    z, their_z = ours.encode(tensor).mode(), theirs.encode(their_x).latents
    y, their_y = ours.decode(3 * z), theirs.decode(3 * their_z).sample  # where the tanh bends
    dy = rng.standard_normal(y.shape)
    y.backward(dy)
    their_y.backward(channels_first(dy))
    assert_close(z.data, channels_last(their_z), rtol=1e-9, what="latents")
    assert_close(y.data, channels_last(their_y), rtol=1e-9, what="image")
    assert_close(tensor.grad, channels_last(their_x.grad), rtol=1e-7, what="gradient of the input")
    compare_gradients(ours, theirs)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_equals_diffusers(diffusers, name):
    compare(diffusers, OPTIONS[name])


@pytest.mark.parametrize("size", [(4, 12), (2, 2), (7, 5), (9, 3)])
def test_other_sizes_equal_diffusers(diffusers, size):
    """Odd ones too: the encoder rounds them down."""
    compare(diffusers, OPTIONS["attention everywhere"], size=size)


def test_variances_outside_of_the_limits_are_cut_as_diffusers_does(diffusers):
    compare(diffusers, {}, spread=300.0)


@pytest.mark.parametrize("name", TINY_OPTIONS)
def test_every_option_of_the_tiny_one_equals_diffusers(diffusers, name):
    compare_tiny(diffusers, TINY_OPTIONS[name])


@pytest.mark.parametrize("size", [(4, 12), (2, 2), (7, 5), (9, 3)])
def test_other_sizes_of_the_tiny_one_equal_diffusers(diffusers, size):
    compare_tiny(diffusers, {}, size=size)


@st.composite
def configurations(draw):
    """Any of the options together."""
    levels = draw(st.integers(1, 3))
    return {
        "block_out_channels": tuple(draw(st.sampled_from([4, 8, 12])) for _ in range(levels)),
        "down_block_types": tuple(
            draw(st.sampled_from(["DownEncoderBlock2D", "AttnDownEncoderBlock2D"])) for _ in range(levels)
        ),
        "up_block_types": tuple(
            draw(st.sampled_from(["UpDecoderBlock2D", "AttnUpDecoderBlock2D"])) for _ in range(levels)
        ),
        "layers_per_block": draw(st.integers(1, 2)),
        "norm_num_groups": draw(st.sampled_from([1, 2, 4])),
        "latent_channels": draw(st.integers(1, 4)),
        "in_channels": draw(st.integers(1, 3)),
        "out_channels": draw(st.integers(1, 3)),
        "act_fn": draw(st.sampled_from(["silu", "gelu", "relu", "mish"])),
        "use_quant_conv": draw(st.booleans()),
        "use_post_quant_conv": draw(st.booleans()),
        "mid_block_add_attention": draw(st.booleans()),
    }


@given(options=configurations(), seed=st.integers(0, 2**16), size=st.sampled_from([(4, 4), (5, 11), (12, 4)]))
def test_options_together_equal_diffusers(diffusers, options, seed, size):
    compare(diffusers, options, seed, size)


def test_every_option_is_tried_and_matters():
    """An option that changes nothing would pass all comparisons above with any value."""

    def state(cls, options):
        model = cls(**options).astype(np.float64)
        x = np.random.default_rng(0).standard_normal((1, 8, 8, model.config["in_channels"]))
        with no_grad():
            return {**model.state_dict(), "": model(x).data.copy()}

    without_effect = {"sample_size", "scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast"}
    of_bytes = {"latent_magnitude", "latent_shift", "upsample_fn", "upsampling_scaling_factor"}
    of_scale = {"scaling_factor", "shift_factor", "force_upcast"}
    for cls, small, options, untried, same_as_plain in (
        (AutoencoderKL, SMALL, OPTIONS, without_effect, ("plain", "swish")),  # which is another name of silu
        (AutoencoderTiny, TINY, TINY_OPTIONS, of_bytes | of_scale, ("plain",)),
    ):
        assert set(cls(**small).config) - set().union(small, *options.values()) == untried
        plain = state(cls, small)
        for name, changed in options.items():
            other = state(cls, {**small, **changed})
            same = other.keys() == plain.keys() and all(np.array_equal(other[k], plain[k]) for k in plain)
            assert same == (name in same_as_plain), name


def test_gradients_of_the_divergence_are_slopes():
    rng = np.random.default_rng(0)

    def divergence(mean, logvar):
        return 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).sum(axis=(1, 2, 3))

    arrays = [rng.standard_normal((3, 2, 5, 4)) for _ in range(2)]
    check_gradient(lambda m, v: models.Posterior(m, v).kl(), divergence, arrays, rng)


def test_scaling_goes_both_ways():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2, 3, 5, 3)).astype(np.float32)
    for options in (
        {},
        {"scaling_factor": 0.5, "shift_factor": 0.25},
        {"scaling_factor": 0.5, "latents_mean": [1.0, 2.0, 3.0], "latents_std": [1.0, 2.0, 4.0]},
    ):
        model = AutoencoderKL(**SMALL, **options)
        x = model.scaled(z)
        assert x.dtype == np.float32
        np.testing.assert_allclose(model.unscaled(x), z, rtol=1e-5, atol=1e-6)
        assert_same_bits([model.scaled(Tensor(z)).data], [x])
    by_channel = (z.astype(np.float64) - [1, 2, 3]) * 0.5 / [1, 2, 4]
    np.testing.assert_allclose(x, by_channel, rtol=1e-5, atol=1e-6)
    half = AutoencoderKL(**SMALL, scaling_factor=0.5, shift_factor=0.25)
    np.testing.assert_allclose(half.scaled(z), (z - 0.25) * 0.5, rtol=1e-6)


def test_recomputed_blocks_give_the_same_bits():
    def gradients(on):
        model = AutoencoderKL(**{**SMALL, **OPTIONS["attention everywhere"]}).recompute_blocks(on)
        x = np.random.default_rng(0).standard_normal((1, 8, 8, 3)).astype(np.float32)
        model(Tensor(x)).sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    assert_same_bits(gradients(True), gradients(False))


def test_they_are_registered_under_diffusers_names():
    for cls, small in ((AutoencoderKL, SMALL), (AutoencoderTiny, TINY)):
        model = cls(**small, seed=3)
        again = build(name_of(model), model.config)
        assert name_of(model) == cls.__name__
        assert again.config == model.config
        again.load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (AutoencoderKL, {"down_block_types": ("DownBlock2D",) * 2}, "down_block_types needs 2 of DownEncoderBlock2D"),
        (AutoencoderKL, {"up_block_types": ("UpDecoderBlock2D",)}, "up_block_types needs 2 of"),
        (AutoencoderKL, {"act_fn": "softplus"}, "act_fn must be one of silu"),
        (AutoencoderKL, {"layers_per_block": 0}, "at least one level and one layer"),
        (AutoencoderKL, {"norm_num_groups": 5}, "do not divide into 5 groups"),
        (AutoencoderKL, {"scaling_factor": 0.0}, "scaling_factor must be a number other than 0"),
        (AutoencoderKL, {"latents_mean": [1.0]}, "latents_mean needs a number for each of 3 channels"),
        (AutoencoderKL, {"latents_std": [1.0, 0.0, 1.0]}, "latents_std must not be 0"),
        (AutoencoderTiny, {"encoder_block_out_channels": (6, 8)}, "must be the same number for each of 2 stages"),
        (AutoencoderTiny, {"num_encoder_blocks": (1,)}, "the same number for each of 1 stages"),
        (AutoencoderTiny, {"upsampling_scaling_factor": 3}, "upsampling_scaling_factor must be 2, got 3"),
        (AutoencoderTiny, {"upsample_fn": "bilinear"}, "upsample_fn must be 'nearest'"),
        (AutoencoderTiny, {"act_fn": "softplus"}, "act_fn must be one of"),
    ],
)
def test_what_is_not_built_is_one_sentence(cls, options, message):
    with pytest.raises(ValueError, match=message) as error:
        cls(**{**(SMALL if cls is AutoencoderKL else TINY), **options})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("cls", "small"), [(AutoencoderKL, SMALL), (AutoencoderTiny, TINY)])
def test_arrays_that_do_not_fit_are_one_sentence(cls, small):
    model = cls(**small)
    with pytest.raises(ValueError, match=r"takes images \(N, H, W, 3\), got \(2, 8, 8, 1\)"):
        model.encode(np.zeros((2, 8, 8, 1), np.float32))
    with pytest.raises(ValueError, match="at least 2 pixels a side"):
        model.encode(np.zeros((2, 8, 1, 3), np.float32))
    with pytest.raises(ValueError, match=r"takes latents \(N, H, W, 3\), got \(4, 4, 3\)"):
        model.decode(np.zeros((4, 4, 3), np.float32))

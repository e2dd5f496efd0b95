"""The U-Net by itself: precision and bits of the kernels, odd sizes, labels, dropout, and every error."""

import itertools

import numpy as np
import pytest
from hypothesis import given

from pydiff import backend
from pydiff.models.unet import UNet2D
from pydiff.tensor import Tensor, no_grad
from tests.bits import assert_same_bits, check_any_batch, check_any_thread_count
from tests.compare import array_path, assert_close, assert_no_worse
from tests.models.configurations import OPTIONS, SMALL, THREE_LEVELS
from tests.strategies import seeds, simd  # noqa: F401

needs_kernels = pytest.mark.skipif(
    backend.cpu is None, reason="NumPy's matrix products differ in bits between batch sizes"
)


# ---- precision and exactness ---------------------------------------------------------------------------------------


def outputs(model, dtype, part=slice(None), n=4, size=(8, 8)):
    """Output and all gradients of a batch, or of a part of it."""
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((n, *size, 3)).astype(dtype) for _ in range(2))
    t = np.array([1.0, 250, 500.5, 999])[:n]
    for p in model.astype(dtype).parameters():
        p.grad = None
    tensor = Tensor(x[part], requires_grad=True)
    y = model(tensor, t[part])
    y.backward(dy[part])
    return [y.data, tensor.grad], {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.usefixtures("simd")
def test_kernels_are_as_exact_as_plain_float32():
    config = {**SMALL, **THREE_LEVELS, "block_out_channels": (16, 32, 32), "norm_num_groups": 8}
    exact, exact_gradients = outputs(UNet2D(**config), np.float64)
    with array_path():
        naive, naive_gradients = outputs(UNet2D(**config), np.float32)
    got, got_gradients = outputs(UNet2D(**config), np.float32)
    for g, n, e in zip(got, naive, exact, strict=True):
        assert g.dtype == np.float32
        assert_no_worse(g, n, e, factor=4)
    # of all parameters together: each one's largest error is a matter of luck
    flat = [np.concatenate([a.ravel() for a in gradients.values()])
            for gradients in (got_gradients, naive_gradients, exact_gradients)]  # fmt: skip
    assert flat[0].dtype == np.float32
    assert_no_worse(*flat, factor=4)


@needs_kernels
@pytest.mark.usefixtures("simd")
@pytest.mark.parametrize("options", ["plain", "three levels", "resnet down and up", "scale and shift"])
def test_a_image_has_the_same_bits_alone_and_in_a_batch(options):
    model = UNet2D(**{**SMALL, **OPTIONS[options]})
    check_any_batch(lambda part: outputs(model, np.float32, part)[0], 4)


@needs_kernels
@pytest.mark.usefixtures("simd")
def test_same_bits_on_any_number_of_threads():
    model = UNet2D(**{**SMALL, "block_out_channels": (32, 64)})

    def run():
        results, gradients = outputs(model, np.float32, size=(20, 12))
        return [*results, *gradients.values()]

    check_any_thread_count(run)


@needs_kernels
def test_repeated_runs_have_the_same_bits():
    model = UNet2D(**SMALL)
    first, second = (outputs(model, np.float32) for _ in range(2))
    assert_same_bits(first[0] + [*first[1].values()], second[0] + [*second[1].values()])


# ---- sizes, steps and labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(7, 5), (1, 1), (9, 16), (3, 2)])
@pytest.mark.parametrize("options", [{}, THREE_LEVELS, OPTIONS["two layers"]])
def test_odd_sizes_run(size, options):
    """diffusers refuses these; here the ascent is cut to the size of the descent."""
    model = UNet2D(**{**SMALL, **options})
    y, gradients = outputs(model, np.float32, size=size)
    assert y[0].shape == y[1].shape == (4, *size, 3)
    assert all(np.isfinite(a).all() for a in (*y, *gradients.values()))


@pytest.mark.parametrize("options", ["downsample padding", "resnet down and up", "resnet blocks"])
def test_odd_sizes_are_refused_where_they_are_rounded_down(options):
    model = UNet2D(**{**SMALL, **OPTIONS[options]})
    with pytest.raises(ValueError, match=r"rounds odd sizes down.*from \(4, 6\) to \(5, 7\) pixels"):
        model(np.zeros((1, 5, 7, 3), np.float32), 0)


def test_one_step_number_or_label_serves_the_whole_batch():
    model = UNet2D(**SMALL, num_class_embeds=4).astype(np.float64)
    x = np.random.default_rng(0).standard_normal((3, 4, 4, 3))
    with no_grad():
        expected = model(x, np.full(3, 7.0), np.full(3, 2)).data
        for t, labels in ((7, 2), (np.float32(7), [2]), ([7], np.array(2)), (np.array([7] * 3), [2, 2, 2])):
            assert_close(model(Tensor(x), t, labels).data, expected, rtol=1e-13)


def test_steps_and_labels_are_told_apart():
    model = UNet2D(**SMALL, num_class_embeds=4).astype(np.float64)
    x = np.random.default_rng(0).standard_normal((1, 4, 4, 3))
    results = [model(x, t, [label]).data for t in (0, 0.5, 999) for label in (0, 3)]
    for a, b in itertools.combinations(results, 2):
        assert np.abs(a - b).max() > 1e-6


def test_dropout_acts_in_training_only():
    from pydiff import nn

    model, without = (UNet2D(**SMALL, dropout=p).astype(np.float64) for p in (0.5, 0.0))
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 3))
    assert np.array_equal(model(x, 1).data, without(x, 1).data)
    with nn.training(0, 1, np.arange(2)):
        dropped, kept = model(x, 1).data, without(x, 1).data
    assert np.array_equal(kept, without(x, 1).data)
    assert np.abs(dropped - kept).max() > 1e-3


@given(seed=seeds)
def test_the_seed_decides_the_weights(seed):
    weights = [UNet2D(**SMALL, seed=s).conv_in.weight.data for s in (seed, seed, seed + 1)]
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


# ---- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"down_block_types": ("DownBlock2D",)}, "down_block_types needs 2 of DownBlock2D"),
        ({"up_block_types": ("UpBlock2D", "SkipUpBlock2D")}, r"up_block_types needs 2 of.*got \['UpBlock2D', 'Skip"),
        (
            {"time_embedding_type": "odd"},
            "time_embedding_type must be one of 'positional', 'learned', 'fourier', got 'odd'",
        ),
        ({"time_embedding_type": "learned"}, "a learned time embedding needs num_train_timesteps"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type must be one of 'UNetMidBlock2D', None"),
        ({"act_fn": "tanh"}, "act_fn must be one of 'silu', 'swish', 'relu', 'gelu', 'mish', got 'tanh'"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift must be one of"),
        ({"downsample_type": "pool"}, "downsample_type must be one of 'conv', 'resnet', got 'pool'"),
        ({"upsample_type": None}, "upsample_type must be one of"),
        ({"class_embed_type": "projection"}, "class_embed_type must be one of None, 'timestep', 'identity'"),
        ({"layers_per_block": 0}, "at least one level and one layer"),
        ({"block_out_channels": (), "down_block_types": (), "up_block_types": ()}, "at least one level and one layer"),
        ({"norm_num_groups": 3}, "8 channels do not divide into 3 groups"),
        ({"norm_num_groups": 0}, "do not divide into 0 groups"),
        ({"attention_head_dim": 32}, "attention_head_dim must be from 1 to the 16 channels at hand, got 32"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
    ],
)
def test_bad_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        UNet2D(**{**SMALL, **options})


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="no option 'channels'; did you mean 'in_channels'"):
        UNet2D(**SMALL, channels=3)


@pytest.mark.parametrize("t", [None, "3", [None, None], ["1", "2"]])
def test_step_numbers_are_numbers(t):
    with pytest.raises(TypeError, match="step numbers must be numbers, got "):
        UNet2D(**SMALL)(np.zeros((2, 4, 4, 3), np.float32), t)


@pytest.mark.parametrize(
    ("classes", "arguments", "message"),
    [
        (None, (np.zeros((4, 4, 3)), 0), r"takes images \(N, H, W, 3\), got \(4, 4, 3\)"),
        (None, (np.zeros((2, 3, 4, 4)), 0), r"takes images \(N, H, W, 3\), got \(2, 3, 4, 4\)"),
        (
            None,
            (np.zeros((2, 4, 4, 3)), [0, 1, 2]),
            r"2 images need 2 step numbers or a single one, got an array of shape \(3,\)",
        ),
        (None, (np.zeros((2, 4, 4, 3)), 0, [0, 1]), "no class embedding, but class labels were given"),
        (4, (np.zeros((2, 4, 4, 3)), 0), "a class embedding, but class labels are missing"),
        (4, (np.zeros((2, 4, 4, 3)), 0, [0, 4]), r"labels must lie in 0\.\.3, got 0\.\.4"),
        (4, (np.zeros((2, 4, 4, 3)), 0, [-1]), r"labels must lie in 0\.\.3, got -1\.\.-1"),
        (4, (np.zeros((2, 4, 4, 3)), 0, [0.5, 1]), "list of integers"),
        (4, (np.zeros((2, 4, 4, 3)), 0, [0, 1, 2]), r"2 images need 2 class labels or a single one.*\(3,\)"),
    ],
)
def test_bad_inputs(classes, arguments, message):
    with pytest.raises(ValueError, match=message):
        UNet2D(**SMALL, num_class_embeds=classes).astype(np.float64)(*arguments)

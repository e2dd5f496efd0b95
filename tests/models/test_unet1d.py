"""The U-Net for lines: against UNet2D and diffusers' UNet2DModel on images one pixel high, and by itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff import ops
from pydiff.graph import Played
from pydiff.models import UNet1D, UNet2D, build, name_of
from pydiff.models.unet1d import LineConv
from pydiff.tensor import Tensor, no_grad
from pydiff.training import Options
from pydiff.training.networks import build_line_unet
from tests.bits import assert_same_bits
from tests.compare import assert_close
from tests.peers import import_diffusers

SMALL = {"block_out_channels": (8, 12), "strides": (2,), "patch": 1, "norm_num_groups": 4, "attention_head_dim": 4}
CASES = {
    "plain": {},
    "attention": {"attention": (0, 1), "layers_per_block": 2},
    "no attention": {"add_attention": False},
    "classes": {"num_class_embeds": 3},
    "three levels": {"block_out_channels": (8, 8, 12), "strides": (2, 2), "attention": (1,)},
    "two channels": {"in_channels": 2, "out_channels": 4, "freq_shift": 1, "flip_sin_to_cos": False, "act_fn": "gelu"},
}


def as_square(model):
    """A UNet2D with the weights of a line's network: a 1 x 3 filter in the middle row of a 3 x 3 one."""
    c, levels = model.config, len(model.config["block_out_channels"])
    shared = ("in_channels", "out_channels", "block_out_channels", "layers_per_block", "norm_num_groups", "norm_eps")
    shared += ("add_attention", "attention_head_dim", "num_class_embeds", "freq_shift", "flip_sin_to_cos", "act_fn")
    kinds = ["Attn" * (i in c["attention"]) for i in range(levels)]
    square = UNet2D(
        **{name: c[name] for name in shared},
        down_block_types=[f"{kind}DownBlock2D" for kind in kinds],
        up_block_types=[f"{kind}UpBlock2D" for kind in reversed(kinds)],
    ).astype(np.float64)
    parameters = dict(square.named_parameters())
    for name, p in model.named_parameters():
        other, w = parameters[name], p.data
        if "upsamplers" in name:
            if name.endswith("bias"):
                other.data[...] = w[: other.shape[0]]
            continue  # the filters: `smoothing`
        if other.shape == w.shape:
            other.data[...] = w
        else:
            other.data[...] = 0.0
            other.data[1] = w[0]
    return square


def smoothing(model, rng):
    """Draws filters that repeat and smooth, as UNet2D's upsampling does, and writes them into a line's network.

    With taps (a, b, c) behind a line of repeated samples, the first new sample of x[i] is a x[i-1] + (b + c) x[i] and
    the second (a + b) x[i] + c x[i+1]. Returns {name: (a, b, c) as (1, 3, cin, cout)} for UNet2D.
    """
    taps = {}
    for name, p in model.named_parameters():
        if "upsamplers" in name:
            cout = p.shape[-1] // 2
            if name.endswith("bias"):
                p.data[cout:] = p.data[:cout]
                continue
            w = 0.3 * rng.standard_normal((3, p.shape[2], cout))
            p.data[...] = 0
            p.data[0, 0, :, :cout], p.data[0, 1, :, :cout] = w[0], w[1] + w[2]
            p.data[0, 1, :, cout:], p.data[0, 2, :, cout:] = w[0] + w[1], w[2]
            taps[name] = w
    return taps


def twins(options, seed=0):
    """(line's network, the same as UNet2D), float64."""
    rng = np.random.default_rng(seed)
    line = UNet1D(**{**SMALL, **options}, seed=seed).astype(np.float64)
    for p in line.parameters():
        p.data += 0.1 * rng.standard_normal(p.shape)
    taps = smoothing(line, rng)
    square = as_square(line)
    for name, p in square.named_parameters():
        if name in taps:
            p.data[...] = 0
            p.data[1] = taps[name]
    return line, square


@pytest.mark.parametrize("length", [1, 7, 12])
@pytest.mark.parametrize("case", CASES)
def test_it_is_unet2d_on_images_one_pixel_high(case, length):
    line, square = twins(CASES[case])
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 1, length, line.config["in_channels"]))
    labels = np.array([2, 0]) if line.told_classes else None
    outputs, gradients = [], []
    for model in (line, square):
        tensor = Tensor(x, requires_grad=True)
        y = model(tensor, np.array([3.0, 801.5]), labels)
        y.backward(np.cos(np.arange(y.size)).reshape(y.shape))
        outputs.append(y.data)
        gradients.append((tensor.grad, model.conv_in.weight.grad, model.time_embedding.linear_1.weight.grad))
    assert_close(*outputs, 1e-12)
    assert_close(gradients[0][0], gradients[1][0], 1e-10)
    assert_close(gradients[0][1][0], gradients[1][1][1], 1e-10)
    assert_close(gradients[0][2], gradients[1][2], 1e-10)


def test_and_so_it_is_diffusers():
    """On one level: below it, diffusers' own images are two pixels high again on the way up."""
    diffusers = import_diffusers()
    import torch

    from tests.models.configurations import diffusers_twin

    line, square = twins({"block_out_channels": (8,), "strides": (), "attention": (0,), "layers_per_block": 2})
    theirs = diffusers_twin(diffusers, square)
    x = np.random.default_rng(2).standard_normal((2, 1, 12, 1))
    with torch.no_grad():
        y = theirs(torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor([3, 801])).sample.numpy()
    with no_grad():
        assert_close(line(x, np.array([3, 801])).data, y.transpose(0, 2, 3, 1), 1e-9)


@given(
    length=st.integers(1, 40), patch=st.integers(1, 5), stride=st.integers(1, 4), kernel=st.sampled_from([1, 3, 5]),
    dilations=st.sampled_from([(1,), (1, 4), (2, 3)]), layers=st.integers(1, 2), recompute=st.booleans(),
)  # fmt: skip
def test_any_length_any_step(length, patch, stride, kernel, dilations, layers, recompute):
    """Right shapes, and the gradient along a random direction is the finite difference along it, in float64."""
    options = {"patch": patch, "strides": (stride,), "kernel_size": kernel, "dilations": dilations}
    options["norm_num_groups"] = 1  # of two numbers the normalised ones are signs, too steep for a difference
    model = (
        UNet1D(**{**SMALL, **options}, layers_per_block=layers, seed=3).astype(np.float64).recompute_blocks(recompute)
    )
    rng = np.random.default_rng(length)
    x, t = rng.standard_normal((2, 1, length, 1)), np.array([5, 400])
    tensor = Tensor(x, requires_grad=True)
    y = model(tensor, t)
    assert y.shape == x.shape
    dy, direction = rng.standard_normal(y.shape), rng.standard_normal(x.shape)
    moves = [rng.standard_normal(p.shape) for p in model.parameters()]
    y.backward(dy)
    exact = (tensor.grad * direction).sum() + sum(
        (p.grad * m).sum() for p, m in zip(model.parameters(), moves, strict=True) if p.grad is not None
    )
    start = [p.data.copy() for p in model.parameters()]

    def moved(h):
        for p, s, m in zip(model.parameters(), start, moves, strict=True):
            p.data = s + h * m
        with no_grad():
            return float((model(x + h * direction, t).data * dy).sum())

    h = 1e-4  # the difference of fourth order: errors of h^4 and of rounding / h
    difference = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
    assert abs(exact - difference) < 1e-6 * max(1.0, abs(difference), np.abs(dy).sum())


@given(length=st.integers(1, 30), dilation=st.integers(1, 6), size=st.sampled_from([1, 3, 5]), shifted=st.booleans())
def test_a_folded_line_gives_what_a_dilated_filter_gives(length, dilation, size, shifted):
    layer = LineConv(3, 5, size, dilation=dilation).initialize(1).astype(np.float64)
    rng = np.random.default_rng(length)
    x = Tensor(rng.standard_normal((2, 1, length, 3)), requires_grad=True)
    shift = Tensor(rng.standard_normal((2, 5))) if shifted else None
    add = Tensor(rng.standard_normal((2, 1, length, 5)))
    bias = layer.bias if shift is None else shift + layer.bias
    reach = dilation * (size // 2)
    plain = ops.conv2d(x, layer.weight, bias, 1, (0, reach), 1, add, dilation=(1, dilation))
    assert_close(layer(x, shift, add).data, plain.data, 1e-12)


def test_it_is_saved_played_and_refuses():
    model = UNet1D(**SMALL, num_class_embeds=2)
    assert name_of(model) == "UNet1D"
    again = build("UNet1D", model.config).load_state_dict(model.state_dict())
    x, t, labels = (
        np.random.default_rng(0).standard_normal((2, 1, 9, 1)).astype("f"),
        np.array([1, 2]),
        np.array([0, 1]),
    )
    with no_grad():
        expected = again(x, t, labels).data
    played = Played(model)
    for _ in range(2):
        assert_same_bits([played(x, t, class_labels=labels)], [expected])
    for wrong, message in (
        (np.zeros((1, 2, 9, 1), "f"), "takes lines"),
        (np.zeros((1, 1, 0, 1), "f"), "takes lines"),
        (np.zeros((1, 1, 9, 2), "f"), "takes images"),
    ):
        with pytest.raises(ValueError, match=message):
            model(wrong, 1, labels[:1])
    for options, message in (
        ({"strides": (2, 2)}, "strides needs 1 whole"),
        ({"patch": 0}, "patch one"),
        ({"attention": (2,)}, "levels 0 to 1"),
        ({"dilations": ()}, "dilations must be"),
        ({"kernel_size": 4}, "odd size"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            UNet1D(**{**SMALL, **options})


@pytest.mark.parametrize(
    ("length", "channels", "attention"),
    [(64, 2, [1]), (511, 2, [1]), (512, 3, [1, 2]), (2047, 3, [1, 2]), (2048, 4, [1, 2, 3]), (2052, 4, [2, 3])],
)
def test_levels_follow_the_length(length, channels, attention):
    """A quarter of the positions a level, at least about eight of them; attention where there are at most 128."""
    made = build_line_unet(Options(), (1, length, 2), None, None).config
    assert made["block_out_channels"] == [32, 64, 96, 128][:channels]
    assert (made["attention"], made["strides"]) == (attention, [4] * (channels - 1))
    assert (made["in_channels"], made["out_channels"]) == (2, 2)
    told = build_line_unet(Options(channels=(8, 16), groups=4, attention=(0,)), (1, length, 1), None, None).config
    assert (told["block_out_channels"], told["attention"]) == ([8, 16], [0])
    twice = build_line_unet(Options(self_conditioning=True, variance="learned"), (1, length, 2), None, None).config
    assert (twice["in_channels"], twice["out_channels"]) == (4, 4)

"""conv2d: forward, gradient of the image, gradient of the filters, at the shapes of the U-Nets in workloads.py."""

import sys
from typing import NamedTuple

import numpy as np

from benchmarks import harness
from benchmarks.contenders import (
    OTHER,
    PEER,
    Contender,
    arrays,
    filters_from_torch,
    filters_to_torch,
    from_torch,
    house,
    peer,
    to_torch,
    variants,
)
from pydiff import ops
from pydiff.ops.conv2d import Conv2d, Window
from pydiff.reference.conv2d import conv2d as reference
from pydiff.tensor import Tensor, no_grad

# batch, size, filter, stride, channels in, channels out; then "enlarged" for an image whose pixels are repeated 2 x 2
# first, "addends" for a bias of each sample and an image added to the result
TINY = (2, 8, 3, 1, 8, 16)
SHAPES = [
    # digits8 and digits16
    (128, 4, 3, 1, 64, 64),
    (128, 8, 3, 1, 32, 32),
    (128, 8, 3, 1, 64, 64),
    (128, 8, 3, 1, 128, 64),
    (128, 16, 3, 1, 32, 32),
    (128, 16, 3, 1, 96, 32),
    (128, 16, 3, 1, 1, 32),
    (128, 8, 1, 1, 64, 64),
    (128, 8, 3, 1, 64, 64, "enlarged"),
    (128, 16, 3, 1, 32, 32, "addends"),
    # cifar32
    (32, 32, 3, 1, 64, 64),
    (32, 32, 3, 1, 128, 64),
    (32, 16, 3, 1, 128, 128),
    (32, 16, 3, 1, 256, 128),
    (32, 8, 3, 1, 128, 128),
    (32, 32, 3, 2, 64, 64),
    (32, 32, 3, 1, 3, 64),
    (32, 32, 3, 1, 64, 3),
    (32, 16, 1, 1, 256, 128),
    (32, 16, 3, 1, 128, 128, "enlarged"),
    (32, 16, 3, 1, 128, 128, "addends"),
    # image64
    (8, 64, 3, 1, 64, 64),
    (8, 64, 3, 1, 128, 64),
    (8, 32, 3, 1, 128, 128),
    (8, 16, 3, 1, 256, 256),
    (8, 8, 3, 1, 256, 256),
    (8, 32, 3, 1, 128, 128, "enlarged"),
    (8, 64, 3, 1, 64, 64, "addends"),
]
# The 3 x 3 convolutions of Stable Diffusion 1.5 at 512 x 512 pixels, which has wider ones than any workload above:
# those of its U-Net, some of them for two images, as for guidance, and for eight, and those of its autoencoder.
# They have tables of their own, see conv2d_wide.py.
WIDE = {
    "unet": [
        (1, 64, 3, 1, 320, 320),
        (1, 64, 3, 1, 640, 320),
        (1, 64, 3, 1, 960, 320),
        (1, 32, 3, 1, 640, 640, "enlarged"),
        (1, 32, 3, 1, 320, 640),
        (1, 32, 3, 1, 640, 640),
        (1, 32, 3, 1, 960, 640),
        (1, 32, 3, 1, 1280, 640),
        (1, 32, 3, 1, 1920, 640),
        (1, 16, 3, 1, 1280, 1280, "enlarged"),
        (1, 16, 3, 1, 640, 1280),
        (1, 16, 3, 1, 1280, 1280),
        (1, 16, 3, 1, 1920, 1280),
        (1, 16, 3, 1, 2560, 1280),
        (1, 8, 3, 1, 1280, 1280),
        (1, 8, 3, 1, 2560, 1280),
    ],
    "batches": [
        (2, 64, 3, 1, 320, 320),
        (2, 32, 3, 1, 640, 640),
        (2, 16, 3, 1, 1280, 1280),
        (2, 8, 3, 1, 1280, 1280),
        (8, 32, 3, 1, 640, 640),
        (8, 16, 3, 1, 1280, 1280),
        (8, 8, 3, 1, 1280, 1280),
    ],
    "autoencoder": [
        (1, 64, 3, 1, 512, 512),
        (1, 128, 3, 1, 512, 512),
        (1, 256, 3, 1, 512, 256),
        (1, 256, 3, 1, 256, 256),
        (1, 512, 3, 1, 256, 128),
        (1, 512, 3, 1, 128, 128),
    ],
}
# Winograd's transforms lose about one digit against the direct sum, on both sides of the contest.
LIMIT = 1e-4


def describe(shape):
    """The shape in words."""
    batch, size, kernel, stride, cin, cout, *how = shape
    stride = f" stride {stride}" if stride > 1 else ""
    extra = {(): "", ("enlarged",): f", enlarged to {2 * size}x{2 * size}", ("addends",): ", addends"}[tuple(how)]
    return f"{batch} x {size}x{size}, {kernel}x{kernel}{stride}, {cin} to {cout}{extra}"


def cases(settings, shapes=SHAPES):
    """Three cases a shape."""
    rng = np.random.default_rng(0)
    for shape in [TINY] if settings.quick else [TINY, *shapes]:
        yield from cases_of(shape, rng, settings)


def cases_of(shape, rng, settings):
    """forward, backward_input and backward_weight at one shape."""
    batch, size, kernel, stride, cin, cout, *how = shape
    pad, up, addends = kernel // 2, 2 if how == ["enlarged"] else 1, how == ["addends"]
    out = (up * size + 2 * pad - kernel) // stride + 1
    g = Geometry((stride, stride), ((pad, pad), (pad, pad)), up, (batch, out, out, cout))

    def make(rng):
        x = rng.standard_normal((batch, size, size, cin), np.float32)
        w = rng.standard_normal((kernel, kernel, cin, cout), np.float32) / np.float32((kernel * kernel * cin) ** 0.5)
        bias = rng.standard_normal((batch, cout) if addends else cout, np.float32)
        more = [rng.standard_normal(g.out, np.float32)] if addends else []
        return x, w, bias, *more, rng.standard_normal(g.out, np.float32)

    sets = variants(make, 4 * (batch * size * size * cin + (2 if addends else 1) * batch * out * out * cout), rng)
    *inputs, dy = sets[0]
    y, dx, dw, dbias, *_ = harness.truth(
        lambda x, w, bias, add=None: ops.conv2d(x, w, bias, stride, pad, up, add),
        lambda x, w, bias, add=None: reference(x, w, bias, g.stride, g.padding, up, add),
        inputs,
        dy,
        lambda a: corner(a, addends),
        rng,
    )
    flops = 2 * batch * out * out * kernel * kernel * cin * cout
    for direction, exact in (("forward", [y]), ("backward_input", [dx]), ("backward_weight", [dw, dbias])):
        contenders = [
            *house(ours(direction, g), settings.all_levels),
            *torch_contenders(direction, g),
        ]
        if shape == TINY and direction == "forward":
            slow = lambda i: lambda: [reference(*i[:3], g.stride, g.padding)]  # noqa: E731
            contenders.insert(0, Contender("reference (float64)", OTHER, slow, arrays))
        yield harness.Case(f"conv2d {direction}", describe(shape), sets, contenders, exact, LIMIT, flops=flops)


def corner(inputs, addends):
    """The first image; with many channels a corner of it, and some of them: the reference takes its time."""
    x, w, bias, *add = inputs
    if x.shape[-1] * w.shape[-1] <= 512 * 512 and x[0].size <= 512 * 512:
        return (x[:1], w, *(b[:1] for b in (bias, *add))) if addends else (x[:1], w, bias)
    return x[:1, :8, :8, :96], w[:, :, :96, :80], bias[:80]


class Geometry(NamedTuple):
    """stride and padding in full, the factor by which pixels are repeated, the shape of the result."""

    stride: tuple
    padding: tuple
    up: int
    out: tuple


def ours(direction, g):
    """build(inputs) for contenders.house."""

    def build(inputs):
        x, w, bias, *add, dy = inputs
        if direction == "forward":
            x, w, bias, *add = map(Tensor, (x, w, bias, *add))
            return no_grad()(lambda: ops.conv2d(x, w, bias, g.stride, g.padding, g.up, *add))
        function = Conv2d()
        function.needs = [direction == "backward_input", *(2 * [direction == "backward_weight"]), False]
        function.forward(x, w, bias, None, window=Window(g.stride, g.padding, (g.up, g.up)), shape=g.out)
        return lambda: function.backward(dy)

    return build


def torch_contenders(direction, g):
    """torch eager in both of its layouts; the kernels themselves, without the autograd engine around them."""
    torch = peer("torch")
    if torch is None:
        return
    enlarge = lambda x: torch.nn.functional.interpolate(x, scale_factor=2.0) if g.up == 2 else x  # noqa: E731
    wanted = [direction == "backward_input"] + 2 * [direction == "backward_weight"]
    pad = [p[0] for p in g.padding]
    for channels_last in (False, True):

        def forward(x, w, bias, *add):
            if bias.ndim == 1:
                return [torch.nn.functional.conv2d(enlarge(x), w, bias, g.stride, pad)]
            y = torch.nn.functional.conv2d(enlarge(x), w, None, g.stride, pad)
            return [y.add_(bias[:, :, None, None]).add_(*add)]

        def backward(x, w, bias, dy):
            shared = [len(bias)] if bias.ndim == 1 else None
            # the gradient of the image asks for its shape only
            large = x.new_empty(1).expand(*x.shape[:2], *(2 * s for s in x.shape[2:])) if g.up == 2 else x
            large = enlarge(x) if direction == "backward_weight" else large
            mask = wanted if shared else [*wanted[:2], False]
            grads = torch.ops.aten.convolution_backward(
                dy, large, w, shared, list(g.stride), pad, [1, 1], False, [0, 0], 1, mask
            )
            if direction == "backward_input" and g.up == 2:
                half = torch.ops.aten.upsample_nearest2d_backward(grads[0], large.shape[2:], x.shape)
                return [half, None, None]
            return [*grads[:2], grads[2] if shared else dy.sum((2, 3)) if wanted[2] else None]

        def make(inputs, channels_last=channels_last, forward=forward, backward=backward):
            x, w, bias, *add, dy = inputs
            x, dy, *add = (to_torch(a, channels_last) for a in (x, dy, *add))
            w, bias = filters_to_torch(w, channels_last), torch.from_numpy(bias)
            if direction == "forward":
                return torch.no_grad()(lambda: forward(x, w, bias, *add))
            return torch.no_grad()(lambda: backward(x, w, bias, dy))

        def outputs(results):
            if direction == "backward_weight":
                return [filters_from_torch(results[1]), from_torch(results[2])]
            return [from_torch(results[0])]

        yield Contender("torch channels_last" if channels_last else "torch", PEER, make, outputs)


if __name__ == "__main__":
    sys.exit(harness.main(cases, __doc__))

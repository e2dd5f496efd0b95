"""conv2d: forward, gradient of the picture, gradient of the filters, at the shapes of the U-Nets in workloads.py."""

import sys

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
from pydiff.ops.conv2d import Conv2d
from pydiff.reference.conv2d import conv2d as reference
from pydiff.tensor import Tensor, no_grad

# batch, size, filter, stride, channels in, channels out
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
    # image64
    (8, 64, 3, 1, 64, 64),
    (8, 64, 3, 1, 128, 64),
    (8, 32, 3, 1, 128, 128),
    (8, 16, 3, 1, 256, 256),
    (8, 8, 3, 1, 256, 256),
]
# Winograd's transforms lose about one digit against the direct sum, on both sides of the contest.
LIMIT = 1e-4


def describe(shape):
    """The shape in words."""
    batch, size, kernel, stride, cin, cout = shape
    return f"{batch} x {size}x{size}, {kernel}x{kernel}{f' stride {stride}' if stride > 1 else ''}, {cin} to {cout}"


def cases(settings):
    """Three cases a shape."""
    rng = np.random.default_rng(0)
    for shape in [TINY] if settings.quick else [TINY, *SHAPES]:
        yield from cases_of(shape, rng, settings)


def cases_of(shape, rng, settings):
    """forward, backward_input and backward_weight at one shape."""
    batch, size, kernel, stride, cin, cout = shape
    pad = kernel // 2
    out = (size + 2 * pad - kernel) // stride + 1

    def make(rng):
        x = rng.standard_normal((batch, size, size, cin), np.float32)
        w = rng.standard_normal((kernel, kernel, cin, cout), np.float32) / np.float32((kernel * kernel * cin) ** 0.5)
        return x, w, rng.standard_normal(cout, np.float32), rng.standard_normal((batch, out, out, cout), np.float32)

    sets = variants(make, 4 * (batch * size * size * cin + batch * out * out * cout), rng)
    *inputs, dy = sets[0]
    padding = ((pad, pad), (pad, pad))
    y, dx, dw, dbias = harness.truth(
        lambda *a: ops.conv2d(*a, stride, pad),
        lambda *a: reference(*a, (stride, stride), padding),
        inputs,
        dy,
        lambda a: (a[0][:1], *a[1:]),
        rng,
    )
    flops = 2 * batch * out * out * kernel * kernel * cin * cout
    for direction, exact in (("forward", [y]), ("backward_input", [dx]), ("backward_weight", [dw, dbias])):
        contenders = [
            *house(ours(direction, stride, padding), settings.all_levels),
            *torch_contenders(direction, stride, pad),
        ]
        if shape == TINY and direction == "forward":
            slow = lambda i: lambda: [reference(*i[:3], (stride, stride), padding)]  # noqa: E731
            contenders.insert(0, Contender("reference (float64)", OTHER, slow, arrays))
        yield harness.Case(f"conv2d {direction}", describe(shape), sets, contenders, exact, LIMIT, flops=flops)


def ours(direction, stride, padding):
    """build(inputs) for contenders.house."""

    def build(inputs):
        x, w, bias, dy = inputs
        if direction == "forward":
            x, w, bias = Tensor(x), Tensor(w), Tensor(bias)
            return no_grad()(lambda: ops.conv2d(x, w, bias, stride, padding))
        function = Conv2d()
        function.needs = [direction == "backward_input"] + 2 * [direction == "backward_weight"]
        function.forward(x, w, bias, stride=(stride, stride), padding=padding)
        return lambda: function.backward(dy)

    return build


def torch_contenders(direction, stride, pad):
    """torch eager in both of its layouts; the kernels themselves, without the autograd engine around them."""
    torch = peer("torch")
    if torch is None:
        return
    forward, backward = torch.nn.functional.conv2d, torch.ops.aten.convolution_backward
    wanted = [direction == "backward_input"] + 2 * [direction == "backward_weight"]
    for channels_last in (False, True):

        def make(inputs, channels_last=channels_last):
            x, w, bias, dy = inputs
            x, dy, w = to_torch(x, channels_last), to_torch(dy, channels_last), filters_to_torch(w, channels_last)
            bias = torch.from_numpy(bias)
            if direction == "forward":
                return torch.no_grad()(lambda: [forward(x, w, bias, stride, pad)])
            size = [stride, stride], [pad, pad], [1, 1], False, [0, 0], 1
            return lambda: backward(dy, x, w, [len(bias)], *size, wanted)

        def outputs(results):
            if direction == "backward_weight":
                return [filters_from_torch(results[1]), from_torch(results[2])]
            return [from_torch(results[0])]

        yield Contender("torch channels_last" if channels_last else "torch", PEER, make, outputs)


if __name__ == "__main__":
    sys.exit(harness.main(cases, __doc__))

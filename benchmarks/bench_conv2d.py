"""conv2d: forward, gradient of the image, gradient of the filters, at the shapes of the U-Nets in workloads.py; with
--part, at the 3 x 3 convolutions of Stable Diffusion 1.5.

On a GPU: at the shapes of DDPM's U-Net, batch 128, in the order of their share of its arithmetic; how often a shape
occurs in one forward stands beside it. The peer there is cuDNN through torch, which chooses among its algorithms.
"""

import sys
from typing import Any

from benchmarks import harness, runtimes
from benchmarks.cases import (
    OF_LAYERS,
    PEER,
    Contender,
    Problem,
    by_direction,
    from_channels_first,
    torch_layouts,
    truth_of,
)
from benchmarks.contenders import peer
from benchmarks.gpu.unet_shapes import CONVS
from pydiff import ops
from pydiff.reference.conv2d import conv2d as reference

# batch, size (or height and width), filter, stride, channels in, channels out; then "enlarged" for an image whose
# pixels are repeated 2 x 2 first, "addends" for a bias of each sample and an image added to the result, "below" for
# padding below and on the right alone
TINY = [
    (2, 8, 3, 1, 8, 16),
    (2, (5, 6), 3, 1, 3, 4),
    (2, 8, 3, 2, 8, 16, "below"),
    (2, (3, 4), 3, 1, 8, 8, "enlarged"),
    (2, (5, 6), 3, 1, 8, 8, "addends"),
]
SHAPES = [
    # digits8 and digits16
    (128, 4, 3, 1, 64, 64), (128, 8, 3, 1, 32, 32), (128, 8, 3, 1, 64, 64), (128, 8, 3, 1, 128, 64),
    (128, 16, 3, 1, 32, 32), (128, 16, 3, 1, 96, 32), (128, 16, 3, 1, 1, 32), (128, 8, 1, 1, 64, 64),
    (128, 8, 3, 1, 64, 64, "enlarged"), (128, 16, 3, 1, 32, 32, "addends"),
    # cifar32
    (32, 32, 3, 1, 64, 64), (32, 32, 3, 1, 128, 64), (32, 16, 3, 1, 128, 128), (32, 16, 3, 1, 256, 128),
    (32, 8, 3, 1, 128, 128), (32, 32, 3, 2, 64, 64), (32, 32, 3, 1, 3, 64), (32, 32, 3, 1, 64, 3),
    (32, 16, 1, 1, 256, 128), (32, 16, 3, 1, 128, 128, "enlarged"), (32, 16, 3, 1, 128, 128, "addends"),
    # image64
    (8, 64, 3, 1, 64, 64), (8, 64, 3, 1, 128, 64), (8, 32, 3, 1, 128, 128), (8, 16, 3, 1, 256, 256),
    (8, 8, 3, 1, 256, 256), (8, 32, 3, 1, 128, 128, "enlarged"), (8, 64, 3, 1, 64, 64, "addends"),
]  # fmt: skip
# The 3 x 3 convolutions of Stable Diffusion 1.5 at 512 x 512 pixels, which has wider ones than any workload above:
# those of its U-Net, some of them for two images, as for guidance, and for eight, and those of its autoencoder.
# They take minutes, most of them for the truth in float64.
PARTS = {
    "unet": [
        (1, 64, 3, 1, 320, 320), (1, 64, 3, 1, 640, 320), (1, 64, 3, 1, 960, 320), (1, 32, 3, 1, 640, 640, "enlarged"),
        (1, 32, 3, 1, 320, 640), (1, 32, 3, 1, 640, 640), (1, 32, 3, 1, 960, 640), (1, 32, 3, 1, 1280, 640),
        (1, 32, 3, 1, 1920, 640), (1, 16, 3, 1, 1280, 1280, "enlarged"), (1, 16, 3, 1, 640, 1280),
        (1, 16, 3, 1, 1280, 1280), (1, 16, 3, 1, 1920, 1280), (1, 16, 3, 1, 2560, 1280), (1, 8, 3, 1, 1280, 1280),
        (1, 8, 3, 1, 2560, 1280),
    ],
    "batches": [
        (2, 64, 3, 1, 320, 320), (2, 32, 3, 1, 640, 640), (2, 16, 3, 1, 1280, 1280), (2, 8, 3, 1, 1280, 1280),
        (8, 32, 3, 1, 640, 640), (8, 16, 3, 1, 1280, 1280), (8, 8, 3, 1, 1280, 1280),
    ],
    "autoencoder": [
        (1, 64, 3, 1, 512, 512), (1, 128, 3, 1, 512, 512), (1, 256, 3, 1, 512, 256), (1, 256, 3, 1, 256, 256),
        (1, 512, 3, 1, 256, 128), (1, 512, 3, 1, 128, 128),
    ],
}  # fmt: skip
CHECKS = [
    (1, 1, 1, 1, 1, 1), (2, (5, 6), 3, 1, 3, 4), (3, (7, 5), 3, 2, 5, 7, "below"), (2, 8, 3, 1, 33, 65),
    (2, (9, 8), 5, 1, 8, 16), (1, 16, 1, 1, 130, 70), (2, 32, 3, 1, 128, 128), (4, 16, 3, 2, 256, 256, "below"),
    (4, 16, 3, 2, 256, 256), (2, 32, 3, 1, 3, 128), (2, 32, 3, 1, 128, 3), (8, 4, 3, 1, 512, 256),
    (2, (5, 6), 3, 1, 33, 65, "enlarged"), (2, 16, 3, 1, 128, 128, "enlarged"), (3, 1, 3, 1, 8, 16, "enlarged"),
    (2, (5, 6), 3, 1, 33, 65, "addends"), (2, 32, 3, 1, 128, 128, "addends"), (3, (7, 5), 1, 1, 5, 7, "addends"),
]  # fmt: skip
BATCH = 128
OFTEN = {
    (BATCH, *shape, *(["below"] if shape[2] == 2 else [])): count
    for shape, count in sorted(CONVS.items(), key=lambda item: -((item[0][0] // item[0][2] * item[0][1]) ** 2)
                               * item[0][3] * item[0][4] * item[1])
}  # fmt: skip
# bfloat16 everywhere, float32 at the two most frequent shapes; then what pydiff does within a convolution, and torch by
# operations of its own
GPU = [(shape, "bfloat16") for shape in OFTEN]
GPU[2:2] = [(shape, "float32") for shape in list(OFTEN)[:2]]
GPU += [((BATCH, 16, 3, 1, 256, 256, "enlarged"), "bfloat16"), ((BATCH, 32, 3, 1, 128, 128, "addends"), "bfloat16")]
# Winograd's transforms lose about one digit against the direct sum, on both sides of the contest.
LIMIT = 1e-4


class Geometry:
    """What follows from a shape. Padding keeps the size, but where it is only below and on the right."""

    def __init__(self, shape):
        self.n, size, self.k, self.stride, self.cin, self.cout, *how = shape
        self.size = size if isinstance(size, tuple) else (size, size)
        self.up, self.addends = 2 if how == ["enlarged"] else 1, how == ["addends"]
        self.before, self.after = 0 if how == ["below"] else self.k // 2, self.k // 2
        self.padding = ((self.before, self.after),) * 2
        self.x, self.y = (self.n, *self.size, self.cin), (self.n, *self.out(self.size), self.cout)
        self.filters = self.k, self.k, self.cin, self.cout
        self.flops = 2.0 * self.n * self.y[1] * self.y[2] * self.k**2 * self.cin * self.cout

    def out(self, size):
        """The size of the result for images of this size."""
        return tuple((self.up * s + self.before + self.after - self.k) // self.stride + 1 for s in size)

    def words(self, often):
        """The shape in words."""
        by = lambda size: "x".join(map(str, size))  # noqa: E731
        stride = f" stride {self.stride}" if self.stride > 1 else ""
        how = f", enlarged to {by(2 * s for s in self.size)}" if self.up > 1 else ", addends" if self.addends else ""
        how += f" ({often}x)" if often else ""
        return f"{self.n} x {by(self.size)}, {self.k}x{self.k}{stride}, {self.cin} to {self.cout}{how}"

    def corner(self, arguments):
        """A corner of the first image and some of the channels: the reference takes its time."""
        x, w, bias, *add = arguments
        x, w, bias = x[:1, :8, :8, :96], w[:, :, :96, :80], bias[:1, :80] if self.addends else bias[:80]
        height, width = self.out(x.shape[1:3])
        return [x, w, bias, *(a[:1, :height, :width, :80] for a in add)]


def cases_of(device, shape, dtype):
    """forward, backward_input and backward_weight at one shape."""
    g = Geometry(shape)
    op = lambda x, w, bias, add=None: ops.conv2d(x, w, bias, g.stride, g.padding, g.up, add)  # noqa: E731

    def slow(x, w, bias, add=None):
        return reference(x, w, bias, (g.stride, g.stride), g.padding, g.up, add)

    def make(random):
        x, dy = random.normal(*g.x, dtype=dtype), random.normal(*g.y, dtype=dtype)
        w = random.normal(*g.filters, dtype=dtype, scale=(g.k * g.k * g.cin) ** -0.5)
        bias = random.parameters(*([g.n] if g.addends else []), g.cout)
        return x, w, bias, *([random.normal(*g.y, dtype=dtype)] if g.addends else []), dy

    problem = Problem(
        "conv2d", g.words(OFTEN.get(tuple(shape)) if device.gpu else None), dtype, make,
        lambda inputs: truth_of(device, op, slow, inputs, first=g.corner),
    )  # fmt: skip

    def peers(direction):
        engines = runtimes.conv2d(device, g, layer) if direction == "forward" else ()
        return [*by_torch(device, direction, g, layer), *engines]

    def layer(x, w, bias, *add):
        """torch's, of an image that is padded where the filter does not pad it the same on both sides."""
        x = enlarged(x) if g.up == 2 else x
        y = peer("torch").nn.functional.conv2d(x, w, None if add else bias, g.stride, g.before)
        return y.add_(bias[:, :, None, None]).add_(*add) if add else y

    flops = dict.fromkeys(OF_LAYERS, g.flops)
    yield from by_direction(device, problem, op, slow, peers, LIMIT, OF_LAYERS, flops=flops)


def enlarged(x):
    """Every pixel repeated 2 x 2, in torch."""
    return peer("torch").nn.functional.interpolate(x, scale_factor=2.0)


def by_torch(device, direction, g, layer):
    """torch eager in both of its layouts, on a GPU in the faster one; its kernels, without the autograd engine.

    Where padding is not the same on both sides, the image is padded beforehand, as diffusers does it; nobody has to
    wait for that here. Enlarging it is part of a forward, and what is enlarged is at hand in a backward, as torch keeps
    it.
    """
    torch: Any = peer("torch")
    layouts = torch_layouts() if torch else {}
    for suffix, place in list(layouts.items())[1 if device.gpu else 0 :]:

        def make(inputs, place=place, suffix=suffix):
            x, w, bias, *add, dy = (device.tensor(a) for a in inputs)
            bias, w = bias.to(x.dtype), w.permute(3, 2, 0, 1)
            w = w.contiguous(memory_format=torch.channels_last if suffix else torch.contiguous_format)
            x, dy, *add = (place(a) for a in (x, dy, *add))
            image, extra = x.shape, g.after - g.before
            x = torch.nn.functional.pad(x, (0, extra, 0, extra)) if extra else x
            if direction == "forward":
                return torch.no_grad()(lambda: [layer(x, w, bias, *add)])
            large, of_image = enlarged(x) if g.up == 2 else x, direction == "backward_input"
            wanted = [of_image, not of_image, not of_image and not g.addends]
            options = [g.stride] * 2, [g.before] * 2, [1, 1], False, [0, 0], 1, wanted

            def backward():
                sizes = None if g.addends else [g.cout]
                dx, dw, dbias = torch.ops.aten.convolution_backward(dy, large, w, sizes, *options)
                if not of_image:
                    return [dw, dy.sum((2, 3)) if g.addends else dbias]
                if g.up == 2:
                    dx = torch.ops.aten.upsample_nearest2d_backward(dx, large.shape[2:], image)
                return [dx[:, :, : image[2], : image[3]]]

            return torch.no_grad()(backward)

        def outputs(results):
            if direction == "backward_weight":
                return [results[0].permute(2, 3, 1, 0), results[1]]
            return [from_channels_first(r) for r in results]

        yield Contender("cuDNN" if device.gpu else f"torch{suffix}", PEER, make, outputs)


if __name__ == "__main__":
    sys.exit(harness.main("conv2d"))

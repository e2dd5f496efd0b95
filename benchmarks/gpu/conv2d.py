"""conv2d: forward, gradient of the image and gradient of the filters, at the shapes of DDPM's U-Net, batch 128.

The peer is cuDNN through torch, channels_last, with cudnn.benchmark choosing among its algorithms. The rows come
in the order of their share of the U-Net's arithmetic; how often a shape occurs in one forward stands beside it. Behind
them comes what pydiff does within a convolution and torch by operations of its own: "enlarged" repeats every pixel
2 x 2 beforehand, "addends" adds a bias for each sample and an image to the result.
"""

from functools import partial

import torch

from benchmarks.gpu.case import PEER, Case, Contender, ours
from benchmarks.gpu.device import TYPES
from benchmarks.gpu.unet_shapes import CONVS

BATCH = 128
# n, height, width, filter, stride, channels in, channels out; then "enlarged" or "addends"
CHECKS = [
    (1, 1, 1, 1, 1, 1, 1), (2, 5, 6, 3, 1, 3, 4), (3, 7, 5, 3, 2, 5, 7), (2, 8, 8, 3, 1, 33, 65),
    (2, 9, 8, 5, 1, 8, 16),
    (1, 16, 16, 1, 1, 130, 70), (2, 32, 32, 3, 1, 128, 128), (4, 16, 16, 3, 2, 256, 256), (2, 32, 32, 3, 1, 3, 128),
    (2, 32, 32, 3, 1, 128, 3), (8, 4, 4, 3, 1, 512, 256),
    (2, 5, 6, 3, 1, 33, 65, "enlarged"), (2, 16, 16, 3, 1, 128, 128, "enlarged"), (3, 1, 1, 3, 1, 8, 16, "enlarged"),
    (2, 5, 6, 3, 1, 33, 65, "addends"), (2, 32, 32, 3, 1, 128, 128, "addends"), (3, 7, 5, 1, 1, 5, 7, "addends"),
]  # fmt: skip
TINY = [
    (2, 5, 6, 3, 1, 3, 4),
    (2, 8, 8, 3, 2, 8, 16),
    (2, 3, 4, 3, 1, 8, 8, "enlarged"),
    (2, 5, 6, 3, 1, 8, 8, "addends"),
]
FUSED = [(BATCH, 16, 16, 3, 1, 256, 256, "enlarged"), (BATCH, 32, 32, 3, 1, 128, 128, "addends")]
DIRECTIONS = ("forward", "backward_input", "backward_weight")


def checks(device):
    """Cases of the correctness stage."""
    for shape in TINY if device.tiny else CHECKS:
        for dtype in TYPES:
            for direction in DIRECTIONS:
                yield case_of(device, direction, shape, dtype, peers=False)


def timings(device):
    """Cases of the timing stage: bfloat16 everywhere, float32 at the two most frequent shapes."""
    if device.tiny:
        shapes = [(dtype, shape, 1) for dtype in TYPES for shape in TINY[1:]]
    else:
        weight = lambda item: -((item[0][0] // item[0][2]) ** 2) * item[0][1] ** 2 * item[0][3] * item[0][4] * item[1]  # noqa: E731
        order = sorted(CONVS.items(), key=weight)
        shapes = [("bfloat16", (BATCH, s, s, k, stride, cin, cout), n) for (s, k, stride, cin, cout), n in order]
        shapes[2:2] = [("float32", *rest) for _, *rest in shapes[:2]]
        shapes += [("bfloat16", shape, None) for shape in FUSED]
    for dtype, shape, count in shapes:
        for direction in DIRECTIONS:
            yield case_of(device, direction, shape, dtype, peers=True, count=count)


class Geometry:
    """What follows from a shape. Padding keeps the size; for stride 2 it is a row below and a column on the right."""

    def __init__(self, shape):
        self.n, self.h, self.w, self.k, self.stride, self.cin, self.cout, *how = shape
        self.up, self.addends = 2 if how == ["enlarged"] else 1, how == ["addends"]
        self.before = self.k // 2 if self.stride == 1 else 0
        self.after = self.k // 2
        self.large = (self.up * self.h, self.up * self.w)  # what the filter goes over
        self.oh, self.ow = ((size + self.before + self.after - self.k) // self.stride + 1 for size in self.large)
        self.x, self.y = (self.n, self.h, self.w, self.cin), (self.n, self.oh, self.ow, self.cout)
        self.filters, self.bias = (self.k, self.k, self.cin, self.cout), (self.n, self.cout)[not self.addends :]
        self.flops = 2.0 * self.n * self.oh * self.ow * self.k**2 * self.cin * self.cout
        self.pair, self.corner = (self.stride, self.stride), (self.before, self.before)

    def words(self, count):
        """The shape in words."""
        stride = f" stride {self.stride}" if self.stride > 1 else ""
        often = f" ({count}x)" if count else ""
        fused = f", enlarged to {self.oh}x{self.ow}" if self.up > 1 else ", addends" if self.addends else ""
        return f"{self.n} x {self.h}x{self.w}, {self.k}x{self.k}{stride}, {self.cin} to {self.cout}{fused}{often}"


def case_of(device, direction, shape, dtype, peers, count=None):
    """One direction at one shape. With peers, nobody adds a bias, but where it is one of the addends."""
    g, type_ = Geometry(shape), TYPES[dtype]
    needs = {"forward": ("x", "w"), "backward_input": ("dy", "w"), "backward_weight": ("dy", "x")}[direction]

    def make(random):
        i = {}
        for name, size in (("x", g.x), ("w", g.filters), ("dy", g.y)):
            if name in needs:
                i[name] = random.normal(*size, dtype=type_)
        if direction == "forward" and (g.addends or not peers):
            i["bias"] = random.normal(*g.bias)
        if direction == "forward" and g.addends:
            i["add"] = random.normal(*g.y, dtype=type_)
        return i

    def outputs(_):
        if direction == "forward":
            return {"y": device.nan(*g.y, dtype=type_)}
        if direction == "backward_input":
            return {"dx": device.nan(*g.x, dtype=type_)}
        return {"dw": device.nan(*g.filters)} | ({} if peers else {"dbias": device.nan(*g.bias)})

    def call(kernels, a, o):
        if direction == "forward":
            kernels.conv2d_forward(a["x"], a["w"], a.get("bias"), a.get("add"), g.pair, g.corner, g.up, o["y"])
        elif direction == "backward_input":
            kernels.conv2d_backward_input(a["dy"], a["w"], g.pair, g.corner, g.up, o["dx"])
        else:
            kernels.conv2d_backward_weight(a["dy"], a["x"], g.pair, g.corner, g.up, o["dw"], o.get("dbias"))

    def truth(i):
        exact = exactly(i, direction, g)
        return {name: exact[name] for name in exact if name != "dbias" or not peers}

    cudnn = Contender("cuDNN", PEER, lambda i: cudnn_call(i, direction, g), results_of(direction))
    entrants = [ours(device, "pydiff", outputs, call), *([cudnn] if peers else ())]
    bound = "bf16_tflops" if dtype == "bfloat16" else "fp32_tflops"
    naive = not peers and g.flops < 1e10
    title = f"conv2d {direction}"
    return Case(title, g.words(count), dtype, make, truth, entrants, flops=g.flops, bound=bound, naive=naive)


def planes(x):
    """(n, h, w, c) -> (n, c, h, w), a view; torch calls that channels_last."""
    return x.permute(0, 3, 1, 2)


def exactly(i, direction, g):
    """The results in float64: the convolution is a sum over its taps, and its gradients are those sums read backwards.

    A tap (a, b) is a matrix product of the pixels it touches with w[a, b].
    """
    wide = {name: t.double() for name, t in i.items()}
    height, width = g.large
    x = torch.zeros((g.n, height + g.before + g.after, width + g.before + g.after, g.cin), dtype=torch.float64)
    x = x.to(next(iter(wide.values())).device)
    inside = (slice(None), slice(g.before, g.before + height), slice(g.before, g.before + width))
    if "x" in wide:
        x[inside] = wide["x"].repeat_interleave(g.up, 1).repeat_interleave(g.up, 2)
    y = x.new_zeros(g.y)
    dw = x.new_zeros(g.filters)
    for a in range(g.k):
        for b in range(g.k):
            seen = x[:, a : a + g.stride * (g.oh - 1) + 1 : g.stride, b : b + g.stride * (g.ow - 1) + 1 : g.stride]
            if direction == "forward":
                y += seen @ wide["w"][a, b]
            elif direction == "backward_input":
                seen += wide["dy"] @ wide["w"][a, b].T
            else:
                dw[a, b] = seen.flatten(0, 2).T @ wide["dy"].flatten(0, 2)
    if direction == "forward":
        y += wide["bias"].reshape(-1, 1, 1, g.cout) if "bias" in wide else 0
        return {"y": y + wide.get("add", 0)}
    if direction == "backward_input":
        return {"dx": x[inside].reshape(g.n, g.h, g.up, g.w, g.up, g.cin).sum((2, 4))}
    return {"dw": dw, "dbias": wide["dy"].sum((1, 2) if g.addends else (0, 1, 2))}


# ---- peers -----------------------------------------------------------------------------------------------------------


def cudnn_call(i, direction, g):
    """One direction, called directly. Where padding is not the same on both sides, the image is padded beforehand, as
    diffusers does it; nobody has to wait for that here. Enlarging it is part of a forward, and what is enlarged is at
    hand in a backward, as torch keeps it."""
    extra = g.after - g.before
    enlarge = partial(torch.nn.functional.interpolate, scale_factor=float(g.up), mode="nearest")
    channels_last = {"memory_format": torch.channels_last}
    some = next(iter(i.values()))
    x = torch.nn.functional.pad(planes(i["x"]), (0, extra, 0, extra)) if "x" in i else (
        some.new_empty((g.n, g.cin, g.large[0] + extra, g.large[1] + extra))
    )  # fmt: skip
    if direction == "backward_weight" and g.up > 1:
        x = enlarge(x)
    w = i["w"].permute(3, 2, 0, 1) if "w" in i else some.new_empty((g.cout, g.cin, g.k, g.k))
    x, w, dy = x.contiguous(**channels_last), w.contiguous(**channels_last), planes(i["dy"]) if "dy" in i else None
    stride, padding = list(g.pair), [g.before, g.before]
    mask = [direction == "backward_input", direction == "backward_weight", False]
    if "add" in i:
        bias, add = i["bias"].to(i["add"].dtype)[:, :, None, None], planes(i["add"])

    def call():
        if direction == "forward":
            y = torch.nn.functional.conv2d(enlarge(x) if g.up > 1 else x, w, None, stride, padding)
            return y + bias + add if "add" in i else y
        rest = stride, padding, [1, 1], False, [0, 0], 1
        dx, dw, _ = torch.ops.aten.convolution_backward(dy, x, w, None, *rest, mask)
        if dx is not None and g.up > 1:
            return torch.ops.aten.upsample_nearest2d_backward(dx, list(g.large), [g.n, g.cin, g.h, g.w])
        return dw if dx is None else dx[:, :, : g.h, : g.w]

    return torch.no_grad()(call)


def results_of(direction):
    """The result in pydiff's layout."""
    if direction == "backward_weight":
        return lambda dw: {"dw": dw.permute(2, 3, 1, 0)}
    return lambda a: {"y" if direction == "forward" else "dx": a.permute(0, 2, 3, 1)}

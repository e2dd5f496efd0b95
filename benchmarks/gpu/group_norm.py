"""group_norm with SiLU, forward and backward, on (n, s, c).

Peers: torch's group_norm and silu, as diffusers calls them, in both memory layouts; the same compiled; and a kernel in
Triton that was written for this comparison, triton_group_norm.py.
"""

import torch

from benchmarks.gpu import triton_group_norm
from benchmarks.gpu.case import PEER, Case, Contender, Unsupported, ours
from benchmarks.gpu.device import TYPES

EPS = 1e-5
# n, side of the image, c, groups
CHECKS = [
    (1, 1, 8, 2),
    (2, 3, 12, 3),
    (3, 5, 40, 8),
    (2, 7, 33, 3),
    (5, 16, 256, 32),
    (2, 32, 384, 32),
    (1, 64, 320, 32),
]
TIMINGS = [(128, 32, 128, 32), (128, 16, 256, 32), (128, 32, 384, 32), (16, 64, 320, 32), (128, 16, 512, 32)]
TINY = [(2, 3, 12, 3), (3, 4, 16, 4)]
OUTPUTS = {"forward": ("y", "mean", "rstd"), "backward": ("dx", "dgamma", "dbeta", "dx_sum")}


def checks(device):
    """Cases of the correctness stage."""
    for shape in TINY if device.tiny else CHECKS:
        for dtype in TYPES:
            for silu in (True, False):
                yield forward(device, shape, dtype, peers=False, silu=silu)
                yield backward(device, shape, dtype, peers=False, silu=silu)


def timings(device):
    """Cases of the timing stage: bfloat16 everywhere, float32 at the first shape."""
    for shape in TINY[1:] if device.tiny else TIMINGS:
        for dtype in reversed(TYPES):
            if dtype == "bfloat16" or device.tiny or shape == TIMINGS[0]:
                yield forward(device, shape, dtype, peers=True)
                yield backward(device, shape, dtype, peers=True)


def words(shape, silu):
    """The shape in words."""
    n, side, c, groups = shape
    return f"{n} x {side}x{side}x{c}, {groups} groups{', SiLU' if silu else ''}"


def make(random, shape, dtype):
    """x, dy, gamma, beta: the last two are float32 for us and of x's type for torch, so their values are ones that both
    can hold. x is off its mean, as activations are."""
    n, side, c, _ = shape
    i = {name: random.normal(n, side * side, c, dtype=TYPES[dtype]) for name in ("x", "dy")}
    i["x"] = (1.5 * i["x"].float() + 0.7 * random.normal(c)).to(TYPES[dtype])
    return i | {name: random.normal(c, dtype=torch.bfloat16).float() for name in ("gamma", "beta")}


def moments(x, groups):
    """mean and rstd, float64."""
    n, s, c = x.shape
    grouped = x.double().reshape(n, s, groups, c // groups)
    return grouped.mean((1, 3)), (grouped.var((1, 3), correction=0) + EPS).rsqrt()


def normalised(x, gamma, beta, groups, silu):
    """Group norm as its definition says, Wu & He 2018, in the precision of its inputs."""
    n, s, c = x.shape
    grouped = x.reshape(n, s, groups, c // groups)
    centred = grouped - grouped.mean((1, 3), keepdim=True)
    z = (centred / (centred.square().mean((1, 3), keepdim=True) + EPS).sqrt()).reshape(n, s, c) * gamma + beta
    return z * torch.sigmoid(z) if silu else z


def forward(device, shape, dtype, peers, silu=True):
    """y, mean and rstd."""
    n, side, c, groups = shape

    def outputs(_):
        y = device.nan(n, side * side, c, dtype=TYPES[dtype])
        return {"y": y, "mean": device.nan(n, groups), "rstd": device.nan(n, groups)}

    def call(kernels, a, o):
        kernels.group_norm_forward(a["x"], a["gamma"], a["beta"], groups, EPS, silu, o["y"], o["mean"], o["rstd"])

    def truth(i):
        y = normalised(i["x"].double(), i["gamma"].double(), i["beta"].double(), groups, silu)
        return {"y": y} if peers else dict(zip(OUTPUTS["forward"], (y, *moments(i["x"], groups)), strict=True))

    entrants = [ours(device, "pydiff", outputs, call)]
    entrants += list(everyone(device, "forward", groups)) if peers else []
    nbytes = 2 * n * side * side * c * TYPES[dtype].itemsize  # x read, y written
    build = lambda random: make(random, shape, dtype)  # noqa: E731
    return Case("group_norm forward", words(shape, silu), dtype, build, truth, entrants, nbytes=nbytes)


def backward(device, shape, dtype, peers, silu=True):
    """dx, dgamma, dbeta, and dx summed over the pixels where no peer has to compete with it."""
    n, side, c, groups = shape
    names = OUTPUTS["backward"][: 3 if peers else 4]

    def outputs(_):
        return {name: device.nan(c) for name in names[1:]} | {"dx": device.nan(n, side * side, c, dtype=TYPES[dtype])}

    def build(random):
        i = make(random, shape, dtype)
        return i | {name: t.float() for name, t in zip(("mean", "rstd"), moments(i["x"], groups), strict=True)}

    def call(kernels, a, o):
        saved = a["dy"], a["x"], a["gamma"], a["beta"], a["mean"], a["rstd"], groups, silu
        kernels.group_norm_backward(*saved, o["dx"], o["dgamma"], o["dbeta"], o.get("dx_sum"))

    def truth(i):
        leaves = [i[name].double().requires_grad_() for name in ("x", "gamma", "beta")]
        gradients = torch.autograd.grad(normalised(*leaves, groups, silu), leaves, i["dy"].double())
        return dict(zip(names, (*gradients, gradients[0].sum((0, 1))), strict=False))

    entrants = [ours(device, "pydiff", outputs, call)]
    entrants += list(everyone(device, "backward", groups)) if peers else []
    nbytes = 3 * n * side * side * c * TYPES[dtype].itemsize  # x and dy read, dx written
    return Case("group_norm backward", words(shape, silu), dtype, build, truth, entrants, nbytes=nbytes)


# ---- peers -----------------------------------------------------------------------------------------------------------


def group_norm_silu(x, gamma, beta, groups):
    """What diffusers' ResnetBlock2D calls, on (N, C, H, W)."""
    return torch.nn.functional.silu(torch.nn.functional.group_norm(x, groups, gamma, beta, EPS))


def everyone(device, direction, groups):
    """All peers of one direction."""
    for name, channels_last, function in (
        ("torch eager, NCHW", False, group_norm_silu),
        ("torch eager, channels_last", True, group_norm_silu),
        ("torch.compile, channels_last", True, device.compile(group_norm_silu)),
    ):
        yield torch_contender(name, direction, groups, channels_last, function)
    yield triton_contender(device, direction, groups)


def torch_contender(name, direction, groups, channels_last, function):
    """torch in one of its layouts; inputs are in that layout beforehand."""
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def image(a):
        n, s, c = a.shape
        side = round(s**0.5)
        return a.reshape(n, side, side, c).permute(0, 3, 1, 2).clone(memory_format=layout)

    def prepare(i):
        leaves = [image(i["x"]), *(i[key].to(i["x"].dtype) for key in ("gamma", "beta"))]
        if direction == "forward":
            return torch.no_grad()(lambda: [function(*leaves, groups)])
        leaves = [leaf.requires_grad_() for leaf in leaves]
        y, dy = function(*leaves, groups), image(i["dy"])
        return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)

    def results(arrays):
        rows = [a.permute(0, 2, 3, 1).flatten(1, 2) if a.ndim == 4 else a for a in arrays]
        return dict(zip(OUTPUTS[direction], rows, strict=False))

    return Contender(name, PEER, prepare, results)


def triton_contender(device, direction, groups):
    """The kernel in Triton."""

    def prepare(i):
        if triton_group_norm.triton is None:
            raise Unsupported("Triton is not installed")
        if not (device.cuda or triton_group_norm.interpreted()):
            raise Unsupported("Triton needs a GPU or TRITON_INTERPRET=1")
        if direction == "forward":
            return lambda: [triton_group_norm.forward(i["x"], i["gamma"], i["beta"], groups, EPS)[0]]
        saved = i["dy"], i["x"], i["gamma"], i["beta"], i["mean"], i["rstd"], groups
        return lambda: triton_group_norm.backward(*saved)

    return Contender("Triton", PEER, prepare, lambda arrays: dict(zip(OUTPUTS[direction], arrays, strict=False)))

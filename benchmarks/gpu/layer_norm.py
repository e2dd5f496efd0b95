"""layer_norm, forward and backward, on (rows, c): the shapes of Stable Diffusion 1.5's transformer blocks.

Peers: torch's layer_norm, eager and compiled.
"""

import torch

from benchmarks.gpu.case import PEER, Case, Contender, ours
from benchmarks.gpu.device import TYPES

EPS = 1e-5
CHECKS = [(1, 2), (5, 7), (300, 40), (77, 768), (1030, 320), (3, 5000)]
TIMINGS = [(8 * 4096, 320), (8 * 1024, 640), (8 * 256, 1280)]
TINY = [(5, 7), (260, 16)]
OUTPUTS = {"forward": ("y", "mean", "rstd"), "backward": ("dx", "dgamma", "dbeta")}


def checks(device):
    """Cases of the correctness stage."""
    for shape in TINY if device.tiny else CHECKS:
        for dtype in TYPES:
            yield forward(device, shape, dtype, peers=False)
            yield backward(device, shape, dtype, peers=False)


def timings(device):
    """Cases of the timing stage."""
    for shape in TINY[1:] if device.tiny else TIMINGS:
        for dtype in TYPES:
            yield forward(device, shape, dtype, peers=True)
            yield backward(device, shape, dtype, peers=True)


def make(random, shape, dtype):
    """x far from zero, parameters, and a gradient."""
    i = {name: random.normal(*shape, dtype=TYPES[dtype]) for name in ("x", "dy")}
    i["x"] = i["x"] + 2
    return i | {name: random.normal(shape[-1]) for name in ("gamma", "beta")}


def moments(x):
    """mean and rstd, float64."""
    x = x.double()
    return x.mean(1), (x.var(1, correction=0) + EPS).rsqrt()


def normalised(x, gamma, beta):
    """Layer norm as its definition says, Ba et al. 2016, in the precision of its inputs."""
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + EPS).sqrt() * gamma + beta


def forward(device, shape, dtype, peers):
    """y, mean and rstd."""
    rows, c = shape

    def outputs(_):
        return {"y": device.nan(rows, c, dtype=TYPES[dtype]), "mean": device.nan(rows), "rstd": device.nan(rows)}

    def call(kernels, a, o):
        kernels.layer_norm_forward(a["x"], a["gamma"], a["beta"], EPS, o["y"], o["mean"], o["rstd"])

    def truth(i):
        y = normalised(i["x"].double(), i["gamma"].double(), i["beta"].double())
        return {"y": y} if peers else dict(zip(OUTPUTS["forward"], (y, *moments(i["x"])), strict=True))

    entrants = [ours(device, "pydiff", outputs, call)]
    entrants += list(torch_contenders(device, "forward", dtype)) if peers else []
    nbytes = 2 * rows * c * TYPES[dtype].itemsize  # x read, y written
    build = lambda random: make(random, shape, dtype)  # noqa: E731
    return Case("layer_norm forward", f"{rows} x {c}", dtype, build, truth, entrants, nbytes=nbytes)


def backward(device, shape, dtype, peers):
    """dx, dgamma and dbeta."""
    rows, c = shape

    def outputs(_):
        return {"dx": device.nan(rows, c, dtype=TYPES[dtype]), "dgamma": device.nan(c), "dbeta": device.nan(c)}

    def build(random):
        i = make(random, shape, dtype)
        return i | {name: t.float() for name, t in zip(("mean", "rstd"), moments(i["x"]), strict=True)}

    def call(kernels, a, o):
        saved = a["dy"], a["x"], a["gamma"], a["mean"], a["rstd"]
        kernels.layer_norm_backward(*saved, o["dx"], o["dgamma"], o["dbeta"])

    def truth(i):
        leaves = [i[name].double().requires_grad_() for name in ("x", "gamma", "beta")]
        gradients = torch.autograd.grad(normalised(*leaves), leaves, i["dy"].double())
        return dict(zip(OUTPUTS["backward"], gradients, strict=True))

    entrants = [ours(device, "pydiff", outputs, call)]
    entrants += list(torch_contenders(device, "backward", dtype)) if peers else []
    nbytes = 3 * rows * c * TYPES[dtype].itemsize  # x and dy read, dx written
    return Case("layer_norm backward", f"{rows} x {c}", dtype, build, truth, entrants, nbytes=nbytes)


def layer_norm(x, gamma, beta):
    """What diffusers' BasicTransformerBlock calls."""
    return torch.nn.functional.layer_norm(x, x.shape[-1:], gamma, beta, EPS)


def torch_contenders(device, direction, dtype):
    """torch, eager and compiled. On a CPU it keeps the statistics of bfloat16 rows in bfloat16."""
    limit = None if device.cuda or dtype == "float32" else 5e-2
    for name, function in (("torch eager", layer_norm), ("torch.compile", device.compile(layer_norm))):

        def prepare(i, function=function):
            leaves = [i["x"].clone(), *(i[key].to(i["x"].dtype) for key in ("gamma", "beta"))]
            if direction == "forward":
                return torch.no_grad()(lambda: [function(*leaves)])
            leaves = [leaf.requires_grad_() for leaf in leaves]
            y = function(*leaves)
            return lambda: torch.autograd.grad(y, leaves, i["dy"], retain_graph=True)

        def results(arrays):
            return dict(zip(OUTPUTS[direction], arrays, strict=False))

        yield Contender(name, PEER, prepare, results, limit=limit)

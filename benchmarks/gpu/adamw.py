"""adamw: one update of all parameters with the average of the weights, and a bfloat16 copy of them where asked for.

The peer is torch's fused AdamW, _foreach_lerp_ for the average and a foreach copy, over as many tensors as the U-Net of
DDPM has, and once more over a single flat one, which is the best that torch can do.
"""

import math

import torch

from benchmarks.gpu.case import PEER, Case, Contender, ours
from benchmarks.gpu.unet_shapes import parameter_sizes

LR, BETA1, BETA2, EPS, DECAY, EMA, STEP = 1e-3, 0.9, 0.999, 1e-8, 0.01, 0.999, 10
CHECKS = [1, 7, 1023, 4096, 100_003, 1_000_000]
TIMINGS = [1_000_000, None]  # None: the U-Net's own 35.7 million
TINY = [7, 1030]


def checks(device):
    """Cases of the correctness stage."""
    for size in TINY if device.tiny else CHECKS:
        yield squared_norm(device, size, peers=False)
        for clip in (0.0, 0.5):
            for copy in (False, True):
                yield update(device, [size], copy, clip, peers=False)


def timings(device):
    """Cases of the timing stage."""
    for size in TINY[1:] if device.tiny else reversed(TIMINGS):
        sizes = parameter_sizes() if size is None else scaled(size)
        for copy in (True, False):
            yield update(device, sizes, copy, 0.0, peers=True)
        yield squared_norm(device, sum(sizes), peers=True)


def scaled(total):
    """As many tensors as the U-Net has, in its proportions, `total` elements in all."""
    sizes = parameter_sizes()
    shares = [max(1, size * total // sum(sizes)) for size in sizes]
    return shares if total >= len(sizes) else [total]


def words(sizes):
    """The shape in words."""
    return f"{sum(sizes):,} in {len(sizes)}"


def make(random, size, copy, clip):
    """Parameters, gradient and Adam's state after some steps."""
    i = {name: random.normal(size) for name in ("p", "g", "m", "v", "ema")}
    i["m"], i["v"] = 0.1 * i["m"], 0.01 * i["v"].square()
    at = random.device.at
    i["schedule"] = torch.tensor([LR, STEP, EMA, clip], dtype=torch.float64, device=at)
    if clip:
        i["norm2"] = i["g"].double().square().sum().reshape(1)
    return i | ({"low": torch.full((size,), math.nan, dtype=torch.bfloat16, device=at)} if copy else {})


def truth(i, clip):
    """The update in float64, Loshchilov & Hutter 2019, algorithm 2."""
    p, g, m, v, ema = (i[name].double() for name in ("p", "g", "m", "v", "ema"))
    g = g * min(1.0, clip / (float(i["norm2"][0]) ** 0.5 + 1e-6)) if clip else g
    m = BETA1 * m + (1 - BETA1) * g
    v = BETA2 * v + (1 - BETA2) * g * g
    p = p - LR * ((m / (1 - BETA1**STEP)) / ((v / (1 - BETA2**STEP)).sqrt() + EPS) + DECAY * p)
    return {"p": p, "m": m, "v": v, "ema": EMA * ema + (1 - EMA) * p}


def update(device, sizes, copy, clip, peers):
    """One update. `low` is judged by p, of which it has to be the nearest bfloat16."""
    state = ["p", "m", "v", "ema"] + (["low"] if copy else [])

    def call(kernels, a, o):
        arrays = o["p"], a["g"], o["m"], o["v"], o["ema"], o.get("low")
        kernels.adamw(*arrays, BETA1, BETA2, EPS, DECAY, a["schedule"], a.get("norm2"))

    def exact(i, got):
        return truth(i, clip) | ({"low": got["p"].to(torch.bfloat16).double()} if copy else {})

    entrant = ours(device, "pydiff", lambda i: {name: i[name].clone() for name in state}, call)
    entrants = [entrant._replace(exact=exact)]
    if peers:
        entrants += [torch_fused(sizes, copy, PEER, "torch fused", exact)]
        entrants += [torch_fused([sum(sizes)], copy, PEER, "torch fused, flat", exact)]
    # p, m, v and ema read and written, g read, the copy written
    nbytes = sum(sizes) * (36 + (2 if copy else 0))
    name = "adamw" + (", copy" if copy else "") + (", clipped" if clip else "")
    build = lambda random: make(random, sum(sizes), copy, clip)  # noqa: E731
    return Case(name, words(sizes), "float32", build, lambda i: truth(i, clip), entrants, nbytes=nbytes)


def torch_fused(sizes, copy, kind, name, exact):
    """torch.optim.AdamW(fused=True), torch._foreach_lerp_, torch._foreach_copy_."""

    def prepare(i):
        p, g, m, v, ema = ([part.clone() for part in i[key].split(sizes)] for key in ("p", "g", "m", "v", "ema"))
        parameters = [torch.nn.Parameter(part) for part in p]
        capturable = p[0].is_cuda  # so that a graph can hold it
        rest = {"eps": EPS, "weight_decay": DECAY, "fused": True, "capturable": capturable}
        optimizer = torch.optim.AdamW(parameters, lr=LR, betas=(BETA1, BETA2), **rest)
        for parameter, grad, first, second in zip(parameters, g, m, v, strict=True):
            parameter.grad = grad
            done = torch.tensor(float(STEP - 1), device=grad.device)
            optimizer.state[parameter] = {"step": done, "exp_avg": first, "exp_avg_sq": second}
        low = [torch.empty_like(part, dtype=torch.bfloat16) for part in p] if copy else []

        @torch.no_grad()
        def call():
            optimizer.step()
            torch._foreach_lerp_(ema, parameters, 1 - EMA)
            if copy:
                torch._foreach_copy_(low, parameters)
            return {"p": parameters, "m": m, "v": v, "ema": ema} | ({"low": low} if copy else {})

        return call

    def results(groups):
        return {key: torch.cat([part.detach() for part in parts]) for key, parts in groups.items()}

    return Contender(name, kind, prepare, results, exact)


def squared_norm(device, size, peers):
    """The gradient's sum of squares."""
    build = lambda random: {"g": random.normal(size)}  # noqa: E731
    outputs = lambda _: {"norm2": device.nan(1, dtype=torch.float64)}  # noqa: E731
    entrants = [ours(device, "pydiff", outputs, lambda kernels, a, o: kernels.squared_norm(a["g"], o["norm2"]))]
    if peers:
        norm = lambda i: lambda: torch.linalg.vector_norm(i["g"])  # noqa: E731
        entrants += [Contender("torch vector_norm", PEER, norm, lambda x: {"norm2": x.double().square().reshape(1)})]
    exact = lambda i: {"norm2": i["g"].double().square().sum().reshape(1)}  # noqa: E731
    limit = 2e-5 if peers else 1e-12  # ours is made in double
    return Case("squared_norm", f"{size:,}", "float32", build, exact, entrants, nbytes=4 * size, limit=limit)

"""adamw: one update of all parameters, with the average of the weights, of the U-Nets in workloads.py; and the sum of
squares of their gradient.

On a GPU: of DDPM's U-Net, with a bfloat16 copy of the parameters and without. The peer is torch's fused AdamW with
_foreach_lerp_ for the average, and there _foreach_copy_, over as many tensors as the U-Net has, and once more over a
single flat one, which is the best that torch can do.
"""

import functools
import sys
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.cases import PEER, Case, Contender, Problem, by_reference, error_of
from benchmarks.contenders import peer
from benchmarks.gpu.unet_shapes import parameter_sizes
from benchmarks.workloads import WORKLOADS
from pydiff import ops
from pydiff.arrays import to_host
from pydiff.models import UNet2D
from pydiff.reference.adamw import adamw as reference

# name or number of the parameters, then what the norm of the gradient is clipped to; 0: nothing is clipped
TINY = [("tiny", 0.0), (7, 0.5), (1030, 0.0)]
SHAPES = [(name, 0.0) for name in WORKLOADS if name != "digits8"]  # which has the same parameters as digits16
CHECKS = [(size, clip) for size in (1, 7, 1023, 4096, 100_003, 1_000_000) for clip in (0.0, 0.5)]
GPU = [(("DDPM's U-Net", 0.0), "float32"), ((1_000_000, 0.0), "float32")]
LR, STEP, EMA = 1e-3, 10, 0.999
HYPER = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01}
LIMIT, NORM_LIMIT = 5e-6, 1e-12  # a norm is summed in float64
STATE = 4  # p, m, v, ema


@functools.cache
def sizes_of(name):
    """Elements of every parameter."""
    if name == "tiny":
        return [1152, 16]
    if name in WORKLOADS:
        return [p.size for p in UNet2D(**WORKLOADS[name].config).parameters()]
    sizes = parameter_sizes()
    if isinstance(name, int):  # as many as DDPM's U-Net has, in its proportions
        sizes = [max(1, size * name // sum(sizes)) for size in sizes] if name >= len(sizes) else [name]
    return sizes


def cases_of(device, shape, dtype):
    """The update, on a GPU also with a bfloat16 copy, and the sum of squares, which is its argument."""
    if dtype != "float32":
        return
    name, clip = shape
    sizes = sizes_of(name)
    size = sum(sizes)

    def make(random):
        p, g, m, v, ema = (random.normal(size) for _ in range(5))
        return p, g, 0.1 * m, 0.01 * v**2, ema, device.xp.asarray(np.array([LR, STEP, EMA, clip]))

    words = f"{name}: {size:,} parameters in {len(sizes)} arrays"
    problem = Problem(f"adamw{clip or ''}", words, dtype, make, lambda inputs: truth(device, inputs))
    clipped = ", clipped" if clip else ""
    for copy in (False, True) if device.gpu else (False,):

        def exact(_inputs, got, copy=copy):
            return [*device.truth(problem)[:STATE], *([nearest_bfloat16(device, got[0])] if copy else [])]

        ours = [c._replace(exact=exact) for c in device.ours(functools.partial(update, device, copy, clip))]
        entrants = [*ours, *(c._replace(exact=exact) for c in (() if clip else by_torch(device, sizes, copy)))]
        if 36 * size < 1e6 and not device.gpu:
            entrants.insert(0, by_reference(by_equation))
        # p, m, v and ema read and written, g read, the copy written
        op, limit, nbytes = (
            f"adamw{', copy' if copy else ''}{clipped}",
            device.limit(LIMIT, dtype),
            size * (36 + 2 * copy),
        )
        yield Case(op, problem, slice(STATE), entrants, limit, nbytes=nbytes)
    norm = lambda i: lambda: [ops.squared_norm(i[1])]  # noqa: E731
    entrants = [*device.ours(norm), *norm_by_torch(device)]
    yield Case("squared_norm", problem, slice(STATE, None), entrants, NORM_LIMIT, nbytes=4 * size)


def truth(device, inputs):
    """The new p, m, v and ema, compared with pydiff/reference, and the sum of squares of g, in float64."""
    state, schedule = [device.wide(a) for a in inputs[:5]], inputs[5]
    before = [to_host(a[:1000]).copy() for a in state]
    norm2 = (state[1] ** 2).sum().reshape(1)
    p, g, m, v, ema = state
    ops.adamw(p, g, m, v, ema, schedule, norm2, **HYPER)
    _, _, _, clip = schedule.tolist()
    scale = min(1.0, clip / (float(norm2[0]) ** 0.5 + 1e-6)) if clip else 1.0
    expected = reference(*before, step=STEP, lr=LR, **HYPER, grad_scale=scale, ema_decay=EMA)
    if not error_of([to_host(a[:1000]) for a in (p, m, v, ema)], list(expected)) <= 1e-12:
        raise AssertionError("adamw in float64 does not agree with the reference")
    return [p, m, v, ema, norm2]


def by_equation(inputs):
    """pydiff/reference."""
    return reference(*inputs[:5], step=STEP, lr=LR, **HYPER, grad_scale=1.0, ema_decay=EMA)


def nearest_bfloat16(device, a):
    """float64, rounded to bfloat16 by torch."""
    return device.wide(device.tensor(a).to(peer("torch").bfloat16))


def update(device, copy, clip, inputs):
    """build(inputs) for Device.ours. The update is in place, so every contender works on copies of its own."""
    p, g, m, v, ema = (a.copy() for a in inputs[:5])
    schedule, norm2 = inputs[5], ops.squared_norm(g) if clip else None
    low = device.normal(device.generator(0), p.shape, "bfloat16", 0.0, 1.0) if copy else None

    def call():
        ops.adamw(p, g, m, v, ema, schedule, norm2, **HYPER, low=low)
        return p, m, v, ema, low

    return call


def by_torch(device, sizes, copy):
    """torch.optim.AdamW as it is by default on the CPU, and fused; both with a foreach average of the weights."""
    torch: Any = peer("torch")
    if torch is None:
        return
    ways = {"torch fused": (True, sizes)}
    ways |= {"torch fused, flat": (True, [sum(sizes)])} if device.gpu else {"torch": (None, sizes)}
    for name, (fused, sizes) in ways.items():

        def make(inputs, fused=fused, sizes=sizes):
            p, g, m, v, ema = ([part.clone() for part in device.tensor(a).split(sizes)] for a in inputs[:5])
            parameters = [torch.nn.Parameter(a) for a in p]
            told = {"eps": HYPER["eps"], "weight_decay": HYPER["weight_decay"], "fused": fused}
            told["capturable"] = p[0].is_cuda  # so that a graph can hold it
            optimizer = torch.optim.AdamW(parameters, lr=LR, betas=(HYPER["beta1"], HYPER["beta2"]), **told)
            for parameter, grad, first, second in zip(parameters, g, m, v, strict=True):
                parameter.grad = grad
                done = torch.tensor(float(STEP - 1), device=grad.device)
                optimizer.state[parameter] = {"step": done, "exp_avg": first, "exp_avg_sq": second}
            low = [torch.empty_like(part, dtype=torch.bfloat16) for part in p] if copy else []

            @torch.no_grad()
            def call():
                optimizer.step()
                torch._foreach_lerp_(ema, p, 1 - EMA)
                if copy:
                    torch._foreach_copy_(low, p)
                return [p, m, v, ema, *([low] if copy else [])]

            return call

        yield Contender(name, PEER, make, lambda results: [torch.cat(parts) for parts in results])


def norm_by_torch(device):
    """torch.linalg.vector_norm, in float32."""
    torch: Any = peer("torch")
    if torch:
        norm = lambda i: functools.partial(torch.linalg.vector_norm, device.tensor(i[1]))  # noqa: E731
        square = lambda norm: [norm.double().square().reshape(1)]  # noqa: E731
        yield Contender("torch vector_norm", PEER, norm, square, limit=2e-5)


if __name__ == "__main__":
    sys.exit(harness.main("adamw"))

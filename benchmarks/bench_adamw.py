"""adamw: one update of all parameters of the U-Nets in workloads.py, with the average of the weights."""

import sys

import numpy as np

from benchmarks import harness
from benchmarks.contenders import OTHER, PEER, Contender, arrays, house, peer, variants
from benchmarks.workloads import WORKLOADS
from pydiff import ops
from pydiff.models import UNet2D
from pydiff.reference.adamw import adamw as reference

TINY = [(3, 3, 8, 16), (16,)]
HYPER = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01}
STEP, EMA = 10, 0.999
LIMIT = 5e-6


def cases(settings):
    """One case a model."""
    rng = np.random.default_rng(0)
    yield case_of("tiny", TINY, rng, settings)
    for name, workload in {} if settings.quick else WORKLOADS.items():
        if name != "digits8":  # has the same parameters as digits16
            yield case_of(name, [p.shape for p in UNet2D(**workload.config).parameters()], rng, settings)


def case_of(name, shapes, rng, settings):
    """One update of parameters with these shapes."""
    size = sum(map(np.prod, shapes))

    def make(rng):
        p, g, m, v, ema = rng.standard_normal((5, size), np.float32)
        return p, g, 0.1 * m, 0.01 * v**2, ema

    # p, g, m, v, ema read, all but g written
    nbytes = 4 * int(size)
    sets = variants(make, 5 * nbytes, rng)
    exact = list(reference(*sets[0], step=STEP, **HYPER, grad_scale=1.0, ema_decay=EMA))
    contenders = [*house(ours, settings.all_levels), *torch_contenders(shapes)]
    if name == "tiny":
        arguments = {"step": STEP, **HYPER, "grad_scale": 1.0, "ema_decay": EMA}
        slow = lambda i: lambda: reference(*i, **arguments)  # noqa: E731
        contenders.insert(0, Contender("reference (float64)", OTHER, slow, arrays))
    words = f"{name}: {size:,} parameters in {len(shapes)} arrays"
    return harness.Case("adamw", words, sets, contenders, exact, LIMIT, nbytes=9 * nbytes)


def ours(inputs):
    """build(inputs) for contenders.house. The update is in place, so every contender works on copies of its own."""
    p, g, m, v, ema = (a.copy() for a in inputs)
    schedule = np.array([HYPER["lr"], STEP, EMA, 0.0])
    hyper = {name: value for name, value in HYPER.items() if name != "lr"}

    def call():
        ops.adamw(p, g, m, v, ema, schedule, **hyper)
        return p, m, v, ema

    return call


def torch_contenders(shapes):
    """torch.optim.AdamW as it is by default, and fused; both with a foreach average of the weights."""
    torch = peer("torch")
    if torch is None:
        return
    ends = np.cumsum([np.prod(shape) for shape in shapes]).tolist()

    def split(flat):
        parts = np.split(flat, ends[:-1])
        return [torch.from_numpy(part.reshape(shape).copy()) for part, shape in zip(parts, shapes, strict=True)]

    for name, fused in (("torch", None), ("torch fused", True)):

        def make(inputs, fused=fused):
            p, g, m, v, ema = (split(a) for a in inputs)
            parameters = [torch.nn.Parameter(a) for a in p]
            betas, rest = (HYPER["beta1"], HYPER["beta2"]), {k: HYPER[k] for k in ("lr", "eps", "weight_decay")}
            optimizer = torch.optim.AdamW(parameters, betas=betas, **rest, fused=fused)
            for parameter, grad, first, second in zip(parameters, g, m, v, strict=True):
                parameter.grad = grad
                done = torch.tensor(float(STEP - 1))
                optimizer.state[parameter] = {"step": done, "exp_avg": first, "exp_avg_sq": second}

            @torch.no_grad()
            def call():
                optimizer.step()
                torch._foreach_lerp_(ema, p, 1 - EMA)
                return p, m, v, ema

            return call

        def outputs(results):
            return [np.concatenate([a.detach().numpy().ravel() for a in group]) for group in results]

        yield Contender(name, PEER, make, outputs)


if __name__ == "__main__":
    sys.exit(harness.main(cases, __doc__))

"""One step of the reverse process, for any sampler: an affine update of the image x, given the network's output f, with
coefficients that depend only on the step:

    f       = f_uncond + guidance (f - f_uncond)             classifier-free guidance (Ho & Salimans 2022, eq. 6)
    x0_hat  = clip(u x + v f, low, high)                     the predicted clean image
    x_next  = a x + b x0_hat + d f + sum_k c_k history_k + s z

u, v come from the parametrisation (diffusion/process.py), a, b, d, c, s from the sampler (diffusion/samplers/), z is
fresh noise, and the history holds earlier x0_hats or other values that a multistep method keeps.

Reference: reference/denoise.py. Kernels: csrc/cpu/denoise.cpp, csrc/cuda/denoise.cu.
"""

import functools
import math
from typing import NamedTuple

import numpy as np

from pydiff import random
from pydiff.arrays import array_module, contiguous, empty, sent
from pydiff.backend import FLOAT32, is_bfloat16, native
from pydiff.ops.noise import key_on
from pydiff.tensor import Function


class DenoiseStep(NamedTuple):
    """Coefficients of one step, Python numbers; c has one entry per history array."""

    u: float
    v: float
    a: float
    b: float
    d: float = 0.0
    s: float = 0.0
    c: tuple = ()
    low: float = -math.inf
    high: float = math.inf
    guidance: float = 1.0


def denoise(x, f, step, history=(), noise=None, f_uncond=None):
    """Returns x_next and x0_hat, both of x's shape (N, ...).

    x, f, f_uncond, history arrays: all of one shape and dtype, but f and f_uncond may be bfloat16 with a float32 x if
    CUDA kernels serve them. step: DenoiseStep. noise: random.Key of the N samples, required if step.s != 0 and not
    allowed otherwise. f_uncond: None without guidance. The gradient flows to x and f; f_uncond and the history count as
    constants. Raises ValueError for arrays that do not match.
    """
    if is_bfloat16(x.dtype):
        raise ValueError("x must be float32 or float64, got bfloat16: its rounding would add up over the steps")
    answers = f.dtype if is_bfloat16(f.dtype) and x.dtype == FLOAT32 else x.dtype
    for name, other, dtype in (
        ("f", f, answers), ("f_uncond", f_uncond, answers), *(("history", h, x.dtype) for h in history)
    ):  # fmt: skip
        if other is not None and (other.shape != x.shape or other.dtype != dtype):
            raise ValueError(f"{name} must match x, {dtype} {x.shape}, got {other.dtype} {other.shape}")
    if len(step.c) != len(history):
        raise ValueError(f"the step has {len(step.c)} history coefficients, but {len(history)} history arrays came")
    if (step.s != 0) != (noise is not None):
        raise ValueError(f"a step with s = {step.s} {'needs' if step.s else 'takes no'} noise key")
    if noise is not None and not (noise.sample.shape == noise.step.shape == (len(x),)):
        raise ValueError(f"the noise key must be for {len(x)} samples, got {noise.sample.shape}")
    if f_uncond is None and step.guidance != 1:
        raise ValueError(f"guidance {step.guidance} needs the network's unconditional output f_uncond")
    if not step.low <= step.high:
        raise ValueError(f"clip range is empty: low {step.low}, high {step.high}")
    return Denoise.apply(x, f, f_uncond, step=step, history=history, noise=noise)


class Denoise(Function):
    def forward(self, x, f, f_uncond, *, step, history, noise):
        self.saved, self.step = (x, f, f_uncond), step
        kernel = native(f, "denoise_forward")
        if not kernel and f.dtype != x.dtype:
            raise ValueError(
                f"f in {f.dtype} beside x in {x.dtype} needs the CUDA kernels, which do not serve these arrays"
            )
        if not kernel:
            return forward_arrays(x, f, f_uncond, step, history, noise)
        x_next, x0_hat = (empty(x, _flat_shape(x)) for _ in range(2))
        past, key = [_flat(h) for h in history], None if noise is None else key_on(x, noise)
        kernel(_flat(x), _flat(f), _flat(f_uncond), _table(x, step, step.c), None, past, key, x_next, x0_hat)
        return x_next.reshape(x.shape), x0_hat.reshape(x.shape)

    def backward(self, dx_next, dx0_hat):
        x, f, f_uncond = self.saved
        dx_next, dx0_hat = (array_module(x).zeros_like(x) if g is None else g for g in (dx_next, dx0_hat))
        kernel = native(f, "denoise_backward")
        if not kernel:
            return *backward_arrays(dx_next, dx0_hat, x, f, f_uncond, self.step), None
        dx, df = empty(x, _flat_shape(x)), empty(f, _flat_shape(x))
        kernel(_flat(dx_next), _flat(dx0_hat), _flat(x), _flat(f), _flat(f_uncond), _table(x, self.step), None, dx, df)
        return dx.reshape(x.shape), df.reshape(x.shape), None


def _table(x, step, c=()):
    """The coefficients in the kernel's order, as a table of one row where x lives; it is moved there once."""
    row = [step.u, step.v, step.low, step.high, step.a, step.b, step.d, step.s, step.guidance, *c]
    return sent(_kept(np.array(row, FLOAT32).tobytes()), x)


# The table of these bytes: always the same array, which cannot be written to; see `sent`.
_kept = functools.lru_cache(maxsize=4096)(lambda row: np.frombuffer(row, FLOAT32).reshape(1, -1))


def _flat_shape(x):
    return len(x), math.prod(x.shape[1:])


def _flat(x):
    return None if x is None else contiguous(x).reshape(_flat_shape(x))


def _guided(f, f_uncond, step):
    return f if f_uncond is None else f_uncond + step.guidance * (f - f_uncond)


def forward_arrays(x, f, f_uncond, step, history, noise):
    """The update above on NumPy or CuPy arrays: (x_next, x0_hat), of x's shape."""
    xp = array_module(x)
    f = _guided(f, f_uncond, step)
    x0_hat = xp.clip(step.u * x + step.v * f, step.low, step.high)
    x_next = step.a * x + step.b * x0_hat
    if step.d:
        x_next += step.d * f
    for c, h in zip(step.c, history, strict=True):
        x_next += c * h
    if noise is not None:
        x_next += step.s * xp.asarray(random.normal(noise, x.shape[1:], x.dtype))
    return x_next, x0_hat


def backward_arrays(dx_next, dx0_hat, x, f, f_uncond, step):
    """Gradients of x and f.

    1. x_next = .. + b x0_hat:       dm = b dx_next + dx0_hat where nothing was clipped, else 0
    2. x0_hat = u x + v f:           dx = a dx_next + u dm,  df_guided = d dx_next + v dm
    3. the guided f:                 df = guidance df_guided
    """
    m = step.u * x + step.v * _guided(f, f_uncond, step)
    dm = (step.b * dx_next + dx0_hat) * ((m >= step.low) & (m <= step.high))
    df = step.d * dx_next + step.v * dm
    return step.a * dx_next + step.u * dm, df if f_uncond is None else step.guidance * df

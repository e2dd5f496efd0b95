"""Every compiled function described once: its good arguments, and for each the mistakes that must be noticed.

The modules for the CPU and for CUDA have the same functions with the same arguments. They differ in one thing: CUDA
kernels take bfloat16, in all of the arrays that flow through the network or in none. So where there is only one such
array (`alone`), bfloat16 is no mistake in it; and an array that is always bfloat16 must be None on the CPU.
"""

import math

import numpy as np
from ml_dtypes import bfloat16

N, H, W, CIN, COUT = 2, 5, 6, 3, 4
F32, F64, U32, I32 = np.float32, np.float64, np.uint32, np.int32


class In:
    """An input array. free: axes whose size may be anything; rows: only the last axis must be contiguous; alone: see
    above."""

    output = False

    def __init__(self, *shape, dtype=F32, free=(), rows=False, optional=False, alone=False):
        self.shape, self.dtype, self.free, self.rows, self.optional = shape, dtype, free, rows, optional
        self.alone = alone

    def make(self, rng):
        return (1 + rng.random(self.shape)).astype(self.dtype)

    def good(self, rng, cuda):
        """A value for this argument."""
        return self.make(rng) if cuda or self.dtype != bfloat16 else None

    def mistakes(self, cuda):
        """(what, a wrong value) for all that must be refused."""
        a = self.make(np.random.default_rng(1))
        if cuda or self.dtype != bfloat16:
            return mistakes(self, a, cuda)
        return [(f"dtype {a.dtype}", a), ("dtype float32", a.astype(F32)), ("a list", [1.0]), ("a number", 0)]


class Out(In):
    """An output array, which must also be writable."""

    output = True


class Number:
    """A number, and values that cannot be one."""

    def __init__(self, value, *bad):
        self.value, self.bad = value, bad

    def good(self, _rng, _cuda):
        return self.value

    def mistakes(self, _cuda):
        return ((repr(value), value) for value in self.bad)


NOT_A_NUMBER = ("x", None, [1.0], 1j)
NOT_WHOLE = ("x", None, 1.5, 2**80)
PAIR = Number(
    (1, 1), (2**31, 1), (1, 2**63 - 1), (0, 1), (1, 0), (-1, 1), (1,), (1, 1, 1), 1, "ab", None, (1.5, 1), (2**80, 1)
)
PADDING = Number((1, 1), (0, 2**31), (2**63 - 1, 0), (-1, 0), (0, -1), (1,), 1, None, ("a", "b"), (2**80, 1))
FACTOR = Number(1, 0, -1, 3, 4, -(2**63), 2**63 - 1, *NOT_WHOLE)
SEED, PURPOSE = Number(2**64 - 1, -1, 2**64, *NOT_WHOLE), Number(3, -1, 2**32, *NOT_WHOLE)
GROUPS = Number(2, 0, -1, 3, -(2**62), *NOT_WHOLE)
HEADS = Number(2, 0, -2, 3, *NOT_WHOLE)
REAL = Number(0.5, *NOT_A_NUMBER)
COEFFICIENTS = [1.0, 0.5, -math.inf, math.inf, 0.9, 0.1, 0.0, 0.3, 1.0]

# H and W of a convolution's images are free: what lies beyond is padding. So are sizes that only one argument has.
IMAGES, FILTERS, MAPS = (N, H, W, CIN), (3, 3, CIN, COUT), (N, H, W, COUT)
FUNCTIONS = {
    "conv2d_forward": {
        "x": In(*IMAGES, free=(1, 2)), "w": In(*FILTERS, free=(0, 1)), "bias": In(COUT, optional=True),
        "add": In(*MAPS, optional=True), "stride": PAIR, "pad": PADDING, "up": FACTOR, "y": Out(*MAPS, free=(1, 2)),
    },
    "conv2d_backward_input": {
        "dy": In(*MAPS, free=(1, 2)), "w": In(*FILTERS, free=(0, 1)), "stride": PAIR, "pad": PADDING, "up": FACTOR,
        "dx": Out(*IMAGES, free=(1, 2)),
    },
    "conv2d_backward_weight": {
        "dy": In(*MAPS, free=(1, 2)), "x": In(*IMAGES, free=(1, 2)), "stride": PAIR, "pad": PADDING, "up": FACTOR,
        "dw": Out(*FILTERS, free=(0, 1)), "dbias": Out(COUT, optional=True),
    },
    "group_norm_forward": {
        "x": In(2, 7, 4), "gamma": In(4), "beta": In(4), "groups": GROUPS, "eps": REAL, "silu": Number(True, "x"),
        "y": Out(2, 7, 4), "mean": Out(2, 2), "rstd": Out(2, 2),
    },
    "group_norm_backward": {
        "dy": In(2, 7, 4), "x": In(2, 7, 4), "gamma": In(4), "beta": In(4), "mean": In(2, 2), "rstd": In(2, 2),
        "groups": GROUPS, "silu": Number(False, "x"), "dx": Out(2, 7, 4), "dgamma": Out(4), "dbeta": Out(4),
        "dx_sum": Out(4, optional=True),
    },
    "attention_forward": {
        "q": In(2, 5, 4, rows=True), "k": In(2, 7, 4, rows=True), "v": In(2, 7, 4, rows=True), "heads": HEADS,
        "scale": REAL, "causal": Number(True, "x"), "key_mask": In(2, 7, dtype=np.bool_, optional=True),
        "out": Out(2, 5, 4), "lse": Out(2, 2, 5),
    },
    "attention_backward": {
        "dout": In(2, 5, 4), "q": In(2, 5, 4, rows=True), "k": In(2, 7, 4, rows=True), "v": In(2, 7, 4, rows=True),
        "out": In(2, 5, 4), "lse": In(2, 2, 5), "heads": HEADS, "scale": REAL,
        "causal": Number(False, "x"), "key_mask": In(2, 7, dtype=np.bool_, optional=True),
        "dq": Out(2, 5, 4), "dk": Out(2, 7, 4), "dv": Out(2, 7, 4),
    },
    "layer_norm_forward": {
        "x": In(5, 4), "gamma": In(4, optional=True), "beta": In(4, optional=True), "eps": REAL,
        "y": Out(5, 4), "mean": Out(5), "rstd": Out(5),
    },
    "layer_norm_backward": {
        "dy": In(5, 4), "x": In(5, 4), "gamma": In(4, optional=True), "mean": In(5), "rstd": In(5),
        "dx": Out(5, 4), "dgamma": Out(4, optional=True), "dbeta": Out(4, optional=True),
    },
    "gelu_forward": {"x": In(9, free=(0,)), "y": Out(9)},
    "gelu_backward": {"dy": In(9), "x": In(9), "dx": Out(9)},
    "geglu_forward": {"x": In(2, 14), "y": Out(2, 7)},
    "geglu_backward": {"dy": In(2, 7), "x": In(2, 14), "dx": Out(2, 14)},
    "normal": {
        "seed": SEED, "purpose": PURPOSE, "sample": In(2, dtype=U32), "step": In(2, dtype=U32),
        "eps": Out(2, 9, free=(1,), alone=True),
    },
    "noise_forward": {
        "x0": In(2, 9), "alpha": In(2), "sigma": In(2), "seed": SEED, "purpose": PURPOSE,
        "sample": In(2, dtype=U32), "step": In(2, dtype=U32), "x_t": Out(2, 9), "eps": Out(2, 9, optional=True),
    },
    "noise_backward": {"dx_t": In(2, 9), "alpha": In(2), "dx0": Out(2, 9)},
    "noise_loss_forward": {
        "f": In(2, 9), "x0": In(2, 9), "p": In(2), "q": In(2), "weight": In(2), "seed": SEED, "purpose": PURPOSE,
        "sample": In(2, dtype=U32), "step": In(2, dtype=U32), "loss": Out(2),
    },
    "noise_loss_backward": {
        "dloss": In(2), "f": In(2, 9), "x0": In(2, 9), "p": In(2), "q": In(2), "weight": In(2), "seed": SEED,
        "purpose": PURPOSE, "sample": In(2, dtype=U32), "step": In(2, dtype=U32), "df": Out(2, 9),
    },
    "dropout_forward": {
        "x": In(2, 9), "p": REAL, "scale": REAL, "seed": SEED, "purpose": PURPOSE,
        "sample": In(2, dtype=U32), "step": In(2, dtype=U32), "y": Out(2, 9),
    },
    "denoise_forward": {
        "x": In(2, 9), "f": In(2, 9), "f_uncond": In(2, 9, optional=True),
        "table": In(3, 9, free=(0,)), "row": In(1, dtype=I32, optional=True),
        "history": Number([], None, 1.0, [None], [np.zeros((2, 9), F32)]),
        "noise": Number((0, 4, np.zeros(2, U32), np.zeros(2, U32)), 3, (), (0, 4), "four", (0, 4, None, None),
                        (0, 4, np.zeros(3, U32), np.zeros(2, U32)), (0, 4, np.zeros(2, U32), np.zeros(2, np.int64)),
                        (-1, 4, np.zeros(2, U32), np.zeros(2, U32)), (0, 2**32, np.zeros(2, U32), np.zeros(2, U32))),
        "x_next": Out(2, 9), "x0_hat": Out(2, 9),
    },
    "denoise_backward": {
        "dx_next": In(2, 9), "dx0_hat": In(2, 9), "x": In(2, 9), "f": In(2, 9), "f_uncond": In(2, 9, optional=True),
        "table": In(3, 9, free=(0, 1)), "row": In(1, dtype=I32, optional=True),
        "dx": Out(2, 9), "df": Out(2, 9),
    },
    "adamw": {
        "p": Out(9), "g": In(9), "m": Out(9), "v": Out(9), "ema": Out(9, optional=True),
        "low": Out(9, dtype=bfloat16, optional=True), "beta1": REAL, "beta2": REAL, "eps": REAL, "weight_decay": REAL,
        "schedule": In(4, dtype=F64), "norm2": In(1, dtype=F64, optional=True),
    },
    "squared_norm": {"g": In(9, free=(0,)), "norm2": Out(1, dtype=F64)},
}  # fmt: skip


def misaligned(a):
    buffer = np.zeros(a.nbytes + 1, np.uint8)
    view = buffer[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def every_second(a):
    wide = np.zeros((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
    wide[..., ::2] = a
    return wide[..., ::2]


def read_only(a):
    a.flags.writeable = False
    return a


def mistakes(argument, a, cuda):
    """(what, the wrong value) for every mistake that this array argument must be refused for."""
    floats = (F32, F64, np.float16, *(() if cuda and argument.alone else (bfloat16,)))
    for dtype in (*floats, np.int32, U32, np.int64, np.complex64, bool, object):
        if np.dtype(dtype) != argument.dtype:
            yield f"dtype {np.dtype(dtype)}", a.astype(dtype)
    yield "strings", np.full(a.shape, b"1.0")
    if a.itemsize > 1:
        yield "the other byte order", a.astype(a.dtype.newbyteorder())
    yield "a structured dtype", np.zeros(a.shape, [("x", a.dtype)])
    for value in (
        a.tolist(),
        tuple(a.tolist()),
        memoryview(a if a.dtype != bfloat16 else a.tobytes()),  # which knows nothing of bfloat16
        a.tobytes(),
        "array",
        1.0,
        {},
        a.dtype,
        np.ndarray,
        object(),
    ):
        yield f"a {type(value).__name__}", value
    if not argument.optional:
        yield "None", None
    yield "one axis more", a[None]
    yield "one axis less", a[0]
    yield "no axes", a.reshape(-1)[:1].reshape(())
    for axis in range(a.ndim):
        if axis not in argument.free:
            bigger = np.concatenate([a, a.take([0], axis)], axis)
            yield f"axis {axis} too long", bigger
            yield f"axis {axis} too short", np.ascontiguousarray(a.take(range(a.shape[axis] - 1), axis))
            yield f"axis {axis} empty", np.ascontiguousarray(a.take([], axis))
    if a.itemsize > 1:
        yield "misaligned", misaligned(a)
    if a.shape[-1] > 1:
        yield "every second element", every_second(a)
        yield "reversed", a[..., ::-1]
        yield "a stride of zero", np.lib.stride_tricks.as_strided(a, a.shape, (*a.strides[:-1], 0))
    if a.ndim > 1 and not argument.rows:
        yield "in Fortran order", np.asfortranarray(a)
        yield "rows reversed", a[::-1]
        yield "rows that are one", np.broadcast_to(a[:1], a.shape)
    if argument.rows:
        yield "transposed", np.asfortranarray(a)
        yield "tokens reversed", a[:, ::-1]
        yield "samples reversed", a[::-1]
        bytes_between = np.lib.stride_tricks.as_strided(a, a.shape, (a.strides[0], a.strides[1] - 2, a.strides[2]))
        yield "rows between elements", bytes_between
    if argument.output:
        yield "read-only", read_only(a.copy())


# ---- any sizes -----------------------------------------------------------------------------------------------------

SIZES = (0, 0, 1, 1, 2, 3, 4, 5, 8, 9, 16, 17, 33)


def of_any_size(name, rng):
    """Arguments that fit together, of sizes that nobody would ask for: empty, one, beside a vector's width."""

    def size(*choice):
        return int(rng.choice(choice or SIZES))

    def array(*shape, dtype=F32):
        return (1 + rng.random(shape)).astype(dtype)

    def either(*shape):
        return array(*shape) if rng.random() < 0.5 else None

    op = name.removesuffix("_forward").removesuffix("_backward")
    if name.startswith("conv2d"):
        n, h, w, up = size(0, 1, 2, 3), size(), size(), size(1, 1, 2)
        kh, kw, cin, cout = size(1, 2, 3, 3, 5), size(1, 2, 3, 3, 5), size(), size()
        stride, pad = (size(1, 2, 3), size(1, 2)), (size(0, 1, 2, 7), size(0, 1, 2))
        if rng.random() < 0.5:  # as most networks have them
            kw, stride, pad = kh, (1, 1), (kh // 2, kh // 2)
        x, dw, dy = (
            array(n, h, w, cin),
            array(kh, kw, cin, cout),
            array(n, size(0, 1, up * h), size(0, 1, up * w), cout),
        )
        bias = [None, array(cout), array(n, cout)][size(0, 1, 2)]
        if name == "conv2d_forward":
            return [x, dw, bias, either(*dy.shape), stride, pad, up, dy]
        if name == "conv2d_backward_input":
            return [dy, dw, stride, pad, up, x]
        return [dy, x, stride, pad, up, dw, bias]
    if op == "group_norm":
        n, s, groups = size(0, 1, 2, 3), size(), size(1, 2, 3, 8)
        c = groups * size(0, 1, 2, 3, 4, 5, 8)
        x, moments, silu = (n, s, c), (n, groups), bool(rng.random() < 0.5)
        if name == "group_norm_forward":
            return [array(*x), array(c), array(c), groups, 1e-5, silu, array(*x), array(*moments), array(*moments)]
        inputs = [array(*x), array(*x), array(c), array(c), array(*moments), array(*moments)]
        return [*inputs, groups, silu, array(*x), array(c), array(c), either(c)]
    if op == "attention":
        n, tq, tk, heads = size(0, 1, 2), size(), size(1, 2, 7, 17, 33, 300), size(1, 2, 3)
        c = heads * size(0, 1, 2, 3, 4, 5, 8, 9, 16, 17, 40)
        q, k, v = array(n, tq, c), array(n, tk, c), array(n, tk, c)
        if rng.random() < 0.3:  # side by side, as a projection leaves them
            q, k, v = np.split(array(n, tk, 3 * c), 3, axis=2)
            tq = tk
        lse, causal = array(n, heads, tq), bool(rng.random() < 0.3)
        key_mask = [None, rng.random((n, tk)) < 0.7][size(0, 1)]
        if name == "attention_forward":
            return [q, k, v, heads, 0.5, causal, key_mask, array(n, tq, c), lse]
        outputs = [array(n, tq, c), array(n, tk, c), array(n, tk, c)]
        return [array(n, tq, c), q, k, v, array(n, tq, c), lse + 5, heads, 0.5, causal, key_mask, *outputs]
    n, m = size(0, 1, 2, 3), size(*SIZES, 1000)
    x = (n, m)
    key = [7, 3, array(n, dtype=U32), array(n, dtype=U32)]
    if name == "denoise_forward":
        history = [array(*x) for _ in range(size(0, 1, 4, 16))]
        table, row = array(2, 9 + len(history)), [None, np.ones(1, I32)][size(0, 1)]
        noise = [None, tuple(key)][size(0, 1)]
        return [array(*x), array(*x), either(*x), table, row, history, noise, array(*x), array(*x)]
    return {
        "layer_norm_forward": lambda: [array(*x), either(m), either(m), 1e-5, array(*x), array(n), array(n)],
        "layer_norm_backward": lambda: [
            array(*x), array(*x), either(m), array(n), array(n), array(*x), either(m), either(m)
        ],
        "gelu_forward": lambda: [array(m), array(m)],
        "gelu_backward": lambda: [array(m), array(m), array(m)],
        "geglu_forward": lambda: [array(n, 2 * m), array(*x)],
        "geglu_backward": lambda: [array(*x), array(n, 2 * m), array(n, 2 * m)],
        "normal": lambda: [*key, array(*x)],
        "noise_forward": lambda: [array(*x), array(n), array(n), *key, array(*x), either(*x)],
        "noise_backward": lambda: [array(*x), array(n), array(*x)],
        "noise_loss_forward": lambda: [array(*x), array(*x), array(n), array(n), array(n), *key, array(n)],
        "noise_loss_backward": lambda: [*(array(*s) for s in ((n,), x, x, (n,), (n,), (n,))), *key, array(*x)],
        "dropout_forward": lambda: [array(*x), 0.25, 2.0, *key, array(*x)],
        "denoise_backward": lambda: [
            *(array(*x) for _ in range(4)), either(*x), array(2, 9 + size(0, 2)), None, array(*x), array(*x)
        ],
        "adamw": lambda: [
            array(m), array(m), array(m), array(m), either(m), None, 0.9, 0.99, 1e-8, 0.1, array(4, dtype=F64), None
        ],
        "squared_norm": lambda: [array(m), array(1, dtype=F64)],
    }[name]()  # fmt: skip

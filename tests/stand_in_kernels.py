"""The CUDA kernels' functions in NumPy, with the arguments of csrc/bindings/kernels.cpp: the array path of pydiff/ops
in float64, rounded to the outputs' types. What calls the kernels can be tested with these, and with a planted fault."""

import importlib

import numpy as np

from pydiff import ops
from pydiff import random as philox

# the modules, whose names the functions in them have taken
attention, conv2d, denoise, gelu, group_norm, layer_norm, shape = (
    importlib.import_module(f"pydiff.ops.{op}")
    for op in ("attention", "conv2d", "denoise", "gelu", "group_norm", "layer_norm", "shape")
)


def wide(*arrays):
    """float64 copies; None stays None."""
    return [None if a is None else np.asarray(a, np.float64) for a in arrays]


def write(out, value):
    """Into an output, if there is one."""
    if out is not None:
        assert out.shape == np.shape(value)
        out[...] = np.asarray(value).astype(out.dtype)


def column(a):
    return np.asarray(a, np.float64)[:, None]


def eps_of(size, key):
    return philox.normal(philox.Key(*key), (size,), np.float64)


class StandIns:
    """fault: None, or (name, function of the arguments) that runs behind the right answer of `name` and spoils it."""

    def __init__(self, fault=None):
        self.fault, self.naive, self.called = fault, False, set()

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if name in ("fault", "naive", "called", "set_naive") or name.startswith("_"):
            return found

        def call(*arguments):
            self.called.add((name, self.naive))
            found(*arguments)
            if self.fault and self.fault[0] == name:
                self.fault[1](*arguments)

        return call

    def set_naive(self, naive):
        self.naive = naive

    def conv2d_forward(self, x, w, bias, add, stride, pad, up, y):
        x, w, bias, add = wide(x, w, bias, add)
        x = shape.repeat_pixels(x, up)
        total = conv2d.forward_arrays(x, w, stride, padding(x, w, y, stride, pad), y.shape)
        total += 0 if bias is None else bias if bias.ndim == 1 else bias[:, None, None]
        write(y, total if add is None else total + add)

    def conv2d_backward_input(self, dy, w, stride, pad, up, dx):
        n, h, width, cin = dx.shape
        enlarged = np.empty((n, up * h, up * width, cin))  # its shape is what counts
        pads = padding(enlarged, w, dy, stride, pad)
        write(dx, shape.sum_pixels(conv2d.backward_input_arrays(*wide(dy, w), enlarged.shape, stride, pads), up))

    def conv2d_backward_weight(self, dy, x, stride, pad, up, dw, dbias):
        dy, x = wide(dy, x)
        x = shape.repeat_pixels(x, up)
        write(dw, conv2d.backward_weight_arrays(dy, x, dw.shape, stride, padding(x, dw, dy, stride, pad)))
        write(dbias, dy.sum((0, 1, 2) if dbias is None or dbias.ndim == 1 else (1, 2)))

    def group_norm_forward(self, x, gamma, beta, groups, eps, silu, y, mean, rstd):
        values = group_norm.forward_arrays(*wide(x, gamma, beta), groups, eps, silu)
        for out, value in zip((y, mean, rstd), values, strict=True):
            write(out, value)

    def group_norm_backward(self, dy, x, gamma, beta, mean, rstd, _groups, silu, dx, dgamma, dbeta, dx_sum):
        values = group_norm.backward_arrays(*wide(dy, x, gamma, beta, mean, rstd), silu)
        for out, value in zip((dx, dgamma, dbeta, dx_sum), (*values, values[0].sum((0, 1))), strict=True):
            write(out, value)

    def attention_forward(self, q, k, v, heads, scale, causal, key_mask, out, lse):
        q, k, v = wide(q, k, v)
        values, p = attention.forward_arrays(q, k, v, heads, scale, causal, key_mask)
        write(out, values)
        write(lse, np.log(((p > 0) * np.exp(logits(q, k, heads, scale))).sum(-1)))

    def attention_backward(self, dout, q, k, v, _out, lse, heads, scale, causal, key_mask, dq, dk, dv):
        dout, q, k, v, lse = wide(dout, q, k, v, lse)
        seen = attention.forward_arrays(q, k, v, heads, scale, causal, key_mask)[1] > 0
        p = seen * np.exp(logits(q, k, heads, scale) - lse[..., None])  # as the kernels have it, from what is kept
        for out, value in zip((dq, dk, dv), attention.backward_arrays(dout, q, k, v, p, heads, scale), strict=True):
            write(out, value)

    def layer_norm_forward(self, x, gamma, beta, eps, y, mean, rstd):
        values = layer_norm.forward_arrays(*wide(x, gamma, beta), eps)
        for out, value in zip((y, mean, rstd), (values[0], values[1][:, 0], values[2][:, 0]), strict=True):
            write(out, value)

    def layer_norm_backward(self, dy, x, gamma, mean, rstd, dx, dgamma, dbeta):
        values = layer_norm.backward_arrays(*wide(dy, x, gamma), column(mean), column(rstd))
        for out, value in zip((dx, dgamma, dbeta), values, strict=True):
            write(out, value)

    def gelu_forward(self, x, y):
        write(y, gelu.GELU().forward(*wide(x)))

    def gelu_backward(self, dy, x, dx):
        write(dx, backward_of(gelu.GELU(), dy, x))

    def geglu_forward(self, x, y):
        write(y, gelu.GEGLU().forward(*wide(x)))

    def geglu_backward(self, dy, x, dx):
        write(dx, backward_of(gelu.GEGLU(), dy, x))

    def normal(self, seed, purpose, sample, step, eps):
        write(eps, eps_of(eps.shape[1], (seed, purpose, sample, step)))

    def noise_forward(self, x0, alpha, sigma, seed, purpose, sample, step, x_t, eps):
        z = eps_of(x0.shape[1], (seed, purpose, sample, step))
        write(x_t, column(alpha) * wide(x0)[0] + column(sigma) * z)
        write(eps, z)

    def noise_backward(self, dx_t, alpha, dx0):
        write(dx0, column(alpha) * wide(dx_t)[0])

    def noise_loss_forward(self, f, x0, p, q, weight, *key_and_loss):
        *key, loss = key_and_loss
        off = wide(f)[0] - column(p) * wide(x0)[0] - column(q) * eps_of(f.shape[1], key)
        write(loss, wide(weight)[0] * (off**2).mean(1))

    def noise_loss_backward(self, dloss, f, x0, p, q, weight, *key_and_df):
        *key, df = key_and_df
        off = wide(f)[0] - column(p) * wide(x0)[0] - column(q) * eps_of(f.shape[1], key)
        write(df, column(dloss) * column(weight) * 2 / f.shape[1] * off)

    def dropout_forward(self, x, p, scale, seed, purpose, sample, step, y):
        u = philox.uniform(philox.Key(seed, purpose, sample, step), x.shape[1:])
        write(y, wide(x)[0] * np.where(u >= p, scale, 0.0))

    def denoise_forward(self, x, f, f_uncond, table, row, history, noise, x_next, x0_hat):
        key = None if noise is None else philox.Key(*noise)
        values = denoise.forward_arrays(*wide(x, f, f_uncond), step_of(table, row), wide(*history), key)
        for out, value in zip((x_next, x0_hat), values, strict=True):
            write(out, value)

    def denoise_backward(self, dx_next, dx0_hat, x, f, f_uncond, table, row, dx, df):
        values = denoise.backward_arrays(*wide(dx_next, dx0_hat, x, f, f_uncond), step_of(table, row))
        for out, value in zip((dx, df), values, strict=True):
            write(out, value)

    def adamw(self, p, g, m, v, ema, low, beta1, beta2, eps, weight_decay, schedule, norm2):
        state = wide(p, g, m, v, ema)
        hyper = {"beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
        ops.adamw(*state, schedule, norm2, **hyper)
        for out, value in zip((p, m, v, ema), (state[0], *state[2:]), strict=True):
            write(out, value)
        write(low, p)

    def squared_norm(self, g, norm2):
        write(norm2, [np.sum(wide(g)[0] ** 2)])


def logits(q, k, heads, scale):
    """(N, heads, Tq, Tk)"""
    return (attention._split(q, heads) @ attention._split(k, heads).swapaxes(2, 3)) * scale


def backward_of(function, dy, x):
    """The gradient of a function of one array; float64 has no kernels."""
    function.forward(*wide(x))
    return function.backward(*wide(dy))


def padding(x, w, y, stride, pad):
    """((top, bottom), (left, right)): the kernels are told top and left, the rest follows from the sizes."""
    ends = ((y.shape[i + 1] - 1) * stride[i] + w.shape[i] - x.shape[i + 1] - pad[i] for i in (0, 1))
    return tuple((pad[i], max(end, 0)) for i, end in enumerate(ends))


def step_of(table, row):
    """The row of the table as a DenoiseStep."""
    u, v, low, high, a, b, d, s, guidance, *c = table[0 if row is None else int(row[0])].tolist()
    return ops.DenoiseStep(u, v, a, b, d, s, tuple(c), low, high, guidance)

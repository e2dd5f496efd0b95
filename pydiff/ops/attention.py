"""Scaled dot-product attention with several heads (Vaswani et al. 2017, "Attention Is All You Need", eq. 1):

    s = scale q kᵀ,   p = softmax(s) over the keys,   out = p v          for every sample and head

where a causal query t sees only the keys 0 .. t, and a key mask hides keys of a sample from all its queries (section
3.2.3: s becomes -infinity there). A query that sees no key gets 0.

The native kernels never hold the whole of s (Dao et al. 2022, "FlashAttention"): they keep the log-sum-exp of every
row, from which the backward pass recomputes p.

Reference: reference/attention.py. Kernels: csrc/cpu/attention.cpp, csrc/cuda/attention.cu.
"""

import math

from pydiff.arrays import array_module, contiguous, empty
from pydiff.backend import native, widened
from pydiff.tensor import Function


def attention(q, k, v, heads, scale=None, causal=False, key_mask=None):
    """Attends from every query to all keys of the same sample.

    q: (N, Tq, C); k, v: (N, Tk, C), Tk >= 1. Head h owns channels h·C/heads .. (h+1)·C/heads - 1. k and v may come
    from another sequence than q (cross attention), and all three may be views with a contiguous last axis.
    scale: factor on q kᵀ; None means 1 / sqrt(C / heads). causal: whether query t sees only the keys 0 .. t (as in
    PyTorch, also if Tq and Tk differ). key_mask: None, or bool (N, Tk), False for keys that no query sees, such as
    padding; an input of the operation, so that a recording can be replayed with another one. Returns (N, Tq, C). Raises
    ValueError for shapes that do not fit.
    """
    if q.ndim != 3 or k.shape != v.shape or k.ndim != 3 or (k.shape[0], k.shape[2]) != (q.shape[0], q.shape[2]):
        raise ValueError(f"attention needs q (N, Tq, C) and k, v (N, Tk, C), got {q.shape}, {k.shape} and {v.shape}")
    if heads < 1 or q.shape[2] % heads or q.shape[2] == 0:
        raise ValueError(f"attention cannot cut {q.shape[2]} channels into {heads} equal heads")
    if k.shape[1] == 0:
        raise ValueError("attention needs at least one key")
    if key_mask is not None and (key_mask.shape != k.shape[:2] or key_mask.dtype.kind != "b"):
        raise ValueError(
            f"key_mask must hold truth values of shape {k.shape[:2]}, got {key_mask.dtype} {key_mask.shape}"
        )
    scale = (q.shape[2] // heads) ** -0.5 if scale is None else float(scale)
    return Attention.apply(q, k, v, key_mask, heads=heads, scale=scale, causal=bool(causal))


class Attention(Function):
    def forward(self, q, k, v, key_mask, *, heads, scale, causal):
        self.options = heads, scale, causal
        kernel = native(q, "attention_forward")
        if kernel:
            q, k, v = (_rows(a) for a in (q, k, v))
            key_mask = None if key_mask is None else contiguous(key_mask)
            out = empty(q, q.shape)
            lse = array_module(q).empty((len(q), heads, q.shape[1]), "float32")  # also for bfloat16
            kernel(q, k, v, *self.options, key_mask, out, lse)
            self.saved = q, k, v, key_mask, out, lse
        else:
            dtype, q, k, v = q.dtype, widened(q), widened(k), widened(v)
            out, p = forward_arrays(q, k, v, *self.options, key_mask)
            self.saved = q, k, v, p
            out = out.astype(dtype, copy=False)
        return out

    def backward(self, dout):
        kernel = native(dout, "attention_backward")
        if kernel:
            q, k, v, key_mask, out, lse = self.saved  # pyright: ignore[reportAssignmentType]
            dq, dk, dv = empty(q, q.shape), empty(k, k.shape), empty(v, v.shape)
            kernel(contiguous(dout), q, k, v, out, lse, *self.options, key_mask, dq, dk, dv)
            return dq, dk, dv, None
        heads, scale, _ = self.options
        return *backward_arrays(dout.astype(self.saved[0].dtype, copy=False), *self.saved, heads, scale), None  # pyright: ignore[reportCallIssue]


def _rows(x):
    """x itself if the kernel can read it by strides, else a contiguous copy."""
    readable = x.strides[-1] == x.itemsize and all(s >= 0 and s % x.itemsize == 0 for s in x.strides)
    return x if readable else x.copy(order="C")


def _split(x, heads):
    """(N, T, C) -> (N, heads, T, C/heads)"""
    n, t, c = x.shape
    return x.reshape(n, t, heads, c // heads).transpose(0, 2, 1, 3)


def _merge(x):
    """(N, heads, T, d) -> (N, T, heads·d)"""
    n, heads, t, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(n, t, heads * d)


def forward_arrays(q, k, v, heads, scale, causal=False, key_mask=None):
    """Returns out (N, Tq, C) and the probabilities p (N, heads, Tq, Tk)."""
    q, k, v = _split(q, heads), _split(k, heads), _split(v, heads)
    s = (q @ k.swapaxes(2, 3)) * scale
    xp, seen = array_module(s), _seen(s, causal, key_mask)
    if seen is None:
        p = xp.exp(s - s.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        return _merge(p @ v), p
    # The largest of the visible logits: a hidden one may be far above it.
    s = xp.where(seen, s, -math.inf)
    largest = s.max(axis=-1, keepdims=True)
    p = xp.exp(s - xp.where(largest == -math.inf, 0, largest))
    total = p.sum(axis=-1, keepdims=True)
    p /= xp.where(total == 0, 1, total)  # 0 where no key is seen
    return _merge(p @ v), p


def _seen(s, causal, key_mask):
    """Which keys a query sees, bool, broadcastable to s (N, heads, Tq, Tk); None for all."""
    xp, seen = array_module(s), None if key_mask is None else key_mask[:, None, None, :]
    if causal:
        earlier = xp.arange(s.shape[3]) <= xp.arange(s.shape[2])[:, None]  # (Tq, Tk)
        seen = earlier if seen is None else seen & earlier
    return seen


def backward_arrays(dout, q, k, v, p, heads, scale):
    """Gradients of q, k, v.

    If a key was not seen, p is 0, and so are the gradients through it.

    1. out = p v:             dv = pᵀ dout,   dp = dout vᵀ
    2. p = softmax(s):        ds = p (dp - delta),   delta = sum over keys of p dp
    3. s = scale q kᵀ:        dq = scale ds k,   dk = scale dsᵀ q
    """
    dout, q, k, v = (_split(a, heads) for a in (dout, q, k, v))
    dv = p.swapaxes(2, 3) @ dout
    dp = dout @ v.swapaxes(2, 3)
    ds = p * (dp - (p * dp).sum(axis=-1, keepdims=True)) * scale
    return _merge(ds @ k), _merge(ds.swapaxes(2, 3) @ q), _merge(dv)

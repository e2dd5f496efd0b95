"""attention, forward and backward, at 65,536 queries in all, whatever their length and the heads' width.

q, k and v lie packed, (n, t, 3, heads, d), as one linear layer leaves them; nobody has to copy them. Peers: torch's
scaled_dot_product_attention with its FlashAttention, cuDNN and memory-efficient backends, and as plain matrix products.
"""

import torch

from benchmarks.gpu.case import OTHER, PEER, Case, Contender, Unsupported, ours
from benchmarks.gpu.device import TYPES

TOKENS = 65536
# n, tq, tk, heads, d
CHECKS = [
    (1, 1, 1, 1, 8), (2, 5, 7, 2, 5), (1, 33, 17, 3, 8), (2, 64, 64, 2, 32), (1, 130, 65, 2, 64), (2, 77, 77, 1, 80),
    (1, 100, 100, 2, 128), (1, 256, 256, 1, 256), (2, 1024, 1024, 4, 64),
]  # fmt: skip
TINY = [(2, 5, 7, 2, 5), (1, 17, 17, 2, 8)]
HEADS = {8: 8, 32: 8, 64: 4, 128: 2, 256: 1}  # of width d
LENGTHS = (256, 1024, 4096, 64)


def checks(device):
    """Cases of the correctness stage."""
    for shape in TINY if device.tiny else CHECKS:
        for dtype in TYPES:
            yield forward(device, shape, dtype, peers=False)
            yield backward(device, shape, dtype, peers=False)


def timings(device):
    """Cases of the timing stage: bfloat16 everywhere, float32 where DDPM's U-Net attends."""
    if device.tiny:
        shapes = [(dtype, TINY[1]) for dtype in TYPES]
    else:
        shapes = [
            ("bfloat16", (TOKENS // t // h, t, t, h, d)) for d, h in sorted(HEADS.items(), key=wanted) for t in LENGTHS
        ]
        shapes.insert(4, ("float32", (TOKENS // 256, 256, 256, 1, 256)))
    for dtype, shape in shapes:
        yield forward(device, shape, dtype, peers=True)
        yield backward(device, shape, dtype, peers=True)


def wanted(item):
    """The widths that diffusion models use most come first."""
    return (64, 256, 32, 128, 8).index(item[0])


def words(shape):
    """The shape in words."""
    n, tq, tk, heads, d = shape
    return f"{n} x {tq} queries, {tk} keys, {heads} heads of {d}"


def make(random, shape, dtype):
    """Views into a packed projection where queries and keys are equally many, as in self-attention."""
    n, tq, tk, heads, d = shape
    if tq == tk:
        packed = random.normal(n, tq, 3 * heads * d, dtype=TYPES[dtype])
        i = dict(zip("qkv", packed.chunk(3, dim=2), strict=True))
    else:
        i = {
            name: random.normal(n, t, heads * d, dtype=TYPES[dtype])
            for name, t in zip("qkv", (tq, tk, tk), strict=True)
        }
    return i | {"dout": random.normal(n, tq, heads * d, dtype=TYPES[dtype])}


def split(x, heads):
    """(n, t, heads d) -> (n, heads, t, d), a view."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def merged(x):
    """(n, heads, t, d) -> (n, t, heads d)"""
    return x.transpose(1, 2).flatten(2)


def exactly(i, heads, gradients):
    """out, lse and, if asked for, dq, dk, dv: Vaswani et al. 2017, eq. 1, in float64, a few samples at a time."""
    n, tq, _ = i["q"].shape
    few = max(1, 2**28 // (heads * tq * i["k"].shape[1]))  # 2 GB of scores
    parts = []
    for first in range(0, n, few):
        q, k, v = (split(i[name][first : first + few].double(), heads).requires_grad_(gradients) for name in "qkv")
        s = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
        lse = s.logsumexp(3)
        out = (s - lse[..., None]).exp() @ v
        part = [merged(out), lse]
        if gradients:
            part += map(
                merged, torch.autograd.grad(out, (q, k, v), split(i["dout"][first : first + few].double(), heads))
            )
        parts.append([a.detach() for a in part])
    return dict(zip(("out", "lse", "dq", "dk", "dv"), map(torch.cat, zip(*parts, strict=True)), strict=False))


def forward(device, shape, dtype, peers):
    """out and lse."""
    n, tq, tk, heads, d = shape

    def outputs(_):
        return {"out": device.nan(n, tq, heads * d, dtype=TYPES[dtype]), "lse": device.nan(n, heads, tq)}

    def call(kernels, a, o):
        kernels.attention_forward(a["q"], a["k"], a["v"], heads, d**-0.5, False, None, o["out"], o["lse"])

    def truth(i):
        exact = exactly(i, heads, gradients=False)
        return {"out": exact["out"]} if peers else exact

    entrants = [ours(device, "pydiff", outputs, call), *(sdpa(device, "forward", heads, dtype) if peers else ())]
    build = lambda random: make(random, shape, dtype)  # noqa: E731
    flops = 4.0 * n * heads * tq * tk * d
    return Case("attention forward", words(shape), dtype, build, truth, entrants, flops=flops, bound=bound(dtype))


def backward(device, shape, dtype, peers):
    """dq, dk and dv."""
    n, tq, tk, heads, d = shape

    def outputs(_):
        lengths = {"dq": tq, "dk": tk, "dv": tk}
        return {name: device.nan(n, t, heads * d, dtype=TYPES[dtype]) for name, t in lengths.items()}

    def build(random):
        i = make(random, shape, dtype)
        exact = exactly(i, heads, gradients=False)
        return i | {"out": exact["out"].to(TYPES[dtype]), "lse": exact["lse"].float()}

    def call(kernels, a, o):
        saved = a["dout"], a["q"], a["k"], a["v"], a["out"], a["lse"], heads, d**-0.5, False, None
        kernels.attention_backward(*saved, o["dq"], o["dk"], o["dv"])

    def truth(i):
        exact = exactly(i, heads, gradients=True)
        return {name: exact[name] for name in ("dq", "dk", "dv")}

    entrants = [ours(device, "pydiff", outputs, call), *(sdpa(device, "backward", heads, dtype) if peers else ())]
    flops = 10.0 * n * heads * tq * tk * d  # five products, as everyone counts them
    return Case("attention backward", words(shape), dtype, build, truth, entrants, flops=flops, bound=bound(dtype))


def bound(dtype):
    """The ceiling: that of the tensor cores for bfloat16, that of plain arithmetic for float32."""
    return "bf16_tflops" if dtype == "bfloat16" else "fp32_tflops"


# ---- peers -----------------------------------------------------------------------------------------------------------


def sdpa(device, direction, heads, dtype):
    """torch's backends, by name. Those that cannot do float32 are not asked to."""
    from torch.nn.attention import SDPBackend

    backends = {"SDPA flash": SDPBackend.FLASH_ATTENTION, "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION}
    backends = backends if dtype == "bfloat16" else {}
    backends |= {"SDPA efficient": SDPBackend.EFFICIENT_ATTENTION, "SDPA math": SDPBackend.MATH}
    for name, backend in backends.items():
        kind = OTHER if name == "SDPA math" else PEER
        yield Contender(
            name, kind, lambda i, b=backend: sdpa_call(device, i, heads, direction, b), results_of(direction)
        )


def results_of(direction):
    """Names for what comes out of sdpa_call."""
    names = ("out",) if direction == "forward" else ("dq", "dk", "dv")
    return lambda arrays: dict(zip(names, map(merged, arrays), strict=True))


def sdpa_call(device, i, heads, direction, backend):
    """One backend on views of the packed projection."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if not device.cuda and backend is not SDPBackend.MATH:
        raise Unsupported("needs a GPU")
    leaves = [split(i[name], heads).detach().requires_grad_(direction == "backward") for name in "qkv"]

    def attend():
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(*leaves)

    try:
        out = attend()
    except RuntimeError as error:
        if "No available kernel" in str(error):
            raise Unsupported("torch has no such kernel for this shape") from None
        raise
    if direction == "forward":
        return torch.no_grad()(lambda: [attend()])
    dout = split(i["dout"], heads)
    return lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True)

"""Attention: array path against the equation, gradient against its slope, kernels against the array path, torch."""

import shutil
import subprocess
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydiff import backend, ops
from pydiff.graph import Plan
from pydiff.ops.attention import _split, backward_arrays, forward_arrays
from pydiff.reference.attention import attention as reference
from pydiff.tensor import Tensor
from tests import emulated
from tests.bits import assert_same_bits, check_any_batch, check_any_thread_count
from tests.compare import array_path, assert_close, check_gradient, check_kernel, gradients
from tests.peers import import_torch
from tests.strategies import bfloat16, kernels, seeds, simd, simt, sizes, small, strided  # noqa: F401


def bfloat16_floors(heads, scale=None, causal=False, key_mask=None):
    """For check_kernel: what rounding to bfloat16 costs the output, dq, dk and dv.

    Rounded, by 2^-9 of itself at most, is what becomes a factor of a product on tensor cores: the weights p, and
    ds = p (dp - delta). So is the stored output, of which the backward pass makes delta = sum dout out: dq is off by
    what that is off, scale sum p k times, also where a query has few keys and dq is small. It grows with scale and with
    the channels of a head. Roundings are independent, so their squares add up; 4 of these roots are 7 standard
    deviations. To this comes the rounding of the result, and what the sums in float32 cost.
    """

    def floors(arrays, dout):
        q, k, v, g = (_split(a, heads) for a in (*arrays, dout))
        factor = q.shape[-1] ** -0.5 if scale is None else scale
        out, p = forward_arrays(*arrays, heads, factor, causal, key_mask)
        results = out, *backward_arrays(dout, *arrays, p, heads, factor)
        out2 = p**2 @ v**2
        delta2 = (g**2 * (out2 + _split(out, heads) ** 2)).sum(axis=-1, keepdims=True)
        dp = g @ v.swapaxes(2, 3)
        ds2 = (p * (dp - (p * dp).sum(axis=-1, keepdims=True))) ** 2
        squares = [
            out2,
            factor**2 * (ds2 @ k**2 + delta2 * (p @ k) ** 2),
            factor**2 * ((ds2 + p**2 * delta2).swapaxes(2, 3) @ q**2),
            (p**2).swapaxes(2, 3) @ g**2,
        ]
        return [
            2.0**-9 * (4 * np.sqrt(square.max(initial=0)) + np.abs(result).max(initial=0)) + SINGLE_KEY
            for square, result in zip(squares, results, strict=True)
        ]

    return floors


# For float32. A single key has weight 1, and dp - delta is the difference of two equal sums of d terms that a kernel
# rounds differently; the array path has the same sum twice.
SINGLE_KEY = 1e-5


@st.composite
def cases(draw, tokens=small, width=small):
    """[q, k, v] in any memory order, self or cross attention, and options."""
    rng = np.random.default_rng(draw(seeds))
    heads = draw(small)
    n, tq, tk, c = draw(st.integers(1, 3)), draw(tokens), draw(tokens), heads * draw(width)
    arrays = [draw(strided(rng, (n, t, c))) for t in (tq, tk, tk)]
    return rng, arrays, {"heads": heads, "scale": draw(st.sampled_from([None, 0.3, 1.7, -1.0, 0.0]))}


@given(cases())
def test_array_path_matches_the_equation(case):
    _, arrays, options = case
    assert_close(ops.attention(*map(Tensor, arrays), **options).data, reference(*arrays, **options), rtol=1e-12)


@given(cases())
def test_gradient_matches_the_slope_of_the_reference(case):
    rng, arrays, options = case
    check_gradient(lambda *a: ops.attention(*a, **options), lambda *a: reference(*a, **options), arrays, rng)


@pytest.mark.usefixtures("kernels")
@given(case=cases(sizes, sizes))
def test_kernel_is_as_exact_as_plain_float32(case):
    rng, arrays, options = case
    check_kernel(lambda *a: ops.attention(*a, **options), arrays, rng)


@pytest.mark.usefixtures("bfloat16")
@given(case=cases(sizes, sizes))
def test_kernel_is_as_exact_as_plain_float32_rounded_to_bfloat16(case):
    rng, arrays, options = case
    check_kernel(lambda *a: ops.attention(*a, **options), arrays, rng, half=(0, 1, 2), floor=bfloat16_floors(**options))


# Around the tiles of 16, 32 and 64 rows, for every padded head size: (tq, tk, heads, d).
BLOCKS = [
    (99, 67, 2, 9), (1, 300, 3, 8), (257, 1, 1, 40), (65, 99, 1, 67), (7, 130, 1, 1), (130, 7, 2, 17), (64, 64, 1, 32),
    (65, 65, 1, 64), (33, 130, 1, 80), (130, 33, 1, 128), (17, 65, 1, 160), (65, 31, 1, 256), (1, 1, 1, 256),
]  # fmt: skip


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("tq", "tk", "heads", "d"), BLOCKS)
def test_kernel_where_blocks_end(tq, tk, heads, d):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, t, heads * d)) for t in (tq, tk, tk)]
    check_kernel(lambda *a: ops.attention(*a, heads=heads), arrays, rng, floor=2e-6 if tk > 1 else SINGLE_KEY)


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize(("tq", "tk", "heads", "d"), BLOCKS)
def test_bfloat16_kernel_where_blocks_end(tq, tk, heads, d):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((1, t, heads * d)) for t in (tq, tk, tk)]
    check_kernel(lambda *a: ops.attention(*a, heads=heads), arrays, rng, half=(0, 1, 2), floor=bfloat16_floors(heads))


# ---- CUDA kernels --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["float32", "bfloat16"])
def cuda_dtype(request, bfloat16):  # noqa: F811
    """Both types that CUDA kernels take, with the emulator in use."""
    return bfloat16 if request.param == "bfloat16" else np.dtype(request.param)


@pytest.fixture
def naive(simt):  # noqa: F811
    """The naive kernels, in use."""
    simt.set_naive(True)
    yield
    simt.set_naive(False)


def normals(rng, dtype, *shapes):
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


@pytest.mark.usefixtures("naive")
@settings(max_examples=8)
@given(case=cases(st.sampled_from([1, 2, 5, 9]), sizes), half=st.booleans())
def test_naive_kernel_is_as_exact_as_plain_float32(case, half):
    rng, arrays, options = case
    op = lambda *a: ops.attention(*a, **options)  # noqa: E731
    check_kernel(op, arrays, rng, half=(0, 1, 2) if half else (), floor=bfloat16_floors(**options) if half else 2e-6)


@pytest.mark.parametrize("d", [8, 128])
def test_wide_blocks_have_the_bits_of_narrow_ones(simt, bfloat16, d):  # noqa: F811
    """Enough heads for blocks of 128 queries, which a sample alone has not."""
    rng = np.random.default_rng(0)
    q, k, v = normals(rng, bfloat16, (24, 65, 11 * d), (24, 3, 11 * d), (24, 3, 11 * d))
    simt.counters()
    whole = ops.attention(q, k, v, heads=11).data
    wide = simt.counters()["barriers"]
    alone = ops.attention(q[5:6], k[5:6], v[5:6], heads=11).data
    assert_same_bits([alone], [whole[5:6]])
    assert wide < 24 * simt.counters()["barriers"]  # one block for the 65 queries of a head, and two


def test_the_order_of_threads_does_not_matter(simt, cuda_dtype):  # noqa: F811
    rng = np.random.default_rng(0)
    arrays = normals(rng, cuda_dtype, (2, 67, 34), (2, 70, 34), (2, 70, 34))
    dout = rng.standard_normal((2, 67, 34))
    results = []
    for seed in range(4):
        simt.set_seed(seed)
        results.append(gradients(lambda *a: ops.attention(*a, heads=2), arrays, dout))
    for result in results[1:]:
        assert_same_bits(result, results[0])


@pytest.mark.usefixtures("simt")
@pytest.mark.parametrize("c", [8, 10, 16, 48])
@pytest.mark.parametrize("start", [0, 1, 4, 8])
def test_views_of_a_projection_have_the_bits_of_separate_arrays(cuda_dtype, c, start):
    """Rows that start at multiples of 16 bytes, and rows that do not."""
    rng = np.random.default_rng(0)
    (packed,) = normals(rng, cuda_dtype, (2, 9, 8 + 3 * c))
    views = [packed[..., start + i * c : start + (i + 1) * c] for i in range(3)]
    dout = rng.standard_normal((2, 9, c))
    got, expected = (
        gradients(lambda *a: ops.attention(*a, heads=2), arrays, dout)
        for arrays in (views, [np.ascontiguousarray(v) for v in views])
    )
    assert_same_bits(got, expected)


@pytest.mark.usefixtures("simt")
@pytest.mark.parametrize("d", [260, 300, 512, 520])
def test_large_heads(cuda_dtype, d):
    """Of more than 256 channels bfloat16 has no kernels of its own; more than 512 are left to the naive ones."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((1, t, d)) for t in (20, 19, 19)]
    half = cuda_dtype != np.float32
    mask = rng.random((1, 19)) < 0.7
    for options in ({"heads": 1}, {"heads": 1, "causal": True, "key_mask": mask}):
        op = lambda *a: ops.attention(*a, **options)  # noqa: B023, E731
        floor = bfloat16_floors(**options) if half else SINGLE_KEY
        check_kernel(op, arrays, rng, half=(0, 1, 2) if half else (), floor=floor)


LARGE = [(1e4, 32, None), (1e4, 64, -0.11), (1e6, 64, None), (1e4, 256, None)]


@pytest.mark.usefixtures("simt")
@pytest.mark.parametrize(("size", "d", "scale"), LARGE)
def test_the_backward_pass_meets_the_weights_of_the_forward_pass(cuda_dtype, size, d, scale):
    check_weights_of_both_passes(cuda_dtype, size, d, scale)


@pytest.mark.usefixtures("simd")
@pytest.mark.parametrize(("size", "d", "scale"), [*LARGE, (1e4, 8, None), (1e4, 16, None)])
def test_the_backward_pass_meets_the_weights_of_the_forward_pass_on_the_cpu(size, d, scale):
    check_weights_of_both_passes(np.float32, size, d, scale)


def check_weights_of_both_passes(dtype, size, d, scale):
    """Logits of this size that differ by little: float32 holds them to 2^-24 of it, and what counts is to be off alike.

    v and dout are unit matrices, so out is p as the forward pass has it, and dv, transposed, as the backward pass has.
    Both are off by a factor that a row shares, for lse is rounded; beyond that, by the rounding to the type itself.
    """
    rng = np.random.default_rng(0)
    factor = d**-0.5 if scale is None else scale
    q, k = 1.5 * rng.standard_normal((2, 1, d, d))
    # Half of the channels give the size, alike for all keys; the others give the difference.
    k[..., : d // 2] = np.sqrt(2 * size / abs(factor) / d)
    q[..., : d // 2] = np.sign(factor) * k[..., : d // 2]
    arrays = [a.astype(dtype) for a in (q, k, np.eye(d)[None])]
    out, _, _, dv = gradients(lambda *a: ops.attention(*a, heads=1, scale=scale), arrays, np.eye(d)[None])
    forward, backward = out[0].astype(np.float64), dv[0].T.astype(np.float64)
    counts = forward > 1e-3
    assert 4 * d < counts.sum()  # rows with several keys
    ratio = np.where(counts, backward / np.where(counts, forward, 1), np.nan)
    row = np.nanmedian(ratio, axis=1, keepdims=True)
    rounding = 2.0**-8 if dtype != np.float32 else 1e-6
    assert np.abs(row - 1).max() <= 2.0**-23 * size + rounding
    assert np.nanmax(np.abs(ratio / row - 1)) <= 3 * rounding


def test_kernels_use_tensor_cores_and_no_local_memory(tmp_path):
    nvcc, source = shutil.which("nvcc"), Path(__file__).parents[2] / "csrc/cuda"
    if not nvcc or not source.is_dir():
        pytest.skip("needs nvcc and the sources")
    kernels = ["forward_kernel<64, 2>", "dq_kernel<64>", "dkdv_kernel<64, false>", "dkdv_kernel<64, true>"]  # noqa: F811
    (tmp_path / "some.cu").write_text(
        f'#include "{source}/attention_bfloat16.h"\n'
        + "".join(f"auto k{i} = pydiff::bf16::attention_{name};\n" for i, name in enumerate(kernels))
    )
    command = [nvcc, "-std=c++17", "-gencode=arch=compute_90a,code=sm_90a", "--keep", "-c", "some.cu", "-Xptxas"]
    command += ["-Werror,-warn-spills,-warn-lmem-usage"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    entries = (tmp_path / "some.ptx").read_text().split(".entry ")[1:]
    assert len(entries) == len(kernels)
    for entry in entries:
        for instruction in ("mma.sync.aligned.m16n8k16", "ldmatrix.sync.aligned.m8n8.x4", "cp.async.cg", "ex2.approx"):
            assert instruction in entry, instruction
        assert "atom" not in entry


# ---- causal attention and key masks --------------------------------------------------------------------------------


@st.composite
def masked_cases(draw, tokens=small, width=small):
    """As `cases`, causal or masked or both; some masks leave a query, or a sample, without any key."""
    rng, arrays, options = draw(cases(tokens, width))
    causal = draw(st.booleans())
    shape = arrays[1].shape[:2]
    mask = rng.random(shape) < draw(st.sampled_from([0.0, 0.3, 0.9])) if not causal or draw(st.booleans()) else None
    return rng, arrays, {**options, "causal": causal, "key_mask": mask}


@given(masked_cases())
def test_masked_attention_matches_the_equation(case):
    rng, arrays, options = case
    op = lambda *a: ops.attention(*a, **options)  # noqa: E731
    assert_close(op(*map(Tensor, arrays)).data, reference(*arrays, **options), rtol=1e-12)
    single = op(*(Tensor(a.astype(np.float32)) for a in arrays)).data
    assert single.dtype == np.float32
    assert_close(single, reference(*arrays, **options), rtol=1e-5, atol=1e-6)
    check_gradient(op, lambda *a: reference(*a, **options), arrays, rng)


@pytest.mark.usefixtures("kernels")
@given(case=masked_cases(sizes, sizes))
def test_masked_kernel_is_as_exact_as_plain_float32(case):
    rng, arrays, options = case
    check_kernel(lambda *a: ops.attention(*a, **options), arrays, rng, floor=SINGLE_KEY)


@pytest.mark.usefixtures("bfloat16")
@given(case=masked_cases(sizes, sizes))
def test_masked_kernel_is_as_exact_as_plain_float32_rounded_to_bfloat16(case):
    rng, arrays, options = case
    check_kernel(lambda *a: ops.attention(*a, **options), arrays, rng, half=(0, 1, 2), floor=bfloat16_floors(**options))


@pytest.mark.usefixtures("naive")
@settings(max_examples=8)
@given(case=masked_cases(st.sampled_from([1, 2, 5, 9]), sizes), half=st.booleans())
def test_masked_naive_kernel_is_as_exact_as_plain_float32(case, half):
    rng, arrays, options = case
    op = lambda *a: ops.attention(*a, **options)  # noqa: E731
    check_kernel(
        op, arrays, rng, half=(0, 1, 2) if half else (), floor=bfloat16_floors(**options) if half else SINGLE_KEY
    )


# As BLOCKS: more queries than keys and fewer, a diagonal that ends inside of a tile and at its end.
MASKED_BLOCKS = [(99, 67, 2, 9), (67, 300, 1, 8), (64, 64, 1, 32), (300, 130, 1, 40), (33, 77, 1, 160), (77, 77, 1, 64)]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("tq", "tk", "heads", "d"), MASKED_BLOCKS)
def test_masked_kernel_where_blocks_end(tq, tk, heads, d, causal):
    check_masked_blocks(tq, tk, heads, d, causal, half=())


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("tq", "tk", "heads", "d"), MASKED_BLOCKS)
def test_masked_bfloat16_kernel_where_blocks_end(tq, tk, heads, d, causal):
    check_masked_blocks(tq, tk, heads, d, causal, half=(0, 1, 2))


def check_masked_blocks(tq, tk, heads, d, causal, half):
    """One sample sees half of its keys, one its last key alone, and one none."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((3, t, heads * d)) for t in (tq, tk, tk)]
    mask = np.stack([rng.random(tk) < 0.5, np.arange(tk) == tk - 1, np.zeros(tk, bool)])
    for options in [{"key_mask": mask}, {}] if causal else [{"key_mask": mask}]:
        options = {"heads": heads, "causal": causal, **options}
        op = lambda *a: ops.attention(*a, **options)  # noqa: B023, E731
        check_kernel(op, arrays, rng, half=half, floor=bfloat16_floors(**options) if half else SINGLE_KEY)


@pytest.mark.usefixtures("simt")
@pytest.mark.parametrize("causal", [False, True])
def test_masked_attention_does_not_mind_the_order_of_threads(simt, cuda_dtype, causal):  # noqa: F811
    rng = np.random.default_rng(0)
    arrays = normals(rng, cuda_dtype, (2, 67, 34), (2, 70, 34), (2, 70, 34))
    mask, dout, results = rng.random((2, 70)) < 0.6, rng.standard_normal((2, 67, 34)), []
    for seed in range(4):
        simt.set_seed(seed)
        results.append(gradients(lambda *a: ops.attention(*a, 2, causal=causal, key_mask=mask), arrays, dout))
    for result in results[1:]:
        assert_same_bits(result, results[0])


@pytest.mark.usefixtures("simd")
def test_masked_attention_has_the_same_bits_with_any_number_of_threads():
    """Few heads and many keys, so that a head is cut into parts, and one of the parts has no key at all."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, t, 12)).astype(np.float32) for t in (300, 900, 900))
    mask = rng.random((1, 900)) < 0.5
    mask[:, 200:600] = False
    dout = rng.standard_normal(q.shape)
    for causal in (False, True):
        op = lambda *a: ops.attention(*a, 1, causal=causal, key_mask=mask)  # noqa: B023, E731
        check_any_thread_count(lambda: gradients(op, [q, k, v], dout))  # noqa: B023


@pytest.mark.usefixtures("simd")
def test_a_key_mask_has_the_bits_of_the_keys_that_are_seen():
    """And what lies behind it may be no number at all."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, t, 24)).astype(np.float32) for t in (70, 600, 600))
    mask, dout = rng.random((1, 600)) < 0.4, rng.standard_normal((1, 70, 24))
    out, dq, dk, dv = gradients(lambda *a: ops.attention(*a, 2), [q, k[mask][None], v[mask][None]], dout)
    k[~mask] = v[~mask] = np.nan
    got = gradients(lambda *a: ops.attention(*a, 2, key_mask=mask), [q, k, v], dout)
    assert_same_bits([got[0], got[2][mask], got[3][mask]], [out, dk[0], dv[0]])
    assert_close(got[1], dq, rtol=1e-4, atol=1e-5)  # its sum is cut into parts by the keys' numbers
    assert not got[2][~mask].any()
    assert not got[3][~mask].any()


@pytest.mark.parametrize("kernel", ["array path", "cpu", "simt"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_a_key_that_is_not_seen_holds_does_not_matter(dtype, kernel):
    """Huge numbers behind the mask, which alone would decide about the largest logit; and gradients of exact zero."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 4, 6)).astype(dtype) for _ in range(3))
    mask = np.array([[True, True, False, False], [True, True, True, False]])
    dout = rng.standard_normal((2, 4, 6))
    if kernel == "simt":
        emulated.module()
    with {"array path": array_path, "cpu": nullcontext, "simt": lambda: backend.use_device("simt")}[kernel]():
        expected = gradients(lambda *a: ops.attention(*a, 2, key_mask=mask), [q, k, v], dout)
        k[~mask], v[~mask] = 1e10, 1e10
        got = gradients(lambda *a: ops.attention(*a, 2, key_mask=mask), [q, k, v], dout)
        assert_same_bits(got[:2], expected[:2])
        assert not got[2][~mask].any()
        assert not got[3][~mask].any()
        later = [np.concatenate([k[:, :2], f * k[:, 2:]], 1) for f in (1, 9)]
        causal = [ops.attention(q, k, v, 2, causal=True).data for k in later]
        assert_same_bits([causal[0][:, :2]], [causal[1][:, :2]])


def test_all_keys_seen_is_attention_without_a_mask():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, t, 6)) for t in (3, 4, 4))
    plain = ops.attention(q, k, v, 2).data
    assert_close(ops.attention(q, k, v, 2, key_mask=np.ones((2, 4), bool)).data, plain, rtol=1e-14)
    assert_close(ops.attention(q[:, -1:], k[:, :1], v[:, :1], 2, causal=True).data, v[:, :1], rtol=1e-14)


def test_masks_in_a_plan():
    """Causal is an option; the mask is an argument that may change."""
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, 4, 6))
    masks = rng.random((2, 2, 4)) < 0.6
    plan = Plan(lambda q, mask: ops.attention(q, q, q, 2, causal=True, key_mask=mask), q, masks[0])
    for mask in masks:
        assert_same_bits([plan(q, mask)], [ops.attention(q, q, q, 2, causal=True, key_mask=mask).data])


def test_masked_bfloat16_is_computed_in_float32_on_the_array_path(bfloat16):  # noqa: F811
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((1, 5, 8)).astype(bfloat16) for _ in range(3)]
    dout = rng.standard_normal((1, 5, 8)).astype(bfloat16)
    op = lambda *a: ops.attention(*a, 2, causal=True)  # noqa: E731
    with array_path():
        half, single = (gradients(op, a, dout) for a in (arrays, [a.astype(np.float32) for a in arrays]))
    # A leaf of 16 bits keeps the float32 gradient that it is given.
    assert_same_bits(half, [single[0].astype(bfloat16), *single[1:]])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_masked_attention_equals_torch(causal, masked):
    torch = import_torch()
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, 5, 12)) for _ in range(3)]
    mask = np.array([[True] * 3 + [False] * 2, [True] * 5]) if masked else None
    tensors = [torch.from_numpy(a.copy()).requires_grad_() for a in arrays]
    seen = torch.ones(5, 5, dtype=bool).tril() if causal else torch.ones(5, 5, dtype=bool)
    seen = seen & torch.from_numpy(mask)[:, None, None, :] if masked else seen[None, None]
    split = [t.reshape(2, 5, 3, 4).transpose(1, 2) for t in tensors]
    theirs = torch.nn.functional.scaled_dot_product_attention(*split, attn_mask=seen).transpose(1, 2).reshape(2, 5, 12)
    dout = rng.standard_normal((2, 5, 12))
    theirs.backward(torch.from_numpy(dout))
    out, *grads = gradients(lambda *a: ops.attention(*a, 3, causal=causal, key_mask=mask), arrays, dout)
    assert_close(out, theirs.detach().numpy(), rtol=1e-12)
    for got, tensor in zip(grads, tensors, strict=True):
        assert_close(got, tensor.grad.numpy(), rtol=1e-11)


@pytest.mark.parametrize("mask", [np.ones((2, 3), bool), np.ones((2, 4)), np.ones((2, 4), int), np.ones(4, bool)])
def test_bad_masks(mask):
    x = np.zeros((2, 4, 6))
    with pytest.raises(ValueError, match=r"key_mask must hold truth values of shape \(2, 4\), got"):
        ops.attention(x, x, x, 2, key_mask=mask)


# ---- large logits --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("size", [10.0, 100.0])
def test_kernel_with_large_logits(size):
    """Logits in the hundreds and ten thousands: exp of them overflows, exp of their differences does not."""
    rng = np.random.default_rng(0)
    arrays = [f * rng.standard_normal((2, t, 24)) for f, t in ((size, 33), (size, 17), (1, 17))]
    # The weights are exp(s - lse), so a rounding of the largest logit s is a relative error of theirs. The array path
    # keeps the weights instead, which here are exact zeros and ones.
    q, k = (np.stack(np.split(a, 3, axis=-1)) for a in arrays[:2])
    logits = 8**-0.5 * q @ k.swapaxes(-1, -2)
    check_kernel(lambda *a: ops.attention(*a, heads=3), arrays, rng, floor=4 * 2.0**-23 * np.abs(logits).max())


@pytest.mark.usefixtures("simd")
@pytest.mark.parametrize("d", [8, 24])
def test_the_only_key_that_counts_has_weight_one_in_both_passes(d):
    """Logits in the ten thousands: two roundings of one differ by 1e-3, and so would their exponentials."""
    rng = np.random.default_rng(0)
    arrays = [f * rng.standard_normal((2, t, 24)) for f, t in ((200, 33), (200, 17), (1, 17))]
    check_kernel(lambda *a: ops.attention(*a, heads=24 // d), arrays, rng, floor=5e-5)


def check_huge_logits(sign, dtype):
    """q = sign k with logits up to 1e30: every query attends to one key alone, and no gradient is lost to infinity."""
    rng = np.random.default_rng(0)
    k = np.full((1, 4, 8), 1e14, dtype) * np.arange(1, 5, dtype=dtype)[None, :, None]
    q, v = (sign * k).astype(dtype), rng.standard_normal((1, 4, 8)).astype(dtype)
    out, *grads = gradients(lambda *a: ops.attention(*a, heads=2), [q, k, v], np.ones((1, 4, 8)))
    chosen = 3 if sign > 0 else 0
    assert_close(out, np.broadcast_to(v[:, chosen], out.shape), rtol=1e-6)
    assert all(np.isfinite(g).all() for g in grads)
    assert_close(grads[2], 4.0 * (np.arange(4) == chosen)[None, :, None] * np.ones((1, 1, 8)), rtol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_nearest_key_is_picked_when_logits_are_huge(sign, dtype):
    with array_path():
        check_huge_logits(sign, dtype)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("sign", [1, -1])
def test_kernel_picks_the_nearest_key_when_logits_are_huge(sign):
    check_huge_logits(sign, np.float32)


@pytest.mark.parametrize("sign", [1, -1])
def test_bfloat16_kernel_picks_the_nearest_key_when_logits_are_huge(bfloat16, sign):  # noqa: F811
    check_huge_logits(sign, bfloat16)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_logits_give_the_mean(dtype):
    rng = np.random.default_rng(0)
    v = rng.standard_normal((2, 7, 6)).astype(dtype)
    q, k = np.zeros((2, 3, 6), dtype), rng.standard_normal((2, 7, 6)).astype(dtype)
    out = ops.attention(q, k, v, heads=2).data
    assert_close(out, np.broadcast_to(v.mean(axis=1, keepdims=True), out.shape), rtol=1e-6)


# ---- layouts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_packed_views_give_the_bits_of_separate_arrays(dtype):
    """q, k and v side by side in one projection (N, T, 3C): read where they are, and the gradient is put back there."""
    rng = np.random.default_rng(0)
    packed = rng.standard_normal((2, 9, 3 * 8)).astype(dtype)
    dout = rng.standard_normal((2, 9, 8))
    parts = np.split(packed, 3, axis=-1)
    out, *expected = gradients(lambda *a: ops.attention(*a, heads=2), [np.ascontiguousarray(p) for p in parts], dout)
    got, gradient = gradients(lambda x: ops.attention(x[..., :8], x[..., 8:16], x[..., 16:], heads=2), [packed], dout)
    assert_same_bits([got, gradient], [out, np.concatenate(expected, axis=-1)])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reversed_batches_and_tokens(dtype):
    """Views with negative strides, which the kernels do not read."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((3, t, 8)).astype(dtype) for t in (5, 7, 7))
    got = ops.attention(q[::-1], k[::-1, ::-1], v[::-1, ::-1], heads=2).data
    expected = reference(q[::-1], k[::-1, ::-1], v[::-1, ::-1], heads=2)
    assert_close(got, expected, rtol=2e-6 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_incoming_gradient_may_lie_in_any_order(dtype):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((3, t, 8)).astype(dtype) for t in (5, 7, 7))
    dout = rng.standard_normal((3, 5, 8))
    got, expected = (
        gradients(lambda *a: ops.attention(*a, heads=2), [q, k, v], d) for d in (np.asfortranarray(dout), dout)
    )
    for g, e in zip(got, expected, strict=True):
        assert_close(g, e, rtol=1e-6 if dtype == np.float32 else 1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_context_for_the_whole_batch(dtype):
    """Cross attention to a context with a batch stride of zero."""
    rng = np.random.default_rng(0)
    q, context = rng.standard_normal((3, 5, 8)).astype(dtype), rng.standard_normal((1, 7, 8)).astype(dtype)
    k = np.broadcast_to(context, (3, 7, 8))
    got = ops.attention(q, k, k, heads=2).data
    assert_close(got, reference(q, k, k, heads=2), rtol=1e-6 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize(("n", "tq"), [(0, 3), (2, 0)])
def test_no_samples_and_no_queries_on_the_gpu(cuda_dtype, n, tq):
    check_no_samples_and_no_queries(n, tq, cuda_dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "tq"), [(0, 3), (2, 0)])
def test_no_samples_and_no_queries(n, tq, dtype):
    check_no_samples_and_no_queries(n, tq, dtype)


def check_no_samples_and_no_queries(n, tq, dtype):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((n, t, 4)).astype(dtype) for t in (tq, 5, 5)]
    out, *grads = gradients(lambda *a: ops.attention(*a, heads=2), arrays, np.ones((n, tq, 4)))
    assert out.shape == (n, tq, 4)
    for gradient, argument in zip(grads, arrays, strict=True):
        assert_close(gradient, np.zeros(argument.shape), rtol=0)


# ---- exactness -----------------------------------------------------------------------------------------------------


def check_same_bits_for_any_batch_and_any_thread_count(dtype):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((5, t, 24)).astype(dtype) for t in (41, 37, 37)]
    dout = rng.standard_normal((5, 41, 24))
    check_any_batch(
        lambda part: gradients(lambda *a: ops.attention(*a, heads=3), [a[part] for a in arrays], dout[part]), 5
    )
    check_any_thread_count(lambda: gradients(lambda *a: ops.attention(*a, heads=3), arrays, dout))


@pytest.mark.usefixtures("kernels")
def test_same_bits_for_any_batch_and_any_thread_count():
    check_same_bits_for_any_batch_and_any_thread_count(np.float32)


@pytest.mark.usefixtures("simd")
@pytest.mark.parametrize(("tq", "tk", "heads", "d"), [(300, 520, 1, 8), (259, 1031, 2, 5), (31, 600, 1, 40)])
def test_few_heads_of_many_tokens(tq, tk, heads, d):
    """Queries and keys in several items of work: right, and with the same bits for any number of threads."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, t, heads * d)).astype(np.float32) for t in (tq, tk, tk)]
    op = lambda *a: ops.attention(*a, heads=heads)  # noqa: E731
    check_kernel(op, arrays, rng)
    dout = rng.standard_normal((2, tq, heads * d))
    check_any_thread_count(lambda: gradients(op, arrays, dout))
    check_any_batch(lambda part: gradients(op, [a[part] for a in arrays], dout[part]), 2)


def test_bfloat16_has_the_same_bits_for_any_batch(bfloat16):  # noqa: F811
    check_same_bits_for_any_batch_and_any_thread_count(bfloat16)


def check_nan_stays_in_its_own_query(dtype):
    """One number of one head: that head's output and dq there, dk and dv of its keys, and nothing else."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 9, 8)).astype(dtype) for _ in range(3))
    q[1, 4, 5] = np.nan
    out, dq, dk, dv = gradients(lambda *a: ops.attention(*a, heads=2), [q, k, v], np.ones((2, 9, 8)))
    query, head = np.zeros((2, 9, 8), bool), np.zeros((2, 9, 8), bool)
    query[1, 4, 4:] = head[1, :, 4:] = True
    for array, bad in ((out, query), (dq, query), (dk, head), (dv, head)):
        np.testing.assert_array_equal(np.isnan(array.astype(np.float64)), bad)


@pytest.mark.usefixtures("kernels")
def test_nan_stays_in_its_own_query():
    check_nan_stays_in_its_own_query(np.float32)


def test_nan_in_bfloat16_stays_in_its_own_query(bfloat16):  # noqa: F811
    check_nan_stays_in_its_own_query(bfloat16)


@pytest.mark.skipif(backend.cpu is None, reason="no compiled CPU kernels in this install")
def test_a_float64_gradient_of_a_float32_result():
    """A loss computed in float64 sends float64 gradients back; they are rounded, not refused."""
    rng = np.random.default_rng(0)
    q = rng.standard_normal((1, 3, 4)).astype(np.float32)
    weights = rng.standard_normal((1, 3, 4))
    tensor = Tensor(q, requires_grad=True)
    (ops.attention(tensor, q, q, heads=2) * weights).sum().backward()
    with array_path():
        expected = gradients(lambda x: ops.attention(x, q, q, heads=2), [q], weights)[1]
    assert tensor.grad.dtype == np.float32
    assert_close(tensor.grad, expected, rtol=1e-5)


# ---- torch ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tq", "tk", "heads", "scale"), [(5, 5, 2, None), (3, 9, 4, 0.2), (7, 1, 1, None)])
def test_output_and_gradients_equal_torch(tq, tk, heads, scale):
    torch = import_torch()
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, t, 8)) for t in (tq, tk, tk)]
    tensors = [torch.from_numpy(a).requires_grad_() for a in arrays]
    split = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in tensors)
    theirs = torch.nn.functional.scaled_dot_product_attention(*split, scale=scale).transpose(1, 2).flatten(2)
    dout = rng.standard_normal(tuple(theirs.shape))
    theirs.backward(torch.from_numpy(dout))
    out, *grads = gradients(lambda *a: ops.attention(*a, heads, scale), arrays, dout)
    assert_close(out, theirs.detach().numpy(), rtol=1e-9)
    for got, expected in zip(grads, tensors, strict=True):
        assert_close(got, expected.grad.numpy(), rtol=1e-7, atol=1e-12)


# ---- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("q", "k", "v", "heads", "message"),
    [
        ((3, 4), (3, 4), (3, 4), 2, r"needs q \(N, Tq, C\) and k, v \(N, Tk, C\), got \(3, 4\)"),
        ((1, 3, 4), (1, 3, 4), (1, 2, 4), 2, r"got \(1, 3, 4\), \(1, 3, 4\) and \(1, 2, 4\)"),
        ((1, 3, 4), (2, 3, 4), (2, 3, 4), 2, "attention needs q"),
        ((1, 3, 4), (1, 3, 6), (1, 3, 6), 2, "attention needs q"),
        ((1, 3, 4), (3, 4), (3, 4), 2, "attention needs q"),
        ((1, 3, 4), (1, 3, 4), (1, 3, 4), 3, "cannot cut 4 channels into 3 equal heads"),
        ((1, 3, 4), (1, 3, 4), (1, 3, 4), 0, "into 0 equal heads"),
        ((1, 3, 4), (1, 3, 4), (1, 3, 4), -2, "into -2 equal heads"),
        ((1, 3, 0), (1, 3, 0), (1, 3, 0), 1, "cannot cut 0 channels"),
        ((1, 3, 4), (1, 0, 4), (1, 0, 4), 2, "at least one key"),
    ],
)
def test_bad_arguments(q, k, v, heads, message):
    with pytest.raises(ValueError, match=message):
        ops.attention(Tensor(np.zeros(q)), np.zeros(k), np.zeros(v), heads)

"""How operations are called: options by position and by name are the same call, forward and backward; integers are
computed with rightly or refused, masked arrays are refused."""

import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff import ops, random
from pydiff.graph import Plan
from pydiff.tensor import Tensor
from tests.bits import assert_same_bits
from tests.strategies import seeds

KEY = random.key(0, random.NOISE, sample=[3, 5], step=7)
IMAGE, TOKENS = (2, 5, 6, 4), (2, 3, 4)

# For every operation: shapes of its arguments that may want a gradient, then everything else by name, in the order of
# the signature.
CALLS = {
    "absolute": ([(2, 3)], {}),
    "add": ([(2, 3), (3,)], {}),
    "attention": ([TOKENS] * 3, {"heads": 2, "scale": 0.7, "causal": True, "key_mask": np.eye(2, 3, dtype=bool)}),
    "average_pool": ([IMAGE], {"factor": 2}),
    "avg_pool2d": (
        [IMAGE],
        {"kernel": 3, "stride": (2, 1), "padding": 1, "ceil_mode": True, "count_include_pad": False},
    ),
    "broadcast_to": ([(1, 3)], {"shape": (2, 3)}),
    "clip": ([(4, 5)], {"low": -0.5, "high": 0.5}),
    "conv2d": (
        [IMAGE, (3, 2, 4, 3), (3,)],
        {"stride": (2, 1), "padding": 1, "upsample": (1, 2), "add": None, "dilation": 2},
    ),
    "conv_transpose2d": (
        [IMAGE, (3, 2, 3, 4), (6,)],
        {"stride": 3, "padding": 1, "output_padding": (1, 0), "dilation": 2, "groups": 2},
    ),
    "cross_entropy": ([(2, 3)], {"labels": np.array([2, 0])}),
    "divide": ([(2, 3), (3,)], {}),
    "dropout": ([IMAGE], {"p": 0.3, "key": KEY}),
    "embedding": ([(4, 3)], {"ids": np.array([[0, 2], [3, 0]])}),
    "erf": ([(2, 3)], {}),
    "elementwise_maximum": ([(2, 3), (3,)], {}),
    "elementwise_minimum": ([(2, 3), (3,)], {}),
    "exp": ([(2, 3)], {}),
    "geglu": ([(2, 6)], {}),
    "gelu": ([(2, 3)], {"approximate": "tanh"}),
    "group_norm": ([IMAGE, (4,), (4,)], {"groups": 2, "eps": 1e-3, "activation": "silu"}),
    "index": ([(4, 3)], {"index": np.array([0, 2, 0])}),
    "layer_norm": ([TOKENS, (4,), (4,)], {"eps": 1e-3}),
    "linear": ([TOKENS, (4, 5), (5,), (2, 3, 5)], {}),
    "log": ([(2, 3)], {}),
    "log_softmax": ([(2, 3)], {"axis": 0}),
    "matmul": ([(2, 3), (3, 4)], {}),
    "max_pool2d": ([IMAGE], {"kernel": 3, "stride": (2, 1), "padding": 1, "ceil_mode": True}),
    "maximum": ([(2, 3, 4)], {"axis": 1, "keepdims": True}),
    "mean": ([(2, 3, 4)], {"axis": (0, 2), "keepdims": True}),
    "mean_squared_error": ([(2, 3), (2, 3)], {}),
    "multiply": ([(2, 3), (3,)], {}),
    "negative": ([(2, 3)], {}),
    "noise_loss": ([IMAGE], {"x0": np.ones(IMAGE), "p": np.ones(2), "q": np.ones(2), "weight": np.ones(2), "key": KEY}),
    "power": ([(2, 3)], {"exponent": 3.0}),
    "quick_gelu": ([(2, 3)], {}),
    "relu": ([(2, 3)], {}),
    "resample": ([IMAGE], {"size": (3, 9), "mode": "bicubic", "antialias": True}),
    "reshape": ([(2, 3)], {"shape": (3, 2)}),
    "sigmoid": ([(2, 3)], {}),
    "silu": ([(2, 3)], {}),
    "softmax": ([(2, 3)], {"axis": 0}),
    "sqrt": ([(2, 3)], {}),
    "subtract": ([(2, 3), (3,)], {}),
    "summation": ([(2, 3, 4)], {"axis": 1, "keepdims": True}),
    "tanh": ([(2, 3)], {}),
    "transpose": ([(2, 3, 4)], {"axes": (2, 0, 1)}),
    "upsample_nearest": ([IMAGE], {"factor": 3}),
}
# Those whose arguments come in another order, or that are no differentiable functions of arrays alone.
OTHERS = {"DenoiseStep", "adamw", "concatenate", "denoise", "global_norm", "noise", "squared_norm", "where"}


def test_every_operation_is_here():
    assert sorted(CALLS.keys() | OTHERS) == ops.__all__


def run(name, arrays, args, options, names=()):
    """[output, gradients] of one call; names: what the arrays are called, for those given by name."""
    tensors = [Tensor(a, requires_grad=True) for a in arrays]
    by_position = len(tensors) - len(names)
    out = getattr(ops, name)(
        *tensors[:by_position], *args, **dict(zip(names, tensors[by_position:], strict=True)), **options
    )
    out.backward(np.random.default_rng(1).standard_normal(out.shape))
    return [out.data, *(t.grad for t in tensors)]


@pytest.mark.parametrize("name", CALLS)
@given(seed=seeds, data=st.data())
def test_options_by_position_and_by_name_are_the_same_call(name, seed, data):
    shapes, options = CALLS[name]
    rng = np.random.default_rng(seed)
    arrays = [np.abs(rng.standard_normal(shape)) + 0.1 for shape in shapes]
    expected = run(name, arrays, (), options)
    by_position = data.draw(st.integers(0, len(options)))
    values = list(options.values())[:by_position]
    rest = dict(list(options.items())[by_position:])
    assert_same_bits(run(name, arrays, values, rest), expected)
    if not values:
        names = parameters(getattr(ops, name))[: len(arrays)]
        named = names[data.draw(st.integers(0, len(names))) :]
        assert_same_bits(run(name, arrays, (), rest, named), expected)


def parameters(operation):
    """Their names, in order."""
    owner = getattr(operation, "__self__", None)  # of Softmax.apply, the class
    return [name for name in inspect.signature(owner.forward if owner else operation).parameters if name != "self"]


def test_methods_by_position():
    x = Tensor(np.arange(24.0).reshape(2, 3, 4), requires_grad=True)
    for got, expected in [
        (x.sum(0), x.sum(axis=0)), (x.sum((0, 2), True), x.sum(axis=(0, 2), keepdims=True)), (x.max(1), x.max(axis=1)),
        (x.mean(0, True), x.mean(axis=0, keepdims=True)), (x.transpose((1, 2, 0)), x.transpose(1, 2, 0)),
        (x.transpose(axes=(1, 2, 0)), x.transpose(1, 2, 0)), (x.reshape(shape=(4, 6)), x.reshape(4, 6)),
    ]:  # fmt: skip
        gradients = []
        for y in (got, expected):
            x.grad = None
            y.backward(np.random.default_rng(0).standard_normal(y.shape))
            gradients.append(x.grad)
        assert_same_bits([got.data, gradients[0]], [expected.data, gradients[1]])


def test_where_and_concatenate_by_name():
    x, y = Tensor(np.ones(2), requires_grad=True), Tensor(np.zeros(2), requires_grad=True)
    ops.where(np.array([True, False]), y=y, x=x).backward(np.array([1.0, 2.0]))
    assert (x.grad.tolist(), y.grad.tolist()) == ([1, 0], [0, 2])
    assert ops.concatenate(x, y, axis=0).shape == (4,)


def test_a_plan_records_options_by_position_as_by_name():
    x = np.arange(12.0).reshape(3, 4)
    plan = Plan(lambda x: ops.softmax(x, 0) * x.sum(1, True), x)
    assert [step.options for step in plan.steps][:2] == [{"axis": 0}, {"axis": 1, "keepdims": True}]
    assert_same_bits([plan(2 * x)], [(ops.softmax(2 * x, axis=0) * (2 * x).sum(axis=1, keepdims=True)).data])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: x.sum(0, axis=1), "Sum: axis is given twice, by position and by name"),
        (lambda x: ops.softmax(x, 0, 1), "Softmax takes x, axis; got 3 values by position"),
        (lambda x: ops.exp(x, x), "Exp takes x; got 2 values by position"),
        (lambda x: x.reshape(6, shape=6), "multiple values for argument 'shape'"),
        (lambda x: x.transpose(1, 0, axes=(0, 1)), "Transpose: axes is given twice"),
        (lambda x: ops.softmax(x, axes=1), "unexpected keyword argument 'axes'"),
        (lambda x: ops.add(x), "missing 1 required positional argument: 'y'"),
        (lambda x: ops.add(x, y=x, x=x), "multiple values for argument 'x'"),
    ],
)
def test_calls_that_cannot_be(call, message):
    with pytest.raises(TypeError, match=message):
        call(Tensor(np.ones((2, 3)), requires_grad=True))


# ---- integers and masked arrays ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int64, np.uint32, bool])
@pytest.mark.parametrize("name", CALLS)
@given(seed=seeds)
def test_integers_are_right_or_refused(name, dtype, seed):
    """Each argument in turn and all at once: the float64 result, or a TypeError or ValueError in one sentence."""
    shapes, options = CALLS[name]
    rng = np.random.default_rng(seed)
    wide = np.iinfo(dtype) if dtype is not bool else None
    top = min(wide.max, 300) if wide else 1
    whole = [
        rng.integers(1 if name in ("divide", "log") else 0, top, size=shape, endpoint=True).astype(dtype)
        for shape in shapes
    ]
    told = set()
    exact = getattr(ops, name)(*(a.astype(np.float64) for a in whole), **options).data
    for which in [range(len(whole)), *([i] for i in range(len(whole)))]:
        given_ = [a if i in which else a.astype(np.float64) for i, a in enumerate(whole)]
        try:
            got = getattr(ops, name)(*given_, **options).data
        except (TypeError, ValueError) as error:
            told.add(str(error))
            continue
        np.testing.assert_allclose(got.astype(np.float64), exact, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert all(len(message) < 150 for message in told)


def test_the_mean_squared_error_of_bytes_is_refused():
    x, y = np.array([200, 3], np.uint8), np.array([0, 15], np.uint8)
    with pytest.raises(TypeError, match=r"MeanSquaredError needs floating-point numbers, got uint8; use .astype"):
        ops.mean_squared_error(x, y)
    assert ops.mean_squared_error(x.astype(np.float64), y).item() == (200**2 + 12**2) / 2
    assert (Tensor(x) / 255).dtype.kind == "f"
    assert (Tensor(x.astype(np.int32)) - y).data.tolist() == [200, -12]
    with pytest.raises(TypeError, match=r"arithmetic in uint8 would wrap around; use \.astype\(np\.float32\)"):
        Tensor(x) - y


def test_masked_arrays_are_refused():
    masked = np.ma.masked_array(np.ones(3), mask=[True, False, False])
    for call in (
        lambda: Tensor(masked), lambda: ops.add(Tensor(np.ones(3)), masked), lambda: ops.softmax(masked),
        lambda: Tensor(np.ones(3)) * masked,
    ):  # fmt: skip
        with pytest.raises(TypeError, match=r"expected a plain array, got a MaskedArray; \.filled\(value\) makes one"):
            call()

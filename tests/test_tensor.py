"""Tensors: how they are made, the chain rule, whose memory a gradient is, and NumPy beside them."""

import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pydiff
from pydiff import ops
from pydiff.tensor import Function, Tensor, as_tensor, no_grad
from tests.compare import assert_close, check_gradient
from tests.peers import import_torch
from tests.strategies import seeds


def leaf(*values, dtype=np.float64):
    return Tensor(np.array(values, dtype), requires_grad=True)


# ---- making tensors ------------------------------------------------------------------------------------------------


def test_arrays_are_shared_and_lists_become_float32():
    x = np.arange(3.0)
    assert Tensor(x).data is x
    assert Tensor(x).numpy() is x
    for data in ([1.0, 2.0], [1, 2], 3, 2.5):
        assert Tensor(data).dtype == np.float32
    for data in (np.float64(2), np.int64(2), np.ones(2, bool), np.ones(2, np.float16)):
        assert Tensor(data).dtype == data.dtype
    t = Tensor(np.zeros((2, 3, 4)))
    assert (t.shape, t.ndim, t.size, len(t)) == ((2, 3, 4), 3, 24, 2)
    assert Tensor(5.0).item() == 5.0
    assert repr(Tensor(np.ones(2), requires_grad=True)) == "Tensor(array([1., 1.]), requires_grad=True)"
    assert bool(Tensor(1.0))
    assert not bool(Tensor(0.0))


@pytest.mark.parametrize(
    ("data", "requires_grad", "message"),
    [
        (Tensor(1.0), False, "got a Tensor where an array was expected; use .data"),
        (np.ones(2, complex), False, "holds real numbers, got dtype complex128"),
        ("abc", False, "holds real numbers, got dtype <U3"),
        ([None], False, "holds real numbers, got dtype object"),
        (np.arange(3), True, "only floating-point tensors can require a gradient, got dtype int64"),
        (np.ones(3, bool), True, "only floating-point tensors.*bool"),
    ],
)
def test_what_cannot_be_a_tensor(data, requires_grad, message):
    with pytest.raises(TypeError, match=message):
        Tensor(data, requires_grad)


def test_as_tensor():
    x = leaf(1.0)
    assert as_tensor(x) is x
    assert as_tensor(2, like=np.zeros(1)).dtype == np.float64
    assert as_tensor(2, like=np.zeros(1, np.float32)).dtype == np.float32
    assert as_tensor(np.ones(2)).dtype == np.float64


# ---- the chain rule ------------------------------------------------------------------------------------------------


@given(seed=seeds)
def test_random_graphs_of_operations(seed):
    """Twenty random operations, each on any two earlier results: shared parts, unused parts, long and short paths."""

    def build(x, y, xp):
        rng = np.random.default_rng(seed)
        values = [x, y]
        for _ in range(20):
            a, b = (values[i] for i in rng.integers(len(values), size=2))
            kind = rng.integers(5)
            values.append((a + b, a - b, 0.5 * a * b, xp.tanh(a), 0.3 * a)[kind])
        return values[-1] + x

    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal((2, 3)), rng.standard_normal((1, 3))]
    check_gradient(lambda x, y: build(x, y, ops) + 0 * y, lambda x, y: build(x, y, np) + 0 * y, arrays, rng, rtol=1e-5)


def test_gradients_add_up_over_fresh_graphs():
    x = leaf(1.0, 2.0)
    (x * x).sum().backward()
    (3 * x).sum().backward()
    assert x.grad.tolist() == [5, 7]
    x.grad = None
    (x * x).sum().backward()
    assert x.grad.tolist() == [2, 4]


def test_a_leaf_is_its_own_result():
    x = leaf(1.0, 2.0)
    gradient = np.array([3.0, 4.0])
    x.backward(gradient)
    x.backward(gradient)
    assert x.grad.tolist() == [6, 8]
    assert gradient.tolist() == [3, 4]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_have_the_dtype_of_their_leaf(dtype):
    """Also where float32 and float64 meet."""
    x, w = leaf(1.0, 2.0, dtype=dtype), np.array([0.25, 0.5])
    y = (x * x) * w
    assert y.dtype == np.float64
    y.backward(np.ones(2, np.float32))
    assert x.grad.dtype == dtype
    assert x.grad.tolist() == [0.5, 2.0]


class Small(Function):
    """x, with a gradient of 1e-9 in float32, as a kernel makes one that sums over a batch."""

    def forward(self, x, *, dtype=np.float32):
        self.dtype = dtype
        return x * 1

    def backward(self, g):
        return np.full(g.shape, 1e-9, self.dtype)


def test_a_leaf_of_16_bits_keeps_the_gradient_that_it_is_given():
    """In float16 1e-9 is 0; between operations, whose kernels want their own dtype, it is that."""
    x = leaf(1.0, 2.0, dtype=np.float16)
    Small.apply(x).backward(np.ones(2, np.float16))
    assert x.grad.dtype == np.float32
    assert_close(x.grad, [1e-9, 1e-9], rtol=1e-6)
    (Small.apply(x) + Small.apply(x)).backward(np.ones(2, np.float16))
    assert_close(x.grad, [3e-9, 3e-9], rtol=1e-6)
    x.grad = None
    (x * 1).backward(np.ones(2, np.float16))
    assert x.grad.dtype == np.float16
    Small.apply(x).backward(np.ones(2, np.float16))  # what is wider comes later
    assert x.grad.dtype == np.float32
    x.grad = None
    Small.apply(x, dtype=np.float64).backward(np.ones(2, np.float16))
    assert x.grad.dtype == np.float32
    Recorder.apply(x * 1).backward(np.ones(2, np.float16))
    assert Recorder.seen == np.float16


class Recorder(Function):
    """Notes the dtype of the gradient that it is given."""

    def forward(self, x):
        return x * 1

    def backward(self, g):
        Recorder.seen = g.dtype
        return g


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_backward_is_given_gradients_in_the_dtype_of_its_output(dtype):
    """Whatever came behind: a kernel for float32 could not take another."""
    y = Recorder.apply(leaf(1.0, 2.0, dtype=dtype))
    (y * np.ones(2, np.float64) * np.ones(2, np.float32)).sum().backward()
    assert Recorder.seen == dtype


def test_order_of_creation_does_not_limit_the_order_of_use():
    x = leaf(2.0)
    late = x * 3
    early = x * 5
    (early * late + early).backward(np.ones(1))
    assert x.grad.tolist() == [2 * 15 * 2 + 5]


# ---- whose memory --------------------------------------------------------------------------------------------------


def test_gradients_are_never_shared():
    """x + x and x + y hand the same array to both sides; each leaf has to get its own."""
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    cotangent = np.array([5.0, 6.0])
    (x + y).backward(cotangent)
    assert not np.shares_memory(x.grad, y.grad)
    assert not np.shares_memory(x.grad, cotangent)
    x.grad += 100
    assert y.grad.tolist() == cotangent.tolist() == [5, 6]


def test_the_same_tensor_on_both_sides():
    x = leaf(1.0, 2.0)
    y = x  # another name, not another tensor
    cotangent = np.array([5.0, 6.0])
    (x + y).backward(cotangent)
    assert x.grad.tolist() == [10, 12]
    assert cotangent.tolist() == [5, 6]


def test_views_are_written_back_where_they_came_from():
    """Reshapes, transposes, slices and broadcasts of one tensor, all used at once."""
    x = Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    total = x.reshape(3, 2).T.sum() + (2 * x[:, 1:]).sum() + (x[0] * np.ones((4, 3))).sum() + (5 * x.T[2, 1]).sum()
    total.backward()
    assert x.grad.tolist() == [[5, 7, 7], [1, 3, 8]]


def test_the_gradient_of_a_view_is_writable_and_own():
    x, y = leaf(1.0, 2.0), leaf(3.0)
    joined = ops.concatenate(x, y)
    joined.backward(np.ones(3))
    for t in (x, y):
        assert t.grad.flags.writeable
        assert t.grad.base is None
    x.grad[...] = 7
    assert y.grad.tolist() == [1]


def test_gradient_buffers_are_filled_in_place():
    x = leaf(1.0, 2.0)
    buffer = x.grad_buffer = np.full(2, np.nan)
    (2 * x).sum().backward()
    (3 * x).sum().backward()
    assert x.grad is buffer
    assert buffer.tolist() == [5, 5]


# ---- NumPy and tensors together ------------------------------------------------------------------------------------


@given(value=st.sampled_from([np.ones((2, 2)), np.float64(2), np.float32(2), np.ones(2, np.float32), np.array(3.0)]))
def test_arrays_leave_operators_to_the_tensor(value):
    x = leaf(1.0, 2.0)
    for result in (value * x, value + x, value - x, value / x):
        assert isinstance(result, Tensor)
        assert result.requires_grad
    assert_close((value / x).data, value / x.data, rtol=0)
    if np.ndim(value) == 2:
        assert isinstance(value @ x.reshape(2, 1), Tensor)


def test_numpy_makes_no_arrays_of_tensors_and_changes_none_by_them():
    """Rather than give an array of objects, or lose the history: one sentence that says what to write."""
    x = leaf(1.0, 2.0)
    for attempt in (np.asarray, np.array, lambda x: np.stack([x, x]), lambda x: np.concatenate([x, x])):
        with pytest.raises(TypeError, match=r"use x\.data or x\.numpy\(\)"):
            attempt(x)
    with pytest.raises(TypeError, match=r"np\.sin has no derivative here"):
        np.sin(x)
    array = np.ones(2)
    with pytest.raises(TypeError, match="write a = a"):
        array += x
    with pytest.raises(TypeError):
        x[0] = 1.0
    with pytest.raises(TypeError, match="leave out= away"):
        np.sum(x, out=array)


def test_methods_and_functions_that_numpy_users_expect():
    values = np.array([[0.5, 2.0, 1.25], [3.0, 0.75, 1.5]])
    x = Tensor(values)
    same = {
        "abs": (abs(-x), values), "np.abs": (np.abs(-x), values), "exp": (x.exp(), np.exp(values)),
        "np.exp": (np.exp(x), np.exp(values)), "log": (x.log(), np.log(values)), "np.log": (np.log(x), np.log(values)),
        "sqrt": (np.sqrt(x), np.sqrt(values)), "clip": (x.clip(1, 2), values.clip(1, 2)), "2 ** x": (2 ** x, 2**values),
        "sum": (np.sum(x), values.sum()), "mean": (np.mean(x, axis=0), values.mean(0)),
        "max": (np.max(x, axis=1), values.max(1)), "min": (x.min(1), values.min(1)),
        "all min": (np.min(x), values.min()),
        "std": (x.std(), values.std()), "std of columns": (np.std(x, axis=0), values.std(0)),
        "unbiased": (x.var(1, ddof=1), values.var(1, ddof=1)), "flatten": (x.flatten(), values.ravel()),
    }  # fmt: skip
    for name, (got, expected) in same.items():
        assert isinstance(got, Tensor), name
        assert_close(got.data, expected, rtol=1e-12, what=name)
    assert x.argmax() == 3
    assert x.argmin(1).tolist() == [0, 1]
    for compare in (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne):
        for other in (1.25, values.T[:1].T, Tensor(values[::-1])):
            expected = compare(values, getattr(other, "data", other) if isinstance(other, Tensor) else other)
            assert np.array_equal(compare(x, other).data, expected)
            assert compare(x, other).dtype == bool
    assert (np.ones((2, 3)) > x).data.tolist() == (np.ones((2, 3)) > values).tolist()
    assert len({x, x, Tensor(values)}) == 2  # still keys of a dict
    low, high = x > 0.6, x < 2
    assert np.array_equal((low & high).data, (values > 0.6) & (values < 2))
    assert np.array_equal((low | ~high).data, (values > 0.6) | ~(values < 2))
    for base in (2, 0.5, np.float32(3), np.full(3, 2, np.float32)):  # the dtype stays
        assert (base ** Tensor(np.float32(values))).dtype == np.float32
    with pytest.raises(ValueError, match="needs a positive base, got -2"):
        (-2) ** x
    total = Tensor(np.array(2.5))
    assert (float(total), int(total), f"{total:.2f}", f"{total}") == (2.5, 2, "2.50", str(total))


@pytest.mark.parametrize("shapes", [((3,), (3,)), ((3,), (3, 2)), ((2, 3), (3,)), ((4, 2, 3), (3,)), ((3,), (4, 3, 2))])
def test_products_with_vectors_are_numpys(shapes):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape) for shape in shapes)
    x, y = Tensor(a, True), Tensor(b, True)
    assert_close((x @ y).data, a @ b, rtol=1e-12)
    assert_close((a @ y).data, a @ b, rtol=1e-12)
    (x @ y).sum().backward()
    h, d = 1e-6, rng.standard_normal(a.shape)
    slope = (((a + h * d) @ b).sum() - ((a - h * d) @ b).sum()) / (2 * h)
    assert (x.grad * d).sum() == pytest.approx(slope, rel=1e-6)


def test_methods_that_pytorch_users_expect():
    values = np.array([[[0.5, -2.0, 1.25]], [[3.0, 0.75, -1.5]]])  # (2, 1, 3)
    x, y = Tensor(values, requires_grad=True), values
    softmax = np.exp(y) / np.exp(y).sum(-1, keepdims=True)
    same = {
        "sum": (x.sum(dim=0, keepdim=True), y.sum(0, keepdims=True)), "mean": (x.mean(dim=(0, 2)), y.mean((0, 2))),
        "clamp": (x.clamp(0, 1), y.clip(0, 1)), "from below": (x.clamp(min=0.6), np.maximum(y, 0.6)),
        "np.clip": (np.clip(x, -1, 1), y.clip(-1, 1)), "pow": (x.pow(2), y**2), "square": (x.square(), y**2),
        "plus": (+x, y), "clone": (x.clone(), y), "copy": (x.copy(), y), "tanh": (x.tanh(), np.tanh(y)),
        "relu": (x.relu(), np.maximum(y, 0)), "sigmoid": (x.sigmoid(), 1 / (1 + np.exp(-y))),
        "softmax": (x.softmax(dim=-1), softmax), "log_softmax": (x.log_softmax(-1), np.log(softmax)),
        "view": (x.view(3, 2), y.reshape(3, 2)), "ravel": (x.ravel(), y.ravel()),
        "dot": (x[0, 0].dot(x[1, 0]), y[0, 0] @ y[1, 0]),
        "permute": (x.permute(2, 0, 1), y.transpose(2, 0, 1)), "in one": (x.permute((1, 2, 0)), y.transpose(1, 2, 0)),
        "swapaxes": (x.swapaxes(0, -1), y.swapaxes(0, -1)), "mT": (x.mT, y.swapaxes(-1, -2)),
        "squeeze": (x.squeeze(), y[:, 0]), "of one axis": (x.squeeze(dim=1), y[:, 0]),
        "np.squeeze": (np.squeeze(x, 1), y[:, 0]),
        "unsqueeze": (x.unsqueeze(-1), y[..., None]), "at the front": (x.unsqueeze(dim=0), y[None]),
        "expand": (x.expand(2, 4, 3), np.broadcast_to(y, (2, 4, 3))),
        "matmul": (x.matmul(x.mT), y @ y.swapaxes(-1, -2)),
        "norm": (x.norm(), np.linalg.norm(y)),
        "norms": (x.norm(dim=-1, keepdim=True), np.linalg.norm(y, axis=-1, keepdims=True)),
    }  # fmt: skip
    for name, (got, expected) in same.items():
        assert got.shape == np.shape(expected), name
        assert_close(got.data, expected, rtol=1e-12, what=name)
        assert got.requires_grad, name
        assert not np.shares_memory(got.data, values) or name not in ("plus", "clone", "copy"), name
        x.grad = None
        got.sum().backward()
        assert np.isfinite(x.grad).all(), name
    assert x.argmax(dim=-1).tolist() == [[2], [0]]
    assert (x.dim(), x.numel(), x.nbytes, x.tolist()) == (3, 6, 48, values.tolist())
    assert bool((x > -9).all())
    assert not bool((x > 9).any())
    for refused in (x.max, x.min, x.std, x.var):
        with pytest.raises(TypeError, match="write axis= for dim="):
            refused(dim=0)
        assert refused(axis=0).shape == (1, 3)
    with pytest.raises(TypeError, match="keeps its dtype"):
        x.astype(np.float32)
    with pytest.raises(ValueError, match="longer than 1"):
        x.squeeze(0)
    with pytest.raises(ValueError, match="needs min or max"):
        x.clamp()
    with pytest.raises(ValueError, match=r"expected -4 \.\. 3"):
        x.unsqueeze(5)


def test_functions_of_numpy_go_to_the_method_of_that_name():
    values = np.array([[0.5, 2.0, 1.25], [3.0, 0.75, 1.5]])
    x = Tensor(values, requires_grad=True)
    same = {
        "reshape": (np.reshape(x, (3, 2)), values.reshape(3, 2)), "transpose": (np.transpose(x), values.T),
        "from above": (np.clip(x, None, 1), values.clip(None, 1)), "below": (x.clip(min=1), values.clip(1)),
        "all but one": (x.reshape(1, 2, 3).flatten(1), values.reshape(1, 6)), "square": (np.square(x), values**2),
        "two of three": (x.reshape(1, 2, 3).flatten(0, 1), values), "C": (x.flatten("C"), values.ravel()),
        "norm": (x.norm(2), np.linalg.norm(values)), "of rows": (x.norm(2, dim=1), np.linalg.norm(values, axis=1)),
    }  # fmt: skip
    for name, (got, expected) in same.items():
        assert got.requires_grad, name
        assert_close(got.data, expected, rtol=1e-12, what=name)
    assert np.argmax(x, axis=1, keepdims=True).tolist() == [[1], [0]]
    assert np.array_equal(x, values)
    assert np.array_equal(values, x)
    assert not np.array_equal(x, values + 1)
    assert not np.array_equiv(x, values.T)
    holes = Tensor([np.nan, np.inf, 1.0])
    for name in ("isnan", "isinf", "isfinite"):
        expected = getattr(np, name)(holes.data).tolist()
        assert getattr(holes, name)().tolist() == getattr(np, name)(holes).tolist() == expected


def test_axes_that_a_tensor_does_not_have_are_refused():
    x = Tensor(np.ones((2, 3, 1)))
    for attempt in (
        lambda: x.transpose(0, 7, 2), lambda: x.permute(0, 1, 3), lambda: x.squeeze(5), lambda: x.swapaxes(0, 3),
        lambda: x.flatten(3), lambda: x.squeeze(-4),
    ):  # fmt: skip
        with pytest.raises(np.exceptions.AxisError, match="out of bounds for array of dimension 3"):
            attempt()
    with pytest.raises(ValueError, match="takes all 3 axes"):
        x.transpose(1, 2)
    with pytest.raises(ValueError, match="start_dim 2 comes after end_dim 1"):
        x.flatten(2, 1)
    for attempt in (lambda: x.flatten("F"), lambda: x.ravel("F"), lambda: np.reshape(x, 6, order="F")):
        with pytest.raises(ValueError, match="in order 'C', that of its rows, got order='F'"):
            attempt()
    with pytest.raises(ValueError, match="p=2, got p=1"):
        x.norm(1)
    with pytest.raises(ValueError, match="ddof 6 leaves nothing of the 6 numbers"):
        x.std(ddof=6)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("cpu", r"x\.numpy\(\)"),
        ("float", r"write x\.astype\('float32'\)"),
        ("where", r"write pydiff\.ops\.where\(x, \.\.\)"),
        ("add_", "no Tensor is changed in place"),
        ("requires_grad_", r"write Tensor\(x\.data, requires_grad=True\)"),
        ("cumsum", r"x\.data\.cumsum is that of the values alone"),
        ("topk", "no attribute 'topk'$"),
        ("mul", r"write the operator, x \* y"),
        ("chunk", r"write x\[first:last\]"),
        ("is_leaf", r"x\.maker is the Function"),
        ("zero_grad", r"write x\.grad = None"),
        ("t", r"write x\.T$"),
    ],
)
def test_attributes_of_other_libraries_are_named_with_what_to_write(name, instead):
    with pytest.raises(AttributeError, match=instead):
        getattr(Tensor([1.0, 2.0]), name)
    assert getattr(Tensor([1.0]), name, None) is None


def test_arguments_that_an_operation_does_not_take_are_named():
    x = Tensor([[1.0, 2.0], [3.0, 4.0]])
    for attempt, message in (
        (lambda: ops.softmax(x, dim=1), "^Softmax got an unexpected keyword argument 'dim'; write axis=$"),
        (lambda: ops.clip(x, 0), "^Clip missing 1 required positional argument: 'high'$"),
        (lambda: ops.mean_squared_error(x, [[1, 2], [3, 4]]), "^MeanSquaredError needs arrays or Tensors, got list; "),
        (lambda: ops.concatenate([x, x], axis=0), r"one by one; write concatenate\(a, b, axis=-1\)"),
        (lambda: f"{x:.2f}", r"^'\.2f' is the format of a single number, but this Tensor has shape \(2, 2\)$"),
    ):
        with pytest.raises(TypeError, match=message):
            attempt()


def linear():
    return pydiff.nn.Linear(3, 2).initialize(0)


def test_what_users_of_pytorch_and_numpy_write_is_said_to_be_otherwise_here():
    x = Tensor(np.ones((2, 3)), requires_grad=True)
    for attempt, error, message in (
        (lambda: x.size(0), TypeError, r"as in NumPy; PyTorch's x\.size\(0\) is x\.shape\[0\]"),
        (lambda: x.__setitem__(0, 1.0), TypeError, r"x\.data\[0\] = \.\. changes the values, and ops\.where"),
        (lambda: x.sum().backward(retain_graph=True), ValueError, "add the losses and call backward once"),
        (lambda: x @ Tensor(np.ones((2, 3))), ValueError, "as many columns of x as rows of y"),
        (lambda: Tensor([[1, 2], [3]]), ValueError, "got a list with rows of different lengths"),
        (lambda: Tensor(None), TypeError, "holds real numbers, got None"),
        (lambda: ops.cat, AttributeError, r"write concatenate\(a, b, axis=-1\)"),
        (lambda: ops.mse_loss, AttributeError, "write mean_squared_error"),
        (lambda: ops.sigmiod, AttributeError, "did you mean 'sigmoid'"),
        (lambda: pydiff.nn.Sequential, AttributeError, "assign modules, or a list of them, to a Module"),
        (lambda: pydiff.nn.ReLU, AttributeError, r"pydiff\.ops\.relu\(x\) is an operation"),
        (lambda: pydiff.nn.Lienar, AttributeError, "did you mean 'Linear'"),
        (lambda: pydiff.optim.AdamW(linear()).param_groups, AttributeError, r"is given to step\(step, lr\)"),
        (lambda: linear().load_state_dict(None), TypeError, "weights are a dict of arrays, .* got None"),
        (lambda: pydiff.train("digits", model=3), TypeError, "model is 3, expected a network"),
        (lambda: pydiff.DDPMPipeline, AttributeError, r"here it is pydiff\.load\(folder\)"),
        (lambda: pydiff.manual_seed, AttributeError, "here it is seed="),
        (lambda: ops.conv2d(np.ones((1, 3, 8, 8)), np.ones((3, 3, 3, 5))), ValueError, "channels are last here"),
    ):
        with pytest.raises(error, match=message):
            attempt()
    assert x.size == 6
    assert isinstance(x.size, int)
    assert x.mean([0, 1]).item() == x.max([0]).data.max() == 1


def test_tensors_are_indices_too():
    x = Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    (x[:, x.detach()[0] > 0].sum() + 10 * x[Tensor(np.array([1, 1])), Tensor(np.array([0, 2]))].sum()).backward()
    assert x.grad.tolist() == [[0, 1, 1], [10, 1, 11]]


def test_arrays_of_pytorch_are_numbers_and_matrices_are_none():
    torch = import_torch()
    theirs = torch.tensor([1.0, 2.0])
    x = Tensor(theirs)
    assert type(x.data) is np.ndarray
    assert (x + theirs).tolist() == (theirs + x).tolist() == [2, 4]
    for matrix in (np.eye(2).view(np.matrix), scipy_identity()):
        with pytest.raises(
            TypeError, match=r"expected a plain array, got a matrix|real numbers, got <.* sparse matrix"
        ):
            Tensor(matrix)
    with pytest.raises(TypeError, match="expected a plain array, got a matrix"):
        Tensor(np.eye(2)) * np.eye(2).view(np.matrix)


def scipy_identity():
    return pytest.importorskip("scipy.sparse").eye(2)


@pytest.mark.parametrize("put", [0, 0.0, [0, 0], "no", np.zeros(3), np.zeros((2, 2)), Tensor([0.0, 0.0])])
def test_a_gradient_that_is_none_is_refused(put):
    x = leaf(1.0, 2.0)
    x.grad = put
    with pytest.raises(ValueError, match=r"that was replaced by .*, expected an array \(2,\); .* write p\.grad = None"):
        (2 * x).sum().backward()
    x.grad = None
    (2 * x).sum().backward()
    assert x.grad.tolist() == [2, 2]


def test_no_grad_with_and_without_parentheses():
    x = leaf(1.0)
    assert not no_grad(lambda: 2 * x)().requires_grad
    assert not no_grad()(lambda: 2 * x)().requires_grad
    assert (2 * x).requires_grad


def test_small_integers_are_converted_as_the_message_says():
    x = Tensor(np.array([200, 100], np.uint8))
    with pytest.raises(TypeError, match=r"use \.astype\(np\.float32\)"):
        x * x
    assert (x.astype(np.float32) * x.astype(np.float32)).tolist() == [40000, 10000]


def test_slopes_of_methods():
    values = np.array([0.5, 2.0, -1.25, 3.0])
    for name, f, slope in (
        ("abs", abs, np.sign(values)),
        ("2 ** x", lambda x: 2**x, np.log(2) * 2**values),
        ("std", lambda x: x.std(), (values - values.mean()) / (4 * values.std())),
        ("min", lambda x: x.min(), np.array([0, 0, 1.0, 0])),
    ):
        x = Tensor(values.copy(), True)
        f(x).sum().backward()
        assert_close(x.grad, slope, rtol=1e-12, what=name)


def test_public_names():
    assert pydiff.Tensor is Tensor
    assert pydiff.no_grad is no_grad
    assert pydiff.Function is Function

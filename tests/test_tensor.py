"""The autograd engine: what is recorded, in which order it is run, what is freed, and whose memory a gradient is."""

import gc
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pydiff
from pydiff import ops
from pydiff.tensor import Function, Tensor, as_tensor, grad_enabled, no_grad
from tests.compare import assert_close, check_gradient
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


# ---- recording -----------------------------------------------------------------------------------------------------


def test_no_grad_nested_and_after_an_exception():
    x = leaf(1.0)
    with no_grad():
        assert not grad_enabled()
        with no_grad():
            assert not (x * 2).requires_grad
        assert not grad_enabled()
    assert grad_enabled()
    with pytest.raises(ZeroDivisionError), no_grad():
        raise ZeroDivisionError
    assert grad_enabled()
    assert (x * 2).requires_grad


def test_no_grad_as_a_decorator():
    @no_grad()
    def double(x):
        return x * 2

    for _ in range(2):
        assert not double(leaf(1.0)).requires_grad
    assert grad_enabled()


def test_each_thread_records_for_itself():
    inside, answers = threading.Barrier(2), []

    def other():
        answers.append(grad_enabled())
        with no_grad():
            inside.wait()
            inside.wait()
        answers.append(grad_enabled())

    thread = threading.Thread(target=other)
    with no_grad():
        thread.start()
        inside.wait()
    assert grad_enabled()  # while the other thread is still inside its own no_grad
    assert leaf(1.0).__mul__(2).requires_grad
    inside.wait()
    thread.join()
    assert answers == [True, True]


def test_threads_do_not_disturb_each_other():
    """Eight threads with graphs of their own: each gets the gradient that it gets alone."""
    weights = np.random.default_rng(0).standard_normal((3, 3, 4, 4)).astype(np.float32)

    def gradient(seed):
        x = Tensor(np.random.default_rng(seed).standard_normal((2, 8, 8, 4)).astype(np.float32), requires_grad=True)
        y = x
        for _ in range(4):
            y = ops.silu(ops.conv2d(y, weights, padding=1)) + x
        y.backward(x.data)
        return x.grad

    expected = [gradient(seed) for seed in range(8)]
    differing = []

    def work(seed):
        differing.extend(seed for _ in range(10) if gradient(seed).tobytes() != expected[seed].tobytes())

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert differing == []


def test_constants_are_not_recorded():
    x = Tensor(np.ones(2))
    assert (x * 2).maker is None
    y = leaf(1.0, 2.0)
    detached = y.detach()
    assert not detached.requires_grad
    assert detached.data is y.data
    (y * detached).sum().backward()
    assert y.grad.tolist() == [1, 2]


# ---- memory --------------------------------------------------------------------------------------------------------


def test_backward_frees_the_graph():
    """What forward stored is gone after backward, even while the result is still there."""
    x = leaf(*range(10))
    middle = ops.exp(x)
    stored, tensor = weakref.ref(middle.data), weakref.ref(middle)
    y = middle * middle
    del middle
    gc.disable()
    try:
        assert stored() is not None
        y.backward(np.ones(10))
        assert stored() is None
        assert tensor() is None
    finally:
        gc.enable()
    assert y.shape == (10,)


def test_a_dropped_graph_is_freed_without_the_garbage_collector():
    gc.disable()
    try:
        x = leaf(1.0)
        y = ops.exp(x)
        data = weakref.ref(y.data)
        z = y * y + y
        del y, z
        assert data() is None
    finally:
        gc.enable()


def long_chain(length):
    """Forward, backward, and the destruction of a chain that backward never saw."""
    x = leaf(1.0)
    y = x
    for _ in range(length):
        y = y + x
    y.backward(np.ones(1))
    y = x
    for _ in range(length):
        y = -y
    del y
    return x.grad.tolist()


def test_a_chain_deeper_than_any_recursion_limit():
    assert long_chain(100_000) == [100_001]


def test_a_long_chain_fits_into_a_small_stack():
    """A thread's stack is much smaller than the main one's, and an overflow there is no exception but a crash."""
    result, before = [], threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=lambda: result.append(long_chain(20_000)))
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert result == [[20_001]]


# ---- Function ------------------------------------------------------------------------------------------------------


class Parts(Function):
    """x -> (2x, 3x, number of elements): remembers which gradients backward was given."""

    seen = None

    def forward(self, x, scale=1.0):
        self.scale = scale
        return 2 * x * scale, 3 * x * scale, np.array(x.size)

    def backward(self, da, db, dn):
        Parts.seen = (da is not None, db is not None, dn is not None)
        return sum(f * g * self.scale for f, g in ((2, da), (3, db)) if g is not None)


@pytest.mark.parametrize(("use_a", "use_b"), [(True, True), (True, False), (False, True)])
def test_outputs_that_nobody_used_have_no_gradient(use_a, use_b):
    x = leaf(1.0, 1.0)
    a, b, n = Parts.apply(x, scale=10.0)
    assert not n.requires_grad  # an integer
    total = (a.sum() if use_a else 0) + (b.sum() if use_b else 0)
    total.backward()
    assert Parts.seen == (use_a, use_b, False)
    assert x.grad.tolist() == [20 * use_a + 30 * use_b] * 2


def test_two_outputs_meet_again():
    x = leaf(1.0, 1.0)
    a, b, _ = Parts.apply(x)
    (a * b).sum().backward()
    assert x.grad.tolist() == [12, 12]


class Select(Function):
    """The second of three arguments; says which of them want a gradient."""

    def forward(self, _x, y, _option):
        Select.wanted = list(self.needs)
        return y * 1

    def backward(self, g):
        return None, g, None


def test_needs_and_missing_gradients():
    x, y = leaf(1.0), leaf(2.0)
    Select.apply(x, y, "option").backward(np.ones(1))
    assert Select.wanted == [True, True, False]
    assert x.grad is None
    assert y.grad.tolist() == [1]
    Select.apply(np.ones(1), y, None)
    assert Select.wanted == [False, True, False]
    with no_grad():
        Select.apply(x, y, None)
    assert Select.wanted == [False, False, False]


class WrongShape(Function):
    def forward(self, x):
        return x * 1

    def backward(self, g):
        return g[:1]


class TooFew(Function):
    def forward(self, x, y):
        return x + y

    def backward(self, g):
        return g


def test_mistakes_in_a_backward_are_noticed():
    with pytest.raises(AssertionError, match=r"WrongShape: gradient \(1,\) for input \(2,\)"):
        WrongShape.apply(leaf(1.0, 2.0)).sum().backward()
    with pytest.raises(AssertionError, match="TooFew: 1 gradients for 2 inputs"):
        TooFew.apply(leaf(1.0), leaf(2.0)).backward(np.ones(1))


# ---- errors of backward --------------------------------------------------------------------------------------------


def test_a_second_backward_is_refused():
    x = leaf(1.0)
    y = x * x
    z = (y * 3).sum()
    z.backward()
    for again in (z, y):
        with pytest.raises(RuntimeError, match="backward was called a second time through the same computation"):
            again.backward(np.ones(again.shape))
    with pytest.raises(RuntimeError, match="compute the result again"):
        (y + 1).sum().backward()
    assert x.grad.tolist() == [6]


def test_backward_without_anything_to_do():
    for constant in (Tensor(1.0), leaf(2.0).detach().sum(), Tensor(np.array(3))):
        with pytest.raises(RuntimeError, match="does not depend on anything that requires a gradient"):
            constant.backward()


@pytest.mark.parametrize("gradient", [np.ones(3), np.ones((1, 2)), np.float64(1), 1.0, [1.0, 1.0], "x"])
def test_gradients_of_another_shape_are_refused(gradient):
    with pytest.raises(ValueError, match=r"the gradient must be an array of shape \(2,\), got"):
        leaf(1.0, 2.0).backward(gradient)


def test_only_a_single_number_needs_no_gradient():
    with pytest.raises(ValueError, match=r"backward\(\) without a gradient needs a single number.*shape \(2,\)"):
        leaf(1.0, 2.0).backward()
    x = leaf(1.0)
    (x * 2).reshape(1, 1).backward()
    assert x.grad.tolist() == [2]
    x.backward(Tensor(np.ones(1)))
    assert x.grad.tolist() == [3]


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


def test_numpy_functions_and_in_place_operators_refuse_tensors():
    """Rather than give an array of objects, or lose the history."""
    x = leaf(1.0, 2.0)
    with pytest.raises(TypeError):
        np.exp(x)
    array = np.ones(2)
    with pytest.raises(TypeError):
        array += x
    with pytest.raises(TypeError):
        x[0] = 1.0


def test_public_names():
    assert pydiff.Tensor is Tensor
    assert pydiff.no_grad is no_grad
    assert pydiff.Function is Function

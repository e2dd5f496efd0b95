"""The graph behind tensors: what is recorded, when it is freed, and every way to call backward wrongly."""

import gc
import threading
import weakref

import numpy as np
import pytest

from pydiff import ops
from pydiff.recompute import recompute
from pydiff.tensor import Function, Tensor, grad_enabled, no_grad


def leaf(*values, dtype=np.float64):
    return Tensor(np.array(values, dtype), requires_grad=True)


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


def test_a_leaf_is_finished_once_and_then_its_gradient_stays():
    a, b, c, unused = leaf(1.0, 2.0), leaf(3.0, 4.0), leaf(5.0, 6.0), leaf(7.0)
    x = a * b  # the oldest use of both
    y = (x + c).reshape(1, 2) @ ops.reshape(c, (2, 1)) + ops.summation(x * b)
    found = []
    y.backward(finished=lambda tensor: found.append((tensor, tensor.grad.copy())))
    assert found[0][0] is c
    assert {id(tensor) for tensor, _ in found} == {id(a), id(b), id(c)}
    assert len(found) == 3
    for tensor, gradient in found:
        np.testing.assert_array_equal(tensor.grad, gradient)
    assert unused.grad is None


def test_a_leaf_is_finished_before_what_is_older_is_computed():
    """Whoever sends gradients around wants them early."""
    first, last, events = leaf(1.0), leaf(2.0), []

    class Noted(Function):
        def forward(self, x):
            return x

        def backward(self, g):
            events.append("older")
            return g

    (Noted.apply(first * 2) * last).backward(finished=lambda t: events.append("last" if t is last else "first"))
    assert events == ["last", "older", "first"]


def test_what_is_replayed_finishes_with_what_replays_it():
    w, events = leaf(3.0), []

    def part(x):
        return x * w * w

    x = leaf(2.0)
    y = recompute(part, part, [w], [x])
    (y * w).backward(finished=lambda tensor: events.append((tensor, tensor.grad.tolist())))
    assert [(t is w, grad) for t, grad in events if t is w] == [(True, w.grad.tolist())]
    assert {id(t) for t, _ in events} == {id(w), id(x)}


def test_a_leaf_alone_is_finished_at_once():
    x, found = leaf(1.0), []
    x.backward(finished=found.append)
    assert found == [x]

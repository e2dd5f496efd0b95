"""Operations that move elements: values against NumPy itself, gradients against slopes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pydiff import ops
from pydiff.tensor import Tensor
from tests.compare import assert_close, check_gradient, gradients
from tests.strategies import seeds, small, strided


@st.composite
def arrays(draw, min_dims=0, max_dims=4, min_side=0):
    rng = np.random.default_rng(draw(seeds))
    shape = draw(hnp.array_shapes(min_dims=min_dims, max_dims=max_dims, min_side=min_side, max_side=5))
    return rng, draw(strided(rng, shape)) if shape else np.asarray(rng.standard_normal())


def check(op, expected, x, rng):
    """The same elements in the same places, and the gradient."""
    np.testing.assert_array_equal(op(Tensor(x)).data, expected(x))
    check_gradient(op, expected, [x], rng)


@given(arrays(), st.randoms(use_true_random=False))
def test_reshape(case, random):
    rng, x = case
    shape = list(x.shape)
    random.shuffle(shape)
    check(lambda x: ops.reshape(x, tuple(shape)), lambda x: x.reshape(shape), x, rng)
    check(lambda x: x.reshape(*shape, 1), lambda x: x.reshape(*shape, 1), x, rng)
    if x.size:
        check(lambda x: x.reshape(-1), lambda x: x.reshape(-1), x, rng)
        check(lambda x: x.reshape((1, -1)), lambda x: x.reshape(1, -1), x, rng)
    with pytest.raises(ValueError, match="reshape"):
        ops.reshape(Tensor(x), (x.size + 1,))


@given(arrays(), st.data())
def test_transpose(case, data):
    rng, x = case
    axes = data.draw(st.permutations(range(x.ndim)))
    signed = [a - x.ndim * data.draw(st.integers(0, 1)) for a in axes]
    check(lambda x: ops.transpose(x, axes=signed), lambda x: x.transpose(axes), x, rng)
    check(lambda x: x.transpose(*axes) if axes else x.transpose(), lambda x: x.transpose(axes), x, rng)
    check(ops.transpose, np.transpose, x, rng)
    check(lambda x: x.T, lambda x: x.T, x, rng)


@given(data=st.data(), seed=seeds)
def test_broadcast_to(data, seed):
    drawn = data.draw(hnp.mutually_broadcastable_shapes(num_shapes=1, base_shape=(3, 1, 4), max_dims=4, max_side=4))
    rng = np.random.default_rng(seed)
    x, shape = rng.standard_normal(drawn.input_shapes[0]), drawn.result_shape
    check(lambda x: ops.broadcast_to(x, shape), lambda x: np.broadcast_to(x, shape), x, rng)


# ---- indexing ------------------------------------------------------------------------------------------------------


@given(arrays(), st.data())
def test_basic_indexing(case, data):
    """Integers, slices with any step, ... and new axes."""
    rng, x = case
    index = data.draw(hnp.basic_indices(x.shape, allow_newaxis=True, allow_ellipsis=True))
    check(lambda x: x[index], lambda x: np.asarray(x[index]), x, rng)


@given(arrays(min_dims=1, min_side=1), st.data())
def test_integer_arrays_with_repeats(case, data):
    rng, x = case
    index = data.draw(hnp.integer_array_indices(x.shape, result_shape=hnp.array_shapes(max_dims=2, max_side=6)))
    check(lambda x: x[index], lambda x: x[index], x, rng)


@given(arrays(), st.data())
def test_boolean_masks(case, data):
    rng, x = case
    mask = data.draw(hnp.arrays(bool, x.shape[: data.draw(st.integers(0, x.ndim))]))
    check(lambda x: x[mask], lambda x: x[mask], x, rng)


@pytest.mark.parametrize(
    "index",
    [
        [0, 0, 2],
        (slice(None), [1, 1]),
        (1, slice(None), [True, False, True, True]),
        (np.array([[0], [2]]), slice(0, 2), np.array([0, 0])),
        (None, [2], ..., -1),
        np.int64(1),
        (np.zeros(0, int),),
        (slice(5, 5),),
        slice(None, None, -2),
    ],
)
def test_mixed_indexing(index):
    rng = np.random.default_rng(0)
    check(lambda x: x[index], lambda x: x[index], rng.standard_normal((3, 2, 4)), rng)


def test_an_element_picked_twice_gets_both_gradients():
    _, dx = gradients(lambda x: x[[0, 2, 2, 2]], [np.zeros(3)], np.array([1.0, 2.0, 3.0, 4.0]))
    assert dx.tolist() == [1, 0, 9]


@pytest.mark.parametrize("index", [3, (0, 5), np.array([7]), slice(None, None, 0), 1.5, "a", [True, False]])
def test_bad_indices_are_refused_as_in_numpy(index):
    x = np.zeros((3, 4))
    for array in (x, Tensor(x)):
        with pytest.raises((IndexError, ValueError)):
            array[index]


# ---- concatenate ---------------------------------------------------------------------------------------------------


@given(seed=seeds, shape=st.lists(st.integers(0, 3), min_size=1, max_size=3), data=st.data())
def test_concatenate(seed, shape, data):
    rng = np.random.default_rng(seed)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    parts = []
    for _ in range(data.draw(st.integers(1, 4))):
        part = list(shape)
        part[axis] = data.draw(st.integers(0, 4))
        parts.append(data.draw(strided(rng, part)))
    np.testing.assert_array_equal(ops.concatenate(*parts, axis=axis).data, np.concatenate(parts, axis))
    check_gradient(lambda *a: ops.concatenate(*a, axis=axis), lambda *a: np.concatenate(a, axis), parts, rng)


def test_concatenate_with_constants_and_with_itself():
    x = Tensor(np.ones((2, 3)), requires_grad=True)
    ops.concatenate(x, np.zeros((2, 1)), x).backward(np.arange(14.0).reshape(2, 7))
    assert x.grad.tolist() == [[4, 6, 8], [18, 20, 22]]


def test_shapes_that_do_not_join_are_refused():
    with pytest.raises(ValueError, match="must match exactly"):
        ops.concatenate(Tensor(np.zeros((2, 3))), np.zeros((3, 3)))


# ---- images ------------------------------------------------------------------------------------------------------


@given(seed=seeds, h=small, w=small, c=small, n=st.integers(0, 2), factor=st.integers(1, 3), data=st.data())
def test_resampling(seed, h, w, c, n, factor, data):
    """Upsampling repeats pixels; average pooling, of any size, leaves out the rows and columns that fill no square."""
    rng = np.random.default_rng(seed)
    x = data.draw(strided(rng, (n, h, w, c)))

    def pooled(x):
        y = np.empty((n, h // factor, w // factor, c))
        for i, j in np.ndindex(y.shape[1:3]):
            y[:, i, j] = x[:, i * factor : (i + 1) * factor, j * factor : (j + 1) * factor].mean(axis=(1, 2))
        return y

    check(lambda x: ops.upsample_nearest(x, factor=factor), lambda x: x.repeat(factor, 1).repeat(factor, 2), x, rng)
    assert_close(ops.average_pool(Tensor(x), factor=factor).data, pooled(x), rtol=1e-14)
    check_gradient(lambda x: ops.average_pool(x, factor=factor), pooled, [x], rng)

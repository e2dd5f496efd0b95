"""Embedding: values against the equation, gradient against its slope, torch, and the same bits every time."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pydiff import ops
from pydiff.graph import Plan
from pydiff.ops.embedding import sum_by_tree
from pydiff.reference.embedding import embedding as reference
from pydiff.tensor import Tensor
from tests.bits import assert_same_bits
from tests.compare import assert_close, check_gradient, gradients
from tests.peers import import_torch
from tests.strategies import seeds, small, strided


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(seeds))
    rows = draw(small)
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6))
    ids = rng.integers(rows, size=shape).astype(draw(st.sampled_from([np.int64, np.int32, np.uint8])))
    return rng, draw(strided(rng, (rows, draw(small)))), np.asarray(ids)


@given(cases())
def test_values_and_gradient(case):
    rng, table, ids = case
    np.testing.assert_array_equal(ops.embedding(Tensor(table), ids).data, reference(table, ids))
    assert ops.embedding(table.astype(np.float32), ids).dtype == np.float32
    check_gradient(lambda table: ops.embedding(table, ids), lambda table: reference(table, ids), [table], rng)


@given(cases())
def test_the_tree_adds_the_same_as_the_loop(case):
    """What a GPU does, with NumPy."""
    rng, table, ids = case
    values = rng.standard_normal((ids.size, table.shape[1]))
    loop, tree = np.zeros_like(table), np.zeros_like(table)
    np.add.at(loop, ids.reshape(-1), values)
    sum_by_tree(tree, ids.reshape(-1), values)
    assert_close(tree, loop, rtol=1e-13, atol=1e-14)


def test_same_bits_every_time_and_no_one_hot_rows():
    """A table of CLIP's size with a common token: a matrix (rows, N) would have 240 MB."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((49_408, 16)).astype(np.float32)
    ids = np.where(rng.random((16, 77)) < 0.5, 49_407, rng.integers(49_408, size=(16, 77)))
    dy = rng.standard_normal((16, 77, 16)).astype(np.float32)
    tracemalloc.start()
    first = gradients(lambda t: ops.embedding(t, ids), [table], dy)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * table.nbytes
    assert_same_bits(gradients(lambda t: ops.embedding(t, ids), [table], dy), first)
    assert_same_bits(gradients(lambda t: t[ids], [table], dy), first)


def test_ids_may_change_in_a_plan():
    table = Tensor(np.arange(12.0).reshape(4, 3), requires_grad=True)
    plan = Plan(lambda ids: ops.embedding(table, ids), np.array([0, 1]))
    assert plan(np.array([3, 3])).tolist() == [[9, 10, 11]] * 2
    with pytest.raises(ValueError, match=r"must lie in 0\.\.3, got -1\.\.0"):
        plan(np.array([-1, 0]))


def test_output_and_gradient_equal_torch():
    torch = import_torch()
    rng = np.random.default_rng(0)
    table, ids = rng.standard_normal((7, 5)), rng.integers(7, size=(3, 4))
    tensor = torch.from_numpy(table.copy()).requires_grad_()
    theirs = torch.nn.functional.embedding(torch.from_numpy(ids), tensor)
    dy = rng.standard_normal((3, 4, 5))
    theirs.backward(torch.from_numpy(dy))
    y, dtable = gradients(lambda t: ops.embedding(t, ids), [table], dy)
    assert_close(y, theirs.detach().numpy(), rtol=0)
    assert_close(dtable, tensor.grad.numpy(), rtol=1e-14)


@pytest.mark.parametrize(
    ("table", "ids", "message"),
    [
        ((4,), np.zeros(2, int), r"needs a table \(rows, D\) and integers, got \(4,\) and int64"),
        ((4, 3), np.zeros(2), r"got \(4, 3\) and float64"),
        ((4, 3), np.array([True]), "and bool"),
        ((4, 3), np.array([[0, 4]]), r"ids must lie in 0\.\.3, got 0\.\.4"),
        ((4, 3), np.array([-1, 0]), r"got -1\.\.0"),
    ],
)
def test_bad_arguments(table, ids, message):
    with pytest.raises(ValueError, match=message):
        ops.embedding(Tensor(np.zeros(table)), ids)

"""Functions of one's own: several outputs, unused outputs, arguments without gradients, and mistakes."""

import numpy as np
import pytest

from pydiff.tensor import Function, Tensor, no_grad


def leaf(*values, dtype=np.float64):
    return Tensor(np.array(values, dtype), requires_grad=True)


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

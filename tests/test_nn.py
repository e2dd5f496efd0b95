"""Modules: names, weights in and out, initial values, and what an observer sees."""

import math

import numpy as np
import pytest

from pydiff import nn, ops
from pydiff.tensor import Tensor
from tests.compare import assert_close


class Net(nn.Module):
    """Every way of holding parameters: directly, in a module, in lists, and things that are none."""

    def __init__(self):
        self.scale = nn.Parameter(np.ones(3, np.float32))
        self.blocks = [nn.Linear(3, 4), None, nn.Conv2d(2, 3, 3)]
        self.norm = nn.GroupNorm(2, 4)
        self.missing = None
        self.count = 5
        self.inner = Inner()
        self.loose = [nn.Parameter(np.zeros(1, np.float32), bound=0.5)]

    def forward(self, x):
        return self.norm(self.blocks[0](x * self.scale))


class Inner(nn.Module):
    def __init__(self):
        self.table = nn.Embedding(5, 2)

    def forward(self, labels):
        return self.table(labels)


NAMES = [
    "scale", "loose.0", "blocks.0.weight", "blocks.0.bias", "blocks.2.weight", "blocks.2.bias", "norm.weight",
    "norm.bias", "inner.table.weight",
]  # fmt: skip


# ---- names ---------------------------------------------------------------------------------------------------------


def test_names_are_attribute_paths():
    net = Net()
    assert [name for name, _ in net.named_parameters()] == NAMES
    assert [p is q for (_, p), q in zip(net.named_parameters(), net.parameters(), strict=True)] == [True] * len(NAMES)
    modules = dict(net.named_modules())
    assert list(modules) == ["", "blocks.0", "blocks.2", "norm", "inner", "inner.table"]
    assert modules[""] is net
    assert modules["inner.table"] is net.inner.table


# ---- state_dict ----------------------------------------------------------------------------------------------------


def test_state_dict_has_the_layout_of_checkpoint_files():
    net = Net().initialize(1)
    state = net.state_dict()
    assert list(state) == NAMES
    assert state["blocks.0.weight"].shape == (4, 3)  # (out, in)
    assert state["blocks.2.weight"].shape == (3, 2, 3, 3)  # (out, in, height, width)
    assert_close(state["blocks.2.weight"][1, 0], net.blocks[2].weight.data[:, :, 0, 1], rtol=0)
    assert all(a.flags.c_contiguous for a in state.values())


def test_state_dict_round_trip_bit_for_bit_and_by_copy():
    net, other = Net().initialize(1), Net().initialize(2)
    assert other.load_state_dict(net.state_dict()) is other
    state = net.state_dict()
    for name, p in other.named_parameters():
        assert other.state_dict()[name].tobytes() == state[name].tobytes()
        assert not np.shares_memory(p.data, state[name])
    for a in state.values():
        a[...] = 0
    assert net.state_dict()["blocks.0.weight"].any()


def test_load_state_dict_keeps_the_parameters_dtype():
    net = Net().astype(np.float64)
    net.load_state_dict(Net().initialize(1).state_dict())
    assert {p.dtype for p in net.parameters()} == {np.dtype(np.float64)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": None}, r"missing \['scale'\], unknown none"),
        ({"extra": np.zeros(1)}, r"missing none, unknown \['extra'\]"),
        ({"scale": None, "extra": np.zeros(1)}, r"missing \['scale'\], unknown \['extra'\]"),
        ({"norm.bias": np.zeros(5)}, r"norm\.bias must have shape \(4,\), got \(5,\)"),
        ({"blocks.0.weight": np.zeros((3, 4))}, r"blocks\.0\.weight must have shape \(4, 3\), got \(3, 4\)"),
        ({"inner.table.weight": np.zeros(10)}, r"inner\.table\.weight must have shape \(5, 2\), got \(10,\)"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(change, message):
    net = Net().initialize(1)
    before = net.state_dict()
    state = {**Net().initialize(2).state_dict(), **change}
    state = {name: a for name, a in state.items() if a is not None}
    with pytest.raises(ValueError, match=message):
        net.load_state_dict(state)
    assert all(a.tobytes() == before[name].tobytes() for name, a in net.state_dict().items())


def test_astype():
    net = Net()
    for p in net.parameters():
        p.grad = p.grad_buffer = np.zeros_like(p.data)
    assert net.astype(np.float64) is net
    assert all((p.dtype, p.grad, p.grad_buffer) == (np.float64, None, None) for p in net.parameters())


# ---- initialize ----------------------------------------------------------------------------------------------------


def test_initial_values_depend_on_the_seed_and_the_name_alone():
    first, again, other = Net().initialize(7), Net().initialize(7), Net().initialize(8)
    for (name, p), q, r in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert p.data.tobytes() == q.data.tobytes()
        assert (p.data.tobytes() == r.data.tobytes()) == (p.bound == 0), name
    # the same layer under the same name in another model; and under another name
    assert nn.Linear(3, 4).initialize(7).weight.data.tobytes() != first.blocks[0].weight.data.tobytes()

    class Wider(nn.Module):
        def __init__(self):
            self.before, self.blocks = nn.Linear(9, 9), [nn.Linear(3, 4)]

    assert Wider().initialize(7).blocks[0].weight.data.tobytes() == first.blocks[0].weight.data.tobytes()


@pytest.mark.parametrize(
    ("layer", "bound"),
    [
        (nn.Linear(50, 400), 50**-0.5),
        (nn.Conv2d(20, 50, 3), 180**-0.5),
        (nn.Embedding(100, 100), math.sqrt(3)),
    ],
)
def test_initial_values_are_uniform_within_their_bound(layer, bound):
    layer.initialize(0)
    for p in layer.parameters():
        assert p.bound == pytest.approx(bound)
        assert np.abs(p.data).max() <= p.bound
    w = layer.weight.data.ravel() / bound
    assert np.abs(w).max() > 0.99
    # mean 0 and variance 1/3 of a uniform distribution, within five standard errors
    assert abs(w.mean()) <= 5 * math.sqrt(1 / 3 / w.size)
    assert abs((w**2).mean() - 1 / 3) <= 5 * math.sqrt(4 / 45 / w.size)


def test_normalisations_start_as_the_identity():
    norm = nn.GroupNorm(2, 4).initialize(3)
    assert norm.weight.data.tolist() == [1] * 4
    assert norm.bias.data.tolist() == [0] * 4


# ---- observe -------------------------------------------------------------------------------------------------------


def test_a_blank_network_takes_no_more_numbers_than_it_may():
    def many():
        return nn.Linear(10, 10), nn.Linear(10, 10)

    with nn.blank(most=220):
        many()
        with nn.blank():  # of somebody who knows what it builds
            nn.Linear(1000, 1000)
    with nn.blank(most=219), pytest.raises(ValueError, match="describes a larger network than its weights are of"):
        many()
    many()  # outside, nothing is counted


def test_observe_sees_every_forward_innermost_first():
    net, seen = Net(), []
    x = np.ones((2, 3), np.float32)
    with nn.observe(lambda module, output: seen.append((module, output.shape))):
        y = net(x)
    net(x)
    assert [module for module, _ in seen] == [net.blocks[0], net.norm, net]
    assert seen[-1][1] == y.shape
    with pytest.raises(ZeroDivisionError), nn.observe(lambda *_: 1 / 0):
        net(x)
    net(x)


def test_parameters_take_part_in_operations():
    p = nn.Parameter(np.ones(3), bound=0.1, file_axes=(0,))
    (p * 2).sum().backward()
    assert p.requires_grad
    assert p.grad.tolist() == [2, 2, 2]
    assert isinstance(ops.add(p, 1), Tensor)

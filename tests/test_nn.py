"""Layers: names, weights in and out, initial values, dropout as a pure function, and what an observer sees."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff import nn, ops
from pydiff.reference.attention import attention
from pydiff.reference.group_norm import group_norm
from pydiff.tensor import Tensor
from tests.compare import assert_close, check_gradient


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


# ---- layers --------------------------------------------------------------------------------------------------------


def values(module, rng):
    """Random float64 parameters, to compare with equations."""
    for p in module.astype(np.float64).parameters():
        p.data = rng.standard_normal(p.shape)
    return module


def test_linear_and_embedding():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 3))
    layer = values(nn.Linear(3, 4), rng)
    assert_close(layer(x).data, x @ layer.weight.data + layer.bias.data, rtol=1e-14)
    layer = values(nn.Linear(3, 4, bias=False), rng)
    assert layer.bias is None
    assert_close(layer(x).data, x @ layer.weight.data, rtol=1e-14)
    table = values(nn.Embedding(5, 3), rng)
    for labels in (np.array([4, 0, 4]), [4, 0, 4], np.array([4, 0, 4], np.uint8)):
        assert_close(table(labels).data, table.weight.data[[4, 0, 4]], rtol=0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [([5], r"must lie in 0\.\.4, got 5\.\.5"), ([-1, 0], r"got -1\.\.0"), ([0.5], "list of integers, got float64"),
     ([[1]], r"list of integers, got int64 \(1, 1\)"), (3, "list of integers"), ([True], "list of integers, got bool")],
)  # fmt: skip
def test_labels_outside_the_table(labels, message):
    with pytest.raises(ValueError, match=message):
        nn.Embedding(5, 3)(labels)


@pytest.mark.parametrize(("groups", "channels"), [(3, 4), (0, 4), (-1, 4), (8, 4)])
def test_groups_that_do_not_divide(groups, channels):
    with pytest.raises(ValueError, match=f"{channels} channels do not divide into {groups} groups"):
        nn.GroupNorm(groups, channels)


@pytest.mark.parametrize("head_dim", [0, -8, 9])
def test_heads_that_do_not_fit(head_dim):
    with pytest.raises(
        ValueError, match=f"attention_head_dim must be from 1 to the 8 channels at hand, got {head_dim}"
    ):
        nn.Attention(8, head_dim, groups=2)


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize(("groups", "scale", "head_dim"), [(2, 1.0, 4), (None, 2.0, 3)])
def test_attention_is_its_equation(context, groups, scale, head_dim):
    """norm, projections, attention, projection, the input added; 8 channels in heads of 3 leave 6 channels inside."""
    rng = np.random.default_rng(0)
    layer = values(nn.Attention(8, head_dim, groups, output_scale=scale, context_channels=5 if context else None), rng)
    x, extra = rng.standard_normal((2, 3, 4, 8)), rng.standard_normal((2, 7, 5))

    def expected(x, extra):
        h = group_norm(x, layer.group_norm.weight.data, layer.group_norm.bias.data, groups) if groups else x
        h = h.reshape(2, 12, 8)
        source = extra if context else h
        q, k, v = (
            s @ layer_.weight.data + layer_.bias.data
            for s, layer_ in ((h, layer.to_q), (source, layer.to_k), (source, layer.to_v))
        )
        out = attention(q, k, v, 8 // head_dim) @ layer.to_out[0].weight.data + layer.to_out[0].bias.data
        return (out.reshape(x.shape) + x) / scale

    arrays = [x, extra] if context else [x]
    assert_close(layer(*arrays).data, expected(x, extra), rtol=1e-12)
    check_gradient(lambda *a: layer(*a), lambda x, e=extra: expected(x, e), arrays, rng, rtol=1e-5)


# ---- dropout -------------------------------------------------------------------------------------------------------


def dropped(p=0.3, seed=1, step=2, sample=(0, 1), shape=(50, 40), layers=1):
    """Outputs of some dropout layers in a row for an input of ones."""
    x = Tensor(np.ones((len(sample), *shape), np.float32))
    with nn.training(seed, step, np.array(sample)):
        return [nn.Dropout(p)(x).data for _ in range(layers)]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_statistics(p):
    y = dropped(p, shape=(100, 100))[0]
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / (1 - p))}
    n = y.size
    assert abs((y == 0).mean() - p) <= 5 * math.sqrt(p * (1 - p) / n)
    assert abs(y.mean() - 1) <= 5 * math.sqrt(p / (1 - p) / n)
    # no pattern: neighbours, and the two samples, are uncorrelated
    z = (y == 0) - p
    for a, b in ((z[:, :-1], z[:, 1:]), (z[..., :-1], z[..., 1:]), (z[0], z[1])):
        assert abs((a * b).mean()) <= 5 * p * (1 - p) / math.sqrt(a.size)


def test_dropout_is_a_function_of_seed_step_sample_and_layer():
    reference = dropped(layers=2)
    assert all((a == b).all() for a, b in zip(dropped(layers=2), reference, strict=True))
    assert (reference[0] != reference[1]).any()
    for other in (dropped(seed=2), dropped(step=3), dropped(sample=(2, 3))):
        assert (other[0] != reference[0]).any()
    assert (dropped(sample=(1,))[0][0] == reference[0][1]).all()  # alone as in the batch


def test_dropout_is_off_outside_training_and_for_zero():
    x = Tensor(np.ones((2, 3)))
    assert nn.Dropout(0.5)(x) is x
    with nn.training(0, 1, np.arange(2)):
        assert nn.Dropout(0.0)(x) is x
        assert nn.Dropout(0.5)(x) is not x
    with pytest.raises(ZeroDivisionError), nn.training(0, 1, np.arange(2)):
        raise ZeroDivisionError
    assert nn.Dropout(0.5)(x) is x


def test_dropout_in_another_thread_is_its_own_matter():
    x, seen = Tensor(np.ones((2, 3))), []
    with nn.training(0, 1, np.arange(2)):
        thread = threading.Thread(target=lambda: seen.append(nn.Dropout(0.5)(x) is x))
        thread.start()
        thread.join()
    assert seen == [True]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dropout_gradient_is_its_mask(dtype):
    x = Tensor(np.full((2, 30), 3, dtype), requires_grad=True)
    with nn.training(0, 1, np.arange(2)):
        y = nn.Dropout(0.4)(x)
    y.backward(np.ones((2, 30), dtype))
    assert y.dtype == x.grad.dtype == dtype
    assert_close(x.grad, y.data / 3, rtol=1e-6)


def test_dropout_for_another_number_of_samples_is_refused():
    with (
        nn.training(0, 1, np.arange(1)),
        pytest.raises(ValueError, match=r"dropout masks for 1 samples.*shape \(2, 3\)"),
    ):
        nn.Dropout(0.5)(Tensor(np.ones((2, 3))))


@given(p=st.sampled_from([1.0, -0.1, 1.5, math.nan, math.inf]))
def test_dropout_shares_that_cannot_be(p):
    with pytest.raises(ValueError, match=r"dropout must be at least 0 and below 1, got"):
        nn.Dropout(p)


# ---- observe -------------------------------------------------------------------------------------------------------


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

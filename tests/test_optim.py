"""The optimiser: against its equations over several steps, against torch, and the memory it shares with the model."""

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff import nn, ops, optim
from pydiff.reference.adamw import adamw as reference
from pydiff.tensor import Tensor
from tests.bits import assert_same_bits
from tests.compare import assert_close
from tests.peers import import_torch
from tests.strategies import simt  # noqa: F401

# ---- functions of the step -----------------------------------------------------------------------------------------


def test_warmup_cosine_at_its_corners():
    def lr(step, **options):
        return optim.warmup_cosine(step, 100, 2.0, **options)

    assert [lr(step, warmup=10) for step in (0, 1, 5, 10)] == [0.0, 0.2, 1.0, 2.0]
    assert lr(55, warmup=10) == pytest.approx(1.0)
    assert lr(100, warmup=10) == pytest.approx(0.0, abs=1e-15)
    assert lr(100, warmup=10, floor=0.25) == pytest.approx(0.5)
    assert lr(101, warmup=10, floor=0.25) == lr(10**9, warmup=10, floor=0.25) == pytest.approx(0.5)  # never rises again
    assert lr(50) == pytest.approx(1.0)  # without a warm-up
    assert optim.warmup_cosine(5, 5, 1.0, warmup=5) == 1.0
    assert optim.warmup_cosine(6, 5, 1.0, warmup=5) == pytest.approx(0.0)  # all of it warm-up: no division by zero
    assert optim.warmup_cosine(1, 1, 1.0) == pytest.approx(0.0)


@given(total=st.integers(1, 50), warmup=st.integers(0, 50), floor=st.sampled_from([0.0, 0.1, 1.0]))
def test_warmup_cosine_rises_then_falls_within_its_range(total, warmup, floor):
    rates = [optim.warmup_cosine(step, total, 3.0, warmup, floor) for step in range(1, total + 60)]
    top = max(warmup, 1)
    assert all(b >= a for a, b in itertools.pairwise(rates[:top]))
    assert all(b <= a for a, b in itertools.pairwise(rates[top - 1 :]))
    assert all(-1e-15 <= rate <= 3.0 for rate in rates)


def test_ema_decay():
    assert optim.ema_decay(0, 0.999) == 0.1
    assert optim.ema_decay(1, 0.999) == 2 / 11
    assert optim.ema_decay(8, 0.999) == 0.5
    assert optim.ema_decay(10**9, 0.999) == 0.999
    assert optim.ema_decay(5, 0.0) == 0.0


# ---- AdamW ---------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        self.first = nn.Linear(3, 4)
        self.unused = nn.Parameter(np.ones((2, 2), np.float32))
        self.second = nn.Linear(4, 2)

    def forward(self, x):
        return self.second(ops.silu(self.first(x)))


def net(dtype=np.float64, seed=0):
    return Net().initialize(seed).astype(dtype)


def backward(model, seed, scale=1.0):
    """A gradient that differs from step to step."""
    x = np.random.default_rng(seed).standard_normal((5, 3)).astype(model.unused.dtype)
    y = model(x)
    ops.mean_squared_error(y, np.full(y.shape, scale, y.dtype)).backward()


def flat(arrays):
    return np.concatenate([a.ravel() for a in arrays])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parameters_and_gradients_are_views_of_flat_buffers(dtype):
    model = net(dtype)
    before = flat(p.data for p in model.parameters())
    optimizer = optim.AdamW(model)
    assert optimizer.names == [name for name, _ in model.named_parameters()]
    assert optimizer.p.tobytes() == optimizer.ema.tobytes() == before.tobytes()
    assert optimizer.p.shape == optimizer.g.shape == optimizer.m.shape == optimizer.v.shape == before.shape
    backward(model, 0)
    for p in model.parameters():
        assert np.shares_memory(p.data, optimizer.p)
        assert not np.shares_memory(p.data, optimizer.ema)
        assert p.grad is None or np.shares_memory(p.grad, optimizer.g)
    optimizer.p[...] = 7
    assert all((p.data == 7).all() for p in model.parameters())
    # loading weights writes into the buffer, it does not replace the views
    model.load_state_dict(net(dtype, seed=3).state_dict())
    assert optimizer.p.tobytes() == flat(p.data for p in net(dtype, seed=3).parameters()).tobytes()


def test_gather_and_zero_grad():
    model = net()
    optimizer = optim.AdamW(model)
    optimizer.g[...] = np.nan  # what an earlier step left
    backward(model, 0)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert gradients["unused"] is None
    g = optimizer.gather()
    assert g is optimizer.g
    assert np.isfinite(g).all()
    for name, view in zip(optimizer.names, optimizer.views(g), strict=True):
        assert (view == 0).all() if name == "unused" else np.shares_memory(view, gradients[name])
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    assert (optimizer.gather() == 0).all()


def test_several_steps_follow_the_equations():
    """With weight decay, clipping and averaging, and gradients that come from a network."""
    hyper = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.1}
    model = net()
    optimizer = optim.AdamW(model, **hyper)
    p, m, v, ema = optimizer.p.copy(), np.zeros_like(optimizer.p), np.zeros_like(optimizer.p), optimizer.p.copy()
    for step in range(1, 8):
        optimizer.zero_grad()
        backward(model, step, scale=step)
        g = optimizer.gather().copy()
        norm = np.linalg.norm(g)
        norm2 = optimizer.step(step, lr=0.01 * step, ema_decay=0.9, clip=0.5)
        assert norm2.shape == (1,)
        assert norm2[0] == pytest.approx(norm**2, rel=1e-12)
        scale = min(1, 0.5 / (norm + 1e-6))
        p, m, v, ema = reference(p, g, m, v, ema, step=step, lr=0.01 * step, grad_scale=scale, ema_decay=0.9, **hyper)
    for got, expected in zip((optimizer.p, optimizer.m, optimizer.v, optimizer.ema), (p, m, v, ema), strict=True):
        assert_close(got, expected, rtol=1e-12)
    assert_close(flat(q.data for q in model.parameters()), p, rtol=1e-12)


def test_equals_torch():
    torch = import_torch()
    hyper = {"eps": 1e-7, "weight_decay": 0.05}
    model = net()
    optimizer = optim.AdamW(model, 0.85, 0.97, **hyper)
    parameters = [torch.nn.Parameter(torch.from_numpy(p.data.copy())) for p in model.parameters()]
    theirs = torch.optim.AdamW(parameters, lr=0.02, betas=(0.85, 0.97), **hyper)
    for step in range(1, 12):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.gather()
        for q, g in zip(parameters, optimizer.views(optimizer.g), strict=True):
            q.grad = torch.from_numpy(g.copy())
        clipped = torch.nn.utils.clip_grad_norm_(parameters, 0.3)
        theirs.step()
        assert optimizer.step(step, lr=0.02, clip=0.3)[0] == pytest.approx(clipped.item() ** 2, rel=1e-12)
    assert_close(optimizer.p, flat(q.detach().numpy() for q in parameters), rtol=1e-9)


def test_clipping_limits_the_norm_and_leaves_small_gradients_alone():
    """Seen in the first moment, which after one step is (1 - beta1) times the gradient used."""

    def used(clip, norm2=None):
        model = net()
        optimizer = optim.AdamW(model, beta1=0.5)
        backward(model, 0, scale=10.0)
        before = np.linalg.norm(optimizer.gather())
        given = optimizer.step(1, lr=0.1, clip=clip, norm2=norm2)
        assert given[0] == (pytest.approx(before**2) if norm2 is None else norm2[0])
        return np.linalg.norm(optimizer.m) / 0.5, before

    after, before = used(clip=None)
    assert after == pytest.approx(before)
    after, before = used(clip=1000.0)
    assert after == pytest.approx(before, rel=1e-12)
    after, before = used(clip=0.01)
    assert 0.0099 <= after <= 0.01
    after, before = used(clip=1.0, norm2=np.array([16.0]))  # a norm that the caller computed already
    assert after == pytest.approx(before / 4, rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(dtype, bad):
    model = net(dtype)
    optimizer = optim.AdamW(model, weight_decay=0.1)
    for step in (1, 2):
        optimizer.zero_grad()
        backward(model, step)
        if step == 2:
            model.first.weight.grad[1, 1] = bad
            before = [a.copy() for a in (optimizer.p, optimizer.m, optimizer.v, optimizer.ema)]
        norm2 = optimizer.step(step, lr=0.1, clip=1.0)
    assert not math.isfinite(norm2[0])
    assert_same_bits([optimizer.p, optimizer.m, optimizer.v, optimizer.ema], before)


@pytest.mark.parametrize("step", [0, -1])
def test_steps_count_from_one(step):
    model = net()
    optimizer = optim.AdamW(model)
    before = optimizer.p.copy()
    with pytest.raises(ValueError, match=f"the first optimiser step is 1, got {step}"):
        optimizer.step(step, lr=0.1)
    assert_same_bits([optimizer.p], [before])


@pytest.mark.usefixtures("simt")
def test_several_steps_of_the_emulated_cuda_kernel_follow_the_equations():
    model = net(np.float32)
    optimizer = optim.AdamW(model, weight_decay=0.1)
    p, m, v, ema = optimizer.p.copy(), np.zeros_like(optimizer.p), np.zeros_like(optimizer.p), optimizer.p.copy()
    hyper = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
    rng = np.random.default_rng(0)
    for step in range(1, 8):
        optimizer.g[...] = rng.standard_normal(optimizer.g.size)
        for q, grad in zip(optimizer.parameters, optimizer.views(optimizer.g), strict=True):
            q.grad = grad
        scale = min(1, 2.0 / (np.linalg.norm(optimizer.g.astype(np.float64)) + 1e-6))
        rest = {"step": step, "lr": 0.01 * step, "grad_scale": scale, "ema_decay": 0.9}
        p, m, v, ema = reference(p, optimizer.g, m, v, ema, **rest, **hyper)
        optimizer.step(step, lr=0.01 * step, ema_decay=0.9, clip=2.0)
    for got, expected in zip((optimizer.p, optimizer.m, optimizer.v, optimizer.ema), (p, m, v, ema), strict=True):
        assert_close(got, expected, rtol=1e-6)


def test_global_norm_of_the_gathered_gradient():
    model = net(np.float32)
    optimizer = optim.AdamW(model)
    backward(model, 0)
    assert ops.global_norm(optimizer.gather()) == pytest.approx(
        np.linalg.norm(optimizer.g.astype(np.float64)), rel=1e-7
    )
    optimizer.g[3] = math.inf
    assert ops.global_norm(optimizer.g) == math.inf
    optimizer.g[5] = math.nan
    assert math.isnan(ops.global_norm(optimizer.g))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_first_bad_gradient_names_the_parameter(bad):
    model = net()
    optimizer = optim.AdamW(model)
    backward(model, 0)
    assert optimizer.first_bad_gradient() is None
    model.second.bias.grad[1] = bad
    assert optimizer.first_bad_gradient() == "second.bias"
    model.first.weight.grad[0, 0] = bad
    assert optimizer.first_bad_gradient() == "first.weight"


def test_parameters_of_two_dtypes_are_refused():
    model = net()
    model.unused.data = model.unused.data.astype(np.float32)
    with pytest.raises(ValueError, match=r"parameters of one dtype, got \['float32', 'float64'\]"):
        optim.AdamW(model)


def test_a_step_needs_no_gradient_at_all():
    """Then only weight decay moves the parameters."""
    model = net()
    optimizer = optim.AdamW(model, weight_decay=0.5)
    before = optimizer.p.copy()
    assert optimizer.step(1, lr=0.1)[0] == 0.0
    assert_close(optimizer.p, 0.95 * before, rtol=1e-14)


def test_constants_are_not_parameters():
    model = net()
    model.fixed = Tensor(np.ones(3))
    assert optim.AdamW(model).p.size == sum(p.size for p in model.parameters()) == 12 + 4 + 4 + 8 + 2


# ---- whoever replaces data or gradients is heard ---------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self):
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.initialize(1)

    def forward(self, x):
        return self.second(self.first(x))


def one_step(model, optimizer, change=lambda: None, step=1):
    optimizer.zero_grad()
    model(Tensor(np.ones((2, 3), np.float32))).sum().backward()
    change()
    optimizer.step(step, 0.1)


def test_replaced_data_is_what_is_trained():
    model, twin = Two(), Two()
    new = np.full((3, 4), 0.25, np.float32)
    twin.first.weight.data[...] = new
    optimizer, expected = optim.AdamW(model), optim.AdamW(twin)
    model.first.weight.data = new.copy()
    one_step(model, optimizer)
    one_step(twin, expected)
    assert np.array_equal(optimizer.p, expected.p)
    assert np.array_equal(model.first.weight.data, twin.first.weight.data)
    assert not np.array_equal(model.first.weight.data, new)
    one_step(model, optimizer, step=2)
    one_step(twin, expected, step=2)
    assert np.array_equal(optimizer.p, expected.p)


def test_a_replaced_gradient_is_what_the_step_goes_by():
    model, frozen = Two(), Two()
    optimizer, expected = optim.AdamW(model), optim.AdamW(frozen)
    before = model.first.weight.data.copy()

    def freeze():
        model.first.weight.grad = np.zeros((3, 4), np.float32)

    one_step(model, optimizer, freeze)
    assert np.array_equal(model.first.weight.data, before)
    one_step(frozen, expected)
    assert not np.array_equal(frozen.first.weight.data, before)
    assert np.array_equal(model.second.weight.data, frozen.second.weight.data)
    one_step(model, optimizer, step=2)  # from here on as ever
    assert not np.array_equal(model.first.weight.data, before)


def test_a_replacement_that_does_not_fit_is_refused():
    model = Two()
    optimizer = optim.AdamW(model)
    model.first.weight.data = np.zeros((3, 5), np.float32)
    with pytest.raises(
        ValueError, match=r"first.weight.data was replaced by ndarray of shape \(3, 5\), expected an array \(3, 4\)"
    ):
        optimizer.step(1, 0.1)


def test_a_shared_weight_counts_once():
    model = Two()
    model.third = model.first
    assert len(model.parameters()) == 4
    optimizer = optim.AdamW(model)
    assert optimizer.p.size == sum(p.size for p in model.parameters()) == 3 * 4 + 4 + 4 * 2 + 2
    assert optimizer.names == ["first.weight", "first.bias", "second.weight", "second.bias"]
    assert "third.weight" in model.state_dict()  # a file has it under both names


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_with_its_model_is_trained(copied):
    """Views become arrays of their own when they are copied; the parameters have to be views again."""
    model = Two()
    optimizer = optim.AdamW(model)
    one_step(model, optimizer)
    model.second.weight.data = model.second.weight.data * 2  # a step of the copy has to notice that, too
    twin, other = copied((model, optimizer))
    for step in (2, 3):
        one_step(model, optimizer, step=step)
        one_step(twin, other, step=step)
    assert np.array_equal(other.p, optimizer.p)
    for p, q in zip(twin.parameters(), model.parameters(), strict=True):
        assert np.array_equal(p.data, q.data)
        assert np.shares_memory(p.data, other.p)
        assert not np.shares_memory(p.data, optimizer.p)
        assert p.grad is not None
        assert np.shares_memory(p.grad, other.g)


def test_a_frozen_parameter_stays_as_it_is():
    """Weight decay would change it without any gradient."""
    model = Two()
    optimizer = optim.AdamW(model, weight_decay=0.5)
    model.first.weight.requires_grad = False
    before, free = model.first.weight.data.copy(), model.second.weight.data.copy()
    one_step(model, optimizer)
    assert np.array_equal(model.first.weight.data, before)
    assert not np.array_equal(model.second.weight.data, free)
    model.first.weight.requires_grad = True
    one_step(model, optimizer, step=2)
    assert not np.array_equal(model.first.weight.data, before)


def test_another_parameter_in_the_place_of_one_is_noticed():
    model = Two()
    optimizer = optim.AdamW(model)
    one_step(model, optimizer)
    model.first.weight = nn.Parameter(np.ones((3, 4), np.float32))
    with pytest.raises(ValueError, match=r"first\.weight is another Parameter now; assign to first\.weight\.data"):
        optimizer.step(2, 0.1)


def test_what_is_no_model_and_no_rate():
    model = Two()
    with pytest.raises(TypeError, match=r"AdamW takes a model, .* got list; write AdamW\(model\)"):
        optim.AdamW(model.parameters())
    optimizer = optim.AdamW(model)
    before = optimizer.p.copy()
    for lr in (float("nan"), -1e-3, float("inf")):
        with pytest.raises(ValueError, match="the learning rate must be a number of at least 0, got"):
            optimizer.step(1, lr)
    assert np.array_equal(optimizer.p, before)

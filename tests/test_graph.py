"""graph.py: what is played is what the network computes, bit for bit, and nothing else is kept or taken for granted."""

import gc
import threading
import weakref

import numpy as np
import pytest

from pydiff import ops
from pydiff.graph import Plan, Played
from pydiff.models import UNet2D, UNet2DCondition
from pydiff.tensor import Function, Tensor, no_grad
from tests.bits import assert_same_bits
from tests.strategies import kernels  # noqa: F401

SMALL = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}
CONFIGS = {
    "attention": {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    },
    "scale and shift": {"resnet_time_scale_shift": "scale_shift", "mid_block_scale_factor": 1.5},
    "residual resampling": {"downsample_type": "resnet", "upsample_type": "resnet"},
    "centred, classes": {"center_input_sample": True, "num_class_embeds": 3},
    "class steps": {"class_embed_type": "timestep"},
}  # fmt: skip


def network(name, **more):
    plain = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2D(in_channels=2, out_channels=2, sample_size=8, seed=1, **SMALL, **(plain | CONFIGS[name] | more))


def inputs(seed, n=2, size=(8, 8)):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, *size, 2)).astype(np.float32), rng.integers(1000, size=n)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_bits_as_the_network(name):
    model = network(name)
    played = Played(model)
    for seed, n, size in [(0, 2, (8, 8)), (1, 2, (8, 8)), (2, 1, (5, 7)), (3, 2, (8, 8)), (4, 1, (5, 7))]:
        if name == "residual resampling" and size != (8, 8):
            continue  # odd sizes are rounded down there
        x, t = inputs(seed, n, size)
        labels = {"class_labels": t % 3} if "class" in name else {}
        with no_grad():
            expected = model(x, t, **labels).data
        before = x.copy()
        assert_same_bits([played(x, t, **labels)], [expected])
        assert_same_bits([x], [before])
    assert len(played.plans) == (1 if name == "residual resampling" else 2)


def test_a_result_is_not_written_into_by_the_next_call():
    played = Played(network("attention"))
    first = played(*inputs(0))
    kept = first.copy()
    played(*inputs(1))
    assert_same_bits([first], [kept])


def test_parameters_may_change():
    model = network("attention")
    played = Played(model)
    x, t = inputs(0)
    before = played(x, t)
    model.load_state_dict(network("attention").initialize(7).state_dict())
    after = played(x, t)
    assert not np.array_equal(before, after)
    with no_grad():
        assert_same_bits([after], [model(x, t).data])
    model.astype(np.float64)  # other arrays in the same parameters
    with no_grad():
        assert_same_bits([played(x.astype(np.float64), t)], [model(x.astype(np.float64), t).data])


def test_other_shapes_and_dtypes_are_refused():
    plan = Plan(lambda x: ops.exp(x) + 1, np.zeros((2, 3), np.float32))
    assert np.array_equal(plan(np.ones((2, 3), np.float32)), np.exp(np.ones((2, 3), np.float32)) + 1)
    for other in (np.zeros((3, 2), np.float32), np.zeros((2, 3))):
        with pytest.raises(ValueError, match=r"the plan is for \[\(\(2, 3\), dtype\('float32'\)\)\], got"):
            plan(other)


def test_a_tensor_from_elsewhere_is_refused():
    """It may have been computed from an argument, past the operations."""
    with pytest.raises(ValueError, match=r"where a tensor of shape \(2, 3\) comes from"):
        Plan(lambda x: x + Tensor(np.sin(x.data)), np.zeros((2, 3), np.float32))


def test_several_results_constants_and_unused_ones():
    def function(x):
        a = ops.concatenate(x, 2 * x)
        _unused = ops.exp(a)
        b = a[:, 1:3]
        return ops.concatenate(b, x) - 0.5

    plan = Plan(function, np.zeros((2, 3)))
    x = np.random.default_rng(0).standard_normal((2, 3))
    with no_grad():
        assert_same_bits([plan(x)], [function(Tensor(x)).data])


class Remember(Function):
    """x + 1, and the results made so far, weakly."""

    made = []  # noqa: RUF012

    def forward(self, x):
        y = x + 1
        self.made.append(weakref.ref(y))
        return y


def test_results_are_freed_as_early_as_in_the_network():
    def function(x):
        for _ in range(5):
            x = Remember.apply(x)
        return x

    Remember.made = []
    plan = Plan(function, np.zeros(1000))
    assert np.array_equal(plan.first, np.full(1000, 5.0))
    plan.first = None
    gc.collect()
    assert [r() for r in Remember.made] == [None] * 5  # a recording keeps nothing
    alive = []
    original = Remember.forward

    def forward(self, x):
        alive.append(sum(r() is not None for r in Remember.made))
        return original(self, x)

    Remember.made, Remember.forward = [], forward
    try:
        result = plan(np.zeros(1000))
    finally:
        Remember.forward = original
    assert max(alive) == 1  # what goes in, as long as the sum is made
    assert np.array_equal(result, np.full(1000, 5.0))


def test_recording_ends_with_an_error_and_stays_in_its_thread():
    def fails(x):
        y = x + 1
        raise RuntimeError(f"no {y.shape}")

    with pytest.raises(RuntimeError, match=r"no \(3,\)"):
        Plan(fails, np.zeros(3))
    steps = []

    def function(x):
        other = threading.Thread(target=lambda: steps.append(Tensor(np.ones(2)) + 1))
        other.start()
        other.join()
        return x * 2

    plan = Plan(function, np.zeros(3))
    assert len(steps) == 1
    assert len(plan.steps) == 1
    assert Tensor(np.ones(2), requires_grad=True).data.sum() == 2  # no listener is left to be called
    y = Tensor(np.ones(2), requires_grad=True) * 3
    y.backward(np.ones(2))
    assert len(plan.steps) == 1


# ---- what depends on the context alone -----------------------------------------------------------------------------

CONTEXT = {
    **SMALL, "in_channels": 2, "out_channels": 2, "sample_size": 8, "cross_attention_dim": 5, "seed": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip


@pytest.fixture
def told():
    """A network with a context, and four contexts of it of the same shape."""
    contexts = np.random.default_rng(5).standard_normal((4, 2, 3, 5)).astype(np.float32)
    return UNet2DCondition(**CONTEXT), [c.copy() for c in contexts]


@pytest.mark.usefixtures("kernels")
def test_the_same_bits_with_contexts_in_turns(told):
    model, contexts = told
    played = Played(model)
    for step, which in enumerate((0, 1, 0, 1, 2, 3, 0, 2, 1, 1)):
        x, t = inputs(step)
        with no_grad():
            expected = model(x, t, encoder_hidden_states=contexts[which]).data
        assert_same_bits([played(x, t, encoder_hidden_states=contexts[which])], [expected])
    assert len(played.plans) == 1


def test_keys_and_values_of_a_context_are_computed_once(told, monkeypatch):
    """Those of four transformers: one on the way down, one in the middle, two on the way up."""
    model, contexts = told
    played = Played(model)
    played(*inputs(0), encoder_hidden_states=contexts[0])  # which is recorded
    (plan,) = played.plans.values()
    assert len(plan.once) == len(plan.handed_on) == 2 * 4
    assert not {id(step) for step in plan.once} & {id(step) for step in plan.steps}
    calls = []
    (operation,) = {step.operation for step in plan.once}
    forward = operation.forward
    monkeypatch.setattr(
        operation, "forward", lambda self, *a, **k: (calls.append(a[0].shape), forward(self, *a, **k))[1]
    )
    for step in range(1, 6):
        for context in contexts[:2]:
            played(*inputs(step), encoder_hidden_states=context)
    assert calls.count((2, 3, 5)) == 2 * 8


def test_a_context_that_is_gone_is_not_taken_for_another(told):
    """Ids are used again; the arrays are held as long as what was computed of them."""
    model, _ = told
    played = Played(model)
    x, t = inputs(0)
    for seed in range(12):
        context = np.random.default_rng(seed).standard_normal((2, 3, 5)).astype(np.float32)
        with no_grad():
            expected = model(x, t, encoder_hidden_states=context).data
        assert_same_bits([played(x, t, encoder_hidden_states=context)], [expected])
    assert len(played.early) <= 4
    with pytest.raises(ValueError, match="the plan is for"):
        next(iter(played.plans.values())).early(x)


def test_a_plan_with_fixed_arguments_may_be_called_without_what_is_early():
    def function(x, c):
        return x * 2 + (c * c) * 3

    x, c = (np.arange(4, dtype=np.float32) + i for i in (1, 2))
    plan = Plan(function, x, c, fixed=[1])
    assert len(plan.once) == 2
    np.testing.assert_array_equal(plan(x, c), 2 * x + 3 * c * c)
    early = plan.early(x, c)
    np.testing.assert_array_equal(plan(x + 1, c, early=early), 2 * (x + 1) + 3 * c * c)
    everything = Plan(lambda _x, c: c * c + 0 * c, x, c, fixed=[1])
    assert everything.steps == []
    np.testing.assert_array_equal(everything(x, c, early=everything.early(x, c)), c * c)

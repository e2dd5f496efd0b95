"""Layers against their equations, and dropout as a pure function of (seed, step, sample, layer)."""

import copy
import math
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pydiff
from pydiff import nn
from pydiff.reference.attention import attention
from pydiff.reference.conv2d import conv2d
from pydiff.reference.conv_transpose2d import conv_transpose2d
from pydiff.reference.group_norm import group_norm
from pydiff.reference.layer_norm import layer_norm
from pydiff.tensor import Tensor
from tests.compare import assert_close, check_gradient

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


def test_layer_norm_and_tokens():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 3))
    layer = values(nn.LayerNorm(3, eps=1e-3), rng)
    assert_close(layer(x).data, layer_norm(x, layer.weight.data, layer.bias.data, eps=1e-3), rtol=1e-13)
    assert_close(nn.LayerNorm(3, affine=False)(x).data, layer_norm(x), rtol=1e-13)
    assert [name for name, _ in nn.LayerNorm(3, bias=False).named_parameters()] == ["weight"]
    table, ids = values(nn.TokenEmbedding(5, 3), rng), np.array([[0, 4], [4, 1]])
    assert_close(table(ids).data, table.weight.data[ids], rtol=0)
    assert_close(table(Tensor(ids)).data, table.weight.data[ids], rtol=0)


@pytest.mark.parametrize("bias", [False, True])
def test_rectangular_convolutions(bias):
    rng = np.random.default_rng(0)
    x, shift = rng.standard_normal((2, 7, 8, 4)), rng.standard_normal((2, 6))
    options = {"stride": (1, 2), "padding": ((1, 0), (2, 2)), "dilation": (1, 2), "groups": 2}
    layer = values(nn.Conv2d(4, 6, (1, 3), **options, bias=bias), rng)
    assert layer.state_dict()["weight"].shape == (6, 2, 1, 3)
    expected = conv2d(x, layer.weight.data, layer.bias.data if bias else None, **options)
    assert_close(layer(x).data, expected, rtol=1e-12)
    assert_close(layer(x, shift=Tensor(shift)).data, expected + shift[:, None, None], rtol=1e-12)
    options = {"stride": (2, 3), "padding": ((1, 1), (0, 0)), "output_padding": (1, 0), "groups": 2}
    layer = values(nn.ConvTranspose2d(4, 6, (3, 2), **options, bias=bias), rng)
    assert layer.state_dict()["weight"].shape == (4, 3, 3, 2)  # PyTorch's (in, out / groups, height, width)
    expected = conv_transpose2d(x, layer.weight.data, layer.bias.data if bias else None, **options)
    assert_close(layer(x).data, expected, rtol=1e-12)
    assert nn.Conv2d(4, 6, (1, 3)).weight.bound == pytest.approx(12**-0.5)


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


@pytest.mark.parametrize("eps", ["x", None, -1e-5, math.inf, math.nan])
def test_normalisations_need_a_number_that_is_one(eps):
    for make in (lambda: nn.GroupNorm(2, 4, eps), lambda: nn.LayerNorm(4, eps)):
        with pytest.raises(ValueError, match="eps of a normalisation must be a number of at least 0"):
            make()
    nn.GroupNorm(2, 4, np.float32(1e-5))


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


def test_sizes_may_be_numpys_numbers_and_must_be_some():
    three, eight = np.int64(3), np.int32(8)
    x = np.ones((1, 8, 8, 3), np.float32)
    strided = nn.Conv2d(three, eight, np.int64(3), stride=np.int64(2), padding=(np.int64(1), 1), groups=np.int64(1))
    assert strided(x).shape == (1, 4, 4, 8)
    assert nn.ConvTranspose2d(three, eight, np.int64(2), stride=np.int64(2))(x).shape == (1, 16, 16, 8)
    for make, message in (
        (lambda: nn.Linear(-1, 3), "cin must be a whole number of at least 1, got -1"),
        (lambda: nn.Linear(2, 3.0), r"cout must be a whole number of at least 1, got 3\.0"),
        (lambda: nn.Conv2d(0, 3, 3), "cin must be a whole number of at least 1, got 0"),
        (lambda: nn.Conv2d(3, 8, 0), "size must be a whole number >= 1 or a pair of them, got 0"),
        (lambda: nn.Embedding(10, 0), "dim must be a whole number of at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_what_pytorch_users_call_on_a_module():
    layer = nn.Linear(2, 3).initialize(0)
    layer(np.ones((1, 2), np.float32)).sum().backward()
    layer.to("cpu").zero_grad()
    assert [p.grad for p in layer.parameters()] == [None, None]
    for name, instead in (("eval", "there is no mode"), ("cuda", r'write \.to\("cuda"\)'), ("half", "astype")):
        with pytest.raises(AttributeError, match=f"no attribute {name!r}; .*{instead}"):
            getattr(layer, name)()
    with pytest.raises(ValueError, match="device must be one of cpu, cuda, simt, got 'gpu'"):
        layer.to("gpu")
    layer.load_state_dict({"weight": [[1, 2], [3, 4], [5, 6]], "bias": [7, 8, 9]})
    assert layer.weight.data.tolist() == [[1, 3, 5], [2, 4, 6]]


class Doubled(nn.Module):
    def __init__(self, cin, **others):
        self.inner, self.others = nn.Linear(cin, cin), others

    def forward(self, x, twice):
        if twice is None:
            raise AttributeError("twice was not told")
        return self.inner(x) * twice.factor


def test_words_of_other_libraries_and_what_is_no_array():
    for attempt, message in (
        (lambda: nn.Linear(in_features=2, out_features=3), "no option 'in_features'; it is called 'cin' here"),
        (lambda: nn.Conv2d(2, 3, kernel_size=3), "no option 'kernel_size'; it is called 'size' here"),
        (lambda: nn.GroupNorm(num_groups=2, channels=4), "no option 'num_groups'; it is called 'groups' here"),
        (lambda: nn.LayerNorm(normalized_shape=4), "no option 'normalized_shape'; it is called 'channels' here"),
        (lambda: nn.Embedding(count=2, embedding_dim=4), "no option 'embedding_dim'; it is called 'dim' here"),
        (lambda: nn.Linear(2, 3, bais=False), "no option 'bais'; did you mean 'bias'"),
        (lambda: pydiff.optim.AdamW(nn.Linear(2, 3), betas=(0.9, 0.99)), "'betas'; it is called 'beta1' here"),
        (lambda: pydiff.Options(stpes=3), "no option 'stpes'; did you mean 'steps'"),
        (lambda: nn.Linear(2, 3)([[1.0, 2.0]]), r"Linear takes arrays or Tensors, got \[\[1\.0, 2\.0\]\]; np\.array"),
        (lambda: nn.Conv2d(2, 3, 1)(None), "Conv2d takes arrays or Tensors, got None$"),
    ):
        with pytest.raises(TypeError, match=message):
            attempt()
    with pytest.raises(AttributeError, match="has no attribute 'UNet2DModel'; here it is UNet2D"):
        pydiff.models.UNet2DModel  # noqa: B018
    made = copy.deepcopy(pickle.loads(pickle.dumps(Doubled(2, more=3))))
    assert made.others == {"more": 3}
    with pytest.raises(AttributeError, match="'dict' object has no attribute 'factor'"):  # a mistake of its own
        made(np.ones((1, 2), np.float32), {})
    with pytest.raises(AttributeError, match=r"^twice was not told$"):
        made(np.ones((1, 2), np.float32), None)

"""Transformer blocks: names, outputs and all gradients are diffusers' in float64; masks, plans, recomputation."""

import numpy as np
import pytest

from pydiff import nn
from pydiff.graph import Plan
from pydiff.reference.attention import attention
from pydiff.reference.gelu import geglu
from pydiff.reference.layer_norm import layer_norm
from pydiff.tensor import Tensor
from tests.bits import assert_same_bits
from tests.compare import assert_close, check_gradient
from tests.peers import import_diffusers, import_torch


def values(module, seed=0):
    """Random float64 parameters."""
    rng = np.random.default_rng(seed)
    for p in module.astype(np.float64).parameters():
        p.data = rng.standard_normal(p.shape) / max(p.shape[0], 1) ** 0.5
    return module


def linear(layer, x):
    return x @ layer.weight.data + (0 if layer.bias is None else layer.bias.data)


def attended(layer, x, context, mask=None):
    q, k, v = linear(layer.to_q, x), linear(layer.to_k, context), linear(layer.to_v, context)
    return linear(layer.to_out[0], attention(q, k, v, layer.heads, key_mask=mask))


def normed(layer, x):
    return layer_norm(x, layer.weight.data, layer.bias.data)


@pytest.mark.parametrize("only_cross_attention", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_a_block_is_its_equation(only_cross_attention, masked):
    block = values(nn.BasicTransformerBlock(6, 2, 3, context_channels=5, only_cross_attention=only_cross_attention))
    rng = np.random.default_rng(1)
    x, context = rng.standard_normal((2, 4, 6)), rng.standard_normal((2, 3, 5))
    mask = np.array([[True, False, True], [True, True, False]]) if masked else None

    def expected(x, context):
        h = normed(block.norm1, x)
        x = x + attended(block.attn1, h, context if only_cross_attention else h)
        x = x + attended(block.attn2, normed(block.norm2, x), context, mask)
        return x + linear(block.ff.net[2], geglu(linear(block.ff.net[0].proj, normed(block.norm3, x))))

    assert_close(block(x, context, mask).data, expected(x, context), rtol=1e-12)
    check_gradient(lambda x, c: block(x, c, mask), expected, [x, context], rng, rtol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_the_core_of_attention_has_neither_norm_nor_residual(bias):
    core = values(nn.MultiHeadAttention(6, 2, 4, context_channels=5, bias=bias))
    names = ["to_q.weight", "to_q.bias", "to_k.weight", "to_k.bias", "to_v.weight", "to_v.bias"]
    names = [n for n in names if bias or n.endswith("weight")] + ["to_out.0.weight", "to_out.0.bias"]
    assert [name for name, _ in core.named_parameters()] == names
    rng = np.random.default_rng(1)
    x, context, add = (rng.standard_normal(s) for s in ((2, 4, 6), (2, 3, 5), (2, 4, 6)))
    assert_close(core(x, context).data, attended(core, x, context), rtol=1e-12)
    assert_close(core(x, context, add=add).data, attended(core, x, context) + add, rtol=1e-12)


def test_causal_and_masked_cores():
    core = values(nn.MultiHeadAttention(6, 2, 3))
    x = np.random.default_rng(1).standard_normal((2, 4, 6))
    assert_close(core(x, causal=True).data[:, :2], core(x[:, :2], causal=True).data, rtol=1e-12)
    mask = np.array([[True, True, False, False]] * 2)
    assert_close(core(x, key_mask=mask).data, core(x, x[:, :2]).data, rtol=1e-12)


def test_dropout_is_before_the_residual():
    core = values(nn.MultiHeadAttention(6, 2, 3, dropout=0.5))
    x, add = np.random.default_rng(1).standard_normal((2, 2, 40, 6))
    assert_close(core(x, add=add).data, attended(core, x, x) + add, rtol=1e-12)
    with nn.training(0, 1, np.arange(2)):
        out = core(x, add=add).data - add
    dropped = np.abs(out) < 1e-12
    assert 0.4 < dropped.mean() < 0.6
    assert_close(out[~dropped], 2 * attended(core, x, x)[~dropped], rtol=1e-12)


def test_a_block_without_its_context():
    with pytest.raises(ValueError, match="attends to a context, such as a prompt's states, and got none"):
        nn.BasicTransformerBlock(6, 2, 3, context_channels=5)(Tensor(np.zeros((1, 2, 6), np.float32)))
    with pytest.raises(ValueError, match="activation must be one of geglu, gelu, gelu-approximate, geglu-approximate"):
        nn.FeedForward(6, "swish")


@pytest.mark.parametrize("context_channels", [None, 5])
def test_plans_and_recomputation_have_the_same_bits(context_channels):
    model = nn.Transformer2DModel(8, 2, 4, layers=2, context_channels=context_channels, groups=4).initialize(3)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 4, 8)).astype(np.float32)
    arrays = [x] if context_channels is None else [x, rng.standard_normal((2, 7, 5)).astype(np.float32)]
    plan = Plan(model, *(np.zeros_like(a) for a in arrays))
    assert_same_bits([plan(*arrays)], [model(*map(Tensor, arrays)).data])
    dy, results = rng.standard_normal(x.shape).astype(np.float32), []
    for again in (False, True):
        for block in model.transformer_blocks:
            block.recompute = again
        tensors = [Tensor(a, requires_grad=True) for a in arrays]
        for p in model.parameters():
            p.grad = None
        y = model(*tensors)
        y.backward(dy)
        results.append([y.data, *(t.grad for t in (*tensors, *model.parameters()))])
    assert_same_bits(*results)


# ---- diffusers -----------------------------------------------------------------------------------------------------


def check_against_diffusers(ours, theirs, x, context, mask, layout):
    """Same names; outputs and every gradient. layout: from our axes to theirs, for x and y."""
    torch = import_torch()
    theirs = theirs.double()
    state = values(ours).state_dict()
    assert list(state) == list(theirs.state_dict())  # the same order, too
    theirs.load_state_dict({name: torch.from_numpy(a) for name, a in state.items()})
    arrays = [x] if context is None else [x, context]
    tensors = [Tensor(a, requires_grad=True) for a in arrays]
    y = ours(*tensors, **({} if mask is None else {"key_mask": mask}))
    others = [torch.from_numpy(np.ascontiguousarray(x.transpose(layout))), *map(torch.from_numpy, arrays[1:])]
    others = [t.requires_grad_() for t in others]
    options = {} if mask is None else {"encoder_attention_mask": torch.from_numpy(mask)}
    out = theirs(others[0], encoder_hidden_states=others[1] if context is not None else None, **options)
    out = out.sample if hasattr(out, "sample") else out
    back = tuple(np.argsort(layout))
    assert_close(y.data, out.detach().numpy().transpose(back), rtol=1e-10)
    dy = np.random.default_rng(5).standard_normal(y.shape)
    y.backward(dy)
    out.backward(torch.from_numpy(np.ascontiguousarray(dy.transpose(layout))))
    assert_close(tensors[0].grad, others[0].grad.numpy().transpose(back), rtol=1e-9)
    if context is not None:
        assert_close(tensors[1].grad, others[1].grad.numpy(), rtol=1e-9)
    gradients = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        assert_close(p.grad.transpose(p.file_axes), gradients[name].grad.numpy(), rtol=1e-9, atol=1e-11, what=name)


def draw(context_channels):
    rng = np.random.default_rng(2)
    context = None if context_channels is None else rng.standard_normal((2, 5, context_channels))
    return rng.standard_normal((2, 3, 4, 8)), context


@pytest.mark.parametrize("activation", ["geglu", "gelu", "gelu-approximate", "geglu-approximate"])
@pytest.mark.parametrize(("context_channels", "only_cross_attention"), [(None, False), (6, False), (6, True)])
@pytest.mark.parametrize("bias", [False, True])
def test_blocks_equal_diffusers(context_channels, only_cross_attention, activation, bias):
    import_diffusers()
    from diffusers.models.attention import BasicTransformerBlock

    options = {"only_cross_attention": only_cross_attention}
    ours = nn.BasicTransformerBlock(8, 2, 4, context_channels, activation=activation, bias=bias, **options)
    theirs = BasicTransformerBlock(
        8, 2, 4, cross_attention_dim=context_channels, activation_fn=activation, attention_bias=bias, **options
    )
    x, context = draw(context_channels)
    check_against_diffusers(ours, theirs, x.reshape(2, 12, 8), context, None, (0, 1, 2))


@pytest.mark.filterwarnings("ignore:.*Transformer2DModelOutput:FutureWarning")  # diffusers warns of its own import
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("use_linear_projection", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_models_equal_diffusers(use_linear_projection, layers, masked):
    diffusers = import_diffusers()
    options = {"use_linear_projection": use_linear_projection}
    ours = nn.Transformer2DModel(8, 3, 4, layers, context_channels=6, groups=4, **options)
    theirs = diffusers.Transformer2DModel(
        num_attention_heads=3, attention_head_dim=4, in_channels=8, num_layers=layers, cross_attention_dim=6,
        norm_num_groups=4, **options,
    )  # fmt: skip
    x, context = draw(6)
    mask = np.array([[True] * 3 + [False] * 2, [True] * 5]) if masked else None
    check_against_diffusers(ours, theirs, x, context, mask, (0, 3, 1, 2))

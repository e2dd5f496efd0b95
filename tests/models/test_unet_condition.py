"""The U-Net with a context against diffusers' UNet2DConditionModel: outputs and every gradient, the context's too."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff.graph import Played
from pydiff.models import UNet2DCondition, build, name_of
from pydiff.models.unet import sinusoids
from pydiff.tensor import Tensor, no_grad
from tests.bits import assert_same_bits
from tests.compare import assert_close
from tests.peers import import_diffusers
from tests.strategies import kernels  # noqa: F401

SMALL = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 6,
    "in_channels": 3,
    "out_channels": 3,
}
BOTH = {"down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2}
TEXT_TIME = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
TEXT_TIME |= {"projection_class_embeddings_input_dim": 5 + 3 * 4}
OPTIONS = {
    "plain": {},
    "attention everywhere": BOTH,
    "no attention but in the middle": {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2},
    "one level": {
        "block_out_channels": (8,), "down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("UpBlock2D",),
    },
    "three levels": {
        "block_out_channels": (8, 16, 8),
        "down_block_types": ("CrossAttnDownBlock2D", "ResnetDownsampleBlock2D", "DownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "ResnetUpsampleBlock2D", "UpBlock2D"),
    },
    "layers by level": {**BOTH, "layers_per_block": [1, 2]},
    "transformers by level": {**BOTH, "transformer_layers_per_block": [2, 1]},
    "transformers by layer": {
        **BOTH, "layers_per_block": 2, "transformer_layers_per_block": [[1, 2], 1],
        "reverse_transformer_layers_per_block": [[1, 1, 2], [2, 1, 1]],
    },
    "heads by level": {**BOTH, "attention_head_dim": [2, 4]},
    "one head": {"attention_head_dim": 1},
    "contexts by level": {**BOTH, "cross_attention_dim": [6, 6]},
    "linear projections": {**BOTH, "use_linear_projection": True},
    "only cross attention": {**BOTH, "only_cross_attention": True},
    "only cross attention above": {**BOTH, "only_cross_attention": [True, False]},
    "plain middle": {"mid_block_type": "UNetMidBlock2D"},
    "no middle": {"mid_block_type": None},
    "scaled middle": {"mid_block_scale_factor": 1.7},
    "resnet blocks, scaled": {
        "down_block_types": ("ResnetDownsampleBlock2D",) * 2, "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
        "resnet_out_scale_factor": 1.3,
    },
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
    "downsample padding": {"downsample_padding": 0},
    "classes": {"num_class_embeds": 5},
    "class steps": {"class_embed_type": "timestep"},
    "class vectors": {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 7},
    "class vectors, one layer": {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 7},
    "class vectors as they are": {"class_embed_type": "identity"},
    "classes beside the step": {"num_class_embeds": 5, "class_embeddings_concat": True},
    "text and sizes": TEXT_TIME,
    "guidance told": {"time_cond_proj_dim": 9},
    "context projected": {"encoder_hid_dim": 11},
    "frequency shift": {"freq_shift": 1},
    "sines first": {"flip_sin_to_cos": False},
    "time dimension": {"time_embedding_dim": 20},
    "centred": {"center_input_sample": True},
    "eps": {"norm_eps": 1e-2},
    "more channels out": {"in_channels": 4, "out_channels": 8},
    "wide ends": {"conv_in_kernel": 5, "conv_out_kernel": 1},
    "upcast": {"upcast_attention": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def diffusers():
    return import_diffusers()


def conditions(model, rng, n=2, tokens=5):
    """A condition of everything that this model takes, in float64."""
    config, made = model.config, {}
    width = config["encoder_hid_dim"] or np.max(config["cross_attention_dim"])
    made["encoder_hidden_states"] = rng.standard_normal((n, tokens, width))
    kind = config["class_embed_type"]
    if kind == "timestep" or config["num_class_embeds"] is not None:
        made["class_labels"] = np.array([2, 0])[:n]
    elif kind is not None:
        dim = model.time_embedding.linear_2.weight.shape[1]
        made["class_labels"] = rng.standard_normal((n, config["projection_class_embeddings_input_dim"] or dim))
    if config["time_cond_proj_dim"]:
        made["timestep_cond"] = rng.standard_normal((n, config["time_cond_proj_dim"]))
    if config["addition_embed_type"]:
        made["text_embeds"], made["time_ids"] = rng.standard_normal((n, 5)), np.arange(3.0 * n).reshape(n, 3) * 64
    return made


def twin_of(diffusers, ours):
    """diffusers' model of the same configuration with the same weights, in float64, with exact sinusoids."""
    import torch

    class Sinusoids(torch.nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.dim = dim

        def forward(self, t):
            order = ours.config["flip_sin_to_cos"], ours.config["freq_shift"]
            return torch.from_numpy(sinusoids(t.numpy(), self.dim, *order))

    kept = ("mid_block_type",)
    theirs = diffusers.UNet2DConditionModel(**{k: v for k, v in ours.config.items() if v is not None or k in kept})
    theirs = theirs.double()
    theirs.load_state_dict({name: torch.from_numpy(a) for name, a in ours.state_dict().items()})
    theirs.time_proj = Sinusoids(ours.config["block_out_channels"][0])
    if ours.config["addition_embed_type"]:
        theirs.add_time_proj = Sinusoids(ours.config["addition_time_embed_dim"])
    return theirs


def compare(diffusers, options, seed=0, size=(8, 8), masked=False):
    """Output, gradient of the input, of the context and of every parameter, in float64."""
    import torch

    ours = UNet2DCondition(**{**SMALL, **options}, seed=seed).astype(np.float64)
    rng = np.random.default_rng(seed)
    for p in ours.parameters():  # normalisations start at 1 and 0, where mistakes can hide
        p.data += 0.1 * rng.standard_normal(p.shape)
    theirs = twin_of(diffusers, ours)
    x, t = rng.standard_normal((2, *size, ours.config["in_channels"])), np.array([3.0, 801.5])
    condition = conditions(ours, rng)
    mask = np.array([[1, 1, 0, 1, 1], [1, 0, 0, 0, 1]]) if masked else None
    tensor, context = Tensor(x, True), Tensor(condition["encoder_hidden_states"], True)
    more = {"encoder_attention_mask": mask} if masked else {}
    y = ours(tensor, t, **{**condition, "encoder_hidden_states": context, **more})
    dy = rng.standard_normal(y.shape)
    y.backward(dy)

    their_x = torch.from_numpy(x.transpose(0, 3, 1, 2)).requires_grad_()
    given = {name: torch.from_numpy(value) for name, value in condition.items()}
    their_context = given.pop("encoder_hidden_states").requires_grad_()
    added = {name: given.pop(name) for name in ("text_embeds", "time_ids") if name in given}
    if masked:
        given["encoder_attention_mask"] = torch.from_numpy(mask)
    their_y = theirs(their_x, torch.from_numpy(t), their_context, added_cond_kwargs=added, **given).sample
    their_y.backward(torch.from_numpy(dy.transpose(0, 3, 1, 2)))

    assert_close(y.data, their_y.detach().permute(0, 2, 3, 1).numpy(), rtol=1e-9)
    assert_close(tensor.grad, their_x.grad.permute(0, 2, 3, 1).numpy(), rtol=1e-7)
    if their_context.grad is not None:
        assert_close(context.grad, their_context.grad.numpy(), rtol=1e-7, atol=1e-12)
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    mine = dict(ours.named_parameters())
    assert gradients.keys() == mine.keys()
    # Where the next normalisation takes a shift away again, a gradient is 0 and what is found are rounding errors of
    # the others' size, so an absolute bound too. Values that hardly differ are multiplied by up to norm_eps^-1/2 there,
    # both as they are and on their gradient's way back, and their rounding errors with them.
    rounding = np.finfo(np.float64).eps / ours.config["norm_eps"] * max(np.abs(p.grad).max() for p in mine.values())
    for name, p in mine.items():
        expected = np.zeros(p.grad.transpose(p.file_axes).shape) if gradients[name] is None else gradients[name].numpy()
        assert_close(p.grad.transpose(p.file_axes), expected, rtol=1e-7, atol=rounding, what=name)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_equals_diffusers(diffusers, name):
    compare(diffusers, OPTIONS[name])


@pytest.mark.parametrize("size", [(4, 12), (16, 2), (7, 5), (9, 3)])
def test_other_sizes_equal_diffusers(diffusers, size):
    """Odd ones too: on the way up they come back to what they were."""
    compare(diffusers, BOTH, size=size)


@pytest.mark.parametrize("name", ["attention everywhere", "only cross attention", "linear projections"])
def test_masked_contexts_equal_diffusers(diffusers, name):
    compare(diffusers, OPTIONS[name], masked=True)


@st.composite
def configurations(draw):
    """Any of the options together."""
    levels = draw(st.integers(1, 3))
    down = ["CrossAttnDownBlock2D", "DownBlock2D", "ResnetDownsampleBlock2D"]
    up = ["CrossAttnUpBlock2D", "UpBlock2D", "ResnetUpsampleBlock2D"]
    names = ["classes", "class steps", "class vectors", "class vectors as they are", "text and sizes", "plain"]
    return {
        "block_out_channels": tuple(draw(st.sampled_from([4, 8, 12])) for _ in range(levels)),
        "down_block_types": tuple(draw(st.sampled_from(down)) for _ in range(levels)),
        "up_block_types": tuple(draw(st.sampled_from(up)) for _ in range(levels)),
        "layers_per_block": [draw(st.integers(1, 2)) for _ in range(levels)],
        "transformer_layers_per_block": [draw(st.integers(1, 2)) for _ in range(levels)],
        "attention_head_dim": [draw(st.sampled_from([1, 2, 4])) for _ in range(levels)],
        "cross_attention_dim": 6,
        "norm_num_groups": draw(st.sampled_from([1, 2, 4])),
        "use_linear_projection": draw(st.booleans()),
        "only_cross_attention": draw(st.booleans()),
        "mid_block_type": draw(st.sampled_from(["UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None])),
        "mid_block_scale_factor": draw(st.sampled_from([1, 2.5])),
        "resnet_time_scale_shift": draw(st.sampled_from(["default", "scale_shift"])),
        "downsample_padding": draw(st.integers(0, 1)),
        "freq_shift": draw(st.integers(0, 1)),
        "in_channels": draw(st.integers(1, 3)),
        "out_channels": draw(st.integers(1, 3)),
        **OPTIONS[draw(st.sampled_from(names))],
    }


@given(options=configurations(), seed=st.integers(0, 2**16), masked=st.booleans())
def test_options_together_equal_diffusers(diffusers, options, seed, masked):
    compare(diffusers, options, seed, (4, 8), masked)


def test_every_option_is_tried_and_matters():
    """An option that changes nothing would pass all comparisons above with any value."""
    tried = set().union(SMALL, *OPTIONS.values())
    fixed = {"act_fn", "num_attention_heads", "dual_cross_attention", "resnet_skip_time_act", "time_embedding_type"}
    fixed |= {"time_embedding_act_fn", "timestep_post_act", "attention_type", "cross_attention_norm"}
    without_effect = {"sample_size", "dropout", "encoder_hid_dim_type", "mid_block_only_cross_attention"}
    without_effect |= {"addition_embed_type_num_heads"}
    assert set(UNet2DCondition(**SMALL).config) - tried == fixed | without_effect

    def state(options):
        model = UNet2DCondition(**{**SMALL, **options}).astype(np.float64)
        rng = np.random.default_rng(0)
        x = rng.standard_normal((1, 8, 8, model.config["in_channels"]))
        with no_grad():
            return {**model.state_dict(), "": model(x, 5, **conditions(model, rng, 1)).data.copy()}

    plain = state({})
    for name, options in OPTIONS.items():
        other = state(options)
        same = other.keys() == plain.keys() and all(np.array_equal(other[k], plain[k]) for k in plain)
        assert same == (name in ("plain", "upcast")), name


def test_folders_go_both_ways(diffusers, tmp_path):
    for name in ("attention everywhere", "linear projections", "text and sizes", "layers by level"):
        ours = UNet2DCondition(**{**SMALL, **OPTIONS[name]}, seed=3)
        theirs = twin_of(diffusers, ours).float()
        theirs.save_pretrained(tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        again = build(config["_class_name"], {k: v for k, v in config.items() if not k.startswith("_")})
        state = {key: value.numpy() for key, value in theirs.state_dict().items()}
        again.load_state_dict(state)
        assert all(np.array_equal(array, state[name]) for name, array in again.state_dict().items())
        assert again.config == ours.config


def test_what_is_recorded_serves_other_contexts_and_masks():
    model = UNet2DCondition(**{**SMALL, **BOTH})
    played, rng = Played(model), np.random.default_rng(0)
    x = rng.standard_normal((2, 8, 8, 3)).astype(np.float32)
    for tokens, masked in ((4, False), (7, False), (4, True), (4, True), (7, False)):
        context = rng.standard_normal((2, tokens, 6)).astype(np.float32)
        condition = {"encoder_hidden_states": context}
        if masked:
            condition["encoder_attention_mask"] = np.arange(tokens) < rng.integers(1, tokens, (2, 1))
        with no_grad():
            expected = model(x, 7, **condition).data
        assert_same_bits([played(x, 7, **condition)], [expected])
    assert len(played.plans) == 3


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", ["attention everywhere", "classes", "only cross attention above"])
def test_several_contexts_have_the_bits_of_as_many_passes(name):
    compare_several(name, masked=True)


@pytest.mark.parametrize("name", OPTIONS)
def test_several_contexts_go_with_every_option(name):
    compare_several(name, masked=False)


def compare_several(name, masked):
    """k contexts for every x in one pass against k passes, recorded too."""
    model, rng = UNet2DCondition(**{**SMALL, **OPTIONS[name]}), np.random.default_rng(0)
    x = rng.standard_normal((2, 8, 8, model.config["in_channels"])).astype(np.float32)
    told = {name: value.astype(np.float32) for name, value in conditions(model, rng).items()}
    if "class_labels" in told and told["class_labels"].ndim == 1:
        told["class_labels"] = told["class_labels"].astype(int)
    asked = [{**told, "encoder_hidden_states": told["encoder_hidden_states"] + i} for i in range(3)]
    if masked:
        asked = [{**one, "encoder_attention_mask": rng.random((2, 5)) < 0.7} for one in asked]
    joined = {**told, **{key: np.concatenate([one[key] for one in asked]) for key in model.several if key in asked[0]}}
    played = Played(model)
    with no_grad():
        expected = np.concatenate([model(x, 7, **one).data for one in asked])
        assert_same_bits([model(x, 7, **joined).data, played(x, 7, **joined), played(x, 7, **joined)], [expected] * 3)


def test_the_gradient_of_several_contexts_is_the_sum():
    model, rng = UNet2DCondition(**{**SMALL, **BOTH}).astype(np.float64), np.random.default_rng(0)
    x, contexts = rng.standard_normal((2, 8, 8, 3)), rng.standard_normal((3, 2, 5, 6))
    dy = rng.standard_normal((3, 2, 8, 8, 3))

    def gradients(pairs):
        given, found = Tensor(x, True), []
        for context, g in pairs:
            seen = Tensor(context, True)
            model(given, 7, encoder_hidden_states=seen).backward(g)
            found.append(seen.grad)
        weights = [p.grad for p in model.parameters()]
        for p in model.parameters():
            p.grad = None
        return [given.grad, np.concatenate(found), *weights]

    one = gradients([(contexts.reshape(6, 5, 6), dy.reshape(6, 8, 8, 3))])
    for got, expected in zip(one, gradients(zip(contexts, dy, strict=True)), strict=True):
        assert_close(got, expected, rtol=1e-9, atol=1e-11)


def test_padding_that_is_masked_changes_nothing():
    model, rng = UNet2DCondition(**{**SMALL, **BOTH}).astype(np.float64), np.random.default_rng(0)
    x, context = rng.standard_normal((1, 8, 8, 3)), rng.standard_normal((1, 3, 6))
    padded, mask = np.concatenate([context, rng.standard_normal((1, 4, 6))], axis=1), np.arange(7)[None] < 3
    with no_grad():
        short = model(x, 7, encoder_hidden_states=context).data
        long = model(x, 7, encoder_hidden_states=padded, encoder_attention_mask=mask).data
    np.testing.assert_allclose(long, short, rtol=1e-12, atol=1e-12)


def test_recomputed_blocks_give_the_same_bits():
    def gradients(on):
        model, rng = UNet2DCondition(**{**SMALL, **BOTH}).recompute_blocks(on), np.random.default_rng(0)
        x, context = rng.standard_normal((1, 8, 8, 3)), rng.standard_normal((1, 3, 6))
        context = Tensor(context.astype(np.float32), True)
        model(x.astype(np.float32), 7, encoder_hidden_states=context).sum().backward()
        return [context.grad, *(p.grad for p in model.parameters())]

    assert_same_bits(gradients(True), gradients(False))


def test_it_is_registered_under_diffusers_name():
    assert name_of(UNet2DCondition(**SMALL)) == "UNet2DConditionModel"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"down_block_types": ("SimpleCrossAttnDownBlock2D", "DownBlock2D")}, "down_block_types needs 2 of CrossAttn"),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type must be one of"),
        ({"addition_embed_type": "image"}, "addition_embed_type must be one of None, 'text_time', got 'image'"),
        ({"num_attention_heads": 8}, "num_attention_heads must be one of None"),
        ({"layers_per_block": [1, 2, 3]}, "layers_per_block needs one value a level, 2 of them"),
        ({"class_embed_type": "projection"}, "needs projection_class_embeddings_input_dim"),
        ({"attention_type": "gated"}, "attention_type must be one of 'default'"),
    ],
)
def test_what_is_not_built_is_one_sentence(options, message):
    with pytest.raises(ValueError, match=message) as error:
        UNet2DCondition(**{**SMALL, **options})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({}, "needs encoder_hidden_states"),
        ({"encoder_hidden_states": np.zeros((2, 3, 5))}, r"must have shape \(2, T, 6\), got \(2, 3, 5\)"),
        ({"encoder_hidden_states": np.zeros((1, 3, 6))}, "must have shape"),
        ({"encoder_hidden_states": np.zeros((3, 3, 6))}, r"must have shape \(2, T, 6\), got \(3, 3, 6\)"),
        ({"encoder_hidden_states": np.zeros((0, 3, 6))}, "must have shape"),
        ({"encoder_hidden_states": np.zeros((2, 3, 6)), "class_labels": [0, 1]}, "has no class embedding"),
        ({"encoder_hidden_states": np.zeros((2, 3, 6)), "text_embeds": np.zeros((2, 5))}, "takes no text_embeds"),
        (
            {"encoder_hidden_states": np.zeros((2, 3, 6)), "encoder_attention_mask": np.ones((2, 4))},
            r"must be \(2, 3\), got \(2, 4\)",
        ),
    ],
)
def test_conditions_that_do_not_fit_are_one_sentence(condition, message):
    with pytest.raises(ValueError, match=message):
        UNet2DCondition(**SMALL)(np.zeros((2, 8, 8, 3), np.float32), 1, **condition)

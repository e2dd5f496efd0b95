"""The U-Net of clips: against diffusers' UNet3DConditionModel, and what its temporal layers promise."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydiff import text
from pydiff.graph import Played
from pydiff.models import ClipUNet, UNet2D, UNet2DCondition, UNet3D, build, name_of, widened
from pydiff.models.unet import sinusoids
from pydiff.nn import observe
from pydiff.tensor import Tensor, no_grad
from tests.compare import assert_close, numerical_slope
from tests.peers import import_diffusers

SMALL = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "cross_attention_dim": 6,
    "in_channels": 3,
    "out_channels": 3,
}
OPTIONS = {
    "plain": {},
    "one level": {
        "block_out_channels": (8,), "down_block_types": ("CrossAttnDownBlock3D",), "up_block_types": ("UpBlock3D",),
    },
    "no attention but in the middle": {"down_block_types": ("DownBlock3D",) * 2, "up_block_types": ("UpBlock3D",) * 2},
    "two layers": {"layers_per_block": 2},
    "other channels out": {"out_channels": 5},
    "padding": {"downsample_padding": 0},
    "scaled middle": {"mid_block_scale_factor": 1.7},
    "guidance told": {"time_cond_proj_dim": 9},
    "eps": {"norm_eps": 1e-2},
}  # fmt: skip


@pytest.fixture(scope="module")
def diffusers():
    return import_diffusers()


def shaken(model, seed=0, dtype=np.float64):
    """The model in another precision, no parameter at the value where mistakes can hide."""
    rng = np.random.default_rng(seed)
    model.astype(dtype)
    for p in model.parameters():
        p.data += (0.1 * rng.standard_normal(p.shape)).astype(dtype)
    return model


def twin_of(diffusers, ours):
    """diffusers' model of the same configuration with the same weights, in float64, with exact sinusoids."""
    import torch

    class Sinusoids(torch.nn.Module):
        def forward(self, t):
            return torch.from_numpy(sinusoids(t.numpy(), ours.config["block_out_channels"][0]))

    theirs = diffusers.UNet3DConditionModel(**{k: v for k, v in ours.config.items() if v is not None}).double().eval()
    theirs.load_state_dict({name: torch.from_numpy(a) for name, a in ours.state_dict().items()})
    theirs.time_proj = Sinusoids()
    return theirs


def compare(diffusers, options, frames=3, size=(8, 8), seed=0):
    """Output, gradient of the input, of the context and of every parameter, in float64."""
    import torch

    ours, rng = shaken(UNet3D(**{**SMALL, **options}, seed=seed), seed), np.random.default_rng(seed)
    theirs = twin_of(diffusers, ours)
    x, t = rng.standard_normal((2, frames, *size, ours.config["in_channels"])), np.array([3.0, 801.5])
    context = rng.standard_normal((2, 5, ours.config["cross_attention_dim"]))
    tensor, told = Tensor(x, True), Tensor(context, True)
    dim = ours.config["time_cond_proj_dim"]
    more = {} if dim is None else {"timestep_cond": rng.standard_normal((2, dim))}
    y = ours(tensor, t, encoder_hidden_states=told, **more)
    dy = rng.standard_normal(y.shape)
    y.backward(dy)
    their_x = torch.from_numpy(x.transpose(0, 4, 1, 2, 3)).requires_grad_()
    their_context = torch.from_numpy(context).requires_grad_()
    given = {name: torch.from_numpy(value) for name, value in more.items()}
    their_y = theirs(their_x, torch.from_numpy(t), their_context, **given).sample
    their_y.backward(torch.from_numpy(dy.transpose(0, 4, 1, 2, 3)))
    assert_close(y.data, their_y.detach().permute(0, 2, 3, 4, 1).numpy(), rtol=1e-9)
    assert_close(tensor.grad, their_x.grad.permute(0, 2, 3, 4, 1).numpy(), rtol=1e-7)
    assert_close(told.grad, their_context.grad.numpy(), rtol=1e-7, atol=1e-12)
    gradients, mine = {name: p.grad for name, p in theirs.named_parameters()}, dict(ours.named_parameters())
    assert gradients.keys() == mine.keys()
    rounding = np.finfo(np.float64).eps / ours.config["norm_eps"] * max(np.abs(p.grad).max() for p in mine.values())
    for name, p in mine.items():
        assert_close(p.grad.transpose(p.file_axes), gradients[name].numpy(), rtol=1e-7, atol=rounding, what=name)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_equals_diffusers(diffusers, name):
    compare(diffusers, OPTIONS[name])


@settings(max_examples=5)
@given(
    frames=st.integers(1, 9),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    layers=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 2**16),
)
def test_any_size_and_length_equals_diffusers(diffusers, frames, height, width, layers, groups, seed):
    compare(diffusers, {"layers_per_block": layers, "norm_num_groups": groups}, frames, (height, width), seed)


# ---- what the temporal layers promise ------------------------------------------------------------------------------

IMAGE = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
CONTEXT = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 6,
    "attention_head_dim": (2, 4),
    "in_channels": 3,
    "out_channels": 3,
}


def image_model(kind):
    if kind == "plain":
        return UNet2D(**IMAGE, seed=1), {}
    if kind == "classes":
        return UNet2D(**IMAGE, num_class_embeds=5, seed=1), {"class_labels": np.array([2, 4])}
    context = np.random.default_rng(0).standard_normal((2, 5, 6))
    mask = np.array([[1, 1, 0, 1, 1], [1, 0, 0, 0, 1]])
    told = {"encoder_hidden_states": context, "encoder_attention_mask": mask}
    return UNet2DCondition(**{**IMAGE, **CONTEXT}, use_linear_projection=kind == "linear", seed=1), told


@settings(max_examples=8)
@given(
    kind=st.sampled_from(["plain", "classes", "context", "linear"]),
    frames=st.integers(1, 8),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
)
def test_a_widened_image_model_draws_its_images_frame_by_frame(kind, frames, height, width):
    if kind in ("plain", "classes"):  # UNet2D gives odd sizes back only where it rounds up, as it does by default
        height, width = 2 * height, 2 * width
    model, told = image_model(kind)
    shaken(model)
    wide = widened(model).astype(np.float64)
    x = np.random.default_rng(height).standard_normal((2, frames, height, width, 3))
    t = np.array([3, 700])
    with no_grad():
        drawn = wide(x, t, **told).data
        expected = np.stack([model(x[:, f], t, **told).data for f in range(frames)], axis=1)
        assert_close(drawn, expected, rtol=1e-12)
        assert_close(wide(x[:, 0], t, **told).data, expected[:, 0], rtol=1e-12)  # images pass the temporal layers by
        shaken(wide, seed=3)
        assert np.abs(wide(x, t, **told).data - expected).max() > 1e-3  # and once learned, they do something


def test_what_cannot_be_widened_is_said():
    with pytest.raises(ValueError, match="resnet_time_scale_shift = 'scale_shift' cannot be widened"):
        widened(UNet2D(**IMAGE, resnet_time_scale_shift="scale_shift"))
    with pytest.raises(ValueError, match="cannot be widened"):
        widened(UNet2D(**{**IMAGE, "down_block_types": ("DownBlock2D", "ResnetDownsampleBlock2D")}))
    with pytest.raises(ValueError, match="a ClipUNet cannot be widened"):
        widened(ClipUNet(norm_num_groups=8))


CLIP = {"block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 4}
POSITIONS = {"resnet_time_scale_shift": "scale_shift", "pixel_positions": True}


@settings(max_examples=6)
@given(
    frames=st.integers(1, 5),
    height=st.integers(2, 5),
    width=st.integers(3, 5),
    kind=st.sampled_from(["class", "states", "states and their mean", "all"]),
)
def test_the_gradient_is_the_slope(frames, height, width, kind):
    rng, told = np.random.default_rng(7 * frames + height), kind != "class"
    more = {"num_class_embeds": 4, "transformer_in": True}
    if told:
        more = {"cross_attention_dim": 3, "pooled_context": kind != "states"} | (POSITIONS if kind == "all" else {})
    model = shaken(ClipUNet(**CLIP, **more, frame_positions=told))
    t = np.array([5, 600])
    given = {"encoder_hidden_states": rng.standard_normal((2, 4, 3))} if told else {"class_labels": np.array([0, 3])}
    names = ["conv_in.weight", "mid_block.temp_convs.0.conv4.3.weight", "mid_block.temp_attentions.0.proj_out.weight"]
    names += ["context_embedding.linear.weight", "mixing.weight"] if more.get("pooled_context") else []
    names += [f"position_embedding.{axis}.weight" for axis in range(3)] if kind == "all" else []
    parameters = [dict(model.named_parameters())[name] for name in names]
    x = rng.standard_normal((2, frames, height, width, 3))

    def answer(x, *weights):
        for p, w in zip(parameters, weights, strict=True):
            p.data = w
        with no_grad():
            return model(x, t, **given).data

    arrays = [x, *(p.data.copy() for p in parameters)]
    directions = [rng.standard_normal(a.shape) for a in arrays]
    tensor = Tensor(x, True)
    out = model(tensor, t, **given)
    cotangent = rng.standard_normal(out.shape)
    out.backward(cotangent)
    parts = [tensor.grad * directions[0], *(p.grad * d for p, d in zip(parameters, directions[1:], strict=True))]
    slope, scale = sum(float(a.sum()) for a in parts), sum(float(np.abs(a).sum()) for a in parts) + 1e-3
    assert abs(slope - numerical_slope(answer, arrays, directions, cotangent)) <= 1e-6 * scale


@pytest.mark.parametrize("shape", [(2, 5, 7, 6, 3), (2, 1, 8, 8, 3), (2, 8, 8, 3)])
@pytest.mark.parametrize("more", [{}, {"pooled_context": True}, {"pooled_context": True, **POSITIONS}])
def test_a_played_network_answers_the_same(shape, more):
    options = {"cross_attention_dim": 6, "frame_positions": True, **more}
    model = shaken(ClipUNet(**CLIP, **options), dtype=np.float32)
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(np.float32)
    told = {
        "encoder_hidden_states": rng.standard_normal((2, 4, 6)).astype(np.float32),
        "encoder_attention_mask": np.array([[True, True, False, True], [True, False, False, True]]),
    }
    played = Played(model)
    with no_grad():
        for t in (3, 700, 5):
            assert np.array_equal(played(x, np.array([t, t]), **told), model(x, np.array([t, t]), **told).data)


def test_frames_that_are_told_their_numbers_are_told_apart():
    x = np.tile(np.random.default_rng(0).standard_normal((1, 1, 4, 4, 3)), (1, 9, 1, 1, 1))
    for positions in (False, True):
        model = shaken(ClipUNet(**CLIP, frame_positions=positions))
        for name, p in model.named_parameters():
            if "temp_" in name:
                p.data = np.zeros_like(p.data)  # nothing but the numbers is left to tell them apart
        with no_grad():
            made = model(x, 5).data
            image = model(x[:, 0], 5).data
        differ = np.abs(made[:, 1:] - made[:, :-1]).max(axis=(0, 2, 3, 4))
        assert (differ > 1e-4).all() if positions else (differ == 0).all()
        assert positions or np.allclose(made[:, 0], image, rtol=1e-12)


def test_the_mean_of_the_context_reaches_every_layer():
    """Also where no layer attends to it, as the middle's attention is silenced here; and what is masked has no part."""
    blocks = {"down_block_types": ("DownBlock3D",) * 2, "up_block_types": ("UpBlock3D",) * 2}
    rng = np.random.default_rng(2)
    x, states = rng.standard_normal((2, 3, 4, 4, 3)), rng.standard_normal((2, 5, 6))
    mask = np.array([[1, 1, 0, 1, 0], [0, 0, 0, 1, 1]])
    others = np.where(mask[..., None], states, rng.standard_normal(states.shape))
    shuffled = states[:, ::-1]
    for pooled in (False, True):
        model = shaken(ClipUNet(**CLIP, **blocks, cross_attention_dim=6, frame_positions=True, pooled_context=pooled))
        attention = dict(model.named_parameters())["mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight"]
        attention.data = np.zeros_like(attention.data)

        def answer(states, mask=None, x=x, model=model):
            with no_grad():
                return model(x, 5, encoder_hidden_states=states, encoder_attention_mask=mask).data

        assert np.array_equal(answer(states), answer(2 * states)) != pooled
        assert_close(answer(shuffled), answer(states), rtol=1e-9)
        assert_close(answer(others, mask), answer(states, mask), rtol=1e-9)
        image = answer(states, mask, x[:, 0])
        assert np.array_equal(image, answer(2 * states, mask, x[:, 0])) != pooled
        if pooled:
            seen = np.stack([row[m > 0].mean(axis=0, keepdims=True) for row, m in zip(states, mask, strict=True)])
            assert_close(answer(seen), answer(states, mask), rtol=1e-9)
            assert np.isfinite(answer(states, np.zeros_like(mask))).all()  # nobody says anything


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))
def test_a_pixel_is_told_where_it_is(frames, height, width):
    model = shaken(ClipUNet(**CLIP, pixel_positions=True))
    told = model.encoded(np.zeros((1, frames, height, width, 3)), 0)
    given = {name: told[name] for name in ("right", "down", "along")}
    assert [len(given[name].data) for name in given] == [width, height, frames]
    got = model.position(**given).data
    waves = np.arange(1, 9) * np.pi / 2
    for place in np.ndindex(frames, height, width):
        expected = 0
        for layer, at, count in zip(model.position_embedding, place, (frames, height, width), strict=True):
            u = (at + 0.5) / count
            expected = expected + np.concatenate([np.cos(waves * u), np.sin(waves * u)]) @ layer.weight.data
            expected = expected + layer.bias.data
        np.testing.assert_allclose(got[place], expected, rtol=1e-9, atol=1e-12)
    image = model.encoded(np.zeros((1, height, width, 3)), 0)
    assert "along" not in image
    in_time = given["along"] @ model.position_embedding[0].weight + model.position_embedding[0].bias
    both = model.position(image["right"], image["down"]).data + in_time.data[:, None, None]
    np.testing.assert_allclose(got, both, rtol=1e-9, atol=1e-12)


def test_pixels_are_told_apart_by_where_they_are():
    x, model, reference = (
        np.full((1, 3, 9, 9, 3), 0.3),
        shaken(ClipUNet(**CLIP, pixel_positions=True)),
        ClipUNet(**CLIP),
    )
    reference.astype(np.float64)
    reference.load_state_dict({name: a for name, a in model.state_dict().items() if "position" not in name})
    with no_grad():
        assert np.abs(model(x, 5).data - reference(x, 5).data).max() > 1e-3
        for p in model.position_embedding:
            p.weight.data, p.bias.data = np.zeros_like(p.weight.data), np.zeros_like(p.bias.data)
        assert_close(model(x, 5).data, reference(x, 5).data, rtol=1e-9)


def test_a_word_is_heard_from_the_first_step():
    """How far two captions that differ in one word change what all layers are told, beside what they are told."""
    encoder = text.named("glove")
    left, right = ("a slow red circle moving left", "a slow red circle moving right")
    states = encoder.encode([left, right])["encoder_hidden_states"]
    model = ClipUNet(**CLIP, cross_attention_dim=states.shape[2], frame_positions=True, pooled_context=True)
    told = {}
    with observe(lambda module, out: told.update(mixing=out.data) if module is model.mixing else None), no_grad():
        model(np.zeros((2, 5, 8, 8, 3), np.float32), 500, encoder_hidden_states=states)
    a, b = told["mixing"].reshape(2, 5, -1)
    assert np.linalg.norm(a - b, axis=1).min() > 0.1 * np.linalg.norm(a, axis=1).max()
    assert np.linalg.norm(a[1:] - a[:-1], axis=1).min() > 0.05 * np.linalg.norm(a, axis=1).max()  # nor are frames alike


@pytest.mark.parametrize("cls", [ClipUNet, UNet3D])
def test_a_configuration_survives_json(cls):
    model = cls(**SMALL)
    again = build(name_of(model), json.loads(json.dumps(model.config))).load_state_dict(model.state_dict())
    assert again.config == model.config
    assert all(np.array_equal(a, model.state_dict()[name]) for name, a in again.state_dict().items())


def test_a_sample_does_not_depend_on_the_others():
    model = shaken(ClipUNet(**CLIP), dtype=np.float32)
    x = np.random.default_rng(0).standard_normal((3, 4, 8, 8, 3)).astype(np.float32)
    with no_grad():
        together = model(x, 9).data
        assert_close(model(x[1:2], 9).data, together[1:2], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"down_block_types": ("DownBlock2D", "DownBlock3D")}, "down_block_types needs 2 of"),
        ({"attention_head_dim": 99}, "attention_head_dim must be one number"),
        ({"attention_head_dim": [4]}, "attention_head_dim must be one number"),
        ({"layers_per_block": 0}, "at least one layer"),
        ({"cross_attention_dim": (3, 4)}, "one number for all levels"),
        ({"pooled_context": True}, "pooled_context needs a context"),
        ({"resnet_time_scale_shift": "x"}, "resnet_time_scale_shift must be 'default' or 'scale_shift', got 'x'"),
    ],
)
def test_what_cannot_be_built_is_said(options, message):
    with pytest.raises(ValueError, match=message) as error:
        ClipUNet(**{**CLIP, **options})
    assert "\n" not in str(error.value)


def test_what_cannot_be_taken_is_said():
    model, told = ClipUNet(**CLIP), ClipUNet(**CLIP, cross_attention_dim=6)
    x = np.zeros((2, 3, 8, 8, 3), np.float32)
    for network, condition, message in [
        (model, {"encoder_hidden_states": np.zeros((2, 3, 6))}, "takes no encoder_hidden_states"),
        (told, {}, "takes encoder_hidden_states"),
        (told, {"encoder_hidden_states": np.zeros((2, 3, 5))}, r"must have shape \(2, T, 6\)"),
        (model, {"class_labels": [0, 1]}, "no class embedding"),
        (model, {"timestep_cond": np.zeros((2, 3))}, "takes no timestep_cond"),
    ]:
        with pytest.raises(ValueError, match=message):
            network(x, 3, **condition)
    for shape in [(2, 8, 8), (2, 3, 8, 8, 4), (2, 0, 8, 8, 3)]:
        with pytest.raises(ValueError, match="takes clips"):
            model(np.zeros(shape, np.float32), 3)
    with pytest.raises(ValueError, match="act_fn must be silu"):
        UNet3D(**SMALL, act_fn="relu")

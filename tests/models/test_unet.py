"""The U-Net against diffusers' UNet2DModel, option by option: outputs, gradients, weights and folders."""

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pydiff
from pydiff import backend
from pydiff.diffusion import Process, schedule
from pydiff.models.unet import UNet2D, sinusoids
from pydiff.tensor import Tensor, no_grad
from tests.bits import assert_same_bits, check_any_batch, check_any_thread_count
from tests.compare import array_path, assert_close, assert_no_worse
from tests.peers import import_diffusers
from tests.strategies import seeds, simd  # noqa: F401

needs_kernels = pytest.mark.skipif(
    backend.cpu is None, reason="NumPy's matrix products differ in bits between batch sizes"
)


@pytest.fixture(scope="module")
def diffusers():
    return import_diffusers()


# ---- configurations ------------------------------------------------------------------------------------------------

SMALL = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}
ONE_LEVEL = {"block_out_channels": (8,), "down_block_types": ("AttnDownBlock2D",), "up_block_types": ("UpBlock2D",)}
THREE_LEVELS = {
    "block_out_channels": (8, 8, 16),
    "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "ResnetDownsampleBlock2D"),
    "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}

# Every option in at least one of its other values, alone: what goes wrong is named by the test's name.
OPTIONS = {
    "plain": {},
    "one level": ONE_LEVEL,
    "three levels": THREE_LEVELS,
    "three equal levels": {**THREE_LEVELS, "block_out_channels": (8, 8, 8)},
    "channels fall": {"block_out_channels": (16, 8)},
    "two layers": {"layers_per_block": 2},
    "no attention but in the middle": {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2},
    "no attention": {
        "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "add_attention": False,
    },
    "one head": {"attention_head_dim": None},
    "heads that leave channels over": {"attention_head_dim": 3},
    "heads of one channel": {"attention_head_dim": 1},
    "one group": {"norm_num_groups": 1},
    "groups of the middle": {"attn_norm_num_groups": 2},
    "eps": {"norm_eps": 1e-2},
    "resnet down and up": {
        "down_block_types": ("AttnDownBlock2D",) * 2, "up_block_types": ("AttnUpBlock2D",) * 2,
        "downsample_type": "resnet", "upsample_type": "resnet",
    },
    "resnet blocks": {
        "down_block_types": ("ResnetDownsampleBlock2D",) * 2, "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
    },
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
    "scale and shift with groups": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
    "classes": {"num_class_embeds": 5},
    "class steps": {"class_embed_type": "timestep"},
    "downsample padding": {"downsample_padding": 0},
    "frequency shift": {"freq_shift": 1},
    "sines first": {"flip_sin_to_cos": False},
    "time dimension": {"time_embedding_dim": 20},
    "no middle": {"mid_block_type": None},
    "scaled middle": {"mid_block_scale_factor": 1.7},
    "centred": {"center_input_sample": True},
    "more channels out": {"in_channels": 1, "out_channels": 5},
    "swish": {"act_fn": "swish"},
}  # fmt: skip


@st.composite
def configurations(draw):
    """Any of the options together."""
    levels = draw(st.integers(1, 3))
    down = ["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"]
    up = ["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"]
    scale_shift = draw(st.booleans())
    classes = draw(st.sampled_from([{}, {"num_class_embeds": 3}, {"class_embed_type": "timestep"}]))
    return {
        "block_out_channels": tuple(draw(st.sampled_from([4, 8, 12])) for _ in range(levels)),
        "down_block_types": tuple(draw(st.sampled_from(down)) for _ in range(levels)),
        "up_block_types": tuple(draw(st.sampled_from(up)) for _ in range(levels)),
        "layers_per_block": draw(st.integers(1, 2)),
        "norm_num_groups": draw(st.sampled_from([1, 2, 4])),
        "attention_head_dim": draw(st.sampled_from([None, 1, 3, 4])),
        "downsample_type": draw(st.sampled_from(["conv", "resnet"])),
        "upsample_type": draw(st.sampled_from(["conv", "resnet"])),
        "downsample_padding": draw(st.integers(0, 1)),
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
        "mid_block_type": draw(st.sampled_from(["UNetMidBlock2D", None])),
        "mid_block_scale_factor": draw(st.sampled_from([1, 2.5])),
        "add_attention": draw(st.booleans()),
        "attn_norm_num_groups": draw(st.sampled_from([None, 2])),
        "freq_shift": draw(st.integers(0, 1)),
        "flip_sin_to_cos": draw(st.booleans()),
        "in_channels": draw(st.integers(1, 3)),
        "out_channels": draw(st.integers(1, 3)),
        **classes,
    }


# ---- both models ---------------------------------------------------------------------------------------------------


def exact_time(config):
    """diffusers computes its sinusoids in float32; this stands in for them."""
    import torch

    class Sinusoids(torch.nn.Module):
        def forward(self, t):
            encoded = sinusoids(
                t.numpy(), config["block_out_channels"][0], config["flip_sin_to_cos"], config["freq_shift"]
            )
            return torch.from_numpy(encoded)

    return Sinusoids()


def diffusers_twin(diffusers, ours):
    """diffusers' model of the same configuration with the same weights, in float64."""
    import torch

    arguments = {k: v for k, v in ours.config.items() if v is not None or k in ("mid_block_type", "attention_head_dim")}
    theirs = diffusers.UNet2DModel(**arguments).double()
    theirs.load_state_dict({name: torch.from_numpy(a) for name, a in ours.state_dict().items()})
    theirs.time_proj = exact_time(ours.config)
    return theirs


def compare(diffusers, options, seed=0, size=(8, 8)):
    """Output, gradient of the input and of every parameter, in float64."""
    import torch

    ours = UNet2D(**{**SMALL, **options}, seed=seed).astype(np.float64)
    rng = np.random.default_rng(seed)
    for p in ours.parameters():  # normalisations start at 1 and 0, where mistakes can hide
        p.data += 0.1 * rng.standard_normal(p.shape)
    theirs = diffusers_twin(diffusers, ours)

    x, t = rng.standard_normal((2, *size, ours.config["in_channels"])), np.array([3.0, 801.5])
    labels = np.array([2, 0]) if ours.class_embedding is not None else None
    tensor = Tensor(x, requires_grad=True)
    y = ours(tensor, t, labels)
    dy = rng.standard_normal(y.shape)
    y.backward(dy)

    their_x = torch.from_numpy(x.transpose(0, 3, 1, 2)).requires_grad_()
    their_labels = None if labels is None else torch.from_numpy(labels)
    their_y = theirs(their_x, torch.from_numpy(t), class_labels=their_labels).sample
    their_y.backward(torch.from_numpy(dy.transpose(0, 3, 1, 2)))

    assert_close(y.data, their_y.detach().permute(0, 2, 3, 1).numpy(), rtol=1e-9)
    assert_close(tensor.grad, their_x.grad.permute(0, 2, 3, 1).numpy(), rtol=1e-7)
    gradients, mine = {name: p.grad.numpy() for name, p in theirs.named_parameters()}, dict(ours.named_parameters())
    assert gradients.keys() == mine.keys()
    for name, p in mine.items():
        axes = p.file_axes or range(p.ndim)
        # attention's key bias has gradient 0 in theory; here it is a rounding error, so an absolute bound too
        assert_close(p.grad.transpose(tuple(axes)), gradients[name], rtol=1e-7, atol=1e-12, what=name)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_equals_diffusers(diffusers, name):
    compare(diffusers, OPTIONS[name])


@pytest.mark.parametrize("size", [(4, 12), (16, 2), (2, 2)])
def test_other_sizes_equal_diffusers(diffusers, size):
    compare(diffusers, {}, size=size)


@given(options=configurations(), seed=st.integers(0, 2**16), size=st.sampled_from([(4, 4), (4, 8), (12, 4)]))
def test_options_together_equal_diffusers(diffusers, options, seed, size):
    compare(diffusers, options, seed, size)


def test_every_option_is_tried_and_matters():
    """An option that changes nothing would pass all comparisons above with any value."""
    tried = set().union(*OPTIONS.values())
    accepted = set(UNet2D(**SMALL).config)
    assert accepted - tried == {"sample_size", "num_train_timesteps", "time_embedding_type", "dropout"}

    def state(options):
        model = UNet2D(**{**SMALL, **options}).astype(np.float64)
        rng = np.random.default_rng(0)
        x = rng.standard_normal((1, 8, 8, model.config["in_channels"]))
        labels = [1] if model.class_embedding is not None else None
        return {**model.state_dict(), "": model(x, 5, labels).data.copy()}

    plain = state({})
    for name, options in OPTIONS.items():
        other = state(options)
        same = other.keys() == plain.keys() and all(np.array_equal(other[k], plain[k]) for k in plain)
        assert same == (name in ("plain", "swish")), name


# ---- sinusoids -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [4, 7, 8])
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("shift", [0, 1])
def test_sinusoids_equal_diffusers_to_float32(diffusers, dim, flip, shift):
    import torch

    t = np.array([0, 1, 500.5, 999])
    theirs = diffusers.models.embeddings.get_timestep_embedding(torch.from_numpy(t), dim, flip, shift).numpy()
    ours = sinusoids(t, dim, flip, shift)
    assert ours.dtype == np.float64
    assert_close(ours, theirs, rtol=0, atol=1e-4)


# ---- precision and exactness ---------------------------------------------------------------------------------------


def outputs(model, dtype, part=slice(None), n=4, size=(8, 8)):
    """Output and all gradients of a batch, or of a part of it."""
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((n, *size, 3)).astype(dtype) for _ in range(2))
    t = np.array([1.0, 250, 500.5, 999])[:n]
    for p in model.astype(dtype).parameters():
        p.grad = None
    tensor = Tensor(x[part], requires_grad=True)
    y = model(tensor, t[part])
    y.backward(dy[part])
    return [y.data, tensor.grad], {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.usefixtures("simd")
def test_kernels_are_as_exact_as_plain_float32():
    config = {**SMALL, **THREE_LEVELS, "block_out_channels": (16, 32, 32), "norm_num_groups": 8}
    exact, exact_gradients = outputs(UNet2D(**config), np.float64)
    with array_path():
        naive, naive_gradients = outputs(UNet2D(**config), np.float32)
    got, got_gradients = outputs(UNet2D(**config), np.float32)
    for g, n, e in zip(got, naive, exact, strict=True):
        assert g.dtype == np.float32
        assert_no_worse(g, n, e, factor=4)
    # of all parameters together: each one's largest error is a matter of luck
    flat = [np.concatenate([a.ravel() for a in gradients.values()])
            for gradients in (got_gradients, naive_gradients, exact_gradients)]  # fmt: skip
    assert flat[0].dtype == np.float32
    assert_no_worse(*flat, factor=4)


@needs_kernels
@pytest.mark.usefixtures("simd")
@pytest.mark.parametrize("options", ["plain", "three levels", "resnet down and up", "scale and shift"])
def test_a_picture_has_the_same_bits_alone_and_in_a_batch(options):
    model = UNet2D(**{**SMALL, **OPTIONS[options]})
    check_any_batch(lambda part: outputs(model, np.float32, part)[0], 4)


@needs_kernels
@pytest.mark.usefixtures("simd")
def test_same_bits_on_any_number_of_threads():
    model = UNet2D(**{**SMALL, "block_out_channels": (32, 64)})

    def run():
        results, gradients = outputs(model, np.float32, size=(20, 12))
        return [*results, *gradients.values()]

    check_any_thread_count(run)


@needs_kernels
def test_repeated_runs_have_the_same_bits():
    model = UNet2D(**SMALL)
    first, second = (outputs(model, np.float32) for _ in range(2))
    assert_same_bits(first[0] + [*first[1].values()], second[0] + [*second[1].values()])


# ---- sizes, steps and labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(7, 5), (1, 1), (9, 16), (3, 2)])
@pytest.mark.parametrize("options", [{}, THREE_LEVELS, OPTIONS["two layers"]])
def test_odd_sizes_run(size, options):
    """diffusers refuses these; here the ascent is cut to the size of the descent."""
    model = UNet2D(**{**SMALL, **options})
    y, gradients = outputs(model, np.float32, size=size)
    assert y[0].shape == y[1].shape == (4, *size, 3)
    assert all(np.isfinite(a).all() for a in (*y, *gradients.values()))


@pytest.mark.parametrize("options", ["downsample padding", "resnet down and up", "resnet blocks"])
def test_odd_sizes_are_refused_where_they_are_rounded_down(options):
    model = UNet2D(**{**SMALL, **OPTIONS[options]})
    with pytest.raises(ValueError, match=r"rounds odd sizes down.*from \(4, 6\) to \(5, 7\) pixels"):
        model(np.zeros((1, 5, 7, 3), np.float32), 0)


def test_one_step_number_or_label_serves_the_whole_batch():
    model = UNet2D(**SMALL, num_class_embeds=4).astype(np.float64)
    x = np.random.default_rng(0).standard_normal((3, 4, 4, 3))
    with no_grad():
        expected = model(x, np.full(3, 7.0), np.full(3, 2)).data
        for t, labels in ((7, 2), (np.float32(7), [2]), ([7], np.array(2)), (np.array([7] * 3), [2, 2, 2])):
            assert_close(model(Tensor(x), t, labels).data, expected, rtol=1e-13)


def test_steps_and_labels_are_told_apart():
    model = UNet2D(**SMALL, num_class_embeds=4).astype(np.float64)
    x = np.random.default_rng(0).standard_normal((1, 4, 4, 3))
    results = [model(x, t, [label]).data for t in (0, 0.5, 999) for label in (0, 3)]
    for a, b in itertools.combinations(results, 2):
        assert np.abs(a - b).max() > 1e-6


def test_dropout_acts_in_training_only():
    from pydiff import nn

    model, without = (UNet2D(**SMALL, dropout=p).astype(np.float64) for p in (0.5, 0.0))
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 3))
    assert np.array_equal(model(x, 1).data, without(x, 1).data)
    with nn.training(0, 1, np.arange(2)):
        dropped, kept = model(x, 1).data, without(x, 1).data
    assert np.array_equal(kept, without(x, 1).data)
    assert np.abs(dropped - kept).max() > 1e-3


@given(seed=seeds)
def test_the_seed_decides_the_weights(seed):
    weights = [UNet2D(**SMALL, seed=s).conv_in.weight.data for s in (seed, seed, seed + 1)]
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


# ---- folders -------------------------------------------------------------------------------------------------------

FOLDERS = [
    "plain",
    "three levels",
    "classes",
    "class steps",
    "resnet down and up",
    "scale and shift",
    "no middle",
    "one head",
]


def save(model, directory):
    run = pydiff.Run(model, Process(schedule("linear", 1000)), {}, classes=None)
    run.save(directory)


def same_output(diffusers, ours, theirs):
    """In float64, with exact sinusoids."""
    import torch

    ours.astype(np.float64)
    theirs = theirs.double()
    theirs.time_proj = exact_time(ours.config)
    x = np.random.default_rng(0).standard_normal((2, 8, 8, ours.config["in_channels"]))
    labels = np.array([1, 0]) if ours.class_embedding is not None else None
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(x.transpose(0, 3, 1, 2)),
            torch.tensor([5.0, 900.0], dtype=torch.float64),
            class_labels=None if labels is None else torch.from_numpy(labels),
        ).sample
    assert_close(ours(x, np.array([5.0, 900.0]), labels).data, expected.permute(0, 2, 3, 1).numpy(), rtol=1e-9)
    assert isinstance(theirs, diffusers.UNet2DModel)


@pytest.mark.parametrize("options", FOLDERS)
def test_diffusers_opens_our_folder(diffusers, tmp_path, options):
    ours = UNet2D(**{**SMALL, **OPTIONS[options]}, sample_size=8, seed=3)
    save(ours, tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, about their dependencies
        theirs = diffusers.UNet2DModel.from_pretrained(tmp_path / "model", local_files_only=True)
    same_output(diffusers, ours, theirs)


@pytest.mark.parametrize("options", FOLDERS)
def test_we_open_diffusers_folder(diffusers, tmp_path, options):
    import torch

    torch.manual_seed(0)
    theirs = diffusers.UNet2DModel(**{**SMALL, **OPTIONS[options]}, sample_size=8)
    theirs.save_pretrained(tmp_path)
    same_output(diffusers, pydiff.load(tmp_path).model, theirs)


def test_our_folder_comes_back_bit_for_bit(tmp_path):
    ours = UNet2D(**SMALL, sample_size=(8, 4), seed=5)
    save(ours, tmp_path / "model")
    back = pydiff.load(tmp_path / "model").model
    assert back.config == ours.config
    state = ours.state_dict()
    assert_same_bits(back.state_dict().values(), [state[name] for name in back.state_dict()])


# ---- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"down_block_types": ("DownBlock2D",)}, "down_block_types needs 2 of DownBlock2D"),
        ({"up_block_types": ("UpBlock2D", "SkipUpBlock2D")}, r"up_block_types needs 2 of.*got \['UpBlock2D', 'Skip"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type must be one of 'positional', got 'fourier'"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type must be one of 'UNetMidBlock2D', None"),
        ({"act_fn": "gelu"}, "act_fn must be one of 'silu', 'swish', got 'gelu'"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift must be one of"),
        ({"downsample_type": "pool"}, "downsample_type must be one of 'conv', 'resnet', got 'pool'"),
        ({"upsample_type": None}, "upsample_type must be one of"),
        ({"class_embed_type": "identity"}, "class_embed_type must be one of None, 'timestep'"),
        ({"layers_per_block": 0}, "at least one level and one layer"),
        ({"block_out_channels": (), "down_block_types": (), "up_block_types": ()}, "at least one level and one layer"),
        ({"norm_num_groups": 3}, "8 channels do not divide into 3 groups"),
        ({"norm_num_groups": 0}, "do not divide into 0 groups"),
        ({"attention_head_dim": 32}, "attention_head_dim must be from 1 to the 16 channels at hand, got 32"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
    ],
)
def test_bad_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        UNet2D(**{**SMALL, **options})


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'channels'"):
        UNet2D(**SMALL, channels=3)


@pytest.mark.parametrize(
    ("classes", "arguments", "message"),
    [
        (None, (np.zeros((4, 4, 3)), 0), r"takes pictures \(N, H, W, 3\), got \(4, 4, 3\)"),
        (None, (np.zeros((2, 3, 4, 4)), 0), r"takes pictures \(N, H, W, 3\), got \(2, 3, 4, 4\)"),
        (
            None,
            (np.zeros((2, 4, 4, 3)), [0, 1, 2]),
            r"2 pictures need 2 step numbers or a single one, got an array of shape \(3,\)",
        ),
        (None, (np.zeros((2, 4, 4, 3)), 0, [0, 1]), "no class embedding, but class labels were given"),
        (4, (np.zeros((2, 4, 4, 3)), 0), "a class embedding, but class labels are missing"),
        (4, (np.zeros((2, 4, 4, 3)), 0, [0, 4]), r"labels must lie in 0\.\.3, got 0\.\.4"),
        (4, (np.zeros((2, 4, 4, 3)), 0, [-1]), r"labels must lie in 0\.\.3, got -1\.\.-1"),
        (4, (np.zeros((2, 4, 4, 3)), 0, [0.5, 1]), "list of integers"),
        (4, (np.zeros((2, 4, 4, 3)), 0, [0, 1, 2]), r"2 pictures need 2 class labels or a single one.*\(3,\)"),
    ],
)
def test_bad_inputs(classes, arguments, message):
    with pytest.raises(ValueError, match=message):
        UNet2D(**SMALL, num_class_embeds=classes).astype(np.float64)(*arguments)

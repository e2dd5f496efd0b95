"""The U-Net against diffusers' UNet2DModel, option by option: outputs, gradients, weights and folders."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pydiff
from pydiff.diffusion import Process, schedule
from pydiff.models.unet import UNet2D, sinusoids
from pydiff.tensor import Tensor
from tests.bits import assert_same_bits
from tests.compare import assert_close
from tests.models.configurations import OPTIONS, SMALL, configurations, diffusers_twin, exact_time
from tests.peers import import_diffusers


@pytest.fixture(scope="module")
def diffusers():
    return import_diffusers()


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
        axes = p.file_axes
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
        theirs = diffusers.UNet2DModel.from_pretrained(tmp_path / "model", subfolder="unet", local_files_only=True)
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

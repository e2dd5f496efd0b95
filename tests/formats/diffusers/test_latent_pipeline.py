"""Latent diffusion without prompts, diffusers' LDMPipeline: a UNet2DModel in the latents of an autoencoder."""

import json

import numpy as np
import pytest

import pydiff
from pydiff.formats.safetensors import CheckpointError
from tests.compare import assert_close
from tests.formats.diffusers import tiny
from tests.peers import import_diffusers

UNET = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16), "layers_per_block": 1,
    "norm_num_groups": 4, "attention_head_dim": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
VAE = {
    "block_out_channels": (8, 16), "down_block_types": ("DownEncoderBlock2D",) * 2, "norm_num_groups": 4,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "latent_channels": 4, "scaling_factor": 0.7,
}  # fmt: skip


@pytest.fixture
def pipe(tmp_path):
    """diffusers' pipeline, and its folder."""
    diffusers = import_diffusers()
    import torch

    torch.manual_seed(0)
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    made = diffusers.LDMPipeline(diffusers.AutoencoderKL(**VAE), diffusers.UNet2DModel(**UNET), scheduler)
    with tiny.quietly():
        made.save_pretrained(tmp_path / "ldm")
    return made, tmp_path / "ldm"


def theirs(pipe, n, steps):
    """What LDMPipeline does, from our noise."""
    import torch

    x = tiny.start((8, 8, 4), np.arange(n))
    pipe.scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            x = pipe.scheduler.step(pipe.unet(x, t).sample, t, x).prev_sample
        images = pipe.vqvae.decode(x / pipe.vqvae.config.scaling_factor).sample
    return (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def test_it_draws_the_same_images_and_is_saved(pipe, tmp_path):
    expected, path = theirs(pipe[0], 2, 4), pipe[1]
    run = pydiff.load(path)
    assert run.codec.image_shape == (16, 16, 3)
    images = run.sample(2, steps=4)
    assert np.abs(images / 255 - expected).max() <= 0.5 / 255 + 3e-5
    for state in run.sample_states(2, steps=4):
        x = state.x
    assert_close((run.codec.decode_floats(x) / 2 + 0.5).clip(0, 1), expected, rtol=0, atol=3e-5)
    run.save(tmp_path / "ours")
    np.testing.assert_array_equal(pydiff.load(tmp_path / "ours").sample(2, steps=4), images)
    assert pydiff.load(path, size=32).sample(1, steps=2).shape == (1, 32, 32, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vqvae": ["diffusers", "VQModel"]}, "is the autoencoder 'VQModel', expected AutoencoderKL or"),
        ({"vae": ["diffusers", "AutoencoderKL"]}, "names two autoencoders"),
        ({"vqvae": ["diffusers", "../../x"]}, "is the autoencoder"),
        ({"vqvae": [None, None], "vae": ["diffusers", "AutoencoderKL"]}, "lacks vae/"),
    ],
)
def test_what_cannot_be_opened_is_one_sentence(pipe, change, words):
    path = pipe[1] / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=words) as error:
        pydiff.load(pipe[1])
    assert "\n" not in str(error.value)


def test_sizes_and_channels_are_compared(pipe):
    with pytest.raises(CheckpointError, match="take 16 x 16"):
        pydiff.load(pipe[1], size=17)
    path = pipe[1] / "unet/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"in_channels": 3, "out_channels": 3}))
    with pytest.raises(CheckpointError, match="of different models"):
        pydiff.load(pipe[1])

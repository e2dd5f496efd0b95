"""Folders of autoencoders: what diffusers writes today, what it wrote before, what is refused in a sentence."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pydiff.formats.diffusers.autoencoder import open_folder, read_config
from pydiff.formats.diffusers.unet import read_config as read_unet_config
from pydiff.formats.safetensors import CheckpointError
from pydiff.models import AutoencoderKL, AutoencoderTiny
from pydiff.tensor import no_grad
from tests.bits import assert_same_bits
from tests.models.test_autoencoder import OPTIONS, SMALL, TINY, twin_of
from tests.peers import import_diffusers

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def diffusers():
    return import_diffusers()


def write(folder, model, change=lambda state: state):
    """A folder as diffusers writes it, without diffusers."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"_class_name": type(model).__name__, "_diffusers_version": "0.42.1", **model.config}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(change(model.state_dict()), folder / WEIGHTS)
    return folder


def change_config(folder, **options):
    config = json.loads((folder / "config.json").read_text()) | options
    (folder / "config.json").write_text(json.dumps(config))


def decoded(model):
    z = np.random.default_rng(0).standard_normal((2, 3, 4, model.config["latent_channels"])).astype(np.float32)
    with no_grad():
        return model.decode(z).data


@pytest.mark.parametrize(
    "name", ["plain", "attention everywhere", "no convolutions around the latents", "no attention"]
)
def test_folders_of_diffusers_open(diffusers, tmp_path, name):
    ours = AutoencoderKL(**{**SMALL, **OPTIONS[name]}, seed=3, scaling_factor=0.5, shift_factor=0.25)
    twin_of(diffusers, ours).float().save_pretrained(tmp_path)
    again, notes = open_folder(tmp_path)
    assert notes == []
    assert_same_bits([decoded(again)], [decoded(ours)])
    assert {k: v for k, v in again.config.items() if v != ours.config[k]} == {}


def test_tiny_ones_of_diffusers_open(diffusers, tmp_path):
    ours = AutoencoderTiny(**TINY, seed=3)
    twin_of(diffusers, ours).float().save_pretrained(tmp_path)
    again, notes = open_folder(tmp_path)
    assert notes == []
    assert_same_bits([decoded(again)], [decoded(ours)])
    assert again.config == ours.config


def test_variants_and_pickles_open(diffusers, tmp_path):
    ours = AutoencoderKL(**SMALL, seed=3)
    twin_of(diffusers, ours).half().save_pretrained(tmp_path, variant="fp16")
    again, _ = open_folder(tmp_path, "fp16")
    for name, array in again.state_dict().items():
        assert_same_bits([array], [ours.state_dict()[name].astype(np.float16).astype(np.float32)])
    twin_of(diffusers, ours).float().save_pretrained(tmp_path / "bin", safe_serialization=False)
    again, _ = open_folder(tmp_path / "bin")
    assert_same_bits([decoded(again)], [decoded(ours)])


def test_names_of_2022_and_matrices_as_convolutions_are_read(tmp_path):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(state):
        made = {}
        for name, array in state.items():
            for new, before in old.items():
                name = name.replace(f".{new}.", f".{before}.")
            made[name] = array[..., None, None].copy() if "attentions" in name and array.ndim == 2 else array
        assert any("proj_attn" in name for name in made)
        return made

    ours = AutoencoderKL(**{**SMALL, **OPTIONS["attention everywhere"]}, seed=3)
    again, _ = open_folder(write(tmp_path, ours, renamed))
    assert_same_bits([decoded(again)], [decoded(ours)])


def test_what_an_older_configuration_lacks_has_the_default(tmp_path):
    folder = write(tmp_path, AutoencoderKL(**SMALL, seed=3))
    config = json.loads((folder / "config.json").read_text())
    kept = {"_class_name", "block_out_channels", "down_block_types", "up_block_types", "latent_channels"}
    kept |= {"norm_num_groups"}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k in kept}))
    again, _ = open_folder(folder)
    assert again.config["scaling_factor"] == 0.18215
    assert_same_bits([decoded(again)], [decoded(AutoencoderKL(**SMALL, seed=3))])


def test_unknown_options_are_told(tmp_path):
    folder = write(tmp_path, AutoencoderKL(**SMALL))
    change_config(folder, colour="red")
    assert "options that AutoencoderKL does not know, and they are ignored: colour" in open_folder(folder)[1][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"_class_name": "VQModel"}, "is for the class 'VQModel', expected AutoencoderKL or AutoencoderTiny"),
        ({"_class_name": "UNet2DModel"}, "is for the class 'UNet2DModel'"),
        ({"_class_name": None}, "is for the class None"),
        ({"block_out_channels": [8, 10**9]}, "block_out_channels = "),
        ({"block_out_channels": [8, 65536]}, "describes another autoencoder than the weights beside it"),
        ({"latent_channels": 60000}, "describes another autoencoder"),
        ({"layers_per_block": 200}, "down_blocks.0.resnets.1.conv2.weight is missing"),
        ({"scaling_factor": 0}, "scaling_factor = 0, expected a number from 1e-06"),
        ({"scaling_factor": "0.5"}, "scaling_factor = '0.5'"),
        ({"shift_factor": [1]}, "shift_factor"),
        ({"latents_mean": [1.0]}, "latents_mean needs a number for each of 3 channels"),
        ({"act_fn": "softplus"}, "act_fn = 'softplus', expected silu"),
        ({"norm_num_groups": 7}, "do not divide into 7 groups"),
        ({"down_block_types": ["DownBlock2D"] * 2}, "down_block_types needs 2 of DownEncoderBlock2D"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, "the weights do not fit this model: missing"),
        ({"use_quant_conv": False}, r"the weights do not fit this model: missing none, unknown \['quant_conv.bias'"),
        ({"mid_block_add_attention": False}, "the weights do not fit this model"),
    ],
)
def test_configurations_that_do_not_fit_are_one_sentence(tmp_path, options, message):
    folder = write(tmp_path, AutoencoderKL(**SMALL))
    change_config(folder, **options)
    with pytest.raises(CheckpointError, match=message) as error:
        open_folder(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_block_out_channels": [60000, 60000]}, "describes another autoencoder"),
        ({"num_encoder_blocks": [1, 200]}, r"encoder.layers.5.conv.0.weight is missing"),
        ({"num_decoder_blocks": [200, 1]}, "is missing"),
        ({"num_decoder_blocks": [2, 1, 1]}, "is missing"),
        ({"upsample_fn": "bilinear"}, "upsample_fn = 'bilinear', expected nearest"),
        ({"encoder_block_out_channels": [6, 8]}, "must be the same number for each of 2 stages"),
        ({"encoder_block_out_channels": []}, "expected a list of 1 to 16"),
        ({"out_channels": 40000}, "describes another autoencoder"),
    ],
)
def test_tiny_configurations_that_do_not_fit_are_one_sentence(tmp_path, options, message):
    folder = write(tmp_path, AutoencoderTiny(**TINY))
    change_config(folder, **options)
    with pytest.raises(CheckpointError, match=message) as error:
        open_folder(folder)
    assert "\n" not in str(error.value)


def test_weights_that_do_not_fit_are_one_sentence(tmp_path):
    folder = write(tmp_path, AutoencoderKL(**SMALL))
    state = load_file(folder / WEIGHTS)
    for change, message in (
        ({"encoder.conv_in.weight": np.zeros((8, 3, 1, 1), np.float32)}, "encoder.conv_in.weight has shape"),
        ({"encoder.mid_block.attentions.0.to_q.weight": np.zeros((16, 16, 3, 3), np.float32)}, "must have shape"),
        ({"encoder.conv_in.bias": np.zeros(8, np.int64)}, "expected floating numbers"),
        ({"more": np.zeros(8, np.float32)}, "unknown .'more'"),
    ):
        save_file({**state, **change}, folder / WEIGHTS)
        with pytest.raises(CheckpointError, match=message) as error:
            open_folder(folder)
        assert "\n" not in str(error.value)
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"expected diffusion_pytorch_model\.safetensors"):
        open_folder(folder)
    shutil.copy(folder / "config.json", folder / "other.json")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"expected config\.json and weights: complete the folder"):
        open_folder(folder)


def test_an_autoencoder_is_no_u_net(tmp_path):
    with pytest.raises(CheckpointError, match="is for the class 'AutoencoderKL', expected UNet2DModel or"):
        read_unet_config({"_class_name": "AutoencoderKL"}, tmp_path)
    with pytest.raises(CheckpointError, match="is for the class 'UNet2DModel'"):
        read_config({"_class_name": "UNet2DModel"}, tmp_path)
    assert read_config({}, tmp_path, "AutoencoderTiny").class_name == "AutoencoderTiny"

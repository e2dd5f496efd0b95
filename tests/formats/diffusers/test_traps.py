"""What is easily got wrong on the way from a checkpoint of Stable Diffusion to an image, each by itself.

That images equal those of diffusers is tested in test_stable_diffusion.py; a trap that changes nothing in the models of
those tests would not be seen there. So here each one is taken away, and the image has to change.
"""

import json
import shutil

import numpy as np
import pytest

import pydiff
from pydiff.formats import safetensors
from pydiff.models import CLIPTextModel
from pydiff.tensor import no_grad
from pydiff.text import bpe
from tests.bits import assert_same_bits
from tests.compare import assert_close
from tests.formats.diffusers import original, tiny
from tests.peers import import_diffusers, import_transformers

PROMPT = {"prompts": ["A cat!"], "steps": 3, "guidance": 3.0}
UNET, VAE, TEXT = (f"{part}/config.json" for part in ("unet", "vae", "text_encoder"))
SCHEDULER, TOKENIZER = "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"


@pytest.fixture(scope="module", autouse=True)
def made():
    """The folder of version 1, which tests copy, and what it draws."""
    import_diffusers()
    import_transformers()
    yield tiny.folder()[0]
    tiny.forget()


@pytest.fixture(scope="module")
def image(made):
    return pydiff.load(made).sample(**PROMPT)


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made, tmp_path / "model")


def says(folder, name, **changes):
    """Changes a configuration; None takes an option out of it."""
    path = folder / name
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def arrays_of(path):
    return safetensors.decode(np.frombuffer(bytearray(path.read_bytes()), np.uint8), path)


def rewritten(path, change):
    """Changes the arrays of a file of weights: {name: array} -> {name: array}."""
    path.write_bytes(b"".join(safetensors.pieces(change(arrays_of(path)))))


def drawn(folder, **wishes):
    return pydiff.load(folder, **wishes).sample(**PROMPT)


# ---- the text ------------------------------------------------------------------------------------------------------


def test_old_configurations_name_a_wrong_end_and_pool_at_the_largest_number():
    """eos_token_id 2 stands in configurations from before transformers 4.30, where the end is 49407."""
    options = {"vocab_size": 60, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    ids = np.array([[58, 5, 2, 7, 59, 59, 1], [58, 2, 59, 59, 59, 59, 59]])
    for end, places in ((2, [4, 2]), (59, [4, 2]), (7, [3, 0])):
        model = CLIPTextModel(**options, num_attention_heads=2, eos_token_id=end)
        with no_grad():
            states = model(ids)
        assert_same_bits([states.pooler_output.data], [states.last_hidden_state.data[[0, 1], places]])


def test_prompts_are_filled_up_with_the_token_that_the_tokenizer_names(copy, image):
    numbers = pydiff.load(copy).conditioning.encoder.tokenizer.row("A cat!", 77)
    assert numbers[-1] == numbers[-70] == len(tiny.vocabulary()[0]) - 1  # the end, in version 1
    (copy / "tokenizer/special_tokens_map.json").unlink(missing_ok=True)
    says(copy, TOKENIZER, pad_token="!")
    numbers = pydiff.load(copy).conditioning.encoder.tokenizer.row("A cat!", 77)
    assert numbers[-1] == tiny.vocabulary()[0]["!"]
    assert np.any(drawn(copy) != image)


def test_what_fills_up_is_seen(copy):
    """No mask hides the padding: the states are those of all 77 numbers."""
    run = pydiff.load(copy)
    encoder = run.conditioning.encoder
    ids = np.array([encoder.tokenizer.row("A cat!", 77)])
    seen = np.arange(77) <= list(ids[0]).index(len(tiny.vocabulary()[0]) - 1)
    with no_grad():
        plain = encoder.network(ids).last_hidden_state.data
        masked = encoder.network(ids, attention_mask=seen[None]).last_hidden_state.data
    assert_same_bits([run.embed("A cat!")["encoder_hidden_states"]], [plain])
    assert np.abs(masked - plain).max() > 1e-3


def test_the_activation_is_the_one_that_stands_there(copy, image):
    assert json.loads((copy / TEXT).read_text())["hidden_act"] == "quick_gelu"
    says(copy, TEXT, hidden_act="gelu")
    assert np.any(drawn(copy) != image)


def test_the_text_encoder_with_and_without_transformers_prefix(copy, image):
    path = copy / "text_encoder/model.safetensors"
    names = set(arrays_of(path))
    with_prefix = {name.startswith("text_model.") for name in names}
    assert len(with_prefix) == 1
    rename = str if with_prefix == {False} else (lambda name: name.removeprefix("text_model."))
    rewritten(path, lambda arrays: {rename(name): array for name, array in arrays.items()})
    np.testing.assert_array_equal(drawn(copy), image)
    rewritten(path, lambda arrays: {f"text_model.{name}": array for name, array in arrays.items()})
    np.testing.assert_array_equal(drawn(copy), image)


# ---- the U-Net -------------------------------------------------------------------------------------------------------


def test_attention_head_dim_is_a_number_of_heads(copy):
    """A misnomer that stayed: 8 heads of 4 channels, not 4 heads of 8."""
    attention = pydiff.load(copy).model.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    assert (attention.heads, attention.to_q.weight.shape) == (8, (32, 32))
    says(copy, UNET, num_attention_heads=None, attention_head_dim=[4, 8])
    attention = pydiff.load(copy).model.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    assert attention.heads == 4


@pytest.mark.parametrize("linear", [False, True])
def test_linear_layers_that_are_convolutions_of_one_pixel(linear):
    """proj_in and proj_out are 1 x 1 convolutions in version 1, linear layers in version 2; files have either shape."""
    folder, _ = tiny.folder(unet={"use_linear_projection": linear})
    path = folder.parent / f"reshaped-{linear}"
    shutil.copytree(folder, path)

    def other_shape(arrays):
        made = {}
        for name, a in arrays.items():
            projection = name.endswith(("proj_in.weight", "proj_out.weight"))
            made[name] = a.reshape(a.shape[:2] if a.ndim == 4 else (*a.shape, 1, 1)) if projection else a
        assert sum(made[name].ndim != arrays[name].ndim for name in arrays) == 2 * 6
        return made

    rewritten(path / "unet/diffusion_pytorch_model.safetensors", other_shape)
    np.testing.assert_array_equal(drawn(path), drawn(folder))


# ---- the scheduler ---------------------------------------------------------------------------------------------------


def test_steps_are_offset(copy, image):
    assert json.loads((copy / SCHEDULER).read_text())["steps_offset"] == 1
    says(copy, SCHEDULER, steps_offset=0)
    assert np.any(drawn(copy) != image)


def test_v_is_not_the_noise(copy, image):
    says(copy, SCHEDULER, prediction_type="v_prediction")
    by_v = drawn(copy)
    assert np.any(by_v != image)
    np.testing.assert_array_equal(drawn(copy, prediction="v"), by_v)
    np.testing.assert_array_equal(drawn(copy, prediction="eps"), image)


# ---- the autoencoder -------------------------------------------------------------------------------------------------


def test_latents_are_scaled_and_not_every_configuration_says_by_how_much(copy, image):
    says(copy, VAE, scaling_factor=None)
    np.testing.assert_array_equal(drawn(copy), image)  # 0.18215, as for all of version 1 and 2
    says(copy, VAE, scaling_factor=0.13025)
    assert np.any(drawn(copy) != image)


def test_half_precision_is_decoded_in_float32(copy):
    """Numbers that float16 has not come out all the same: the autoencoders of some models make such on their way."""
    pydiff.load(copy).save(copy.parent / "half", dtype="float16")
    half = pydiff.load(copy.parent / "half")
    assert {p.dtype for p in half.codec.autoencoder.parameters()} == {np.dtype(np.float32)}
    with no_grad():
        x = half.codec.autoencoder.decode(np.full((1, 8, 8, 4), 3e5, np.float32)).data
    assert x.dtype == np.float32
    assert np.isfinite(x).all()


def test_single_files_count_the_levels_of_the_decoder_from_the_other_end(tmp_path):
    """up.3 of the original is up_blocks.0; the levels have other widths here, so that nothing else would fit."""
    folder, pipe = tiny.folder(full_vocabulary=True, vae={"block_out_channels": (32, 64, 96, 128)})
    arrays = original.whole(pipe)
    assert arrays["first_stage_model.decoder.up.3.block.0.conv1.weight"].shape == (128, 128, 3, 3)
    assert arrays["first_stage_model.decoder.up.0.block.1.conv1.weight"].shape == (32, 32, 3, 3)
    (tmp_path / "one.safetensors").write_bytes(b"".join(safetensors.pieces(arrays)))
    one, whole = (
        pydiff.load(tmp_path / "one.safetensors", size=64).codec.autoencoder,
        pydiff.load(folder).codec.autoencoder,
    )
    for level, width in enumerate((128, 128, 96, 64)):
        name = f"decoder.up_blocks.{level}.resnets.0.conv1.weight"
        assert one.state_dict()[name].shape[1] == width
    expected = whole.state_dict()
    assert_same_bits([one.state_dict()[name] for name in expected], list(expected.values()))


def test_what_is_drawn_is_what_diffusers_draws(made):
    theirs = tiny.images_of(tiny.folder()[1], "A cat!", num_inference_steps=3, guidance_scale=3.0)
    assert_close(drawn(made) / 255, theirs, rtol=0, atol=0.5 / 255 + 3e-5)


def test_the_shipped_vocabulary_ends_where_that_of_clip_does():
    known = [49406, 320, 1125, 539, 320, 2368, 49407]
    assert bpe.clip().row("a photo of a cat", 77)[: len(known)] == known

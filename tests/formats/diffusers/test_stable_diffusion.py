"""Stable Diffusion's folders: the images are diffusers', and every trap on the way there is one that is tested."""

import importlib
import json
import logging
import os
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

import pydiff
from pydiff import text
from pydiff.cli import main
from pydiff.formats import embeddings, safetensors
from pydiff.formats.safetensors import CheckpointError
from pydiff.nn import deferred
from tests.compare import assert_close
from tests.formats.diffusers import tiny
from tests.peers import import_diffusers, import_transformers

PROMPT = "A photo of a cat, don't you see? It's 2024!"
SECOND = {  # as version 2: linear projections, heads of a size, exact gelu, another padding, v
    "unet": {"attention_head_dim": [2, 4], "use_linear_projection": True, "upcast_attention": True},
    "text": {"hidden_act": "gelu"}, "pad": "!", "scheduler": {"prediction_type": "v_prediction"},
}  # fmt: skip
LCM = {
    "unet": {"time_cond_proj_dim": 16},
    "scheduler": {"_class_name": "LCMScheduler", "set_alpha_to_one": True},
}
TURBO = {"scheduler": {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}}
INPAINT = {"unet": {"in_channels": 9}}


@pytest.fixture(scope="module", autouse=True)
def diffusers():
    diffusers = import_diffusers()
    import_transformers()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    yield diffusers
    tiny.forget()


def floats(run, asked, n=1, seed=0, **options):
    """What ours draws, before it is rounded to bytes: (N, H, W, 3) in [0, 1]."""
    numbers = np.arange(n)
    rows = run.conditioning.rows(numbers, **asked)
    for state in run.pipeline.sample_states(numbers, seed, asked=rows, **options):
        x = state.x
    return (run.codec.decode_floats(x) / 2 + 0.5).clip(0, 1)


def compare(model, prompt=PROMPT, steps=4, guidance=7.5, n=1, negative=None, **wishes):
    path, pipe = tiny.folder(**model)
    theirs = tiny.images_of(
        pipe, prompt, n=n, num_inference_steps=steps, guidance_scale=guidance, negative_prompt=negative
    )
    run = pydiff.load(path, **wishes)
    asked = {"prompts": [prompt] * n, "negative_prompt": negative}
    ours = floats(run, asked, n, steps=steps, guidance=guidance)
    assert theirs.std() > 0.02
    assert_close(ours, theirs, rtol=0, atol=3e-5)
    drawn = run.sample(n, prompts=[prompt], negative_prompt=negative, steps=steps, guidance=guidance)
    assert np.abs(drawn / 255 - theirs).max() <= 0.5 / 255 + 3e-5


@pytest.mark.parametrize("guidance", [7.5, 1.0, 0.0])
def test_version_1_draws_as_diffusers(guidance):
    compare({}, guidance=guidance, n=2)


def test_a_negative_prompt_and_a_long_one_do_too():
    with pytest.warns(text.PromptWarning, match=r"at most 75 tokens; .* more are not used"):
        compare({}, prompt="many words, " * 40, negative="blurred")
    compare({}, prompt="", negative="a dog")


@pytest.mark.parametrize("model", [SECOND, LCM, TURBO], ids=["version 2", "lcm", "turbo"])
def test_others_draw_as_diffusers(model, monkeypatch):
    if model is LCM:
        return compare_lcm(model, monkeypatch)
    return compare(model, steps=2 if model is TURBO else 4, guidance=1.0 if model is TURBO else 5.0)


def compare_lcm(model, monkeypatch):
    path, pipe = tiny.folder(**model)
    run = pydiff.load(path)
    assert (run.pipeline.default_guidance, run.pipeline.default_steps()) == (8.5, 4)
    module = importlib.import_module("diffusers.schedulers.scheduling_lcm")
    for guidance in (8.5, 3.0):
        step = iter(range(1, 99))
        monkeypatch.setattr(module, "randn_tensor", lambda shape, step=step, **_: tiny.step_noise(shape, next(step)))
        theirs = tiny.images_of(pipe, PROMPT, num_inference_steps=3, guidance_scale=guidance)
        ours = floats(run, {"prompts": [PROMPT]}, steps=3, guidance=guidance, noise=tiny.noise_of_step())
        assert_close(ours, theirs, rtol=0, atol=3e-5)


@pytest.mark.parametrize(
    "scheduler",
    [
        {"_class_name": "DDIMScheduler", "set_alpha_to_one": False, "steps_offset": 1},
        {"_class_name": "DPMSolverMultistepScheduler", "steps_offset": 1, "timestep_spacing": "leading"},
        {"_class_name": "EulerDiscreteScheduler", "steps_offset": 1, "timestep_spacing": "leading"},
        {"_class_name": "UniPCMultistepScheduler", "steps_offset": 1},
    ],
    ids=lambda config: config["_class_name"],
)
def test_the_scheduler_that_stands_there_is_used(scheduler):
    compare({"scheduler": scheduler}, steps=5)


# ---- editing ---------------------------------------------------------------------------------------------------------

SCHEDULERS = {
    "pndm": {},
    "ddim": {"_class_name": "DDIMScheduler", "steps_offset": 1},
    "euler": {"_class_name": "EulerDiscreteScheduler", "steps_offset": 1, "timestep_spacing": "leading"},
    "dpm": {"_class_name": "DPMSolverMultistepScheduler", "steps_offset": 1, "timestep_spacing": "leading"},
    "unipc": {"_class_name": "UniPCMultistepScheduler", "steps_offset": 1},
}


@pytest.fixture(scope="module")
def image():
    ramp = np.linspace(0, 1, 64)
    image = np.stack(
        [ramp[:, None] * ramp, ramp[::-1, None] * np.ones(64), np.cos(9 * ramp)[None] ** 2 * ramp[:, None]], -1
    )
    return np.rint(image * 255).astype(np.uint8)[None]


@pytest.fixture(scope="module")
def mask():
    mask = np.zeros((64, 64), np.float32)
    mask[13:50, 20:41] = 1
    return mask


def their_edit(pipe, kind, monkeypatch, image, **options):
    """diffusers' pipeline of another kind, with our noise and the most likely latents in place of drawn ones."""
    import diffusers
    import torch

    module = {"StableDiffusionImg2ImgPipeline": "img2img", "StableDiffusionInpaintPipeline": "inpaint"}[kind]
    module = importlib.import_module(f"diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_{module}")
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: tiny.start((8, 8, 4), np.arange(1)))
    real = module.retrieve_latents
    monkeypatch.setattr(module, "retrieve_latents", lambda found, **_: real(found, sample_mode="argmax"))
    parts = {
        n: c for n, c in pipe.components.items() if n not in ("safety_checker", "feature_extractor", "image_encoder")
    }
    made = getattr(diffusers, kind)(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    given = torch.from_numpy(image.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    with tiny.quietly():
        return made(PROMPT, image=given, output_type="np", **options).images


@pytest.mark.parametrize(("name", "strength"), [*((name, 0.7) for name in SCHEDULERS), ("pndm", 0.4), ("ddim", 1.0)])
def test_image_to_image_is_that_of_diffusers(name, strength, image, monkeypatch):
    path, pipe = tiny.folder(scheduler=SCHEDULERS[name])
    options = {"strength": strength, "num_inference_steps": 5, "guidance_scale": 4.0}
    theirs = their_edit(pipe, "StableDiffusionImg2ImgPipeline", monkeypatch, image, **options)
    ours = pydiff.load(path).image_to_image(image, strength, prompts=[PROMPT], steps=5, guidance=4.0)
    assert np.abs(ours / 255 - theirs).max() <= 0.5 / 255 + 1e-4


FILLED = [*((name, 0.7) for name in (*SCHEDULERS, "9 channels")), ("pndm", 1.0), ("9 channels", 1.0)]


@pytest.mark.parametrize(("name", "strength"), FILLED)
def test_filling_in_is_that_of_diffusers(name, strength, image, mask, monkeypatch):
    import torch

    model = INPAINT if name == "9 channels" else {"scheduler": SCHEDULERS[name]}
    path, pipe = tiny.folder(**model)
    options = {"strength": strength, "num_inference_steps": 5, "guidance_scale": 4.0}
    options |= {"mask_image": torch.from_numpy(mask[None, None]), "height": 64, "width": 64}
    theirs = their_edit(pipe, "StableDiffusionInpaintPipeline", monkeypatch, image, **options)
    ours = pydiff.load(path).inpaint(image, mask, prompts=[PROMPT], steps=5, guidance=4.0, strength=strength)
    assert np.abs(ours / 255 - theirs).max() <= 0.5 / 255 + 1e-4


def test_samplers_of_ours_edit_too(image, mask):
    path, _ = tiny.folder()
    run = pydiff.load(path)
    asked = {"prompts": [PROMPT], "guidance": 2.0}
    made = [
        run.image_to_image(image, 0.5, sampler="dpm_solver", steps=4, **asked),
        run.inpaint(image, mask, resample=2, steps=3, **asked),
        run.variations(image, 0.3, steps=3, **asked),
        run.sample(1, sampler="dpm_solver", steps=3, **asked),
    ]
    assert all(m.shape == image.shape and m.dtype == np.uint8 for m in made)
    assert len({m.tobytes() for m in made}) == 4
    with pytest.raises(ValueError, match="strength is for resample=0"):
        run.inpaint(image, mask, resample=2, strength=0.5)
    with pytest.raises(ValueError, match="less than one step"):
        run.image_to_image(image, 0.1, steps=5)


def test_a_model_that_fills_in_draws_nothing_else():
    run = pydiff.load(tiny.folder(**INPAINT)[0])
    with pytest.raises(ValueError, match="fills in what a mask says"):
        run.sample(1, prompts=["a cat"])
    with pytest.raises(ValueError, match="fills in what a mask says"):
        run.image_to_image(np.zeros((1, 64, 64, 3), np.uint8), prompts=["a cat"])


# ---- folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path):
    """A folder of version 1 that may be changed."""
    return shutil.copytree(tiny.folder()[0], tmp_path / "model")


def drawn(path, **wishes):
    return pydiff.load(path, **wishes).sample(1, prompts=["A cat!"], steps=2, guidance=3.0)


def test_folders_as_hubs_have_them_open(copy):
    """Old names of parameters, a buffer of places, vocab.json, the wrong end of prompts: the same images."""
    expected = drawn(copy)
    tiny.as_published(copy)
    np.testing.assert_array_equal(drawn(copy), expected)


def test_variants_shards_and_bin_open(copy):
    import torch
    from safetensors.torch import load_file

    expected, pipe = drawn(copy), tiny.folder()[1]
    for part, name in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        (copy / part / f"{name}.safetensors").unlink()
    with tiny.quietly():
        pipe.unet.save_pretrained(copy / "unet", max_shard_size="2MB")
    assert (copy / "unet/diffusion_pytorch_model.safetensors.index.json").exists()
    source = tiny.folder()[0]
    torch.save(load_file(source / "vae/diffusion_pytorch_model.safetensors"), copy / "vae/diffusion_pytorch_model.bin")
    torch.save(load_file(source / "text_encoder/model.safetensors"), copy / "text_encoder/pytorch_model.bin")
    np.testing.assert_array_equal(drawn(copy), expected)
    with tiny.quietly():
        pipe.unet.save_pretrained(copy / "unet", variant="fp16")
    run = pydiff.load(copy, variant="fp16")
    assert [note for note in run.notes if "no variant 'fp16', its plain weights are taken" in note]
    with pytest.raises(CheckpointError, match=r"expected diffusion_pytorch_model\.ema\.safetensors"):
        pydiff.load(copy, variant="ema")


def _edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
DAMAGES = {
    "no unet": (lambda f: shutil.rmtree(f / "unet"), "lacks unet/: complete"),
    "no vae": (lambda f: shutil.rmtree(f / "vae"), "lacks vae/: complete"),
    "no weights": (lambda f: (f / UNET_FILE).unlink(), "expected diffusion_pytorch_model"),
    "no text weights": (lambda f: (f / "text_encoder/model.safetensors").unlink(), r"expected model\.safetensors"),
    "no vocabulary": (lambda f: (f / "tokenizer/tokenizer.json").unlink(), r"expected vocab\.json and merges\.txt"),
    "no scheduler": (lambda f: (f / "scheduler/scheduler_config.json").unlink(), "has no scheduler: give one"),
    "no config": (lambda f: (f / "unet/config.json").unlink(), r"expected config\.json"),
    "truncated": (
        lambda f: (f / UNET_FILE).write_bytes(
            (f / UNET_FILE).read_bytes()[:5000]
        ),
        "is damaged",
    ),
    "wider": (
        lambda f: _edit_json(f / "unet/config.json", block_out_channels=[64, 128]),
        "describes another network",
    ),
    "enormous": (lambda f: _edit_json(f / "unet/config.json", layers_per_block=200), "describes another network"),
    "other context": (lambda f: _edit_json(f / "unet/config.json", cross_attention_dim=65536), "describes another"),
    "other class": (lambda f: _edit_json(f / "unet/config.json", _class_name="UNet2DModel"), "is for the class"),
    "not a number": (
        lambda f: _edit_json(f / "unet/config.json", norm_num_groups="many"),
        "norm_num_groups = 'many'",
    ),
    "text too large": (
        lambda f: _edit_json(f / "text_encoder/config.json", vocab_size=10**6),
        "describes another text",
    ),
    "another reader": (
        lambda f: _edit_json(f / "text_encoder/config.json", architectures=["T5"]),
        "text encoder 'T5'",
    ),
    "vae deeper": (lambda f: _edit_json(f / "vae/config.json", layers_per_block=9), "describes another autoencoder"),
    "vae of another class": (lambda f: _edit_json(f / "vae/config.json", _class_name="VQModel"), "is for the class"),
    "latents that do not fit": (
        lambda f: _edit_json(f / "vae/config.json", latent_channels=3),
        "has shape|latents have",
    ),
    "beside itself": (
        lambda f: (
            (f / UNET_FILE).unlink(),
            (f / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"conv_in.weight": "../../../etc/passwd"}})
            ),
        ),
        "expected one beside it: do not trust it",
    ),
    "a path of its own": (
        lambda f: (
            (f / UNET_FILE).rename(f / "unet/w.safetensors"),
            (f / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"conv_in.weight": "/etc/passwd"}})
            ),
        ),
        "expected one beside it: do not trust it",
    ),
    "weights that are a program": (lambda f: _pickled(f, _Evil()), "no file that PyTorch writes, or damaged"),
    "a state dict with a program": (lambda f: _torch_saved(f, {"conv_in.weight": _Evil()}), "do not trust this file"),
    "a pipe": (lambda f: ((f / UNET_FILE).unlink(), os.mkfifo(f / UNET_FILE)), "is not a regular file"),
    "nothing": (lambda f: (f / UNET_FILE).write_bytes(b""), "it has 0 bytes"),
    "one byte less": (lambda f: (f / UNET_FILE).write_bytes((f / UNET_FILE).read_bytes()[:-1]), "is damaged"),
    "one byte more": (
        lambda f: (f / UNET_FILE).write_bytes((f / UNET_FILE).read_bytes() + b"x"), "belong to no array"
    ),
    "a header of any length": (
        lambda f: (f / UNET_FILE).write_bytes(b"\xff" * 8 + (f / UNET_FILE).read_bytes()[8:]), "its header claims"
    ),
    "a matrix the other way round": (
        lambda f: _array(f, "mid_block.attentions.0.transformer_blocks.0.ff.net.2.weight", lambda a: a.T.copy()),
        r"must have shape \(64, 256\), got \(256, 64\)",
    ),
    "whole numbers": (lambda f: _array(f, "conv_in.bias", lambda a: a.astype(np.int64)), "holds no fractions"),
    "no heads": (lambda f: _edit_json(f / "unet/config.json", attention_head_dim=0), "attention_head_dim = 0"),
    "heads that do not divide": (
        lambda f: _edit_json(f / "text_encoder/config.json", num_attention_heads=3), "do not divide into 3 heads"
    ),
    "an activation of its own": (
        lambda f: _edit_json(f / "text_encoder/config.json", hidden_act="eval"), "hidden_act must be one of"
    ),
    "a scheduler of its own": (
        lambda f: _edit_json(f / "scheduler/scheduler_config.json", _class_name="os.system"),
        "does not have: give another",
    ),
    "steps beyond the last": (
        lambda f: _edit_json(f / "scheduler/scheduler_config.json", steps_offset=10**6), "steps_offset = 1000000"
    ),
    "no scale": (lambda f: _edit_json(f / "vae/config.json", scaling_factor=0), "scaling_factor = 0"),
    "a padding that nobody knows": (
        lambda f: _edit_json(f / "tokenizer/tokenizer_config.json", pad_token="<nobody>"), "is not in its vocabulary"
    ),
    "vocabulary of another": (
        lambda f: _tokens(f, lambda t: t["model"]["vocab"].update({"zzz": 99999})), "the tokenizer has the number 99999"
    ),
    "merges of another": (
        lambda f: _tokens(f, lambda t: t["model"]["merges"].append(["q", "zz"])),
        "joins 'q' and 'zz'",
    ),
    "a tokenizer of another kind": (
        lambda f: _tokens(f, lambda t: t["model"].update(type="WordPiece")),
        "another tokenizer",
    ),
    "another class of tokenizers": (
        lambda f: _edit_json(f / "tokenizer/tokenizer_config.json", tokenizer_class="T5Tokenizer"),
        "is of the tokenizer 'T5Tokenizer', expected CLIPTokenizer",
    ),
    "merges of three": (
        lambda f: _tokens(f, lambda t: t["model"]["merges"].append(["a", "b", "c"])),
        "its merges are not pairs of tokens",
    ),
    "merges that are no text": (lambda f: _merges(f, b"\xff\xfe"), "is not text in UTF-8"),
    "lines of three": (lambda f: _merges(f, b"#version: 0.2\na b c\n"), "its lines are not pairs of tokens"),
    "no text config": (lambda f: (f / "text_encoder/config.json").unlink(), r"expected config\.json"),
    "merges that are none": (
        lambda f: _tokens(f, lambda t: t["model"].update(merges=7)), "its merges and added_tokens are not lists"
    ),
    "added tokens that are none": (
        lambda f: _tokens(f, lambda t: t.update(added_tokens=True)), "its merges and added_tokens are not lists"
    ),
    "a start that is a list": (
        lambda f: _edit_json(f / "tokenizer/tokenizer_config.json", bos_token={"content": ["<|startoftext|>"]}),
        "its bos_token .* is not in its vocabulary",
    ),
    "fewer blocks than levels": (
        lambda f: _edit_json(f / "unet/config.json", down_block_types=["CrossAttnDownBlock2D"]),
        "down_block_types needs 2 of CrossAttnDownBlock2D",
    ),
    "fewer values than levels": (
        lambda f: _edit_json(f / "unet/config.json", transformer_layers_per_block=[1]),
        r"transformer_layers_per_block needs one value a level, 2 of them, got \[1\]",
    ),
    "vocabulary of text": (
        lambda f: _tokens(f, lambda t: t["model"]["vocab"].update({"a": "b"})),
        "is not one of tokens",
    ),
    "no JSON": (lambda f: (f / "model_index.json").write_text("{"), "not readable JSON"),
    "XL": (lambda f: _edit_json(f / "model_index.json", text_encoder_2=["transformers", "CLIPTextModel"]), "XL"),
    "XL by name": (
        lambda f: _edit_json(f / "model_index.json", _class_name="StableDiffusionXLPipeline"),
        "Diffusion XL",
    ),
    "a ControlNet": (
        lambda f: _edit_json(f / "model_index.json", controlnet=["diffusers", "ControlNetModel"]),
        "ControlNet",
    ),
    "another family": (
        lambda f: _edit_json(f / "model_index.json", _class_name="KandinskyPipeline"),
        "'KandinskyPipeline'",
    ),
    "more parts": (
        lambda f: _edit_json(f / "model_index.json", adapter=["diffusers", "T2IAdapter"]),
        "needs 'adapter'",
    ),
    "XL inside": (
        lambda f: _edit_json(f / "unet/config.json", addition_embed_type="text_time",
                             projection_class_embeddings_input_dim=9, addition_time_embed_dim=2),
        "describes another",
    ),
}  # fmt: skip


class _Evil:
    """Opened by pickle, it would leave a file."""

    def __reduce__(self):
        return os.system, ("touch pickle-was-here",)


def _pickled(folder, what):
    (folder / UNET_FILE).unlink()
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(pickle.dumps(what))


def _torch_saved(folder, what):
    import torch

    (folder / UNET_FILE).unlink()
    torch.save(what, folder / "unet/diffusion_pytorch_model.bin")


def _array(folder, name, change):
    raw = np.frombuffer(bytearray((folder / UNET_FILE).read_bytes()), np.uint8)
    arrays = safetensors.decode(raw, UNET_FILE)
    arrays[name] = change(arrays[name])
    (folder / UNET_FILE).write_bytes(b"".join(safetensors.pieces(arrays)))


def _tokens(folder, change):
    path = folder / "tokenizer/tokenizer.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def _merges(folder, lines):
    """The two files of older folders, in place of one."""
    path = folder / "tokenizer/tokenizer.json"
    (folder / "tokenizer/vocab.json").write_text(json.dumps(json.loads(path.read_text())["model"]["vocab"]))
    (folder / "tokenizer/merges.txt").write_bytes(lines)
    path.unlink()


@pytest.mark.parametrize("name", DAMAGES)
def test_what_cannot_be_opened_is_one_sentence(copy, name, monkeypatch):
    monkeypatch.chdir(copy.parent)
    damage, words = DAMAGES[name]
    damage(copy)
    with pytest.raises(CheckpointError, match=words) as error:
        pydiff.load(copy)
    assert "\n" not in str(error.value)
    assert [path.name for path in copy.parent.iterdir()] == ["model"]  # nothing was executed


@pytest.mark.filterwarnings("ignore:(invalid|overflow):RuntimeWarning")  # NumPy's, in place of the kernels
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_draw_nothing(copy, value, capsys):
    _array(copy, "conv_in.bias", lambda a: a + np.float32(value))
    assert main(["sample", str(copy), "--prompt", "a cat", "--steps", "1", "--out", str(copy.parent / "x.png")]) == 1
    assert "values are NaN or infinite" in capsys.readouterr().err
    assert not (copy.parent / "x.png").exists()


def test_a_u_net_alone_says_what_is_missing(copy):
    with pytest.raises(CheckpointError, match=r"draws nothing without a text encoder, its tokenizer, .*: give .*model"):
        pydiff.load(copy / "unet")
    shutil.copytree(copy / "unet", copy.parent / "alone")
    with pytest.raises(CheckpointError, match=r"draws nothing without .*: give the folder of the whole model"):
        pydiff.load(copy.parent / "alone")


def test_parts_that_are_not_used_are_named(copy):
    _edit_json(copy / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    assert "safety_checker is not used" in pydiff.load(copy).notes


def test_steps_that_no_scheduler_has_are_refused(copy):
    for steps, advice in ((0, "use at least one"), (-1, "use at least one"), (1001, "use fewer")):
        with pytest.raises(ValueError, match=f"got {steps} steps, expected 1 .. 1000; {advice}"):
            pydiff.load(copy).sample(1, prompts="a", steps=steps)


def test_sizes_are_checked_and_any_goes_that_8_divides(copy):
    run = pydiff.load(copy, size=(64, 96))
    assert run.sample(1, prompts=["a cat"], steps=1).shape == (1, 64, 96, 3)
    with pytest.raises(
        CheckpointError, match="the size 60 x 96 does not go with latents of 8 pixels a side; take 64 x 96"
    ):
        pydiff.load(copy, size=(60, 96))


def test_too_little_memory_is_said_before(copy, monkeypatch):
    run = pydiff.load(copy, size=(1024, 1024))
    monkeypatch.setattr("pydiff.memory.free", lambda: run.pipeline.memory((32, 32)))
    fits = r"drawing 1024 x 1024 needs about .* are free; 256 x 256 would fit, and --low-memory"
    with pytest.raises(MemoryError, match=fits):
        run.sample(1, prompts=["a cat"], steps=1)
    monkeypatch.setattr("pydiff.memory.free", lambda: 1 << 20)
    with pytest.raises(CheckpointError, match=r"GB of memory for its weights.*, or take --low-memory"):
        pydiff.load(copy)
    small = pydiff.load(copy, low_memory=True)  # which keeps none
    with pytest.raises(MemoryError, match=r"drawing 64 x 64 needs about .* are free; nothing fits$"):
        small.sample(1, prompts=["a cat"], steps=1)
    in_bands = run.pipeline.decoder_memory((128, 128))
    run.codec.autoencoder.work_in_bands(False)
    assert in_bands < 0.6 * run.pipeline.decoder_memory((128, 128))


def test_little_memory_gives_the_same_bits(copy, monkeypatch):
    run, small = pydiff.load(copy), pydiff.load(copy, low_memory=True)
    assert deferred.waiting(run.model) > 0
    asked = {"prompts": ["a cat", "a dog"], "steps": 2}
    expected = run.sample(1, **asked)
    assert deferred.waiting(run.model) == 0
    np.testing.assert_array_equal(small.sample(1, **asked), expected)
    assert deferred.releasable(small.model) == deferred.releasable(small.codec.autoencoder) == 0
    np.testing.assert_array_equal(
        small.image_to_image(expected[:1], 0.5, prompts=["a cat"]),
        run.image_to_image(expected[:1], 0.5, prompts=["a cat"]),
    )
    monkeypatch.setattr(run.pipeline, "decoder_memory", lambda _: 2.0**60)  # does not fit beside the U-Net
    monkeypatch.setattr(run.pipeline, "check_memory", lambda *_: None)
    np.testing.assert_array_equal(run.sample(1, **asked), expected)
    assert deferred.releasable(run.model) == 0


def test_images_do_not_depend_on_those_beside_them(copy):
    run = pydiff.load(copy)
    prompts = ["a cat", "a photo of a dog"]
    both = run.sample(2, prompts=prompts, steps=2, batch_size=4)
    np.testing.assert_array_equal(run.sample(2, prompts=prompts[1], steps=2), both[2:])
    assert run.pipeline.batch_size == 1


def test_prompts_are_calculated_with(copy):
    run = pydiff.load(copy)
    a, b = run.embed("a cat"), run.embed("[a cat] - [a dog] + [a dog]")
    assert_close(a["encoder_hidden_states"], b["encoder_hidden_states"], rtol=1e-5)


# ---- words of one's own ----------------------------------------------------------------------------------------------


def test_words_of_ones_own_draw_as_in_diffusers(tmp_path):
    import torch

    path, _ = tiny.folder()
    vectors = np.random.default_rng(3).standard_normal((2, 64)).astype(np.float32)
    torch.save({"<mine>": torch.from_numpy(vectors[0])}, tmp_path / "one.bin")
    torch.save({"<two>": torch.from_numpy(vectors)}, tmp_path / "two.bin")
    with tiny.quietly():
        pipe = tiny.pipeline()
        pipe.load_textual_inversion(str(tmp_path / "one.bin"))
        pipe.load_textual_inversion(str(tmp_path / "two.bin"))
    run = pydiff.load(path, embedding=[tmp_path / "one.bin", tmp_path / "two.bin"])
    prompt = "a <mine> in the style of <two>"
    theirs = tiny.images_of(pipe, prompt, num_inference_steps=3, guidance_scale=5.0)
    assert_close(floats(run, {"prompts": [prompt]}, steps=3, guidance=5.0), theirs, rtol=0, atol=3e-5)
    plain = pydiff.load(path)
    assert np.abs(run.sample(1, prompts=[prompt], steps=3) - plain.sample(1, prompts=[prompt], steps=3)).max() > 0


def test_all_kinds_of_their_files_are_read(tmp_path):
    import torch
    from safetensors.torch import save_file

    vectors = torch.arange(128, dtype=torch.float32).reshape(2, 64)
    web = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": vectors},
        "name": "<web>",
        "step": 9,
        "sd_checkpoint": None,
    }
    torch.save(web, tmp_path / "web.pt")
    save_file({"<safe>": vectors}, tmp_path / "safe.safetensors")
    save_file({"emb_params": vectors}, tmp_path / "named.safetensors")
    for file, word in (("web.pt", "<web>"), ("safe.safetensors", "<safe>"), ("named.safetensors", "named")):
        assert [*embeddings.read(tmp_path / file)] == [word]
        assert_close(embeddings.read(tmp_path / file)[word], vectors.numpy(), rtol=0)
    save_file({"clip_l": vectors, "clip_g": vectors.clone()}, tmp_path / "xl.safetensors")
    torch.save({"a": 1}, tmp_path / "none.bin")
    save_file({"<narrow>": vectors[:, :5].contiguous()}, tmp_path / "narrow.safetensors")
    path = tiny.folder()[0]
    for file, words in (("xl.safetensors", "for Stable Diffusion XL"), ("none.bin", "no words of one's own"),
                        ("narrow.safetensors", "this model's have 64 numbers")):  # fmt: skip
        with pytest.raises(CheckpointError, match=words):
            pydiff.load(path, embedding=[tmp_path / file])


# ---- on the command line ---------------------------------------------------------------------------------------------


def command(capsys, *arguments):
    status = main(["sample", *map(str, arguments)])
    return status, "".join(capsys.readouterr())


def test_drawing_and_editing_on_the_command_line(tmp_path, capsys, image, mask):
    model = tiny.folder()[0]
    asked = ("--prompt", "a cat", "--steps", 2, "--seed", 3)
    assert command(capsys, model, *asked, "-n", 2, "--out", tmp_path / "drawn.npz")[0] == 0
    drawn = np.load(tmp_path / "drawn.npz")["images"]
    np.testing.assert_array_equal(drawn, pydiff.load(model).sample(2, 3, prompts=["a cat"], steps=2, guidance=7.5))
    assert command(capsys, model, "--steps", 1, "--out", tmp_path / "one.npz")[0] == 0
    assert len(np.load(tmp_path / "one.npz")["images"]) == 1
    Image.fromarray(image[0]).save(tmp_path / "given.png")
    Image.fromarray((mask * 255).astype(np.uint8)).save(tmp_path / "mask.png")
    given = ("--image", tmp_path / "given.png")
    assert command(capsys, model, *asked, *given, "--strength", 0.6, "--out", tmp_path / "again.npz")[0] == 0
    run = pydiff.load(model)
    expected = run.image_to_image(image, 0.6, prompts=["a cat"], steps=2, seed=3)
    np.testing.assert_array_equal(np.load(tmp_path / "again.npz")["images"], expected)
    assert (
        command(capsys, model, *asked, *given, "--mask", tmp_path / "mask.png", "--out", tmp_path / "new.npz")[0] == 0
    )
    expected = run.inpaint(image, mask, prompts=["a cat"], steps=2, seed=3)
    np.testing.assert_array_equal(np.load(tmp_path / "new.npz")["images"], expected)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--mask", "mask.png"), "give that too, --image"),
        (("--image", "nowhere.png"), "cannot be used: no such file"),
        (("--image", "odd.png"), "the size 61 x 64 does not go with latents of 8 pixels a side; take 64 x 64"),
        (("--image", "odd.png", "--eta", 0.5), "--eta is for images without a given one"),
        (("--image", "odd.png", "--mask", "odd.png", "--sampler", "ddim"), "filling in has its own way"),
        (("--size", 60), "the size 60 x 60 does not go"),
        (("--embedding", "odd.png"), "is damaged"),
        (("--embedding", "none.bin"), "No such file or directory; restore it from a copy or use another"),
        (("--prompt", "caf\udce9"), r"the prompt 'caf\udce9' holds bytes that are no text in UTF-8; type it anew"),
        (("--guidance", "nan"), "guidance is nan, expected a finite number"),
        (("--scheduler", "NoScheduler"), "there is no scheduler 'NoScheduler'"),
    ],
)
def test_mistakes_on_the_command_line_are_one_sentence(tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((61, 64, 3), np.uint8)).save("odd.png")
    status, said = command(capsys, tiny.folder()[0], "--prompt", "a cat", "--steps", 2, "--out", "x.png", *arguments)
    assert status == 1
    assert words in said.replace("\n", " ")
    assert "Traceback" not in said


@pytest.mark.parametrize("model", [{}, SECOND], ids=["version 1", "version 2"])
def test_what_is_saved_draws_the_same_here_and_in_diffusers(diffusers, tmp_path, model):
    path, pipe = tiny.folder(**model)
    run = pydiff.load(path)
    assert run.save(tmp_path / "saved") == []
    asked = {"prompts": [PROMPT], "negative_prompt": "", "steps": 3, "guidance": 5.0}
    expected = run.sample(1, **asked)
    np.testing.assert_array_equal(pydiff.load(tmp_path / "saved").sample(1, **asked), expected)
    with tiny.quietly():
        theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "saved")
    drawn = [
        tiny.images_of(one, PROMPT, num_inference_steps=3, guidance_scale=5.0, negative_prompt="")
        for one in (theirs, pipe)
    ]
    assert_close(drawn[0], drawn[1], rtol=0, atol=1e-6)
    assert np.abs(expected / 255 - drawn[0]).max() <= 0.5 / 255 + 3e-5


def test_saving_replaces_its_own_and_nothing_else(copy, tmp_path):
    run, small = pydiff.load(copy), tmp_path / "small"
    run.conditioning.encoder.learn("<mine>", np.ones((2, 64), np.float32))
    (note,) = run.save(small)
    assert "keep the files of <mine>" in note
    run.save(small, dtype="float16")
    again = pydiff.load(small)
    assert len(again.conditioning.encoder.table) == len(run.conditioning.encoder.table) - 2
    halves = again.model.state_dict()
    for name, array in run.model.state_dict().items():
        np.testing.assert_array_equal(halves[name], array.astype(np.float16).astype(np.float32))
    with pytest.raises(CheckpointError, match="holds something else than a model that pydiff wrote"):
        run.save(copy)
    with pytest.raises(ValueError, match="dtype"):
        run.save(small, dtype="int8")

"""Stable Diffusion's folders: the images are diffusers', and every trap on the way there is one that is tested."""

import importlib
import logging

import numpy as np
import pytest

import pydiff
from pydiff import text
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
    with pytest.warns(text.PromptWarning, match="at most 75 tokens; .* more are not used"):
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


@pytest.mark.parametrize("strength", [0.4, 0.75, 1.0])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_image_to_image_is_that_of_diffusers(name, strength, image, monkeypatch):
    path, pipe = tiny.folder(scheduler=SCHEDULERS[name])
    options = {"strength": strength, "num_inference_steps": 5, "guidance_scale": 4.0}
    theirs = their_edit(pipe, "StableDiffusionImg2ImgPipeline", monkeypatch, image, **options)
    ours = pydiff.load(path).image_to_image(image, strength, prompts=[PROMPT], steps=5, guidance=4.0)
    assert np.abs(ours / 255 - theirs).max() <= 0.5 / 255 + 1e-4


@pytest.mark.parametrize("strength", [0.7, 1.0])
@pytest.mark.parametrize("name", [*SCHEDULERS, "9 channels"])
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

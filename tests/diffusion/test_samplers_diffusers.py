"""Samplers and schedules against diffusers: same noise, same network, step by step.

Spacings and numbers of steps are those for which diffusers takes the next entry of its own timesteps as the next point:
T divisible by the steps, and not "linspace". Its schedule is float32, so that is compared by itself, and the steps are
then compared with our float64 schedule put into it.
"""

import sys

import numpy as np
import pytest

from pydiff import random
from pydiff.diffusion.path import path
from pydiff.diffusion.process import Process
from pydiff.diffusion.samplers import ddim, ddpm
from pydiff.diffusion.schedule import schedule
from tests.diffusion.exact_denoisers import LINEAR, model_of, normal_denoiser, start


@pytest.fixture(scope="module")
def diffusers():
    pytest.importorskip("torch", reason="diffusers needs torch")
    return pytest.importorskip("diffusers", reason="comparison with diffusers: not installed")


def diffusers_config(schedule_name, prediction, spacing):
    beta_schedule = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}[schedule_name]
    beta = schedule(schedule_name).beta
    return {"num_train_timesteps": 1000, "beta_start": beta[0], "beta_end": beta[-1], "beta_schedule": beta_schedule,
            "prediction_type": {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}[prediction],
            "timestep_spacing": spacing, "clip_sample": True, "clip_sample_range": 1.0}  # fmt: skip


def replay(scheduler, process, model, x, steps, take_step):
    """x after every step of a diffusers scheduler; take_step(f, t, x, i) calls its `step`."""
    import torch

    scheduler.alphas_cumprod = torch.from_numpy(process.schedule.alpha_bar)
    scheduler.set_timesteps(steps)
    trajectory = []
    for i, t in enumerate(scheduler.timesteps.tolist()):
        f = torch.from_numpy(model(x, np.full(len(x), t)))
        x = take_step(f, t, torch.from_numpy(x), i).prev_sample.numpy()
        trajectory.append(x)
    return trajectory


def sampler_noise(shape, i):
    """The noise that our samplers draw in step i, counted from 0, with seed 0."""
    import torch

    key = random.key(0, random.SAMPLE, np.arange(shape[0]), i + 1)
    return torch.from_numpy(random.normal(key, shape[1:], np.float64))


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_schedules_equal_diffusers(diffusers, name):
    theirs = diffusers.DDIMScheduler(**diffusers_config(name, "eps", "leading")).alphas_cumprod.numpy()
    np.testing.assert_allclose(schedule(name).alpha_bar, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_ddim_equals_diffusers(diffusers, prediction, spacing, eta):
    process, x = Process(LINEAR, prediction), 1.5 * start(3, 4)
    model = model_of(normal_denoiser, process)
    scheduler = diffusers.DDIMScheduler(**diffusers_config("linear", prediction, spacing))

    def take_step(f, t, x, i):
        noise = sampler_noise(x.shape, i) if eta else None
        return scheduler.step(f, t, x, eta=eta, use_clipped_model_output=True, variance_noise=noise)

    ours = [state.x for state in ddim(model, x, process, path(process.schedule, 20, spacing), eta=eta)]
    np.testing.assert_allclose(ours, replay(scheduler, process, model, x, 20, take_step), atol=1e-9)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize(("spacing", "steps"), [("leading", 1000), ("leading", 20), ("trailing", 20)])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_ddpm_equals_diffusers(diffusers, monkeypatch, prediction, spacing, steps, variance):
    process, x = Process(LINEAR, prediction), 1.5 * start(3, 4)
    model = model_of(normal_denoiser, process)
    config = diffusers_config("linear", prediction, spacing) | {"variance_type": f"fixed_{variance}"}
    scheduler = diffusers.DDPMScheduler(**config)
    drawn = {}
    module = sys.modules[diffusers.DDPMScheduler.__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: sampler_noise(shape, drawn["step"]))

    def take_step(f, t, x, i):
        drawn["step"] = i
        return scheduler.step(f, t, x)

    ours = [state.x for state in ddpm(model, x, process, path(LINEAR, steps, spacing), variance=variance)]
    theirs = replay(scheduler, process, model, x, steps, take_step)
    if spacing == "trailing" and variance == "large":  # diffusers adds noise to the finished image unless t is 0
        ours, theirs = ours[:-1], theirs[:-1]
    np.testing.assert_allclose(ours, theirs, atol=1e-9)

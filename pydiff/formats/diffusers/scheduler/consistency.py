"""Consistency models (Song et al. 2023) and their latent kin, LCM and TCD: a few steps, each to x0-hat and back.

x0-hat = c_skip(t) x + c_out(t) F,   then noised again to the next level (their algorithm 1)
"""

import math

import numpy as np

from pydiff.codec import PIXEL_RANGE
from pydiff.diffusion.process import Process
from pydiff.diffusion.samplers.walk import Stage, walk
from pydiff.diffusion.schedule import schedule
from pydiff.formats.diffusers.scheduler import stages
from pydiff.formats.diffusers.scheduler.plan import BETAS, Plan, clipping, level_by_index, process_of
from pydiff.formats.diffusers.scheduler.tables import alpha_bar_of
from pydiff.mistakes import is_number

SIGMA_DATA = 0.5  # of LCM's c_skip and c_out


class ConsistencyProcess(Process):
    """A consistency network's output F: x0-hat = c_skip x + c_out F with c_skip = 1 and c_out = 0 at sigma_min.

    Its inputs are x / sqrt(sigma^2 + sigma_data^2) and 250 log sigma. Song et al. 2023, appendix C.
    """

    def scale(self, alpha, sigma):
        """c_in, by which x is multiplied before the network sees it."""
        return 1.0 / np.hypot(sigma / alpha, self.sigma_data) / alpha

    def network_time(self, _t, alpha, sigma):
        """The network's input in place of t: 250 log sigma."""
        return 250.0 * np.log(sigma / alpha + 1e-44)

    def x0_coefficients(self, _alpha, sigma):
        """(c_skip, c_out), for alpha = 1."""
        away, total = sigma - self.schedule.sigma[0], np.hypot(sigma, self.sigma_data)
        return self.sigma_data**2 / (away**2 + self.sigma_data**2), away * self.sigma_data / total

    @property
    def preconditioned(self):
        """True: every consistency network is."""
        return True


def multistep(config, steps, timesteps=None, **_):
    """CMStochasticIterativeScheduler: one step, or several with noise added in between."""
    T, low, high, rho = (config[k] for k in ("num_train_timesteps", "sigma_min", "sigma_max", "rho"))
    index = np.arange(steps) * (T // steps) if timesteps is None else np.asarray(timesteps)[::-1]
    share = index / (T - 1)
    exact = (high ** (1 / rho) + share * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    t = 250.0 * np.log(exact + 1e-44)
    sigma = np.append(exact, low).astype(np.float32).astype(np.float64)
    noise = np.sqrt(np.maximum(np.clip(sigma[1:], low, high) ** 2 - low**2, 0.0)) * config["s_noise"]
    noise = noise if len(index) > 1 else np.zeros(1)
    made = [Stage(t[i], 1.0, sigma[i], x0=1.0, std=float(noise[i])) for i in range(len(index))]
    table = schedule("edm", T, sigma_min=low, sigma_max=high, rho=rho)
    process = ConsistencyProcess(table, "x0", config["sigma_data"])

    def sample(model, x, process, **options):
        return walk(model, x, process, made, **options)

    clip = {"clip": PIXEL_RANGE if config["clip_denoised"] else None}
    return Plan(process, t, sigma, high, sample, clip, level_by_index(t, np.ones(len(t)), sigma))


def _distilled_timesteps(config, steps, timesteps) -> np.ndarray:
    """LCM's and TCD's t: a selection of those the network was distilled at, every T // original_inference_steps."""
    if timesteps is not None:
        return np.asarray(timesteps, np.int64)
    T, original = config["num_train_timesteps"], config["original_inference_steps"]
    if not steps <= original <= T:
        raise ValueError(
            f"got {steps} steps, and original_inference_steps is {original}; use at most {min(original, T)}"
        )
    asked = (np.arange(1, original + 1) * (T // original) - 1)[::-1]
    return asked[np.floor(np.linspace(0, original, steps, endpoint=False)).astype(np.int64)]


def lcm(config, steps, timesteps=None, begin=0, **_):
    """LCMScheduler (Luo et al. 2023): x0-hat mixed with x by c_skip and c_out of t, noised to the next t."""
    alpha_bar = alpha_bar_of(config, floor=False)
    level = stages.Levels(alpha_bar, 1.0 if config["set_alpha_to_one"] else alpha_bar[0])
    t = _distilled_timesteps(config, steps, timesteps)[begin:]
    made = []
    for i, step in enumerate(t.tolist()):
        scaled = step * config["timestep_scaling"]
        skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
        out = scaled / math.hypot(scaled, SIGMA_DATA)
        alpha, sigma = level(int(t[i + 1])) if i + 1 < len(t) else (1.0, 0.0)
        made.append(Stage(step, *level(step), x=alpha * skip, x0=alpha * out, std=sigma))

    def sample(model, x, process, **options):
        return walk(model, x, process, made, **options)

    return Plan(process_of(config, alpha_bar), t, None, 1.0, sample, clipping(config), level)


def tcd(config, steps, timesteps=None, **_):
    """TCDScheduler (Zheng et al. 2024): DDIM to s = (1 - eta) of the next t, and noise from there up to the next t."""
    alpha_bar = alpha_bar_of(config, floor=False)
    level = stages.Levels(alpha_bar, 1.0 if config["set_alpha_to_one"] else alpha_bar[0])
    t = _distilled_timesteps(config, steps, timesteps)

    def sample(model, x, process, eta=0.3, **options):
        if not (is_number(eta) and 0.0 <= eta <= 1.0):
            raise ValueError(f"eta is {eta!r:.60}, expected 0 (deterministic) .. 1; choose a number between")
        made = []
        for i, step in enumerate(t.tolist()):
            after = int(t[i + 1]) if i + 1 < len(t) else 0
            s = int(np.floor(np.float32(1.0 - eta) * np.float32(after)))
            (a, b), grown, std = level(s), 1.0, 0.0
            if eta > 0 and i + 1 < len(t):
                grown = math.sqrt(alpha_bar[after] / alpha_bar[s])
                std = math.sqrt(1.0 - alpha_bar[after] / alpha_bar[s])
            made.append(Stage(step, *level(step), x0=grown * a, raw_eps=grown * b, std=std))
        return walk(model, x, process, made, **options)

    return Plan(process_of(config, alpha_bar), t, None, 1.0, sample, {"clip": None}, level)


DISTILLED = {
    **BETAS,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "original_inference_steps": 50,
    "set_alpha_to_one": True,
    "timestep_scaling": 10.0,
}
MULTISTEP = {
    "num_train_timesteps": 40,
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "s_noise": 1.0,
    "rho": 7.0,
    "clip_denoised": True,
}
SCHEDULERS = {
    "CMStochasticIterativeScheduler": (multistep, MULTISTEP),
    "LCMScheduler": (lcm, DISTILLED),
    "TCDScheduler": (tcd, DISTILLED),
}

"""Runs a diffusers scheduler and our replica of it side by side: the same network, the same recorded noise.

The network is any smooth function of x and t: agreement does not need it to know anything. diffusers works in float32,
ours in float64, so that they agree to about 1e-6 of the largest number.
"""

import sys
import warnings

import numpy as np

from pydiff import random
from pydiff.formats.diffusers.scheduler import from_diffusers

SHAPE = (2, 3, 3, 4)  # (N, H, W, C)
STEP_OPTIONS = {"eta", "order", "use_clipped_model_output"}


def network(x, t, channels=1):
    """(N, ..., C) float -> (N, ..., channels C); t a number."""
    f = 0.6 * np.tanh(0.8 * x + 0.3 * np.roll(x, 1, axis=-1)) + 0.2 * np.cos(0.004 * float(t)) - 0.05
    return f if channels == 1 else np.concatenate([f, np.tanh(0.5 * x)], axis=-1)


def recorded(k):
    """The noise of the k-th evaluation."""
    return random.normal(random.key(77, random.SAMPLE, np.arange(SHAPE[0]), k + 1), SHAPE[1:], np.float64)


def start():
    return random.normal(random.key(5, random.SAMPLE, np.arange(SHAPE[0])), SHAPE[1:], np.float64)


def theirs(diffusers, config, steps, options, mu=None, own=None):
    """(scheduler, x after every call of step) of diffusers."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = getattr(diffusers, config["_class_name"])(**{k: v for k, v in config.items() if k[0] != "_"})
        asked = {"num_inference_steps": steps} if own is None else own
        scheduler.set_timesteps(**asked, **({} if mu is None else {"mu": mu}))
    double = 2 if config.get("variance_type") == "learned_range" else 1
    module, calls = sys.modules[type(scheduler).__module__], []

    def to_torch(x):
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1))).float()

    original = getattr(module, "randn_tensor", None)
    if original is not None:
        module.randn_tensor = lambda *_, **__: to_torch(recorded(len(calls)))
    x = to_torch(start() * float(getattr(scheduler, "init_noise_sigma", 1.0)))
    takes_noise = "DDIM" in config["_class_name"] and options.get("eta", 0) > 0
    try:
        for t in scheduler.timesteps:
            seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            f = to_torch(network(np.moveaxis(seen.double().numpy(), 1, -1), t, double))
            extra = {"variance_noise": to_torch(recorded(len(calls)))} if takes_noise else {}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                x = scheduler.step(f, t, x, return_dict=False, **options, **extra)[0]
            calls.append(np.moveaxis(x.double().numpy(), 1, -1))
    finally:
        if original is not None:
            module.randn_tensor = original
    return scheduler, calls


def ours(config, steps, options, mu=None, own=None):
    """(replica, x after every step) of ours, float64."""
    replica = from_diffusers(config, steps, mu=mu, **(own or {}))
    double = 2 if config.get("variance_type") == "learned_range" else 1
    x = start() * replica.init_noise_sigma
    states = replica.sample(lambda x, t: network(x, t[0], double), x, noise=recorded, **options)
    return replica, [state.x for state in states]


def differences(diffusers, config, steps, options=None, mu=None, own=None):
    """The largest relative differences of timesteps, sigmas, start, noise and x: a dict; NaN where not finite."""
    import torch

    options = options or {}
    scheduler, their_x = theirs(diffusers, config, steps, options, mu, own)
    replica, our_x = ours(config, steps, options, mu, own)
    found = {"timesteps": _apart(replica.timesteps, scheduler.timesteps.double().numpy())}
    found["start"] = _apart(replica.init_noise_sigma, float(getattr(scheduler, "init_noise_sigma", 1.0)))
    if replica.sigmas is not None:
        found["sigmas"] = _apart(replica.sigmas, scheduler.sigmas.double().numpy())
    x0, eps = start(), recorded(9)
    t = scheduler.timesteps[[0, len(scheduler.timesteps) // 2]]
    scheduler._step_index = scheduler._begin_index = None
    x0_torch, eps_torch = torch.from_numpy(x0), torch.from_numpy(eps)
    if hasattr(scheduler, "add_noise"):
        found["noise"] = _apart(replica.add_noise(x0, eps, t.numpy()), scheduler.add_noise(x0_torch, eps_torch, t))
    elif hasattr(scheduler, "scale_noise"):
        noisy = scheduler.scale_noise(x0_torch[:1], t[:1], eps_torch[:1])
        found["noise"] = _apart(replica.add_noise(x0[:1], eps[:1], t[:1].numpy()), noisy)
    stride = len(their_x) - len(our_x)  # methods that ask twice a step
    their_steps = their_x if not stride else _completed(their_x, len(our_x))
    found["x"] = float(np.max([_apart(a, b) for a, b in zip(our_x, their_steps, strict=True)]))  # keeps a NaN
    return found


def _completed(calls, steps):
    """x after every step of a method that asks twice in all but the last."""
    return [*calls[1 : 2 * (steps - 1) : 2], calls[-1]]


def _apart(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape, f"shapes {a.shape} and {b.shape}"
    return float(np.abs(a - b).max() / np.maximum(np.abs(b).max(), 1.0))  # NaN where either has one

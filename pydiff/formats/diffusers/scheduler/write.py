"""Writes a pydiff process as a diffusers scheduler, so that diffusers samples a saved model as it was trained.

process                                                     scheduler
alpha^2 + sigma^2 = 1, prediction eps, x0 or v              DDPMScheduler, by name of the betas or with all of them
flow, prediction flow                                       FlowMatchEulerDiscreteScheduler
levels of Karras et al. 2022, prediction edm or edm_v       EDMEulerScheduler
anything else                                               none
"""

from typing import NamedTuple

import numpy as np

from pydiff.diffusion.process import Process

TYPES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction", "edm": "epsilon", "edm_v": "v_prediction"}
DDPM_PIPELINE = "DDPMPipeline"


class Written(NamedTuple):
    """config: of the scheduler, or None. pipeline: the diffusers class that samples with it, or None. note: one
    sentence on what diffusers does differently from pydiff, or an empty string.
    """

    config: dict | None
    pipeline: str | None
    note: str


def scheduler_of(process: Process, variance: str = "fixed", limits: tuple[float, float] | None = None) -> Written:
    """The scheduler for a process. variance: "fixed" or "learned". limits: the codec's, to which x0-hat is clipped."""
    table, prediction = process.schedule, process.prediction
    if table.variance_preserving and prediction in ("eps", "x0", "v"):
        clip = {"clip_sample": limits is not None, "clip_sample_range": float(limits[1]) if limits else 1.0}
        kind = "learned_range" if variance == "learned" else "fixed_small"
        config = {
            "_class_name": "DDPMScheduler",
            "num_train_timesteps": table.T,
            **_betas(table),
            "prediction_type": TYPES[prediction],
            "variance_type": kind,
            **clip,
            "timestep_spacing": "trailing",
            "steps_offset": 0,
        }
        return Written(config, DDPM_PIPELINE, "")
    if table.name == "flow" and prediction == "flow" and table.options is not None:
        config = {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": table.T,
            "shift": float(table.options.get("shift", 1.0)),
        }
        note = (
            "diffusers' FlowMatchEulerDiscreteScheduler tells the network t + 1 where it was trained with t, so that "
            "its images differ slightly from pydiff's"
        )
        return Written(config, DDPM_PIPELINE, note)
    if table.name == "edm" and prediction in ("edm", "edm_v") and table.options is not None:
        config = {
            "_class_name": "EDMEulerScheduler",
            "num_train_timesteps": table.T,
            "sigma_data": process.sigma_data,
            "prediction_type": TYPES[prediction],
            **{name: table.options[name] for name in ("sigma_min", "sigma_max", "rho")},
            "sigma_schedule": "karras",
        }
        note = (
            "diffusers has no pipeline that draws images with EDMEulerScheduler, which is the scheduler of this model; "
            "use the two in a loop of your own, with its scale_model_input and init_noise_sigma"
        )
        return Written(config, None, note)
    return Written(
        None,
        None,
        f"diffusers has no scheduler for the schedule {table.name!r} with prediction {prediction!r}, so that it opens "
        "the network alone",
    )


def _betas(table) -> dict:
    """The name of diffusers' betas that equal these, or all of them; and whether they end in pure noise."""
    options = dict(table.options or {})
    zero = bool(options.pop("zero_snr", False))
    named = None
    if table.options is not None and table.name in ("linear", "scaled_linear", "sigmoid_beta"):
        word = table.name.removesuffix("_beta")
        named = {"beta_schedule": word, "beta_start": options["beta_start"], "beta_end": options["beta_end"]}
    elif table.options is not None and table.name == "cosine" and (options["s"], options["max_beta"]) == (0.008, 0.999):
        named = {"beta_schedule": "squaredcos_cap_v2", "beta_start": 1e-4, "beta_end": 0.02}
    if named is not None:
        return {**named, "trained_betas": None, "rescale_betas_zero_snr": zero}
    betas = np.clip(table.beta, 0.0, 1.0).tolist()
    return {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "trained_betas": betas}

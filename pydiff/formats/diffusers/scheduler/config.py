"""Reads scheduler_config.json: its class, its options, each checked for its range, and the names that old versions
used.
"""

import math
from collections.abc import Mapping

from pydiff.formats.safetensors import CheckpointError
from pydiff.formats.schema import NULL, TEXT, TRUTH, checked, either, listed, number, whole

_POSITIVE, _SHARE, _ANY = number(0, 1e9), number(0, 1), number(-1e9, 1e9)
MAX_T = 100_000

RULES = {
    "num_train_timesteps": whole(2, MAX_T),
    "beta_start": number(0, 1),
    "beta_end": number(0, 1),
    "trained_betas": either(NULL, listed(_SHARE, 2, MAX_T)),
    "steps_offset": whole(0, MAX_T),
    "original_inference_steps": whole(1, MAX_T),
    "solver_order": whole(1, 3),
    "disable_corrector": listed(whole(0, MAX_T), 0, MAX_T),
    "solver_p": NULL,
    "lambda_min_clipped": number(-math.inf, math.inf),
    "variance_type": either(NULL, TEXT),
    "dynamic_thresholding_ratio": _SHARE,
    "shift_terminal": either(NULL, _SHARE),
    "sigma_min": either(NULL, _POSITIVE),
    "sigma_max": either(NULL, _POSITIVE),
    "base_shift": either(NULL, _ANY),
    "max_shift": either(NULL, _ANY),
    "base_image_seq_len": either(NULL, whole(0, 1 << 30)),
    "max_image_seq_len": either(NULL, whole(0, 1 << 30)),
    **dict.fromkeys(
        ("clip_sample_range", "sample_max_value", "sigma_data", "rho", "s_noise", "s_churn", "s_min", "s_max",
         "timestep_scaling", "flow_shift", "shift"),
        _POSITIVE,
    ),
    **dict.fromkeys(
        ("thresholding", "clip_sample", "set_alpha_to_one", "skip_prk_steps", "rescale_betas_zero_snr",
         "lower_order_final", "euler_at_final", "predict_x0", "clip_denoised", "use_dynamic_shifting", "invert_sigmas",
         "stochastic_sampling", "predict_epsilon"),
        TRUTH,
    ),
    **dict.fromkeys(
        ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas", "use_lu_lambdas"),
        either(NULL, TRUTH),
    ),
    **dict.fromkeys(
        ("beta_schedule", "prediction_type", "timestep_spacing", "interpolation_type", "final_sigmas_type",
         "timestep_type", "solver_type", "algorithm_type", "time_shift_type", "sigma_schedule"),
        TEXT,
    ),
}  # fmt: skip

_BETAS = "num_train_timesteps beta_start beta_end beta_schedule trained_betas prediction_type "
_SPACED = _BETAS + "timestep_spacing steps_offset "
_CLIPPED = "clip_sample clip_sample_range rescale_betas_zero_snr "
_CUT = "thresholding dynamic_thresholding_ratio sample_max_value "
_SIGMAS = "use_karras_sigmas use_exponential_sigmas use_beta_sigmas "
_DISTILLED = _SPACED + _CLIPPED + _CUT + "set_alpha_to_one original_inference_steps timestep_scaling "
_SOLVER = _BETAS + _CUT + _SIGMAS + "solver_order solver_type lower_order_final use_flow_sigmas flow_shift "
_SOLVER += "use_dynamic_shifting time_shift_type "
_EDM = "num_train_timesteps prediction_type sigma_min sigma_max sigma_data sigma_schedule rho final_sigmas_type "
_DPM = "algorithm_type lambda_min_clipped variance_type final_sigmas_type "

# The options of every class; the others' are ignored, as diffusers does, for a configuration that came from another.
OPTIONS = {
    "DDPMScheduler": _SPACED + _CLIPPED + _CUT + "variance_type",
    "DDPMParallelScheduler": _SPACED + _CLIPPED + _CUT + "variance_type",
    "DDIMScheduler": _SPACED + _CLIPPED + _CUT + "set_alpha_to_one",
    "DDIMParallelScheduler": _SPACED + _CLIPPED + _CUT + "set_alpha_to_one",
    "DDIMInverseScheduler": _SPACED + _CLIPPED + "set_alpha_to_one",
    "PNDMScheduler": _SPACED + "set_alpha_to_one skip_prk_steps",
    "EulerDiscreteScheduler": _SPACED + _SIGMAS + "interpolation_type sigma_min sigma_max timestep_type "
    "rescale_betas_zero_snr final_sigmas_type",
    "EulerAncestralDiscreteScheduler": _SPACED + "rescale_betas_zero_snr",
    "HeunDiscreteScheduler": _SPACED + _SIGMAS + "clip_sample clip_sample_range",
    "LMSDiscreteScheduler": _SPACED + _SIGMAS,
    "KDPM2DiscreteScheduler": _SPACED + _SIGMAS,
    "KDPM2AncestralDiscreteScheduler": _SPACED + _SIGMAS,
    "DPMSolverMultistepScheduler": _SOLVER + _DPM + "timestep_spacing steps_offset euler_at_final use_lu_lambdas "
    "rescale_betas_zero_snr",
    "DPMSolverSinglestepScheduler": _SOLVER + _DPM,
    "DEISMultistepScheduler": _SOLVER + "timestep_spacing steps_offset algorithm_type",
    "UniPCMultistepScheduler": _SOLVER + "timestep_spacing steps_offset predict_x0 disable_corrector solver_p "
    "sigma_min sigma_max shift_terminal rescale_betas_zero_snr final_sigmas_type",
    "EDMEulerScheduler": _EDM,
    "EDMDPMSolverMultistepScheduler": _EDM + _CUT + "algorithm_type solver_order solver_type lower_order_final "
    "euler_at_final",
    "FlowMatchEulerDiscreteScheduler": "num_train_timesteps shift use_dynamic_shifting base_shift max_shift "
    "base_image_seq_len max_image_seq_len invert_sigmas shift_terminal time_shift_type stochastic_sampling " + _SIGMAS,
    "FlowMatchHeunDiscreteScheduler": "num_train_timesteps shift",
    "CMStochasticIterativeScheduler": "num_train_timesteps sigma_min sigma_max sigma_data s_noise rho clip_denoised",
    "LCMScheduler": _DISTILLED,
    "TCDScheduler": _DISTILLED,
    "KarrasVeScheduler": "sigma_min sigma_max s_noise s_churn s_min s_max",
    "IPNDMScheduler": "num_train_timesteps trained_betas",
}
OPTIONS = {name: frozenset(options.split()) for name, options in OPTIONS.items()}


def of_class(config: Mapping, name: str) -> dict:
    """The options in a configuration that a class has, and the class's name."""
    known = OPTIONS.get(name)
    return {"_class_name": name, **{k: v for k, v in config.items() if k[:1] != "_" and (known is None or k in known)}}


def read_config(config: Mapping, source: object, known_class: str | None = None) -> tuple[dict, list[str]]:
    """(the configuration with `_class_name`, sentences on what was ignored).

    known_class: what the model_index.json says, for a scheduler_config.json that does not. Raises CheckpointError for
    options of a wrong type or out of range, and if no file names the class.
    """
    name = config.get("_class_name", known_class)
    if not isinstance(name, str):
        raise CheckpointError(f"{source} does not say which scheduler it is for: give one with scheduler=.")
    found, unknown = checked(config, RULES, source)
    notes = []
    if found.pop("predict_epsilon", True) is False and "prediction_type" not in found:  # diffusers before 0.9
        found["prediction_type"] = "sample"
    betas, T = found.get("trained_betas"), found.get("num_train_timesteps", 1000)
    if betas is not None and len(betas) != T and name != "IPNDMScheduler":
        raise CheckpointError(f"{source} has {len(betas)} trained_betas for {T} timesteps: correct it or use another.")
    unknown = sorted({*unknown, *found} - of_class(found, name).keys())
    if unknown:
        notes.append(f"{source} has options that {name} does not know, and they are ignored: {', '.join(unknown):.200}")
    return of_class(found, name), notes

"""scheduler_config.json as it is found: its class, its options, each in range, and what old versions called them."""

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


def read_config(config: Mapping, source: object, known_class: str | None = None) -> tuple[dict, list[str]]:
    """(the configuration with `_class_name`, sentences on what was passed over).

    known_class: what the model_index.json says, for a scheduler_config.json that does not. CheckpointError, in one
    sentence, for options of a wrong type or out of range, and where the class is said nowhere.
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
    if unknown:
        notes.append(f"{source} has options that {name} does not know, and they are ignored: {', '.join(unknown):.200}")
    return {"_class_name": name, **found}, notes

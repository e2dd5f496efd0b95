"""Every supported diffusers scheduler, replayed step by step: tables, add_noise and whole trajectories.

What is left out here is what diffusers gets wrong in a way that cannot be followed, because it ends in NaN, an error or
float32 cancellation; docs/samplers.md lists it, and the last tests here hold that list to be true.
"""

import itertools

import numpy as np
import pytest

from pydiff.formats.diffusers.scheduler import SCHEDULERS, from_diffusers
from tests.diffusion.exact_denoisers import MEAN, SPREAD, last, model_of, normal_denoiser
from tests.formats.diffusers.replay import differences, network, ours, recorded, start, theirs

BETAS = ["linear", "scaled_linear", "squaredcos_cap_v2"]
SPACINGS = ["leading", "trailing", "linspace"]
TYPES = ["epsilon", "sample", "v_prediction"]


@pytest.fixture(scope="module")
def diffusers():
    pytest.importorskip("torch", reason="diffusers needs torch")
    module = pytest.importorskip("diffusers", reason="comparison with diffusers: not installed")
    module.utils.logging.set_verbosity_error()
    return module


def grid(**options):
    return [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]


def case(name, configs, steps=(10,), step_options=({},)):
    return [({"_class_name": name, **c}, n, o) for c in configs for n in steps for o in step_options]


RESPACED = [*grid(use_karras_sigmas=[True], beta_schedule=BETAS[:2]), {"use_exponential_sigmas": True}]
FLOW = grid(use_flow_sigmas=[True], prediction_type=["flow_prediction"], flow_shift=[3.0])
ZERO_SNR = grid(rescale_betas_zero_snr=[True], prediction_type=["v_prediction"], timestep_spacing=["trailing"])
# float32 cancellation with the cosine schedule, whose last sigma is 20291, keeps v_prediction out here
SCALED = grid(beta_schedule=BETAS[:2], timestep_spacing=SPACINGS, prediction_type=TYPES[::2])
K_DIFFUSION = [*SCALED, {"steps_offset": 1, "timestep_spacing": "leading"}]
SOLVERS = grid(beta_schedule=BETAS[1:], timestep_spacing=SPACINGS, prediction_type=["epsilon"])
CASES = [
    *case("DDPMScheduler", grid(beta_schedule=[*BETAS, "sigmoid", "laplace"], prediction_type=TYPES), (7,)),
    *case("DDPMScheduler", grid(variance_type=["fixed_small_log", "fixed_large", "learned_range"],
                                steps_offset=[0, 1])),
    *case("DDPMScheduler", [*ZERO_SNR, {"thresholding": True, "sample_max_value": 1.7}, {"clip_sample": False},
                            {"clip_sample_range": 0.5}, {"timestep_spacing": "linspace"}]),
    *case("DDIMScheduler", grid(prediction_type=TYPES, timestep_spacing=SPACINGS, set_alpha_to_one=[True, False]),
          (7,)),
    *case("DDIMScheduler", [*ZERO_SNR, {"thresholding": True}, {"clip_sample": False, "steps_offset": 1}], (10,),
          ({"eta": 0.6}, {"use_clipped_model_output": True})),
    *case("DDIMInverseScheduler", grid(prediction_type=TYPES[::2], timestep_spacing=SPACINGS[:2],
                                       clip_sample=[False, True], set_alpha_to_one=[True, False])),
    *case("PNDMScheduler", grid(prediction_type=TYPES[::2], timestep_spacing=SPACINGS, skip_prk_steps=[True, False]),
          (7,)),
    *case("PNDMScheduler", grid(skip_prk_steps=[True, False], set_alpha_to_one=[True], steps_offset=[1]), (10, 40)),
    *case("EulerDiscreteScheduler", [*K_DIFFUSION, *RESPACED, *ZERO_SNR, {"prediction_type": "sample"},
                                     {"final_sigmas_type": "sigma_min"},
                                     {"use_karras_sigmas": True, "sigma_min": 0.05}]),
    *case("EulerAncestralDiscreteScheduler", [*K_DIFFUSION, *ZERO_SNR]),
    *case("HeunDiscreteScheduler", [*K_DIFFUSION, *RESPACED, {"prediction_type": "sample"}, {"clip_sample": True}]),
    *case("LMSDiscreteScheduler", [*K_DIFFUSION, *RESPACED]),
    *case("LMSDiscreteScheduler", [{}], (7,), ({"order": 2}, {"order": 3})),
    *case("KDPM2DiscreteScheduler", [*K_DIFFUSION, *RESPACED]),
    *case("KDPM2AncestralDiscreteScheduler", [*K_DIFFUSION, *RESPACED]),
    *case("DPMSolverMultistepScheduler", [*SOLVERS, *grid(prediction_type=TYPES[1:]), *RESPACED, *FLOW, *ZERO_SNR,
                                          {"use_lu_lambdas": True}, {"thresholding": True, "sample_max_value": 2.0},
                                          {"lambda_min_clipped": -5.1, "beta_schedule": BETAS[2]}]),
    *case("DPMSolverMultistepScheduler", grid(solver_order=[1, 2, 3], algorithm_type=["dpmsolver++", "sde-dpmsolver++"],
                                              solver_type=["midpoint", "heun"]), (10, 16)),
    *case("DPMSolverMultistepScheduler", grid(algorithm_type=["dpmsolver", "sde-dpmsolver"],
                                              final_sigmas_type=["sigma_min"], solver_order=[2],
                                              euler_at_final=[False, True]), (16,)),
    *case("DPMSolverSinglestepScheduler", grid(solver_order=[1, 2, 3],
                                               algorithm_type=["dpmsolver++", "sde-dpmsolver++"],
                                               solver_type=["midpoint", "heun"]), (9, 10)),
    *case("DPMSolverSinglestepScheduler", [*grid(prediction_type=TYPES), *RESPACED, *FLOW,
                                           {"final_sigmas_type": "sigma_min"}], (8,)),
    *case("DEISMultistepScheduler", [*SOLVERS, *RESPACED, *grid(solver_order=[1, 3], lower_order_final=[True, False])]),
    *case("UniPCMultistepScheduler", [*SOLVERS, *RESPACED, *FLOW, *ZERO_SNR, {"thresholding": True}]),
    *case("UniPCMultistepScheduler", grid(solver_order=[1, 2, 3], predict_x0=[True, False], solver_type=["bh1", "bh2"],
                                          final_sigmas_type=["sigma_min"], disable_corrector=[[], [0, 1]]), (8,)),
    *case("EDMEulerScheduler", grid(sigma_schedule=["karras", "exponential"], prediction_type=TYPES[::2],
                                    final_sigmas_type=["zero", "sigma_min"], sigma_data=[0.5, 1.0])),
    *case("EDMDPMSolverMultistepScheduler", grid(sigma_schedule=["karras", "exponential"], prediction_type=TYPES[::2],
                                                 solver_order=[1, 2, 3], solver_type=["midpoint", "heun"])),
    *case("EDMDPMSolverMultistepScheduler", grid(algorithm_type=["sde-dpmsolver++"], solver_type=["midpoint", "heun"])),
    *case("FlowMatchEulerDiscreteScheduler", [*grid(shift=[1.0, 3.0]), {"stochastic_sampling": True},
                                              {"shift_terminal": 0.1}, {"use_karras_sigmas": True},
                                              {"invert_sigmas": True}], (10, 28)),
    *case("FlowMatchHeunDiscreteScheduler", grid(shift=[1.0, 3.0]), (10, 28)),
    *case("EulerDiscreteScheduler", grid(interpolation_type=["log_linear"], use_karras_sigmas=[False, True],
                                         final_sigmas_type=["zero", "sigma_min"])),
    *case("LCMScheduler", [*grid(prediction_type=TYPES, set_alpha_to_one=[True, False]), *ZERO_SNR,
                           {"clip_sample": True}, {"original_inference_steps": 33}, {"thresholding": True}], (1, 4, 7)),
    *case("TCDScheduler", grid(prediction_type=TYPES), (1, 5), ({"eta": 0.0}, {"eta": 0.3}, {"eta": 1.0}, {})),
    *case("CMStochasticIterativeScheduler", [{}, {"clip_denoised": False, "s_noise": 1.1}, {"rho": 5.0}], (1, 3, 40)),
    *case("IPNDMScheduler", [{}], (1, 2, 9, 40)),
]  # fmt: skip


@pytest.mark.parametrize("name", sorted({config["_class_name"] for config, _, _ in CASES}))
def test_tables_noise_and_trajectories_agree(diffusers, name):
    cases = [c for c in CASES if c[0]["_class_name"] == name]
    for config, steps, step_options in cases:
        found = differences(diffusers, config, steps, step_options)
        wrong = {what: difference for what, difference in found.items() if not difference <= 1e-5}
        assert not wrong, f"{config}, {steps} steps, {step_options}: {wrong}"


def test_dynamic_shifting_agrees(diffusers):
    for kind in ("exponential", "linear"):
        config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}
        config["time_shift_type"] = kind
        assert all(d <= 1e-5 for d in differences(diffusers, config, 10, mu=0.9).values())
        with pytest.raises(ValueError, match="needs mu"):
            from_diffusers(config, 10)


OWN = [
    ("DDPMScheduler", {}, {"timesteps": [999, 700, 333, 20, 0]}),
    ("LCMScheduler", {}, {"timesteps": [999, 759, 499, 259]}),
    ("TCDScheduler", {}, {"timesteps": [999, 500, 259]}),
    ("CMStochasticIterativeScheduler", {}, {"timesteps": [39, 22, 0]}),
    ("EulerDiscreteScheduler", {}, {"timesteps": [999, 650, 300, 20]}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, {"sigmas": [14.6, 5.0, 1.0, 0.2, 0.0]}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, {"sigmas": [1.0, 0.6, 0.3, 0.05]}),
]


@pytest.mark.parametrize(("name", "config", "own"), OWN)
def test_timesteps_and_sigmas_of_ones_own(diffusers, name, config, own):
    found = differences(diffusers, {"_class_name": name, **config}, None, own=own)
    assert all(difference <= 1e-5 for difference in found.values()), found


@pytest.mark.parametrize(
    ("name", "own", "message"),
    [
        ("DDIMScheduler", {"timesteps": [9, 3]}, "DDIMScheduler takes no timesteps of one's own; these do: DDPM"),
        ("DDPMScheduler", {"sigmas": [9, 3]}, "takes no sigmas"),
        ("EulerDiscreteScheduler", {"timesteps": [9, 3], "sigmas": [9, 3]}, "give one of them"),
        ("DDPMScheduler", {"timesteps": [3, 9]}, "expected falling ones from at most 999 to 0"),
        ("DDPMScheduler", {"timesteps": [1000, 9]}, "expected falling ones"),
        ("DDPMScheduler", {"timesteps": []}, "expected falling ones"),
        ("DDPMScheduler", {}, "got None steps"),
    ],
)
def test_timesteps_that_cannot_be(name, own, message):
    with pytest.raises(ValueError, match=message):
        from_diffusers({"_class_name": name}, **own)


def test_there_are_enough_configurations():
    assert len(CASES) >= 250
    twins = {"DDPMParallelScheduler", "DDIMParallelScheduler"}  # the same code as their namesakes
    # KarrasVe's pipeline does what its scheduler leaves undone: test_pipeline.py
    assert {config["_class_name"] for config, _, _ in CASES} == set(SCHEDULERS) - twins - {"KarrasVeScheduler"}


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_float32_and_the_compiled_kernels_stay_near_float64(name):
    config = {"_class_name": name, "prediction_type": "v_prediction" if name.startswith("EDM") else "epsilon"}
    replica = from_diffusers(config, 10)
    x = start() * replica.init_noise_sigma

    def draw(dtype):
        answer = lambda x, t: network(x, t[0]).astype(dtype)  # noqa: E731
        return [s.x for s in replica.sample(answer, x.astype(dtype), noise=recorded)]

    for single, double in zip(draw(np.float32), draw(np.float64), strict=True):
        assert single.dtype == np.float32
        assert (np.abs(single - double) <= 1e-5 * np.maximum(np.abs(double).max(), 1.0)).all()


# ---- what diffusers gets wrong (docs/samplers.md) --------------------------------------------------------------------


def test_ddim_steps_to_a_t_that_is_not_its_next(diffusers):
    """T = 100, 5 steps, linspace: t = 99, 74, 50, 25, 0, but steps land on 79, 54, 30, 5; repaired, they land on t."""
    config = {"_class_name": "DDIMScheduler", "num_train_timesteps": 100, "timestep_spacing": "linspace"}
    assert from_diffusers(config, 5).timesteps.tolist() == [99, 74, 50, 25, 0]
    assert differences(diffusers, config, 5)["x"] <= 1e-5  # followed when literal
    plan = from_diffusers(config, 5, literal=False)
    x = np.ones((1, 1, 1, 1))
    _, _, third, *_ = (s.x for s in plan.sample(lambda x, t: np.full_like(x, 0.0) + 0 * t[0], x, clip=None))  # eps = 0
    alpha = plan.process.schedule.alpha
    np.testing.assert_allclose(third, alpha[25] / alpha[99], rtol=1e-12)


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        ({"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1"}, 10),
        ({"_class_name": "UniPCMultistepScheduler", "predict_x0": False}, 10),
        ({"_class_name": "UniPCMultistepScheduler", "lower_order_final": False}, 10),
        ({"_class_name": "DDPMScheduler", "variance_type": "fixed_large_log"}, 10),
        ({"_class_name": "EDMDPMSolverMultistepScheduler", "final_sigmas_type": "sigma_min", "solver_order": 3}, 18),
        ({"_class_name": "KDPM2AncestralDiscreteScheduler", "beta_schedule": "squaredcos_cap_v2"}, 10),
    ],
)
def test_where_diffusers_is_not_finite_ours_is(diffusers, config, steps):
    assert not np.isfinite(theirs(diffusers, config, steps, {})[1][-1]).all()
    assert np.isfinite(ours(config, steps, {})[1][-1]).all()


def test_karras_levels_of_the_cosine_schedule_make_diffusers_skip_a_step(diffusers):
    """The first two t round to 999, and a scheduler that looks its place up by t takes the second."""
    config = {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True, "beta_schedule": BETAS[2]}
    with pytest.raises(IndexError):
        theirs(diffusers, config, 10, {})
    assert len(ours(config, 10, {})[1]) == 10


def test_ddpm_adds_noise_to_the_finished_image_in_diffusers():
    config = {"_class_name": "DDPMScheduler", "variance_type": "fixed_large", "timestep_spacing": "trailing"}
    for literal in (True, False):
        replica = from_diffusers(config, 5, literal=literal)
        state = list(replica.sample(lambda x, t: network(x, t[0]), start(), noise=recorded))[-1]
        assert (state.x == state.x0).all() != literal


def test_pndm_with_v_prediction_is_of_order_1_in_diffusers():
    """It weighs answers v of different t and turns the mean into eps with one t's alpha and sigma."""

    def error(prediction_type, steps, literal=True):
        config = {"_class_name": "PNDMScheduler", "prediction_type": prediction_type, "skip_prk_steps": True}
        replica = from_diffusers(config, steps, literal=literal)
        s, x, t = replica.process.schedule, start().reshape(2, -1), replica.timesteps[0]
        std = [np.sqrt(s.alpha[i] ** 2 * SPREAD**2 + s.sigma[i] ** 2) for i in (t, 0)]
        exact = s.alpha[0] * MEAN + std[1] / std[0] * (x - s.alpha[t] * MEAN)
        return np.abs(last(replica.sample(model_of(normal_denoiser, replica.process), x)) - exact).max()

    assert error("epsilon", 50) <= 1e-3
    assert error("epsilon", 50, literal=False) == pytest.approx(error("epsilon", 50), rel=1e-6)
    assert error("v_prediction", 50, literal=False) <= 1e-3
    assert error("v_prediction", 50) >= 0.03
    assert error("v_prediction", 100) == pytest.approx(error("v_prediction", 50) / 2, rel=0.1)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "steps", "message"),
    [
        ({"_class_name": "FooScheduler"}, 10, "no support for the scheduler class 'FooScheduler'; known are DDPM"),
        ({"_class_name": "DDIMScheduler"}, 1001, r"got 1001 steps, expected 1 \.\. 1000"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "sqrt"}, 10, "no beta_schedule 'sqrt'"),
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "log"}, 10, "no timestep_spacing 'log'"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "score"}, 10, "no prediction_type 'score'"),
        ({"_class_name": "DDIMScheduler", "steps_offset": 1}, 1000, "steps_offset 1 moves the first t to 1000"),
        ({"_class_name": "PNDMScheduler", "prediction_type": "sample"}, 10, "PNDM takes epsilon or v_prediction"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned"}, 10, "'learned' is not supported"),
        ({"_class_name": "EDMEulerScheduler", "sigma_schedule": "cosine"}, 10, "expected epsilon or v_prediction, and"),
    ],
)
def test_what_is_not_supported_is_said_in_a_sentence(config, steps, message):
    with pytest.raises(ValueError, match=message):
        from_diffusers(config, steps)


@pytest.mark.parametrize("name", ["DDPM", "DDIM", "EulerDiscrete", "LMSDiscrete", "KDPM2AncestralDiscrete"])
def test_a_level_without_noise_is_only_the_last(name):
    """diffusers divides 0 by 0 there, and draws what is no number."""
    config = {"_class_name": f"{name}Scheduler", "num_train_timesteps": 50, "beta_start": 0.0, "beta_end": 0.012}
    with pytest.raises(ValueError, match="a step begins at a level without noise, by which it divides"):
        from_diffusers(config, 20)
    scheduler = from_diffusers({**config, "beta_start": 1e-4}, 20)
    for state in scheduler.sample(lambda x, _: 0.1 * x, np.ones((1, 2, 2, 1), np.float32), seed=0):
        assert np.isfinite(state.x).all()


def test_add_noise_wants_a_t_of_the_scheduler():
    scheduler = from_diffusers({"_class_name": "EulerDiscreteScheduler"}, 5)
    x = np.zeros((1, 2))
    with pytest.raises(ValueError, match=r"t = 123.0 is none of this scheduler's timesteps"):
        scheduler.add_noise(x, x, [123.0])

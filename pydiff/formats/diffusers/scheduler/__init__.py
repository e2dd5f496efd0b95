"""A diffusers scheduler's configuration, turned into a process, a path and a sampler: the same images, without torch.

    config = json.load(open("scheduler/scheduler_config.json"))
    scheduler = from_diffusers(config, steps=30)
    x = scheduler.init_noise_sigma * noise                    # (N, H, W, C)
    for state in scheduler.sample(model, x, seed=0):          # model(x, t) -> f, as diffusers' pipelines call it
        show(state.x0)

Noise is drawn by our generator, or passed in: sample(model, x, noise=lambda k: recorded[k]), where k counts the
evaluations of the model from 0, which are diffusers' calls of `step`. Agreement is step by step, to rounding, for the
classes in `SCHEDULERS` (diffusers 0.42). Where diffusers is wrong (docs/samplers.md lists the cases with the
arithmetic), literal=True reproduces it and literal=False is correct.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pydiff.diffusion.denoiser import BESIDE
from pydiff.diffusion.process import Process
from pydiff.diffusion.samplers.walk import SamplerState
from pydiff.formats.diffusers.scheduler import consistency, edm, flow, k_diffusion, others, solvers, variance_preserving
from pydiff.formats.diffusers.scheduler.config import of_class
from pydiff.formats.diffusers.scheduler.plan import Plan
from pydiff.mistakes import is_number, near_option

SCHEDULERS: dict[str, tuple[Callable[..., Plan], dict]] = {
    **variance_preserving.SCHEDULERS,
    **k_diffusion.SCHEDULERS,
    **solvers.SCHEDULERS,
    **edm.SCHEDULERS,
    **flow.SCHEDULERS,
    **consistency.SCHEDULERS,
    **others.SCHEDULERS,
}


@dataclasses.dataclass(frozen=True)
class DiffusersScheduler:
    """Returned by `from_diffusers`. Attributes have diffusers' names and values, in float64.

    timesteps: what the network gets as t, one per evaluation. sigmas: (.. ,) its table, or None for schedulers without
    one. init_noise_sigma: the factor for the standard normal noise that sampling starts from. process, plan: in
    pydiff's terms.
    """

    process: Process
    plan: Plan
    timesteps: np.ndarray
    sigmas: np.ndarray | None
    init_noise_sigma: float

    def sample(self, model, x, **options) -> Iterator[SamplerState]:
        """The scheduler's sampler from x (N, ..., C), a generator of states.

        options: those of `walk` (seed, sample, noise, guidance, ..), and what diffusers takes in `step`: eta for DDIM,
        order for LMS.
        """
        try:
            return self.plan.sample(model, x, self.process, **{**self.plan.options, **options})
        except TypeError as error:
            _, argument, wrong = str(error).rpartition("unexpected keyword argument ")
            if not argument:
                raise
            near = "" if wrong.strip("'") in BESIDE else near_option(wrong.strip("'"), BESIDE)
            meant = near or "; name a sampler that has it"
            raise TypeError(f"this scheduler has no option {wrong}{meant}") from error

    def add_noise(self, x0, eps, t):
        """x0 (N, ...) with noise eps at the level of t (N,): one of `timesteps`, or any t for DDPM, DDIM and PNDM."""
        alpha, sigma = (np.array(level) for level in zip(*map(self.plan.level_of, np.asarray(t).tolist()), strict=True))
        column = (-1,) + (1,) * (x0.ndim - 1)
        return (alpha.reshape(column) * x0 + sigma.reshape(column) * eps).astype(x0.dtype)


# The classes that can skip the first steps, for sampling from given images.
BEGINS_LATE = ("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "PNDMScheduler",
               "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler",
               "LMSDiscreteScheduler", "DPMSolverMultistepScheduler", "DEISMultistepScheduler",
               "UniPCMultistepScheduler", "LCMScheduler")  # fmt: skip
# The classes whose `set_timesteps` takes these in place of a number of steps, as far as pydiff follows them.
TAKES = {
    "timesteps": ("DDPMScheduler", "DDPMParallelScheduler", "EulerDiscreteScheduler", "LCMScheduler", "TCDScheduler",
                  "CMStochasticIterativeScheduler"),
    "sigmas": ("EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"),
}  # fmt: skip


def from_diffusers(
    config: dict,
    steps: int | None = None,
    literal: bool = True,
    mu: float | None = None,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    begin: int = 0,
) -> DiffusersScheduler:
    """The scheduler that diffusers would make from `config` (its scheduler_config.json) for this many steps.

    literal: False corrects the errors that docs/samplers.md lists. mu: for `use_dynamic_shifting`, as in diffusers'
    set_timesteps. timesteps, sigmas: the caller's own, falling, instead of steps; for the classes in TAKES, with
    diffusers' meaning. begin: how many steps to skip at the noisy end, for the classes in BEGINS_LATE. Raises
    ValueError for an unsupported class or option.
    """
    name = config.get("_class_name")
    if name not in SCHEDULERS:
        raise ValueError(f"there is no support for the scheduler class {name!r}; known are {', '.join(SCHEDULERS)}")
    build, defaults = SCHEDULERS[name]
    given = {k: v for k, v in of_class(config, name).items() if v is not None}
    config = {"num_train_timesteps": 1000, **defaults, **given}
    own = _own(name, config["num_train_timesteps"], timesteps, sigmas)
    for what, values in own.items():
        steps = len(values) - (what == "sigmas" and name == "EulerDiscreteScheduler")  # which names the last level too
    if steps is not None and not (is_number(steps) and steps == int(steps)):
        raise ValueError(f"got {steps!r:.60} steps, expected a whole number; 20 to 50 are usual")
    if steps is None or not 1 <= steps <= config["num_train_timesteps"]:
        advice = "use at least one" if steps is None or steps < 1 else "use fewer"
        raise ValueError(f"got {steps} steps, expected 1 .. {config['num_train_timesteps']}; {advice}")
    if begin and name not in BEGINS_LATE:
        raise ValueError(f"{name} cannot begin half way; name a sampler, such as ddim or dpm_solver")
    if not 0 <= begin < steps:
        raise ValueError(f"{begin} of {steps} steps are left out, and none would be done; use more strength, or steps")
    plan = build(config, steps, literal=literal, mu=mu, **own, **({"begin": begin} if begin else {}))
    return DiffusersScheduler(plan.process, plan, plan.timesteps, plan.sigmas, plan.init_noise_sigma)


def _own(name, T, timesteps, sigmas) -> dict:
    """The caller's timesteps or sigmas, checked; {} if neither is given."""
    given = {"timesteps": timesteps, "sigmas": sigmas}
    given = {what: np.asarray(values, np.float64) for what, values in given.items() if values is not None}
    if len(given) > 1:
        raise ValueError("got timesteps and sigmas, of which one follows from the other; give one of them")
    for what, values in given.items():
        if name not in TAKES[what]:
            raise ValueError(f"{name} takes no {what} of one's own; these do: {', '.join(TAKES[what])}")
        most = T - 1 if what == "timesteps" else np.inf
        falls = values.ndim == 1 and len(values) and (np.diff(values) < 0).all()
        if not falls or not 0 <= values[-1] <= values[0] <= most:
            raise ValueError(f"got {what} {values.tolist()[:8]}, expected falling ones from at most {most} to 0")
    return given


__all__ = ["SCHEDULERS", "DiffusersScheduler", "from_diffusers"]

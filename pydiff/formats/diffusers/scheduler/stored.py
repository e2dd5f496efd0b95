"""The scheduler in a pipeline folder, as a Pipeline uses it: called with a number of steps, it gives a sampler."""

import numpy as np

from pydiff.formats.diffusers.scheduler import SCHEDULERS, DiffusersScheduler, from_diffusers
from pydiff.formats.diffusers.scheduler.config import of_class
from pydiff.formats.diffusers.scheduler.plan import PREDICTION_TYPES
from pydiff.formats.safetensors import CheckpointError

# Their networks need an input that no schedule of ours has, so no other sampler can evaluate them.
ALONE = ("KarrasVeScheduler", "CMStochasticIterativeScheduler", "IPNDMScheduler")


class StoredScheduler:
    """config: of diffusers, checked (config.read_config). process: its meaning in pydiff's terms.

    Raises CheckpointError for an unsupported class or option.
    """

    def __init__(self, config: dict, source: object = "the scheduler"):
        self.config, self.name, self._used = config, config["_class_name"], config
        if self.name.startswith("DPM") and "learned" in str(config.get("variance_type")):
            self._used = {
                k: v for k, v in config.items() if k != "variance_type"
            }  # the denoiser has removed those channels
        T = config.get("num_train_timesteps", 1000)
        try:
            with np.errstate(all="ignore"):
                made = from_diffusers(self._used, min(20, T))
            self.process = made.process
            levels = [self.process.schedule.alpha, self.process.schedule.sigma, made.timesteps, made.sigmas]
            if not all(np.isfinite(numbers).all() for numbers in levels if numbers is not None):
                raise ValueError("its levels of noise are not all finite")
        except (ValueError, TypeError, KeyError, ArithmeticError, IndexError, ImportError) as error:
            if self.name in SCHEDULERS:
                raise CheckpointError(f"{source} cannot be followed: {error!s:.300}.") from error
            raise CheckpointError(
                f"{source} is {self.name!a:.60}, which pydiff does not have: give another with scheduler=, one of "
                f"{', '.join(SCHEDULERS)}."
            ) from error

    @property
    def alone(self) -> bool:
        """Whether no other sampler can use a network with this scheduler."""
        return self.name in ALONE

    @property
    def learned_variance(self) -> bool:
        """Whether it uses the network's further channels as a variance."""
        return self.name.startswith("DDPM") and self.config.get("variance_type") == "learned_range"

    @property
    def default_steps(self) -> int:
        """As in diffusers' pipelines, but at most the number of levels: 50, and 1 for a consistency model."""
        if self.name == "CMStochasticIterativeScheduler":
            return 1
        few = 4 if self.name in ("LCMScheduler", "TCDScheduler") else 50
        return min(few, self.config.get("num_train_timesteps", 1000))

    def __call__(self, steps: int, timesteps=None, sigmas=None, begin=0) -> DiffusersScheduler:
        """The scheduler for this number of steps, or for these timesteps or sigmas. begin: how many steps to skip at
        the noisy end. Raises ValueError for arguments that it does not support.
        """
        return from_diffusers(self._used, steps, timesteps=timesteps, sigmas=sigmas, begin=begin)


def with_class(config: dict, name: str) -> dict:
    """The same configuration for another class, as diffusers' `from_config` makes it: options that both have are kept.

    Raises ValueError for a class that pydiff does not have.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"there is no scheduler {name!r}; choose one of {', '.join(SCHEDULERS)}")
    return of_class(config, name)


def with_prediction(config: dict, prediction: str) -> dict:
    """The same configuration for a network that predicts something else. Raises ValueError for an unknown word.

    prediction: pydiff's name (eps, x0, v, flow) or diffusers' (epsilon, sample, v_prediction, flow_prediction).
    """
    ours = {"eps": "epsilon", "x0": "sample", "v": "v_prediction", "flow": "flow_prediction"}
    word = ours.get(prediction, prediction)
    if word not in PREDICTION_TYPES:
        raise ValueError(
            f"there is no prediction {prediction!r}; choose one of {', '.join([*ours, *PREDICTION_TYPES])}"
        )
    return {**config, "prediction_type": word}

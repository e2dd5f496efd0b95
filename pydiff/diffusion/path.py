"""The path back from noise: which noise levels a sampler visits, and which t it passes to the network there.

path(schedule, 20)                    20 evenly spaced t
path(schedule, 20, "karras")          levels of Karras et al. 2022 between the schedule's own ends
path_of_levels(schedule, rho)         any levels rho = sigma / alpha
path_through(schedule, [999, 500])    any t, whole or fractional
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pydiff.diffusion.continuous import Level, level_of
from pydiff.diffusion.schedule import Schedule, exponential_sigmas, karras_sigmas
from pydiff.mistakes import is_number


class Path(NamedTuple):
    """The S steps of a sampler: step i evaluates the model at t[i] and goes from entry i to entry i + 1.

    alpha and sigma may have another scale than the schedule that the model was trained with: alpha = 1 throughout means
    "exploding" coordinates, and the process scales what the network sees. sigma / alpha must decrease.
    """

    t: np.ndarray  # (S,) int64, or float64 where fractional, falling
    alpha: np.ndarray  # (S + 1,) float64; the last entry is the clean end, 1
    sigma: np.ndarray  # (S + 1,) float64; the last entry is the clean end, 0

    @property
    def ratio(self) -> np.ndarray:
        """Noise-to-signal ratio sigma / alpha, (S + 1,), the same in every scale; infinite where alpha is 0."""
        with np.errstate(divide="ignore"):
            return self.sigma / self.alpha


SPACINGS: dict[str, Callable[[int, int], np.ndarray]] = {
    # k = 0 .. S-1, before reversing; each is strictly rising because T / S >= 1
    "leading": lambda T, S: np.arange(S) * T // S,
    "linspace": lambda T, S: np.rint(np.arange(S) * ((T - 1) / max(S - 1, 1))).astype(np.int64),
    "trailing": lambda T, S: np.rint(np.arange(1, S + 1) * (T / S)).astype(np.int64) - 1,
    # as in diffusers: whole strides, so that up to T % S of the noisiest t are left out even for a single step
    "leading_stride": lambda T, S: np.arange(S) * (T // S),
}
SIGMA_SPACINGS = {"karras": karras_sigmas, "exponential": exponential_sigmas}
ALL_SPACINGS = (*SPACINGS, *SIGMA_SPACINGS, "continuous")


def timesteps(T: int, steps: int, spacing: str = "trailing", offset: int = 0) -> np.ndarray:
    """`steps` of the numbers T-1 .. 0, evenly spaced: (steps,) int64, strictly decreasing.

    "trailing" starts at T-1, where x_T really is noise, and is the default for that reason (Lin et al. 2024, section
    3.3); "leading" ends at 0 (Song et al. 2021); "linspace" does both (Nichol and Dhariwal 2021). steps == T gives
    every t in all three. A single step is T-1 in all three: it starts from noise. "leading_stride" is diffusers'
    "leading", with whole strides T // steps; its `steps_offset` is `offset`, added to every t.
    Raises ValueError unless 1 <= steps <= T and every t is below T.
    """
    if spacing not in SPACINGS:
        raise ValueError(f"there is no spacing {spacing!r}; choose one of {', '.join(SPACINGS)}")
    if not 1 <= steps <= T:
        advice = "use fewer" if steps > T else "use at least one"
        raise ValueError(f"got {steps} steps for a schedule of T = {T}, expected 1 .. {T}; {advice}")
    noisiest_alone = steps == 1 and spacing != "leading_stride"
    t = np.array([T - 1]) if noisiest_alone else SPACINGS[spacing](T, steps)[::-1].copy()
    if not 0 <= offset < T - t[0]:
        raise ValueError(f"offset {offset} moves the first t, {t[0]}, out of 0 .. {T - 1}; use a smaller one")
    return t + offset


def path(schedule: Schedule, steps: int, spacing: str = "trailing", offset: int = 0) -> Path:
    """The path of `steps` steps from noise to the clean end.

    spacing: one of `timesteps`, evenly spaced in t; or "karras" or "exponential", evenly spaced in sigma^(1/7) or in
    log sigma between the schedule's smallest and largest sigma / alpha, which gives fractional t; or "continuous",
    evenly spaced in the time of the schedule's own formula (continuous.py). Raises ValueError for others.
    """
    if not is_number(steps) or steps != int(steps):
        raise ValueError(f"got {steps!r:.60} steps, expected a whole number; 20 to 50 are usual")
    steps = int(steps)
    if spacing == "continuous":
        return path_of_level(schedule, level_of(schedule), steps, last=1.0 / schedule.T)
    if spacing in SIGMA_SPACINGS:
        ratio = schedule.sigma / np.maximum(schedule.alpha, 1e-300)
        inside = ratio[(schedule.alpha > 0) & (schedule.sigma > 0)]
        if steps < 1:
            raise ValueError(f"got {steps} steps, expected at least 1; use more")
        return path_of_levels(schedule, SIGMA_SPACINGS[spacing](steps, inside[0], inside[-1]))
    if spacing not in SPACINGS:
        raise ValueError(f"there is no spacing {spacing!r}; choose one of {', '.join(ALL_SPACINGS)}")
    return path_through(schedule, timesteps(schedule.T, steps, spacing, offset))


def path_of_levels(schedule: Schedule, ratio, clean: bool = True) -> Path:
    """The path through these noise-to-signal ratios sigma / alpha, in the schedule's scale.

    clean: whether the clean end is one more level; otherwise the path ends at the last ratio. Raises ValueError unless
    the ratios are strictly decreasing, positive and finite.
    """
    ratio = np.asarray(ratio, dtype=np.float64)
    falling = ratio.ndim == 1 and len(ratio) >= 2 - clean and (np.diff(ratio) < 0).all()
    if not (falling and ratio[-1] > 0 and ratio[0] < np.inf):
        raise ValueError(f"got the noise-to-signal ratios {ratio.tolist()}, expected positive ones that fall strictly")
    scale = schedule.scale(np.ones_like(ratio), ratio)
    alpha, sigma, t = scale, scale * ratio, schedule.t_at(np.ones_like(ratio), ratio)
    if clean:
        return Path(t, np.append(alpha, 1.0), np.append(sigma, 0.0))
    return Path(t[:-1], alpha, sigma)


def path_of_level(schedule: Schedule, level: Level, steps: int, first: float = 1.0, last: float = 0.001) -> Path:
    """The path through `steps` times u of a function of continuous time, evenly from `first` to `last`, and on to the
    clean end. The network is given the fractional t at which `schedule`'s table has the same noise-to-signal ratio.
    Raises ValueError unless 1 >= first >= last > 0.
    """
    if not 1.0 >= first >= last > 0.0:
        raise ValueError(f"got times from {first} to {last}, expected 1 >= first >= last > 0")
    alpha, sigma = level(np.linspace(first, last, steps))
    return Path(schedule.t_at(alpha, sigma), np.append(alpha, 1.0), np.append(sigma, 0.0))


def path_through(schedule: Schedule, t, end: str = "clean") -> Path:
    """The path through the given t (S,), strictly decreasing, whole or fractional. Raises ValueError for others.

    end: "clean", the image itself; or "first", the level of t = 0, which leaves that much noise in the image.
    """
    t = np.asarray(t)
    t = t.astype(np.int64) if t.dtype.kind != "f" else t
    if t.ndim != 1 or not len(t) or not ((np.diff(t) < 0).all() and t[0] <= schedule.T - 1 and t[-1] >= 0):
        raise ValueError(f"got the timesteps {t.tolist()}, expected strictly falling ones from {schedule.T - 1} .. 0")
    if end not in ("clean", "first"):
        raise ValueError(f"there is no end {end!r}; choose one of clean, first")
    alpha, sigma = schedule.at(t)
    if not (sigma > 0).all():
        raise ValueError(f"schedule {schedule.name!r} has no noise at t = {t[-1]}, expected some; leave it out")
    last = (1.0, 0.0) if end == "clean" else (schedule.alpha[0], schedule.sigma[0])
    return Path(t, np.append(alpha, last[0]), np.append(sigma, last[1]))

"""Stages of the samplers that step differently in diffusers: DDIM to a t that is not on its path, PNDM.

diffusers' DDIM and PNDM go from t to t - T // steps, whatever the next t is. Where the two differ ("linspace",
"trailing" with T not divisible by steps), x is then treated as if it had another level; docs/samplers.md has figures.
"""

import math

from pydiff.diffusion.samplers.ancestral import ddim_step, ddpm_step
from pydiff.diffusion.samplers.multistep import ADAMS_BASHFORTH, transfer
from pydiff.diffusion.samplers.walk import Stage


class Levels:
    """(alpha, sigma) at integer t of a table; before t = 0 comes the final level."""

    def __init__(self, alpha_bar, final):
        self.alpha_bar, self.final = alpha_bar, final

    def __call__(self, t):
        bar = self.alpha_bar[t] if t >= 0 else self.final
        return math.sqrt(bar), math.sqrt(1.0 - bar)


def ddim_stages(timesteps, targets, level, eta, raw_eps) -> list[Stage]:
    """DDIM from every t to its target."""
    stages = []
    for t, s in zip(timesteps, targets, strict=True):
        ends = (*level(t), *level(s))
        a, b, std = ddim_step(*ends, eta)  # pyright: ignore[reportCallIssue]
        if raw_eps:
            stages.append(Stage(t, *ends[:2], x0=ends[2], raw_eps=a * ends[1], std=std))
        else:
            stages.append(Stage(t, *ends[:2], x=a, x0=b, std=std))
    return stages


def inverse_stages(timesteps, sources, level) -> list[Stage]:
    """DDIM backwards: from every source to the t that belongs to it, which is also what the network gets."""
    ends = zip(timesteps, sources, strict=True)
    return [Stage(t, *level(s), x0=level(t)[0], raw_eps=level(t)[1]) for t, s in ends]


def ddpm_stages(timesteps, level, variance, noisy_end) -> list[Stage]:
    """DDPM from every t to the next. noisy_end: the last, unless its t is 0, gets noise like any other."""
    stages, split = [], variance == "learned_range"
    for t, s in zip(timesteps, [*timesteps[1:], -1], strict=True):
        ends = (*level(t), *level(s))
        a, b, small = ddpm_step(*ends)
        large = math.sqrt(max(ends[1] ** 2 - (ends[0] / ends[2]) ** 2 * ends[3] ** 2, 0.0))
        silent = t == 0 or (s < 0 and not noisy_end)
        std = 0.0 if silent else large if variance == "large" else max(small, 1e-10)
        log_variance = None
        if split and not silent:
            log_variance, std = (2.0 * math.log(max(small, 1e-10)), 2.0 * math.log(large)), 0.0
        stages.append(Stage(t, *ends[:2], x=a, x0=b, std=std, log_variance=log_variance, split=split))
    return stages


def pndm_timesteps(timesteps, T, skip) -> tuple[list[int], int]:
    """Every t that the network is evaluated at, and how many of them belong to the Runge-Kutta warm-up. timesteps:
    rising.
    """
    if skip:
        return [int(t) for t in [*timesteps[:-1], *timesteps[-2:-1], *timesteps[-1:]]][::-1], 0
    half, last = T // len(timesteps) // 2, [int(t) for t in timesteps[-4:]]
    points = [t + extra for t in last for extra in (0, half)][:-1]
    warmup = [t for t in points for _ in range(2)][1:-1][::-1]
    return warmup + [int(t) for t in timesteps[:-3]][::-1], len(warmup)


def pndm_stages(asked, warmup, level, stride, prediction) -> list[Stage]:
    """PNDM as diffusers counts: a warm-up of four evaluations per step, then weights for the last four eps-hats.

    With prediction "v", the network's outputs are weighted, and converted into eps-hat at the end.
    """
    stages, values, base = [], [], 0
    for i, t in enumerate(asked):
        if i < warmup:
            k = i % 4
            base = i if k == 0 else base
            begin = asked[i - k]
            end = t if k % 2 else t - stride // 2
            values += [i] if k == 0 else []
            shares = {i: 1.0} if k < 3 else {base: 1 / 6, base + 1: 1 / 3, base + 2: 1 / 3, i: 1 / 6}
        else:
            begin, end, base, second = t, t - stride, i, warmup == 0 and i == 1
            if second:
                begin, end, base = t + stride, t, 0
                shares = {i: 0.5, 0: 0.5}
            else:
                values = [*values[-3:], i]
                shares = dict(zip(values[::-1], ADAMS_BASHFORTH[len(values) - 1], strict=True))
        stages.append(_weighted(t, i, base, level(t), (*level(begin), *level(end)), shares, prediction))
    return stages


def _weighted(t, i, base, here, ends, shares, prediction) -> Stage:
    """A transfer from level ends[:2], which x at stage `base` has, to ends[2:], with a weighted mean of outputs."""
    grown, away = transfer(*ends)
    if prediction == "v":
        grown, away, name = grown + away * ends[1], away * ends[0], "f"
    else:
        name = "eps"
    past = tuple((j, name, away * share) for j, share in shares.items() if j != i)
    now = {"f" if name == "f" else "raw_eps": away * shares.get(i, 0.0)}
    if base == i:
        return Stage(t, *here, x=grown, past=past, **now)
    return Stage(t, *here, past=((base, "x", grown), *past), **now)

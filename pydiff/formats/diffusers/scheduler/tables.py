"""Noise levels and t that a diffusers scheduler makes from its configuration, in its own order of rounding.

alpha_bar is a product of factors that are each rounded to float32, and networks were trained with that product:
near t = 0, where 1 - alpha_bar is small, it is 3e-4 away from the exact one. So the table is computed as diffusers
does, and everything after it in float64.
"""

import math

import numpy as np

from pydiff.diffusion.schedule import exponential_sigmas, karras_sigmas

f32 = np.float32


def alpha_bar_of(config, floor: bool) -> np.ndarray:
    """alpha_bar, (T,) float64, as rounded by diffusers. floor: replaces a final 0 by 2^-24, as diffusers does where
    sigma is used.
    """
    beta = _betas(config)
    if config.get("rescale_betas_zero_snr"):
        root = np.sqrt(_product(f32(1) - beta))
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        bar = root**2
        beta = f32(1) - np.append(bar[:1], bar[1:] / bar[:-1])
    bar = _product(f32(1) - beta).astype(np.float64)
    if floor and config.get("rescale_betas_zero_snr"):
        bar[-1] = 2.0**-24
    return bar


def _product(alpha):
    return np.cumprod(alpha.astype(np.float64)).astype(f32)  # torch also accumulates products in double


def _betas(config) -> np.ndarray:
    T, start, end, kind = (config[k] for k in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule"))
    if config.get("trained_betas") is not None:
        return np.asarray(config["trained_betas"], f32)
    if kind == "linear":
        return _linspace(start, end, T)
    if kind == "scaled_linear":
        return _linspace(start**0.5, end**0.5, T) ** 2
    if kind == "sigmoid":
        return f32(1) / (f32(1) + np.exp(-_linspace(-6, 6, T))) * f32(end - start) + f32(start)
    curves = {"squaredcos_cap_v2": _cosine, "exp": lambda t: math.exp(-12.0 * t), "laplace": _laplace}
    if kind not in curves:
        raise ValueError(f"there is no beta_schedule {kind!r}; choose one of linear, scaled_linear, sigmoid, "
                         f"{', '.join(curves)}")  # fmt: skip
    bar = curves[kind]
    return np.array([min(1 - bar((i + 1) / T) / bar(i / T), 0.999) for i in range(T)], f32)


def _cosine(t):
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace(t):
    snr = math.exp(-0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * math.fabs(0.5 - t) + 1e-6))
    return math.sqrt(snr / (1 + snr))


def _linspace(start, end, n):
    """torch.linspace in float32: computed from both ends towards the middle."""
    i, step = np.arange(n), (f32(end) - f32(start)) / f32(n - 1)
    up, down = f32(start) + step * i.astype(f32), f32(end) - step * (n - 1 - i).astype(f32)
    return np.where(i < n // 2, up, down).astype(f32)


# ---- t ---------------------------------------------------------------------------------------------------------------


def spaced(config, steps, extra: int, last: int | None = None) -> np.ndarray:
    """t from noise to image, float64. extra: 1 for schedulers that count the clean end as one of the points.

    last: how many t to choose from, T by default.
    """
    T, kind = config["num_train_timesteps"], config["timestep_spacing"]
    last = T if last is None else last
    if kind == "linspace":
        return np.linspace(0, last - 1, steps + extra)[::-1][:steps]
    if kind == "leading":
        return (np.arange(steps + extra) * (last // (steps + extra)))[::-1][:steps] + float(config["steps_offset"])
    if kind == "trailing":
        return np.round(np.arange(last, 0, -T / steps)) - 1.0
    raise ValueError(f"there is no timestep_spacing {kind!r}; choose one of linspace, leading, trailing")


def last_unclipped(config, bar) -> int:
    """How many t have log(alpha / sigma) above `lambda_min_clipped`."""
    bar = bar.astype(f32)
    lam = np.log(np.sqrt(bar)) - np.log(np.sqrt(f32(1) - bar))
    return len(bar) - int(np.searchsorted(lam[::-1], config.get("lambda_min_clipped", -math.inf)))


# ---- sigma = sqrt(1 - alpha_bar) / sqrt(alpha_bar) -------------------------------------------------------------------


def sigma_table(bar) -> np.ndarray:
    """(T,), rising; float32 arithmetic as in diffusers."""
    bar = bar.astype(f32)
    return (((f32(1) - bar) / bar) ** f32(0.5)).astype(np.float64)


def t_of_sigma(sigma, table) -> np.ndarray:
    """Fractional t by linear interpolation of log sigma."""
    return np.interp(np.log(np.maximum(sigma, 1e-10)), np.log(table.astype(f32)), np.arange(len(table)))


def respaced(config, steps, highest, lowest) -> np.ndarray | None:
    """Levels between these two by `use_karras_sigmas` and similar options, or None if no such option is set."""
    low = config.get("sigma_min") or lowest
    high = config.get("sigma_max") or highest
    if config.get("use_karras_sigmas"):
        return karras_sigmas(steps, low, high)
    if config.get("use_exponential_sigmas"):
        return exponential_sigmas(steps, low, high)
    if config.get("use_lu_lambdas"):
        return exponential_sigmas(steps, lowest, highest)
    if config.get("use_beta_sigmas"):
        return low + (high - low) * _beta_quantile(1 - np.linspace(0, 1, steps))
    return None


def _beta_quantile(share):
    try:
        from scipy.stats import beta
    except ImportError:
        raise ImportError("use_beta_sigmas needs scipy; install it, or use_karras_sigmas") from None
    return beta.ppf(share, 0.6, 0.6)

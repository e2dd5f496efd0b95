"""What a network predicts, and how its output f becomes x0-hat and eps-hat.

    x_t = alpha x0 + sigma eps,   f = p x0 + q eps

are two equations for x0 and eps, so that every prediction is a pair of mixing weights (p, q) and nothing else:

    x0 = (q x_t - sigma f) / (alpha q - sigma p),   eps = (alpha f - p x_t) / (alpha q - sigma p)

    name   f                    source
    eps    eps                  Ho et al. 2020, section 3.2
    x0     x0                   Ho et al. 2020, section 3.2
    v      alpha eps - sigma x0 Salimans and Ho 2022, section 4
    flow   eps - x0             the velocity dx/dt of x_t = (1 - t) x0 + t eps: Liu et al. 2023, eq. 1
    edm    (x0 - c_skip y) / c_out, y = x_t / alpha        Karras et al. 2022, eq. 7 and table 1
    edm_v  the same with the opposite sign; with sigma_data = 1 this is v
"""

from collections.abc import Callable

import numpy as np

SIGMA_DATA = 0.5  # standard deviation of the data, Karras et al. 2022, table 1


def edm_coefficients(ratio, sigma_data=SIGMA_DATA):
    """(c_skip, c_out, c_in, c_noise) for x = x0 + ratio eps (Karras et al. 2022, table 1): numbers or arrays.

    The network sees c_in x and c_noise; x0-hat = c_skip x + c_out f. All of f, its input and its target have variance 1
    for data with standard deviation sigma_data.
    """
    total = np.sqrt(ratio**2 + sigma_data**2)
    return sigma_data**2 / total**2, ratio * sigma_data / total, 1.0 / total, np.log(ratio) / 4.0


def _edm(alpha, sigma, sigma_data):
    ratio = sigma / alpha
    total = np.sqrt(ratio**2 + sigma_data**2)
    return ratio / (sigma_data * total), -sigma_data / total  # (1 - c_skip) / c_out and -c_skip ratio / c_out


# The mixing weights (p, q) of f = p x0 + q eps, given alpha, sigma and sigma_data.
PREDICTIONS: dict[str, Callable] = {
    "eps": lambda _alpha, _sigma, _data: (0.0, 1.0),
    "x0": lambda _alpha, _sigma, _data: (1.0, 0.0),
    "v": lambda alpha, sigma, _data: (-sigma, alpha),
    "flow": lambda _alpha, _sigma, _data: (-1.0, 1.0),
    "edm": _edm,
    "edm_v": lambda alpha, sigma, data: tuple(-w for w in _edm(alpha, sigma, data)),
}

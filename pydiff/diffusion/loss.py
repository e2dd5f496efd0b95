"""Losses beyond the plain squared error of `Process.loss`: loss weights, the variational bound with a learned variance,
offset noise. timesteps.py chooses t. As everywhere, every random number is a pure function of (seed, step, number of
the sample).
"""

import math

import numpy as np

from pydiff import ops, random
from pydiff.arrays import array_module, column
from pydiff.diffusion.prediction import edm_coefficients
from pydiff.tensor import Tensor

# ---- loss weights ----------------------------------------------------------------------------------------------------

GAMMA = 5.0  # of min-SNR, Hang et al. 2023, section 4.2


def _simple(_process, _ratio, square):
    return 1.0 / square


def _min_snr(_process, ratio, _square):
    with np.errstate(divide="ignore"):
        return np.minimum(ratio**-2.0, GAMMA)


def _edm(process, ratio, _square):
    return edm_coefficients(ratio, process.sigma_data)[1] ** -2.0


# The weight of the squared error of x0-hat, given ratio = sigma / alpha and (dx0-hat / df)^2.
WEIGHTS = {
    "simple": _simple,  # the prediction's own squared error: Ho et al. 2020, eq. 14
    "min_snr": _min_snr,  # min(SNR, 5): Hang et al. 2023, "Efficient diffusion training via min-SNR weighting", eq. 8
    "edm": _edm,  # 1 / c_out^2: Karras et al. 2022, table 1; the same for "simple" with the prediction "edm"
}


def loss_weight(name: str, process, t) -> np.ndarray:
    """The factor of the squared error of the prediction at t (N,): (N,) float64.

    Published weights are for x0-hat; as x0-hat = u x + v f, the weight for f is v^2 times that. Raises ValueError for
    an unknown name.
    """
    if name not in WEIGHTS:
        raise ValueError(f"there is no loss weight {name!r}; choose one of {', '.join(WEIGHTS)}")
    alpha, sigma = process.schedule.at(t)
    if name == "simple":
        return np.ones(np.shape(t))
    square = np.asarray(process.x0_coefficients(alpha, sigma)[1]) ** 2
    with np.errstate(divide="ignore"):
        return WEIGHTS[name](process, sigma / alpha, square) * square * np.ones(np.shape(t))


# ---- learned variance ------------------------------------------------------------------------------------------------


def hybrid_loss(process, model, x0, t, key, vlb: float = 0.001, **condition) -> Tensor:
    """L_simple + vlb L_vlb (Nichol and Dhariwal 2021, eq. 16): a Tensor holding one number.

    The model returns twice the channels: f, and v from -1 to 1 between the logarithms of the smallest and the largest
    variance (eq. 15). As in the paper, the bound trains only the variance: x0-hat counts as a constant in it. x0: array
    (N, ..., C); t (N,) integers. L_vlb, a sum over all T, is estimated from the given t.
    """
    return example_losses(process, model, x0, t, key, vlb=vlb, **condition).mean()


def example_losses(
    process, model, x0, t, key, *, weights=None, offset: float = 0.0, vlb: float | None = None, **condition
) -> Tensor:
    """`Process.loss`, or `hybrid_loss` if vlb is a number, for each example separately: (N,).

    weights: (N,), the weight of each example, see `loss_weight`. offset: amount of offset noise, see `offset_noise`.
    condition: named arrays of N rows, for the network.
    """
    x_t, _ = process.q_sample(x0, t, key, keep=False)
    if offset:
        more = offset_noise(x_t, key, offset)  # eps of the process becomes eps + more
        x_t = x_t + column(process.schedule.at(t)[1], x_t) * more
    seen = process.network_input(x_t, t)
    answer = model(Tensor(seen[0]), seen[1], **condition)
    channels = x0.shape[-1]
    f = answer if vlb is None else answer[..., :channels]
    # f against p x0 + q (eps + more) is f - q more against p x0 + q eps
    losses = process.errors(f - process.target(0 * more, more, t) if offset else f, x0, t, key, weights)
    if vlb is None:
        return losses
    bits = variational_bits(process, x0, x_t, t, process.to_x0(x_t, f.data, t), answer[..., channels:])
    return losses + bits * (vlb * process.schedule.T)


def variational_bits(process, x0, x_t, t, x0_hat, v: Tensor) -> Tensor:
    """One term of the variational bound in bits per number, (N,): L_{t-1} for t > 0, L_0 for t = 0 (Ho et al., eq. 5).

    x0, x_t, x0_hat: arrays (N, ...); v: Tensor of that shape, -1 for the smallest variance, 1 for the largest.
    """
    mean, _, least = process.posterior(x0, x_t, t)
    guess, _, _ = process.posterior(x0_hat, x_t, t)
    largest = column(np.log(process.transition_variance(t)), x0)
    log_variance = (v + 1.0) * 0.5 * (largest - least) + least
    kl = normal_kl(mean, least, guess, log_variance)
    decoder = discretized_nll(x0, guess, log_variance)
    axes = tuple(range(1, x0.ndim))
    return ops.where(column(t == 0, x0) > 0, decoder, kl).mean(axis=axes) * (1.0 / math.log(2.0))


def normal_kl(mean1, log_variance1, mean2, log_variance2: Tensor) -> Tensor:
    """Elementwise KL divergence, in nats, of normals with these means and log variances."""
    square = (mean1 - mean2) ** 2 + array_module(log_variance1).exp(log_variance1)
    return (log_variance2 - log_variance1 - 1.0 + ops.exp(-log_variance2) * square) * 0.5


def discretized_nll(x0, mean, log_variance: Tensor) -> Tensor:
    """Elementwise -log of the probability of x0, one of 256 levels in [-1, 1] (Ho et al. 2020, eq. 13).

    The normal distribution function is approximated by 1/2 (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))), to within 3e-4.
    """
    per_std = ops.exp(log_variance * -0.5)
    above = _normal_cdf((x0 - mean + 1.0 / 255.0) * per_std)
    below = _normal_cdf((x0 - mean - 1.0 / 255.0) * per_std)
    probability = ops.where(x0 < -0.999, above, ops.where(x0 > 0.999, 1.0 - below, above - below))
    return -ops.log(ops.clip(probability, 1e-12, 1.0))


def _normal_cdf(z: Tensor) -> Tensor:
    return ops.tanh((z + z * z * z * 0.044715) * math.sqrt(2.0 / math.pi)) * 0.5 + 0.5


# ---- offset noise ----------------------------------------------------------------------------------------------------


def offset_noise(x, key, amount: float):
    """What offset noise adds to eps: `amount` times one more normal number per image and channel, (N, 1, .., C).

    Guttenberg 2023, "Diffusion with offset noise": without it, the mean brightness of x_T reveals that of the image,
    and generated images stay near mid grey. x: array (N, ..., C).
    """
    shape = (1,) * (x.ndim - 2) + x.shape[-1:]
    z = random.normal(key._replace(purpose=random.OFFSET), shape, x.dtype)
    return amount * array_module(x).asarray(z)

"""What training minimises besides the plain squared error: loss weights, the variational bound with a learned variance,
which t are drawn, offset noise and self-conditioning.

Every random number is a pure function of (seed, step, place in the batch), as everywhere.
"""

import math

import numpy as np

from pydiff import ops, random
from pydiff.backend import array_module
from pydiff.diffusion.prediction import edm_coefficients
from pydiff.tensor import Tensor, no_grad

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
    """What the squared error of the prediction at t (N,) is multiplied by: (N,) float64.

    Published weights are for x0-hat; x0-hat = u x + v f makes that v^2 times as much for f. ValueError for others.
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


def hybrid_loss(process, model, x0, t, key, labels=None, vlb: float = 0.001) -> Tensor:
    """L_simple + vlb L_vlb (Nichol and Dhariwal 2021, eq. 16): a Tensor holding one number.

    model answers with twice the channels: f, and v from -1 to 1 between the logarithms of the least and the largest
    variance (eq. 15). As there, the bound teaches the variance alone: x0-hat counts as a constant in it.
    x0: array (N, ..., C); t (N,) integers. L_vlb, a sum over all T, is estimated from the t at hand.
    """
    return example_losses(process, model, x0, t, key, labels, vlb=vlb).mean()


def example_losses(
    process, model, x0, t, key, labels=None, weights=None, offset: float = 0.0, vlb: float | None = None
) -> Tensor:
    """`Process.loss`, or `hybrid_loss` if vlb is a number, for each example by itself: (N,)."""
    x_t, _ = process.q_sample(x0, t, key, keep=False)
    if offset:
        more = offset_noise(x_t, key, offset)  # eps of the process becomes eps + more
        x_t = x_t + _column(process.schedule.at(t)[1], x_t) * more
    seen = process.network_input(x_t, t)
    answer = model(Tensor(seen[0]), seen[1], *(() if labels is None else (labels,)))
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

    x0, x_t, x0_hat: arrays (N, ...); v: Tensor of that shape, -1 for the least variance, 1 for the largest.
    """
    mean, _, least = process.posterior(x0, x_t, t)
    guess, _, _ = process.posterior(x0_hat, x_t, t)
    largest = _column(np.log(process.transition_variance(t)), x0)
    log_variance = (v + 1.0) * 0.5 * (largest - least) + least
    kl = normal_kl(mean, least, guess, log_variance)
    decoder = discretized_nll(x0, guess, log_variance)
    axes = tuple(range(1, x0.ndim))
    return ops.where(_column(t == 0, x0) > 0, decoder, kl).mean(axis=axes) * (1.0 / math.log(2.0))


def normal_kl(mean1, log_variance1, mean2, log_variance2: Tensor) -> Tensor:
    """KL divergence of normals with these means and logarithms of variances, element by element, in nats."""
    square = (mean1 - mean2) ** 2 + np.exp(log_variance1)
    return (log_variance2 - log_variance1 - 1.0 + ops.exp(-log_variance2) * square) * 0.5


def discretized_nll(x0, mean, log_variance: Tensor) -> Tensor:
    """-log of the probability of x0, one of 256 levels in [-1, 1], element by element (Ho et al. 2020, eq. 13).

    The normal distribution function is 1/2 (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))), within 3e-4 of the exact one.
    """
    per_std = ops.exp(log_variance * -0.5)
    above = _normal_cdf((x0 - mean + 1.0 / 255.0) * per_std)
    below = _normal_cdf((x0 - mean - 1.0 / 255.0) * per_std)
    probability = ops.where(x0 < -0.999, above, ops.where(x0 > 0.999, 1.0 - below, above - below))
    return -ops.log(ops.clip(probability, 1e-12, 1.0))


def _normal_cdf(z: Tensor) -> Tensor:
    return ops.tanh((z + z * z * z * 0.044715) * math.sqrt(2.0 / math.pi)) * 0.5 + 0.5


# ---- which t are drawn -----------------------------------------------------------------------------------------------

TIMESTEPS = ("uniform", "stratified", "lognormal", "logit_normal")


def draw_timesteps(name: str, schedule, seed: int, step: int, n: int) -> np.ndarray:
    """t of the n examples of one training step: (n,) int64.

    "uniform"; "stratified": one in each of n equal parts of 0 .. T-1, which makes the loss less noisy (Kingma et al.
    2021, appendix I.1); "lognormal": log(sigma / alpha) ~ N(-1.2, 1.2^2) (Karras et al. 2022, table 1); "logit_normal":
    logit of sigma / (alpha + sigma) ~ N(0, 1) (Esser et al. 2024, eq. 19). ValueError for another name.
    """
    if name not in TIMESTEPS:
        raise ValueError(f"there are no timesteps {name!r}; choose one of {', '.join(TIMESTEPS)}")
    key = random.key(seed, random.TIMESTEP, np.arange(n), step)
    if name == "uniform":
        return random.integers(key, schedule.T)
    if name == "stratified":
        u = random.uniform(key, dtype=np.float64)
        return np.minimum(((np.arange(n) + u) * schedule.T / n).astype(np.int64), schedule.T - 1)
    z = random.normal(key, (), np.float64)
    ratio = np.exp(1.2 * z - 1.2) if name == "lognormal" else np.exp(z)  # logit(s) = log(sigma / alpha)
    return np.rint(schedule.t_at(np.ones(n), ratio)).astype(np.int64)


class LossAware:
    """Draws t where the loss is large: p_t proportional to sqrt(E[loss^2]) over the last losses seen at each t.

    Nichol and Dhariwal 2021, section 3.3 (eq. 18). Uniform until every t has `history` losses; then a share `least` of
    the draws stays uniform, so that no t is forgotten. The losses must be multiplied by `weights`, 1 / (T p_t), which
    keeps the expected gradient as it was.
    """

    def __init__(self, T: int, history: int = 10, least: float = 0.001):
        self.T, self.history, self.least = T, history, least
        self.losses = np.zeros((T, history))
        self.seen = np.zeros(T, dtype=np.int64)

    def probabilities(self) -> np.ndarray:
        """p_t, (T,)."""
        if not (self.seen >= self.history).all():
            return np.full(self.T, 1.0 / self.T)
        p = np.sqrt((self.losses**2).mean(1))
        return (1.0 - self.least) * p / p.sum() + self.least / self.T

    def draw(self, seed: int, step: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """t (n,) int64 and weights (n,), for one training step."""
        p = self.probabilities()
        u = random.uniform(random.key(seed, random.TIMESTEP, np.arange(n), step), dtype=np.float64)
        t = np.minimum(np.searchsorted(np.cumsum(p), u, side="right"), self.T - 1)
        return t, self.weights(t)

    def weights(self, t) -> np.ndarray:
        """1 / (T p_t), (N,), for t (N,) drawn since the last update."""
        return 1.0 / (self.T * self.probabilities()[t])

    def update(self, t, losses):
        """Takes note of the losses (N,), unweighted, at t (N,)."""
        for t_n, loss in zip(t, losses, strict=True):
            self.losses[t_n, self.seen[t_n] % self.history] = loss
            self.seen[t_n] += 1


# ---- offset noise and self-conditioning ------------------------------------------------------------------------------


def offset_noise(x, key, amount: float):
    """What offset noise adds to eps: `amount` times one more normal number for each picture and channel, (N, 1, .., C).

    Guttenberg 2023, "Diffusion with offset noise": without it, the mean brightness of x_T tells the picture's, and
    generated pictures keep to the middle. x: array (N, ..., C).
    """
    shape = (1,) * (x.ndim - 2) + x.shape[-1:]
    return amount * array_module(x).asarray(random.normal(key._replace(purpose=random.OFFSET), shape, x.dtype))


def self_conditioned(model, process, x_t, t, seed: int, step: int, share: float = 0.5):
    """The input of a self-conditioned network in training: x_t beside x0-hat or zeros, (N, ..., 2 C).

    Chen et al. 2023, "Analog bits", section 3.2: for a `share` of the examples the network is first asked with zeros,
    and its x0-hat, as a constant, then is part of the input. model: (Tensor (N, ..., 2 C), t) -> Tensor (N, ..., C);
    further channels, a learned variance, are left aside.
    """
    zeros = np.zeros_like(x_t)
    with no_grad():
        f = model(Tensor(np.concatenate([x_t, zeros], axis=-1)), t).data[..., : x_t.shape[-1]]
    asked = random.uniform(random.key(seed, random.SELF_CONDITION, np.arange(len(x_t)), step)) < share
    return np.concatenate([x_t, _column(asked, x_t) * process.to_x0(x_t, f, t)], axis=-1)


def conditioned(model, process, seed: int, step: int):
    """A self-conditioned network as the losses want it in training: (Tensor x_t, t, ...) -> Tensor."""

    def asked(x_t, t, *labels):
        given = self_conditioned(lambda x, t: model(x, t, *labels), process, x_t.data, t, seed, step)
        return model(Tensor(given), t, *labels)

    return asked


class SelfConditioned:
    """A self-conditioned network for one run of a sampler: hands every x0-hat to the next evaluation.

    model: (x beside x0-hat (N, ..., 2 C), t (N,)) -> f (N, ..., C), arrays; with a learned variance, f in the first C
    channels. Make a new one for every run. x0-hat is cut to `clip`, or left alone if that is None.
    """

    def __init__(self, model, process, clip=(-1.0, 1.0)):
        self.model, self.process, self.clip, self.x0 = model, process, clip, None

    def __call__(self, x, t):
        x0 = np.zeros_like(x) if self.x0 is None else self.x0
        f = self.model(np.concatenate([x, x0], axis=-1), t)
        x0 = self.process.to_x0(x, f[..., : x.shape[-1]], t)
        self.x0 = x0 if self.clip is None else np.clip(x0, *self.clip)
        return f


def _column(values, like):
    return np.asarray(values, like.dtype).reshape((-1,) + (1,) * (like.ndim - 1))

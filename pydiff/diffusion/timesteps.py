"""Which t the samples of a training step are noised to: pure functions of (seed, step, number of the sample).

numbers: the samples' positions in the global batch, so that half a batch draws the same as that half of the whole.
"""

import numpy as np

from pydiff import random

TIMESTEPS = ("uniform", "stratified", "lognormal", "logit_normal")


def draw_timesteps(name, schedule, seed: int, step: int, numbers, total: int | None = None, shift: float = 1.0):
    """t of the samples with these numbers in one training step: (N,) int64.

    numbers: (N,), or how many there are. total: samples in the global batch, N if None. shift: factor on sigma / alpha
    of every t drawn; more than 1 for what is large or says a thing many times over, such as the frames of a clip, and
    is still recognised under more noise (Esser et al. 2024, eq. 23).
    "uniform"; "stratified": one in each of `total` equal parts of 0 .. T-1, which makes the loss less noisy (Kingma et
    al. 2021, appendix I.1); "lognormal": log(sigma / alpha) ~ N(-1.2, 1.2^2) (Karras et al. 2022, table 1);
    "logit_normal": logit of sigma / (alpha + sigma) ~ N(0, 1) (Esser et al. 2024, eq. 19). Raises ValueError for
    others.
    """
    if name not in TIMESTEPS:
        raise ValueError(f"there are no timesteps {name!r}; choose one of {', '.join(TIMESTEPS)}")
    numbers = random.numbers_of(numbers)
    if shift != 1:
        alpha, sigma = schedule.at(draw_timesteps(name, schedule, seed, step, numbers, total))
        return np.rint(schedule.t_at(alpha, shift * sigma)).astype(np.int64)
    total = len(numbers) if total is None else total
    key = random.key(seed, random.TIMESTEP, numbers, step)
    if name == "uniform":
        return random.integers(key, schedule.T)
    if name == "stratified":
        u = random.uniform(key, dtype=np.float64)
        return np.minimum(((numbers + u) * schedule.T / total).astype(np.int64), schedule.T - 1)
    z = random.normal(key, (), np.float64)
    ratio = np.exp(1.2 * z - 1.2) if name == "lognormal" else np.exp(z)  # logit(s) = log(sigma / alpha)
    return np.rint(schedule.t_at(np.ones(len(numbers)), ratio)).astype(np.int64)


class LossAware:
    """Draws t where the loss is large: p_t proportional to sqrt(E[loss^2]) over the last losses seen at each t.

    Nichol and Dhariwal 2021, section 3.3 (eq. 18). Uniform until every t has `history` losses; then a fraction `least`
    of the draws stays uniform, so that no t is neglected. The losses must be multiplied by `weights`, 1 / (T p_t),
    which leaves the expected gradient unchanged.
    """

    def __init__(self, T: int, history: int = 10, least: float = 0.001):
        self.T, self.history, self.least = T, history, least
        self.losses = np.zeros((T, history))
        self.seen = np.zeros(T, dtype=np.int64)

    def probabilities(self) -> np.ndarray:
        """The probability with which each t is drawn, (T,)."""
        if not (self.seen >= self.history).all():
            return np.full(self.T, 1.0 / self.T)
        p = np.sqrt((self.losses**2).mean(1))
        return (1.0 - self.least) * p / p.sum() + self.least / self.T

    def draw(self, seed: int, step: int, numbers) -> tuple[np.ndarray, np.ndarray]:
        """t (N,) int64 and weights (N,) of the samples with these numbers, (N,) or how many, in one training step."""
        p = self.probabilities()
        key = random.key(seed, random.TIMESTEP, random.numbers_of(numbers), step)
        t = np.minimum(np.searchsorted(np.cumsum(p), random.uniform(key, dtype=np.float64), side="right"), self.T - 1)
        return t, self.weights(t)

    def weights(self, t) -> np.ndarray:
        """1 / (T p_t), (N,), for t (N,) drawn since the last update."""
        return 1.0 / (self.T * self.probabilities()[t])

    def update(self, t, losses):
        """Records the unweighted losses (N,) at t (N,)."""
        for t_n, loss in zip(t, losses, strict=True):
            self.losses[t_n, self.seen[t_n] % self.history] = loss
            self.seen[t_n] += 1

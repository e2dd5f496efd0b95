"""Self-conditioning: the network sees its last guess of the clean image beside the noisy one (Chen et al. 2023)."""

from pydiff import random
from pydiff.arrays import array_module, column
from pydiff.codec import PIXEL_RANGE
from pydiff.tensor import Tensor, no_grad


def self_conditioned(model, process, x_t, t, key, share: float = 0.5):
    """The input of a self-conditioned network in training: x_t beside x0-hat or zeros, (N, ..., 2 C).

    Chen et al. 2023, "Analog bits", section 3.2: for a `share` of the examples the network is first evaluated with
    zeros, and its x0-hat, as a constant, is then part of the input. model: (Tensor (N, ..., 2 C), t) -> Tensor (N, ...,
    C); further channels, a learned variance, are ignored. key: of N samples; it determines which examples these are.
    """
    xp = array_module(x_t)
    with no_grad():
        f = model(Tensor(xp.concatenate([x_t, xp.zeros_like(x_t)], axis=-1)), t).data[..., : x_t.shape[-1]]
    asked = random.uniform(key._replace(purpose=random.SELF_CONDITION)) < share
    return xp.concatenate([x_t, column(asked, x_t) * process.to_x0(x_t, f, t)], axis=-1)


def conditioned(model, process, key):
    """A self-conditioned network as the losses use it in training: (Tensor x_t, t, **condition) -> Tensor."""

    def asked(x_t, t, **condition):
        given = self_conditioned(lambda x, t: model(x, t, **condition), process, x_t.data, t, key)
        return model(Tensor(given), t, **condition)

    return asked


class SelfConditioned:
    """A self-conditioned network for one run of a sampler: passes every x0-hat to the next evaluation.

    model: (x beside x0-hat (N, ..., 2 C), t (N,)) -> f (N, ..., C), arrays; with a learned variance, f is in the first
    C channels. Make a new one for every run. x0-hat is clipped to `clip`, or not if that is None.
    """

    def __init__(self, model, process, clip=PIXEL_RANGE):
        self.model, self.process, self.clip, self.x0 = model, process, clip, None

    def __call__(self, x, t):
        xp = array_module(x)
        x0 = xp.zeros_like(x) if self.x0 is None else self.x0
        f = self.model(xp.concatenate([x, x0], axis=-1), t)
        x0 = self.process.to_x0(x, f[..., : x.shape[-1]], t)
        self.x0 = x0 if self.clip is None else x0.clip(*self.clip)
        return f

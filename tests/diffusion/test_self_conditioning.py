"""Self-conditioning: what the network is shown of its last guess, in training and in sampling."""

import numpy as np
import pytest

from pydiff import random
from pydiff.diffusion.path import path
from pydiff.diffusion.process import Process
from pydiff.diffusion.samplers import ddim
from pydiff.diffusion.schedule import schedule
from pydiff.diffusion.self_conditioning import SelfConditioned, self_conditioned
from tests.diffusion.exact_denoisers import last, start

LINEAR = schedule("linear")


def noise_key(n):
    return random.key(9, random.NOISE, np.arange(n), 1)


def test_self_conditioning_hands_on_the_last_x0():
    process = Process(LINEAR, "x0")
    seen = []

    def model(x, _t):
        seen.append(x)
        return 0.5 * x[..., :2] + 0.25 * x[..., 2:]

    conditioned = SelfConditioned(model, process)
    x = last(ddim(conditioned, start(2, 2), process, path(LINEAR, 4)))
    assert x.shape == (2, 2)
    assert (seen[0][..., 2:] == 0).all()
    previous = np.clip(0.5 * seen[1][..., :2] + 0.25 * seen[1][..., 2:], -1, 1)
    np.testing.assert_allclose(seen[2][..., 2:], previous)

    x_t, t = start(2000, 2), np.full(2000, 300)
    asked = self_conditioned(lambda x, _t: x[..., :2] * 0.5, process, x_t, t, noise_key(2000))
    given_hint = (asked[:, 2:] != 0).all(1)
    assert given_hint.mean() == pytest.approx(0.5, abs=0.06)
    np.testing.assert_allclose(asked[given_hint, 2:], 0.5 * x_t[given_hint])
    assert (asked[:, :2] == x_t).all()

"""The twelve plain lines of DDPM are the general sampler, and Ho et al.'s algorithm 2."""

import numpy as np
import pytest

from pydiff.diffusion.path import path
from pydiff.diffusion.process import Process
from pydiff.diffusion.samplers import ddpm
from pydiff.diffusion.samplers.plain import ddpm_plain
from pydiff.diffusion.schedule import schedule
from tests.diffusion.exact_denoisers import last, start


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine", "sigmoid"])
def test_they_draw_what_the_general_loop_draws(name):
    process, x = Process(schedule(name, 60)), start(3, 5)
    sample = np.array([4, 0, 9])

    def model(x, t):
        return np.tanh(x) * (0.5 + t / 100).reshape(-1, 1)

    general = last(
        ddpm(model, x, process, path(process.schedule, 60), seed=7, sample=sample, clip=None, variance="small")
    )
    plain = ddpm_plain(model, x, process, seed=7, sample=sample)
    np.testing.assert_allclose(plain, general, rtol=1e-9, atol=1e-9)
    assert np.abs(plain - ddpm_plain(model, x, process, seed=8, sample=sample)).max() > 1e-3


def test_a_sample_does_not_depend_on_the_others():
    process, x = Process(schedule("linear", 20)), start(4, 3)

    def model(x, _t):
        return 0.3 * x

    together = ddpm_plain(model, x, process, seed=1)
    assert ddpm_plain(model, x.astype(np.float32), process).dtype == np.float32
    assert np.array_equal(together[2:3], ddpm_plain(model, x[2:3], process, seed=1, sample=np.array([2])))

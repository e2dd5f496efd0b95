"""The bound on bits against models whose likelihood is known exactly."""

import math

import numpy as np
import pytest

import pydiff
from pydiff.codec import Pixels
from pydiff.codecs import Points
from pydiff.diffusion import Process, schedule
from pydiff.likelihood import bits
from pydiff.pipeline import Pipeline
from pydiff.tensor import as_tensor


class Normal:
    """What a perfect network says where the data are normal with this standard deviation: the noise, on average."""

    def __init__(self, process, std):
        self.process, self.std = process, std

    def parameters(self):
        return []

    def __call__(self, x, t):
        alpha, sigma = self.process.schedule.at(np.asarray(t))
        share = sigma / (alpha**2 * self.std**2 + sigma**2)
        return as_tensor(as_tensor(x).data * share.reshape((-1,) + (1,) * (np.ndim(x) - 1)))


def normal_pipeline(T, std=0.8, dim=3, scale=1.0, factor=1.0):
    process = Process(schedule("cosine", T))
    model = Normal(process, std * factor)
    return Pipeline(model, process, Points(dim, scale=scale))


def test_a_perfect_model_spends_what_it_must_and_little_more():
    """The bound is above the exact value; with the better of the two variances hardly so, with the other ever less."""
    rng, std = np.random.default_rng(0), 0.8
    x = (std * rng.standard_normal((2000, 3))).astype(np.float32)
    exact = float((0.5 * (x / std) ** 2 + 0.5 * math.log(2 * math.pi * std**2)).mean() / math.log(2))
    large = [float(bits(normal_pipeline(T), x).mean()) - exact for T in (20, 100, 300)]
    small = [float(bits(normal_pipeline(T), x, variance="small").mean()) - exact for T in (20, 100, 300)]
    assert all(-0.01 < gap < 0.04 for gap in large)  # 0.01: the noise of 2000 points
    assert small[0] > small[1] > small[2] > 0.1


def test_another_model_spends_more():
    x = (0.8 * np.random.default_rng(1).standard_normal((500, 3))).astype(np.float32)
    right = bits(normal_pipeline(200), x).mean()
    assert bits(normal_pipeline(200, factor=2.0), x).mean() > right + 0.05
    assert bits(normal_pipeline(200, factor=0.5), x).mean() > right + 0.05


def test_scaled_points_cost_the_logarithm_of_the_scale_more():
    x = (0.8 * np.random.default_rng(2).standard_normal((50, 3))).astype(np.float32)
    plain, scaled = bits(normal_pipeline(50), x), bits(normal_pipeline(50, scale=4.0), 4 * x)
    assert np.allclose(scaled, plain + 2, atol=1e-3)


def test_the_bits_of_a_sample_do_not_depend_on_the_batch():
    x = np.random.default_rng(3).standard_normal((5, 3)).astype(np.float32)
    pipeline = normal_pipeline(30)
    together = bits(pipeline, x)
    assert np.allclose(bits(pipeline, x[3:4], numbers=[3]), together[3], rtol=1e-6)
    assert np.allclose(bits(pipeline, x, batch_size=2), together, rtol=1e-6)


def test_images_and_clips_cost_about_eight_bits_untrained_and_fewer_trained():
    """Nobody who knows nothing of a level needs more than 8 bits for it in a fair code; a few steps save some."""
    tiny = {
        "batch_size": 16,
        "channels": (8,),
        "prediction": "v",
        "groups": 4,
        "timesteps": 60,
        "sample_every": 0,
        "progress": False,
    }
    data = pydiff.data.load("digits").subset(np.arange(64))
    short, long = (pydiff.train(data, steps=steps, warmup=2, ema=0.5, **tiny) for steps in (1, 60))
    before, after = (bits(run.pipeline, data.images[:8]).mean() for run in (short, long))
    assert 0 < after < before - 1
    clips = pydiff.data.load(data.images.reshape(16, 4, 8, 8, 1))
    run = pydiff.train(clips, steps=1, **tiny)
    assert bits(run.pipeline, clips.images[:3]).shape == (3,)


def test_a_uniform_guess_of_the_levels_costs_eight_bits():
    """A model of a wide normal alone: the bound on 256 levels is near the continuous one plus log2 127.5."""
    x = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1)).astype(np.uint8)
    process = Process(schedule("linear", 1000))
    std = float((x / 127.5 - 1).std())
    spent = bits(Pipeline(Normal(process, std), process, Pixels((4, 4, 1))), x, variance="large").mean()
    normal = 0.5 * math.log2(2 * math.pi * math.e * std**2) + math.log2(127.5)
    assert abs(spent - normal) < 0.35


def test_what_has_no_bound_is_said():
    pipeline = normal_pipeline(50)
    pipeline.process = Process(schedule("cosine", 50, True), "v")
    with pytest.raises(ValueError, match="signal at the end"):
        bits(pipeline, np.zeros((2, 3), np.float32))

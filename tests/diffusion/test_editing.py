"""Editing: what is kept is kept, what is drawn fits, and every option counts."""

import numpy as np
import pytest

from pydiff.diffusion import editing, samplers
from pydiff.diffusion.path import path
from pydiff.diffusion.process import Process
from pydiff.diffusion.schedule import schedule
from tests.diffusion.exact_denoisers import last, model_of, normal_denoiser, points_denoiser, start

PROCESS = Process(schedule("linear"), "eps")
NORMAL = model_of(normal_denoiser, PROCESS)
POINTS = np.array([[1.0, 1.0, -1.0, -1.0], [-1.0, -1.0, 1.0, 1.0], [1.0, -1.0, 1.0, -1.0]])
MODEL = model_of(points_denoiser(POINTS, np.full(3, 1 / 3)), PROCESS)


def test_image_to_image_keeps_more_the_weaker_it_is():
    images, p = 0.3 + 0.5 * start(50, 3, seed=4), path(PROCESS.schedule, 40)
    distance = []
    for strength in (0.1, 0.4, 1.0):
        got = last(editing.image_to_image(NORMAL, images, PROCESS, p, strength, clip=None))
        distance.append(np.abs(got - images).mean())
        assert got.std() == pytest.approx(0.5, rel=0.15)
    assert distance[0] < 0.5 * distance[1] < 0.5 * distance[2]
    assert len(editing.shortened(p, 0.25).t) == 10
    assert len(editing.shortened(p, 1e-9).t) == 1
    same = last(editing.image_to_image(NORMAL, images[3:4], PROCESS, p, 0.4, sample=[3], clip=None))
    whole = last(editing.image_to_image(NORMAL, images, PROCESS, p, 0.4, clip=None))
    assert (same[0] == whole[3]).all()
    for strength in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="expected above 0"):
            editing.shortened(p, strength)


def test_image_to_image_with_another_sampler():
    p = path(PROCESS.schedule, 20)
    images = np.repeat(POINTS, 10, axis=0)
    got = last(editing.image_to_image(MODEL, images, PROCESS, p, 0.1, sampler=samplers.dpm_solver))
    np.testing.assert_allclose(got, images, atol=0.1)  # so little noise does not make another point of it


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_variations_go_from_the_same_image_to_another(prediction, spacing):
    process = Process(PROCESS.schedule, prediction)
    images, p = 0.3 + 0.5 * start(40, 3, seed=4), path(process.schedule, 60, spacing)
    model = model_of(normal_denoiser, process)
    distance = [
        np.abs(last(editing.variations(model, images, process, p, amount, clip=None)) - images).mean()
        for amount in (0.0, 0.3, 1.0)
    ]
    assert distance[0] <= 0.05
    assert 2 * distance[0] < distance[1] < 0.6 * distance[2]
    with pytest.raises(ValueError, match=r"amount is 1\.5"):
        editing.variations(NORMAL, images, PROCESS, p, 1.5)


def test_interpolation_keeps_the_norm_and_meets_both_ends():
    a, b = start(2, 20, 20)
    path_of = editing.interpolate(a, b, [0.0, 0.25, 0.5, 1.0])
    np.testing.assert_allclose(path_of[0], a, rtol=1e-9)
    np.testing.assert_allclose(path_of[-1], b, rtol=1e-9)
    norms = np.sqrt((path_of**2).sum((1, 2)))
    assert (norms >= 0.9 * min(norms[0], norms[-1])).all()
    assert np.linalg.norm((a + b) / 2) < 0.8 * norms[2]
    np.testing.assert_allclose(editing.interpolate(a, a, [0.3])[0], a, rtol=1e-9)


def test_inpainting_draws_what_fits_the_known_part():
    """Pixels 0 and 1 are known, and the data set says what goes with them: (1, -1) with 1, -1 and (1, 1) with -1."""
    p = path(PROCESS.schedule, 40)
    images = np.zeros((60, 4))
    images[:30, :2], images[30:, :2] = (1.0, -1.0), (1.0, 1.0)
    mask = np.array([0.0, 0.0, 1.0, 1.0])
    expected = np.repeat([[1.0, -1.0], [-1.0, -1.0]], 30, axis=0)

    def share(resample):
        got = last(editing.inpaint(MODEL, images, mask, PROCESS, p, resample=resample, seed=1))
        np.testing.assert_array_equal(got[:, :2], images[:, :2])
        return (np.abs(got[:, 2:] - expected).max(1) <= 0.2).mean()

    once, often = share(1), share(8)
    assert often >= 0.95
    assert often >= once


def test_inpainting_states_and_batches():
    p, images = path(PROCESS.schedule, 6), start(3, 4)
    states = list(editing.inpaint(MODEL, images, 1.0, PROCESS, p, resample=2))
    assert [s.step for s in states] == [1, 2, 3, 4, 5, 6]
    alone = list(editing.inpaint(MODEL, images[2:], 1.0, PROCESS, p, resample=2, sample=[2]))
    assert (alone[-1].x[0] == states[-1].x[2]).all()
    other = list(editing.inpaint(MODEL, images, 1.0, PROCESS, p, resample=2, seed=8))
    assert (other[-1].x != states[-1].x).any()
    with pytest.raises(ValueError, match="resample is 0"):
        list(editing.inpaint(MODEL, images, 1.0, PROCESS, p, resample=0))

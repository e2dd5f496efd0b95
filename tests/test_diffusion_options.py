"""Every diffusion choice that a user has, in training and in sampling: it works, and it changes the result."""

import numpy as np
import pytest

import pydiff
from pydiff.diffusion.objective import TIMESTEPS, WEIGHTS
from pydiff.diffusion.path import SIGMA_SPACINGS, SPACINGS
from pydiff.diffusion.prediction import PREDICTIONS
from pydiff.diffusion.samplers import SAMPLERS
from pydiff.diffusion.schedule import BUILDERS

TINY = {"steps": 3, "batch_size": 16, "channels": (8,), "groups": 4, "timesteps": 50, "warmup": 0}


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(0).integers(0, 256, (12, 6, 6, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def plain(data):
    return pydiff.train(data, progress=False, **TINY)


def weights(run):
    return np.concatenate([np.ravel(v) for v in run.model.state_dict().values()])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("prediction", p) for p in PREDICTIONS if p != "eps"],
        *[("schedule", s) for s in BUILDERS if s not in ("cosine", "flow")],
        *[("loss_weight", w) for w in WEIGHTS if w != "simple"],
        *[("timestep_sampling", t) for t in TIMESTEPS if t != "uniform"],
        ("offset_noise", 0.5),
    ],
)
def test_every_choice_changes_what_is_learned(data, plain, name, value):
    run = pydiff.train(data, progress=False, **TINY, **{name: value})
    assert np.isfinite(weights(run)).all()
    assert (weights(run) != weights(plain)).any()
    assert run.sample(2, steps=3).shape == (2, 6, 6, 1)


def test_zero_snr_and_flows_start_from_noise_alone(data):
    v = pydiff.train(data, progress=False, **TINY, prediction="v")
    rescaled = pydiff.train(data, progress=False, **TINY, prediction="v", zero_snr=True)
    assert (weights(v) != weights(rescaled)).any()
    flow = pydiff.train(data, progress=False, **TINY, prediction="flow", schedule="flow")
    for run in (rescaled, flow):
        assert run.process.schedule.alpha[-1] == 0
        for sampler in ("ddim", "heun", "dpm_solver", "unipc", "lms", "deis", "flow_heun"):
            assert run.sample(2, steps=4, sampler=sampler).shape == (2, 6, 6, 1)
    for prediction in ("eps", "edm"):
        with pytest.raises(ValueError, match="ends in noise alone"):
            pydiff.Options(schedule="flow", prediction=prediction).check()


def test_every_sampler_draws_pictures_of_its_own(plain):
    drawn = {name: plain.sample(2, steps=6, sampler=name) for name in SAMPLERS}
    for name, pictures in drawn.items():
        assert pictures.shape == (2, 6, 6, 1), name
    twins = {("ddim", "euler"), ("ddim", "flow_euler"), ("euler", "flow_euler"), ("ddpm", "euler_ancestral")}
    for a in drawn:
        for b in drawn:
            if a < b and (a, b) not in twins:
                assert (drawn[a] != drawn[b]).any(), (a, b)


def test_spacing_and_eta_change_the_pictures(plain):
    spacings = [*SPACINGS, *SIGMA_SPACINGS]
    drawn = [plain.sample(4, steps=8, spacing=spacing) for spacing in spacings]
    for i in range(len(spacings)):
        for j in range(i):
            assert (drawn[i] != drawn[j]).any(), (spacings[i], spacings[j])
    for sampler in ("ddim", "dpm2"):
        assert (plain.sample(2, steps=5, sampler=sampler) != plain.sample(2, steps=5, sampler=sampler, eta=1.0)).any()
    with pytest.raises(ValueError, match=r"eta 0\.5 is for ddim and dpm2, and the sampler is 'heun'"):
        plain.sample(2, steps=5, sampler="heun", eta=0.5)


def test_exploding_schedules_start_from_as_much_noise(data):
    run = pydiff.train(data, progress=False, **TINY, schedule="edm", prediction="edm")
    first = next(iter(run.sample_states(3, steps=5)))
    x = first.x0 + 80.0 * first.eps
    assert np.std(x) == pytest.approx(80.0, rel=0.2)
